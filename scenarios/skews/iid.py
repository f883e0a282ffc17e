"""No skew: every client holds a random share of all rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows
from scenarios.skews.base import Holdings, check_count, check_enough, even_sizes, holdings


@dataclass(frozen=True)
class Iid:
    """Equal random shares. With one client this is central training, the ceiling of a comparison.

    Parameters
    ----------
    clients : int
        Number of clients; sizes differ by one row at most.
    """

    clients: int = 10

    def __post_init__(self) -> None:
        check_count("clients", self.clients, 1)

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Deal all rows of ``pool`` evenly; ScenarioError where they are fewer than the clients."""
        check_enough(dataset, len(pool), self.clients)
        return holdings(dataset, Parts.cut(rng.permutation(pool), even_sizes(len(pool), self.clients)))
