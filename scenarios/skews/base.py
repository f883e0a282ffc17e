"""What every skew is, and the few steps that several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from scenarios.federation import Dataset, Parts, Rows, ScenarioError, View

# Draws tried before a wished-for smallest client is called infeasible; fewer where one is of more numbers.
DRAWS, NUMBERS = 1000, 10**6


class ClientRows(NamedTuple):
    """Training rows of one client, and the index of its domain (-1 where it mixes domains)."""

    rows: Rows
    domain: int


@dataclass(frozen=True, eq=False)
class Holdings(View[ClientRows]):
    """What all clients hold in a few flat arrays, which a million clients need.

    Parameters
    ----------
    parts : Parts
        Training rows of each client, sorted.
    domain : ndarray of int64, shape (clients,)
        Index of each client's domain, or -1 where it mixes domains.
    owner : ndarray of int64, shape (rows,), or None
        Client of every row of the data, -1 for nobody's, where the skew also says who is tested on which
        rows; ``None`` where held-out rows are dealt by domain and class.
    """

    parts: Parts
    domain: Rows
    owner: Rows | None = None

    @classmethod
    def of(cls, clients: Sequence[ClientRows]) -> Holdings:
        """Lay out single clients; what is laid out already stays as it is."""
        if isinstance(clients, Holdings):
            return clients
        domain = np.array([client.domain for client in clients], dtype=np.int64)
        return cls(Parts.of(client.rows for client in clients).sort(), domain)

    def __len__(self) -> int:
        return len(self.domain)

    def entry(self, index: int) -> ClientRows:
        """Rows and domain of a client."""
        return ClientRows(self.parts[index], int(self.domain[index]))


class Skew(Protocol):
    """A way to divide rows among clients; its fields are its options."""

    def split(self, dataset: Dataset, pool: Rows, rng: np.random.Generator) -> Sequence[ClientRows]:
        """Divide ``pool``, the rows that may be trained on; clients are disjoint, rows may be left out.

        A list does for thousands of clients, `Holdings` for any number.
        """
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
    if not len(rows):
        return {}
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    return dict(zip(ordered[starts].tolist(), np.split(rows[order], starts[1:]), strict=True))


def even_sizes(total: int, parts: int) -> Rows:
    """Sizes of ``parts`` parts of ``total`` rows, the first larger by one where they cannot be equal."""
    return total // parts + (np.arange(parts, dtype=np.int64) < total % parts)


def holdings(dataset: Dataset, parts: Parts) -> Holdings:
    """Make a client of each part; its domain is read from its rows."""
    parts, domain = parts.sort(), np.full(len(parts), -1, dtype=np.int64)
    filled = np.flatnonzero(parts.sizes)
    if len(filled):
        of_row, starts = dataset.domain[parts.rows], parts.starts[filled]
        lowest, highest = np.minimum.reduceat(of_row, starts), np.maximum.reduceat(of_row, starts)
        domain[filled] = np.where(lowest == highest, lowest, -1)
    return Holdings(parts, domain)


def portion(fraction: float, total: int) -> int:
    """Whole part of ``fraction * total``, safe from rounding: 0.29 * 100 gives 29."""
    return int(portions(fraction, np.array(total)))


def portions(fraction: float, totals: Rows) -> Rows:
    """`portion` of each of many totals."""
    return (fraction * totals + 1e-9).astype(np.int64)


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
    result = np.empty(weights.shape, dtype=np.int64)
    for place in np.ndindex(weights.shape[:-1]):
        quota = weights[place] / weights[place].sum() * total[place]
        whole = np.floor(quota)
        result[place] = whole
        result[place][_first(whole - quota, rng.random(quota.shape), int(total[place] - whole.sum()))] += 1
    return result


def _first(values: npt.NDArray[Any], lots: npt.NDArray[Any], count: int) -> Rows:
    """Places of the ``count`` smallest values, of equal ones those with the smallest lots; not in order."""
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    last = np.partition(values, count - 1)[count - 1]
    below, equal = np.flatnonzero(values < last), np.flatnonzero(values == last)
    by_lot = np.argsort(lots[equal], kind="stable")
    return np.concatenate([below, equal[by_lot[: count - len(below)]]])


def draw_counts(
    draw: Callable[[], npt.NDArray[np.int64]], minimum: int, remedy: str
) -> npt.NDArray[np.int64]:
    """Draw counts, shape (classes, parts), until every part has ``minimum`` rows over all classes.

    Raises
    ------
    ScenarioError
        Where ``DRAWS`` draws do not give it; says how close they came, then ``remedy``.
    """
    best = tried = 0
    tries = DRAWS
    while tried < tries:
        counts = draw()
        smallest = int(counts.sum(axis=0).min())
        if smallest >= minimum:
            return counts
        best, tried = max(best, smallest), tried + 1
        tries = min(DRAWS, DRAWS * NUMBERS // counts.size)
    raise ScenarioError(
        f"none of {tried} draws left {minimum} rows or more to the smallest part (the best left {best}); "
        f"{remedy}"
    )
