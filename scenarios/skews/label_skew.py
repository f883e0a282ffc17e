"""Clients with different mixes of classes, by a Dirichlet distribution for each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.federation import Dataset, Parts, Rows, ScenarioError
from scenarios.skews.base import (
    Holdings,
    check_concentration,
    check_count,
    check_enough,
    draw_counts,
    group_rows,
    holdings,
    labels_of,
    largest_remainder,
)


@dataclass(frozen=True)
class LabelSkew:
    """Every class is divided over the clients in shares drawn from Dirichlet(alpha).

    Parameters
    ----------
    clients : int
        Number of clients.
    alpha : float
        Concentration: 0.1 leaves most of a class with one or two clients, 100 divides it evenly.
    min_per_class : int
        Rows of every class that each client gets first; 1 is the rule of the GGEUR papers.
    min_size : int
        Smallest client that is accepted; shares are drawn anew until it is met, a bounded number of times.

    Notes
    -----
    Li et al., "Federated Learning on Non-IID Data Silos", distribution-based label imbalance. The guaranteed
    rows are those of GGEUR's CIFAR experiments; counts are rounded by largest remainder here, so that no
    client takes what rounding leaves over. Data without class labels count as one class.
    """

    clients: int = 10
    alpha: float = 0.5
    min_per_class: int = 0
    min_size: int = 1

    def __post_init__(self) -> None:
        check_count("clients", self.clients, 1)
        check_concentration("alpha", self.alpha)
        check_count("min_per_class", self.min_per_class, 0)
        check_count("min_size", self.min_size, 1)

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Holdings:
        """Divide all rows of ``pool``.

        Raises
        ------
        ScenarioError
            Where ``min_per_class`` or ``min_size`` cannot be met; says what could be.
        """
        check_enough(dataset, len(pool), self.clients, self.min_size)
        classes = group_rows(pool, labels_of(dataset)[pool])
        left = np.array([len(rows) for rows in classes.values()]) - self.clients * self.min_per_class
        if left.min() < 0:
            self._too_few(dataset, {label: len(rows) for label, rows in classes.items()})

        concentration = np.full(self.clients, float(self.alpha))

        def draw() -> Rows:
            shares = rng.dirichlet(concentration, size=len(classes))
            return self.min_per_class + largest_remainder(shares, left, rng)

        remedy = f"raise alpha ({self.alpha}), use fewer clients ({self.clients}) or lower min_size"
        counts = draw_counts(draw, self.min_size, f"{remedy}: label_skew on data '{dataset.name}'")
        rows = np.concatenate([rng.permutation(of_class) for of_class in classes.values()])
        owner = np.concatenate([np.repeat(np.arange(self.clients), of_class) for of_class in counts])
        return holdings(dataset, Parts.gather(rows, owner, self.clients))

    def _too_few(self, dataset: Dataset, sizes: dict[int, int]) -> None:
        label = min(sizes, key=lambda each: sizes[each])
        named = f"'{dataset.meta.classes[label]}'" if label < len(dataset.meta.classes) else str(label)
        raise ScenarioError(
            f"data '{dataset.name}': class {named} has {sizes[label]} rows to train on, min_per_class="
            f"{self.min_per_class} for {self.clients} clients needs {self.min_per_class * self.clients}; "
            f"clients x min_per_class can be at most {sizes[label]}"
        )
