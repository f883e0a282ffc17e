"""Clients that differ in domain and in their mix of classes: the construction of Office-Home-LDS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows
from scenarios.skews.base import (
    Holdings,
    check_concentration,
    check_count,
    check_domains,
    draw_counts,
    even_sizes,
    group_rows,
    labels_of,
)


@dataclass(frozen=True)
class LabelDomainSkew:
    """Each domain keeps a share of each class, drawn from a Dirichlet over domains, and drops the rest.

    For every class, ``p ~ Dirichlet(alpha * 1)`` over the domains; a domain with ``n`` training rows of the
    class keeps ``floor(p * n)`` of them at random.

    Parameters
    ----------
    alpha : float
        Concentration; the papers use 0.05, 0.1 and 0.5.
    clients_per_domain : int
        Clients among whom the rows that a domain keeps are dealt evenly at random.
    min_size : int
        Smallest client that is accepted; shares are drawn anew until it is met, a bounded number of times.

    Notes
    -----
    Ma et al., "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning"
    (GGEUR), Office-Home-LDS.
    """

    alpha: float = 0.1
    clients_per_domain: int = 1
    min_size: int = 1

    def __post_init__(self) -> None:
        check_concentration("alpha", self.alpha)
        check_count("clients_per_domain", self.clients_per_domain, 1)
        check_count("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Keep and drop rows of ``pool``, then deal each domain's to its clients.

        Raises
        ------
        ScenarioError
            Where the data have one domain only, or ``min_size`` cannot be met.
        """
        check_domains(dataset, "label_domain_skew")
        domains = len(dataset.domains)
        classes, label = np.unique(labels_of(dataset)[pool], return_inverse=True)
        cells = group_rows(pool, label * domains + dataset.domain[pool])
        held = np.zeros((len(classes), domains), dtype=np.int64)
        for cell, rows in cells.items():
            held.flat[cell] = len(rows)

        concentration = np.full(domains, float(self.alpha))

        def draw() -> Rows:
            return np.floor(rng.dirichlet(concentration, size=len(classes)) * held).astype(np.int64)

        kept = draw_counts(
            draw,
            self.min_size * self.clients_per_domain,
            f"raise alpha ({self.alpha}), lower clients_per_domain ({self.clients_per_domain}) or min_size "
            f"({self.min_size}): label_domain_skew on data '{dataset.name}', where a part is a domain",
        )
        of_domain: list[list[Rows]] = [[] for _ in dataset.domains]
        for cell, rows in cells.items():
            of_domain[cell % domains].append(rng.permutation(rows)[: kept.flat[cell]])
        dealt = [rng.permutation(np.concatenate(rows)) for rows in of_domain]
        sizes = np.concatenate([even_sizes(len(rows), self.clients_per_domain) for rows in dealt])
        domain = np.repeat(np.arange(domains, dtype=np.int64), self.clients_per_domain)
        return Holdings(Parts.cut(np.concatenate(dealt), sizes).sort(), domain)
