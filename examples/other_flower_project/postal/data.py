"""What each post office has: scikit-learn's handwritten digits, most of a digit in one office."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

LOCAL = 0.95
"""Share of a digit that goes to its own office; the rest goes anywhere."""


@dataclass(frozen=True)
class Office:
    """Images ``x`` and digits ``y`` of one office, for training and for testing."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]


@cache
def office(node: int, nodes: int) -> Office:
    """Office ``node`` of ``nodes``; no two have an image in common."""
    # What sklearn.datasets.load_digits gives. A SuperNode starts a process for each message, and importing
    # scikit-learn would take as long as importing torch.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)
    rng = np.random.default_rng(0)
    holder = np.where(rng.random(len(y)) < LOCAL, y % nodes, rng.integers(nodes, size=len(y)))
    testing = rng.random(len(y)) < 0.25
    train, test = (holder == node) & ~testing, (holder == node) & testing
    return Office(x[train], y[train], x[test], y[test])
