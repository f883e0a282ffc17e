"""Clients as the data have them: every user's device is a client."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        """Give every unit its own rows; clients are in the order of units.

        What is held out of units that are no clients is nobody's, and in the tests of its domain alone.

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
        units = np.unique(dataset.unit[pool])
        if self.clients is not None:
            if self.clients > len(units):
                raise ScenarioError(
                    f"data '{dataset.name}': {len(units)} units with rows to train on cannot make "
                    f"{self.clients} clients; use at most {len(units)}, or null for all"
                )
            units = np.sort(rng.choice(units, self.clients, replace=False))
        place = np.minimum(np.searchsorted(units, dataset.unit), len(units) - 1)
        owner = np.where(units[place] == dataset.unit, place, -1)
        pool = pool[owner[pool] >= 0]
        return replace(holdings(dataset, Parts.gather(pool, owner[pool], len(units))), owner=owner)
