"""What every skew is, and the few steps that several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from scenarios.federation import Dataset, Rows, ScenarioError

# Draws tried before a wished-for smallest client is called infeasible.
DRAWS = 1000


class ClientRows(NamedTuple):
    """Training rows of one client, and the index of its domain (-1 where it mixes domains)."""

    rows: Rows
    domain: int


class Skew(Protocol):
    """A way to divide rows among clients; its fields are its options."""

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> list[ClientRows]:
        """Divide ``pool``, the rows that may be trained on; clients are disjoint, rows may be left out."""
        ...


def check_count(field: str, value: Any, minimum: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(
            f"{field}: not a possible number, got {value!r}; use a whole number of at least {minimum}"
        )


def check_concentration(field: str, value: Any) -> None:
    """Raise ValueError unless ``value`` can be the parameter of a symmetric Dirichlet distribution."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{field}: not a Dirichlet concentration, got {value!r}; "
            "use a number above 0: 0.1 is a strong skew, 100 nearly none"
        )


def check_enough(dataset: Dataset, rows: int, clients: int, each: int = 1, where: str = "") -> None:
    """Raise ScenarioError where ``rows`` are too few to give ``each`` to every one of ``clients``."""
    if rows < clients * each:
        raise ScenarioError(
            f"data '{dataset.name}'{where}: {rows} rows to train on cannot give {each} to each of "
            f"{clients} clients; use at most {rows // each} clients or more data"
        )


def check_domains(dataset: Dataset, skew: str) -> None:
    """Raise ScenarioError where the data have a single domain."""
    if len(dataset.domains) < 2:
        raise ScenarioError(
            f"{skew}: data '{dataset.name}' have one domain only; use data with several, such as Digits, "
            "PACS, Office-Caltech-10 or Office-Home, or another skew, such as label_skew"
        )


def labels_of(dataset: Dataset) -> Rows:
    """Class of every row, shape (rows,); all zero where the data have no class labels."""
    labels = dataset.arrays.get("y")
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return np.zeros(len(dataset), dtype=np.int64)
    return labels.astype(np.int64, copy=False)


def group_rows(rows: Rows, keys: Rows) -> dict[int, Rows]:
    """Rows of every value in ``keys`` (one key for each entry of ``rows``), values in ascending order."""
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    return dict(zip(values.tolist(), np.split(rows[order], starts[1:]), strict=True)) if len(rows) else {}


def client_rows(dataset: Dataset, rows: Rows) -> ClientRows:
    """Make a client of these rows; its domain is read from them."""
    found = np.unique(dataset.domain[rows])
    return ClientRows(np.sort(rows), int(found[0]) if len(found) == 1 else -1)


def portion(fraction: float, total: int) -> int:
    """Whole part of ``fraction * total``, safe from rounding: 0.29 * 100 gives 29."""
    return int(fraction * total + 1e-9)


def largest_remainder(
    weights: npt.NDArray[Any], total: int | npt.NDArray[Any], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Divide ``total`` into whole numbers in proportion to weights; they add up exactly.

    Everyone gets the whole part of its quota, and what is left goes one by one to the largest fractions.
    Equal fractions are ordered by lot: otherwise the first clients would win every draw of every class.

    Parameters
    ----------
    weights : ndarray, shape (..., parts)
        Non-negative, not all zero along the last axis.
    total : int or ndarray, shape (...)
        What each row of weights divides.
    rng : Generator
        Draws the lots.

    Returns
    -------
    ndarray of int64, shape (..., parts)
    """
    total = np.asarray(total)
    quota = weights / weights.sum(axis=-1, keepdims=True) * total[..., None]
    whole = np.floor(quota)
    order = np.lexsort((rng.random(quota.shape), whole - quota), axis=-1)
    rank = np.argsort(order, axis=-1)
    missing = total - whole.sum(axis=-1)
    return whole.astype(np.int64) + (rank < missing[..., None])


def draw_counts(
    draw: Callable[[], npt.NDArray[np.int64]], minimum: int, remedy: str
) -> npt.NDArray[np.int64]:
    """Draw counts, shape (classes, parts), until every part has ``minimum`` rows over all classes.

    Raises
    ------
    ScenarioError
        Where ``DRAWS`` draws do not give it; says how close they came, then ``remedy``.
    """
    best = 0
    for _ in range(DRAWS):
        counts = draw()
        smallest = int(counts.sum(axis=0).min())
        if smallest >= minimum:
            return counts
        best = max(best, smallest)
    raise ScenarioError(
        f"none of {DRAWS} draws left {minimum} rows or more to the smallest part (the best left {best}); "
        f"{remedy}"
    )
