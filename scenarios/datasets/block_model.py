"""Stochastic block models with Gaussian features: the embedded data of node classification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scenarios.datasets.graphs import Features, GraphDataset, node_dataset
from scenarios.datasets.options import check_number, check_whole
from scenarios.federation import Rows

DENSITY = (1.0, 2.0, 0.5)
"""Factors of the degree of domains 0, 1, 2, and again of 3, 4, 5 and so on."""
HOMOPHILY = (1.0, 0.5, 0.75)
"""Factors of ``p_in``, in the same way."""


@dataclass(frozen=True)
class BlockModel:
    """Random graphs in which nodes of a class are linked more often, a domain each, side by side.

    Classes are uniform. Of ``nodes * degree / 2`` edges each end is drawn: the first among all nodes, the
    other among the first one's class with probability ``p_in``, else among all nodes; so a share ``p_in +
    (1 - p_in) / classes`` of edges joins nodes of a class. Loops are left out and repeated edges are one,
    which by default takes under 1 % of them. Features are the class's mean, drawn from N(0, 1) for each
    coordinate, and noise.

    Domains have the same class means and differ in three ways: in density, with 1, 2 and 0.5 times the
    degree; in homophily, with 1, 0.5 and 0.75 times ``p_in``; and by an offset of all features of a domain
    but the first. From the fourth domain on, these factors come again, each with another offset.

    Parameters
    ----------
    nodes : int
        Of each domain.
    classes, features, domains : int
        Number of classes, of features of a node, of domains.
    degree : float
        Mean number of neighbours, in domain 0.
    p_in : float
        Share of edges that are drawn inside a class, in domain 0.
    noise : float
        Standard deviation of features around the class's mean.
    shift : float
        Standard deviation of each coordinate of a domain's offset.
    seed : int
        Of everything. A domain is the same whatever the number of domains.

    Notes
    -----
    Domain 0 with the default options is the small configuration of LargeGT's tests (Dwivedi et al., arXiv
    2312.11109), drawn from ``default_rng(seed)`` in the order classes, edges, means, noise.
    """

    nodes: int = 2000
    classes: int = 4
    degree: float = 10.0
    p_in: float = 0.7
    noise: float = 2.0
    features: int = 16
    domains: int = 3
    shift: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field, minimum in (("nodes", 1), ("classes", 2), ("features", 1), ("domains", 1), ("seed", 0)):
            check_whole(field, getattr(self, field), minimum)
        for field in ("degree", "noise", "shift"):
            check_number(field, getattr(self, field))
        check_number("p_in", self.p_in, 0, 1)

    def load(self) -> GraphDataset:
        """Draw the graphs.

        Returns
        -------
        GraphDataset
            Nodes of a domain one after the other, in no order; no official test rows.
        """
        total = self.domains * self.nodes
        y = np.empty(total, dtype=np.int64)
        x = np.empty((total, self.features), dtype=np.float32)
        ends: list[tuple[Rows, Rows]] = []
        means: npt.NDArray[np.float64] | None = None
        for number in range(self.domains):
            rng = np.random.default_rng([self.seed, number] if number else self.seed)
            part = slice(number * self.nodes, (number + 1) * self.nodes)
            y[part] = rng.integers(self.classes, size=self.nodes)
            source, target = self._edges(number, y[part], rng)
            ends.append((source + part.start, target + part.start))
            if means is None:
                means = rng.standard_normal((self.classes, self.features))
            offset = self.shift * rng.standard_normal(self.features) if number else 0.0
            x[part] = self._around(means + offset, y[part], rng)
        source, target = (np.concatenate(side) for side in zip(*ends, strict=True))
        return node_dataset(
            "block_model",
            x,
            y,
            (source, target),
            tuple(f"class_{c}" for c in range(self.classes)),
            domain=np.repeat(np.arange(self.domains), self.nodes),
            domains=tuple(f"graph_{number}" for number in range(self.domains)),
        )

    def _edges(self, number: int, y: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Ends of a domain's edges, loops and repeated ones among them."""
        draws = round(self.nodes * self.degree * DENSITY[number % len(DENSITY)] / 2)
        source = rng.integers(self.nodes, size=draws)
        inside = rng.random(draws) < self.p_in * HOMOPHILY[number % len(HOMOPHILY)]
        target = rng.integers(self.nodes, size=draws)
        size = np.bincount(y, minlength=self.classes)
        start = np.cumsum(size) - size
        of_source = y[source[inside]]
        place = start[of_source] + rng.integers(size[of_source])
        target[inside] = np.argsort(y, kind="stable")[place]
        return source, target

    def _around(self, means: npt.NDArray[np.float64], y: Rows, rng: np.random.Generator) -> Features:
        x = self.noise * rng.standard_normal((len(y), self.features))
        x += means[y]
        return x.astype(np.float32)
