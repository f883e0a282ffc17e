"""Clients that each hold data of one domain: scanners, artists or cameras that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows, ScenarioError
from scenarios.skews.base import (
    Holdings,
    check_count,
    check_domains,
    check_enough,
    even_sizes,
    group_rows,
    portion,
)


@dataclass(frozen=True)
class DomainSkew:
    """One or more clients for each domain, in the order of the domains.

    Parameters
    ----------
    clients_per_domain : int
        Clients among whom a domain's rows are dealt evenly, at random unless ``blocks``.
    rate : float or None
        Share of a domain that is kept, drawn at random unless ``blocks``; ``None`` keeps every row.
    rate_of : {"train", "domain"}
        What ``rate`` is a share of: the domain's rows that may be trained on, or the whole domain with its
        held-out rows.
    blocks : bool
        Cut a domain's rows in the order of the data into one block a client, the first client holding the
        earliest; ``rate`` then keeps the last rows of the domain, before they are cut. For time series these
        are stretches of time, ``rate`` keeping the newest. Where data have units, such as users, it is the
        units that are cut in their order.

    Notes
    -----
    The usual experiments keep 10 % of a domain's training rows for Digits (``rate=0.1``), and for PACS and
    Office-Caltech-10 30 % of the whole domain, drawn from its training part (``rate=0.3``,
    ``rate_of="domain"``); source: the partitions of GGEUR's multi-domain experiments.

    Windows of time series that start in neighbouring blocks share the steps at the border. Test rows are
    dealt at random in either case: blocks divide what is trained on.
    """

    clients_per_domain: int = 1
    rate: float | None = None
    rate_of: str = "train"
    blocks: bool = False

    def __post_init__(self) -> None:
        check_count("clients_per_domain", self.clients_per_domain, 1)
        number = isinstance(self.rate, int | float) and not isinstance(self.rate, bool)
        if self.rate is not None and not (number and 0 < self.rate <= 1):
            raise ValueError(
                f"rate: not a share, got {self.rate!r}; use a number above 0, up to 1, or null for every row"
            )
        if self.rate_of not in ("train", "domain"):
            raise ValueError(f"rate_of: unknown, got {self.rate_of!r}; use 'train' or 'domain'")
        if self.blocks not in (True, False):
            raise ValueError(f"blocks: not a switch, got {self.blocks!r}; use true or false")

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Deal every domain's rows of ``pool`` to its own clients.

        Raises
        ------
        ScenarioError
            Where the data have one domain only, or a domain has too few rows for the rate or the clients.
        """
        check_domains(dataset, "domain_skew")
        of_domain = group_rows(pool, dataset.domain[pool])
        kept = []
        for index, name in enumerate(dataset.domains):
            rows = of_domain.get(index, pool[:0])
            count = self._kept(dataset, index, len(rows))
            rows = rows[len(rows) - count :] if self.blocks else rng.permutation(rows)[:count]
            check_enough(dataset, len(rows), self.clients_per_domain, where=f", domain '{name}'")
            kept.append(rows)
        sizes = np.concatenate([even_sizes(len(rows), self.clients_per_domain) for rows in kept])
        domain = np.repeat(np.arange(len(kept), dtype=np.int64), self.clients_per_domain)
        return Holdings(Parts.cut(np.concatenate(kept), sizes).sort(), domain)

    def _kept(self, dataset: Dataset, index: int, available: int) -> int:
        if self.rate is None:
            return available
        whole = int(np.count_nonzero(dataset.domain == index))
        kept = portion(self.rate, available if self.rate_of == "train" else whole)
        if kept > available:
            raise ScenarioError(
                f"rate={self.rate} of the whole domain '{dataset.domains[index]}' is {kept} rows, but "
                f"{available} of its {whole} may be trained on; use rate={100 * available // whole / 100} or "
                "less, or rate_of='train'"
            )
        return kept
