"""What a client is going to take: the cost model behind placement."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MEMORY = 0.5
"""Weight of the past in what is known of a client."""


class Costs:
    """Predicts seconds, by client where it was measured and by examples where it was not.

    A client that was measured takes what it took, later measurements counting more. One that was not takes
    its number of examples times the rate of all measured clients, by kind of message.

    Parameters
    ----------
    sizes : ndarray of int
        Number of examples of each partition.
    """

    def __init__(self, sizes: npt.NDArray[np.integer[Any]]) -> None:
        self._sizes = sizes
        self._seconds: dict[tuple[str, int], float] = {}
        self._totals: dict[str, tuple[float, float]] = {}

    def learn(self, kind: str, node: int, seconds: float) -> None:
        """Take a measurement down."""
        known = self._seconds.get((kind, node), seconds)
        self._seconds[kind, node] = _MEMORY * known + (1 - _MEMORY) * seconds
        total, examples = self._totals.get(kind, (0.0, 0.0))
        self._totals[kind] = total + seconds, examples + self._work(node)

    def predict(self, kind: str, node: int) -> float:
        """Seconds that a message of this kind will take; before any measurement, in units of examples."""
        if (kind, node) in self._seconds:
            return self._seconds[kind, node]
        total, examples = self._totals.get(kind, (1.0, 1.0))
        return total / examples * self._work(node)

    def _work(self, node: int) -> float:
        return float(self._sizes[node]) + 1.0
