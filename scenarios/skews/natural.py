"""Clients as the data have them: every user's device is a client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows, ScenarioError
from scenarios.skews.base import Holdings, check_count, holdings


@dataclass(frozen=True)
class Natural:
    """Each unit of the data, such as a user, is a client of its own.

    Parameters
    ----------
    clients : int or None
        Number of clients, drawn at random from the units; ``None`` takes all.
    """

    clients: int | None = None

    def __post_init__(self) -> None:
        if self.clients is not None:
            check_count("clients", self.clients, 1)

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Give every unit its rows of ``pool``; clients are in the order of units.

        Raises
        ------
        ScenarioError
            Where rows of the data belong to nothing, or there are fewer units than ``clients``.
        """
        if dataset.unit is None:
            raise ScenarioError(
                f"natural: data '{dataset.name}' do not say who has which rows; use data of users, such as "
                "movielens or interests, or another skew, such as iid"
            )
        units, owner = np.unique(dataset.unit[pool], return_inverse=True)
        if self.clients is not None:
            if self.clients > len(units):
                raise ScenarioError(
                    f"data '{dataset.name}': {len(units)} units with rows to train on cannot make "
                    f"{self.clients} clients; use at most {len(units)}, or null for all"
                )
            number = np.full(len(units), -1)
            chosen = np.sort(rng.choice(len(units), self.clients, replace=False))
            number[chosen] = np.arange(self.clients)
            kept = number[owner] >= 0
            pool, owner, units = pool[kept], number[owner[kept]], units[chosen]
        return holdings(dataset, Parts.gather(pool, owner, len(units)))
