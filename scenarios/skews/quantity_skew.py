"""Clients of very different size, with the same mix of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows
from scenarios.skews.base import (
    Holdings,
    check_concentration,
    check_count,
    check_enough,
    holdings,
    largest_remainder,
)


@dataclass(frozen=True)
class QuantitySkew:
    """Client sizes from a Dirichlet distribution; which rows a client gets is left to chance.

    Parameters
    ----------
    clients : int
        Number of clients.
    alpha : float
        Concentration: small values give a few large clients, large values equal ones.
    min_size : int
        Rows that every client gets before the rest is divided.

    Notes
    -----
    Li et al., "Federated Learning on Non-IID Data Silos", section "Quantity skew". Because ``min_size`` is
    given first rather than waited for by redrawing, every feasible request succeeds with one draw.
    """

    clients: int = 10
    alpha: float = 0.5
    min_size: int = 1

    def __post_init__(self) -> None:
        check_count("clients", self.clients, 1)
        check_concentration("alpha", self.alpha)
        check_count("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Divide all rows of ``pool``; ScenarioError where ``min_size`` cannot be given to everyone."""
        check_enough(dataset, len(pool), self.clients, self.min_size)
        shares = rng.dirichlet(np.full(self.clients, float(self.alpha)))
        sizes = self.min_size + largest_remainder(shares, len(pool) - self.clients * self.min_size, rng)
        return holdings(dataset, Parts.cut(rng.permutation(pool), sizes))
