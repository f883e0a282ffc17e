"""Small tasks for few-shot learning: episodes of N classes and K examples of each, and lines and sines."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.federation import Federation, Rows, ScenarioError, View
from scenarios.skews.base import check_count, group_rows, labels_of

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Episode:
    """One task: learn N classes from a support set, be judged on a query set.

    Parameters
    ----------
    support : ndarray of int64, shape (ways, shots)
        Row numbers into the arrays of the data set, one line a class.
    query : ndarray of int64, shape (ways, queries)
        Others, of the same classes.
    classes : ndarray of int64, shape (ways,)
        Label of each class in the data set. Models see the line's number in its place.
    pool : int
        Which of the pools it was drawn from: the client, in episodes over clients.
    """

    support: Rows
    query: Rows
    classes: Rows
    pool: int


@dataclass(frozen=True, eq=False)
class Episodes(View[Episode]):
    """``episodes`` tasks, each made when it is asked for, from a generator of (seed, purpose, index) alone.

    An episode draws one of the pools that can supply it, then ``ways`` of that pool's classes, and of each
    class ``shots + queries`` different rows. A pool's classes that have fewer rows are never drawn.

    Parameters
    ----------
    labels : ndarray of int64, shape (rows,)
        Class of every row.
    pools : sequence of ndarray of int64
        Rows that an episode may be made of, one entry a pool; see `over_classes` and `over_clients`.
    ways, shots, queries : int
        Classes of an episode; rows of each to learn from and to be judged on.
    seed : int
        Of all draws.
    purpose : str
        Sets the draws of, say, training apart from those of a test with the same seed.
    episodes : int
        How many there are; the first ones are the same for any number.

    Raises
    ------
    ValueError
        For a number that is too small.
    ScenarioError
        Where no pool can supply an episode.
    """

    labels: Rows
    pools: Sequence[Rows]
    ways: int = 5
    shots: int = 1
    queries: int = 15
    seed: int = 0
    purpose: str = "train"
    episodes: int = 1000

    def __post_init__(self) -> None:
        for field, least in (("ways", 2), ("shots", 1), ("queries", 1), ("seed", 0), ("episodes", 1)):
            check_count(field, getattr(self, field), least)
        self._usable  # noqa: B018 - refuses what no pool can supply

    @cached_property
    def _usable(self) -> list[tuple[int, dict[int, Rows]]]:
        """Number of every pool that can supply an episode, and its rows by class, of the classes that can."""
        need = self.shots + self.queries
        usable = []
        most = 0
        for index, pool in enumerate(self.pools):
            found = group_rows(pool, self.labels[pool])
            of_class = {label: rows for label, rows in found.items() if len(rows) >= need}
            most = max(most, len(of_class))
            if len(of_class) >= self.ways:
                usable.append((index, of_class))
        if not usable:
            raise ScenarioError(
                f"episodes: no pool has {self.ways} classes with {need} rows each ({self.shots} to learn "
                f"from, {self.queries} to be judged on), {most} at most; use fewer ways, shots or queries"
            )
        return usable

    def __len__(self) -> int:
        return self.episodes

    def entry(self, index: int) -> Episode:
        """Draw the episode of a number."""
        rng = _generator(self.seed, f"episode {self.purpose}", index)
        pool, of_class = self._usable[rng.integers(len(self._usable))]
        classes = rng.choice(np.fromiter(of_class, dtype=np.int64), self.ways, replace=False)
        need = self.shots + self.queries
        rows = np.stack([rng.choice(of_class[int(label)], need, replace=False) for label in classes])
        return Episode(rows[:, : self.shots], rows[:, self.shots :], classes, pool)


def over_classes(labels: Rows, classes: Rows | None = None, **options: Any) -> Episodes:
    """Episodes whose classes are drawn from all, or from ``classes``.

    Parameters
    ----------
    labels : ndarray of int64, shape (rows,)
        Class of every row.
    classes : ndarray of int64, optional
        The only ones to draw from, such as a part of `split_classes`.
    **options
        Those of `Episodes`.
    """
    chosen = np.ones(len(labels), dtype=bool) if classes is None else np.isin(labels, classes)
    return Episodes(labels, [np.flatnonzero(chosen)], **options)


def over_clients(federation: Federation, classes: Rows | None = None, **options: Any) -> Episodes:
    """Episodes each of which is made of the training rows of a single client.

    Parameters
    ----------
    federation : Federation
        Clients that hold too few classes or rows are never drawn.
    classes, **options
        As in `over_classes`.
    """
    labels = labels_of(federation.dataset)
    pools = list(federation.clients.train)
    if classes is not None:
        pools = [rows[np.isin(labels[rows], classes)] for rows in pools]
    return Episodes(labels, pools, **options)


def split_classes(labels: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide classes at random into those to train on and those that only a test sees; both sorted.

    For data without an official division of classes.

    Parameters
    ----------
    labels : ndarray of int64, shape (rows,)
        Class of every row.
    share : float
        Share of the classes for the test, rounded to a whole number; both parts get one at least.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        For a share that is not between 0 and 1, or a seed below 0.
    ScenarioError
        Where there is but one class.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"share: not a share, got {share!r}; use a number above 0 and below 1")
    check_count("seed", seed, 0)
    classes = np.unique(labels).astype(np.int64)
    if len(classes) < 2:
        raise ScenarioError(f"episodes: {len(classes)} class cannot be divided; use data with more")
    count = min(max(1, round(share * len(classes))), len(classes) - 1)
    order = _generator(seed, "classes", 0).permutation(classes)
    return np.sort(order[count:]), np.sort(order[:count])


@dataclass(frozen=True, eq=False)
class Curves:
    """Regression tasks, one a line of the arrays ("lines and sines").

    Parameters
    ----------
    x, y : ndarray of float32, shape (tasks, points)
        Observations, with noise.
    grid : ndarray of float32, shape (places,)
        Evenly spaced from -5 to 5.
    truth : ndarray of float32, shape (tasks, places)
        The curves themselves, on the grid.
    """

    x: Values
    y: Values
    grid: Values
    truth: Values


def sine_lines(
    tasks: range, points: int, seed: int, *, noise: float = 0.3, places: int = 100, purpose: str = "train"
) -> Curves:
    """Lines and sines: half of the tasks are ``a x + b``, the others ``height sin(x + phase)``.

    ``a, b ~ U[-3, 3]``, ``height ~ U[0.1, 5]``, ``phase ~ U[0, pi]``, ``x ~ U[-5, 5]``, as in public code for
    Finn, Xu and Levine, "Probabilistic Model-Agnostic Meta-Learning", 2018, arXiv 1806.02817.

    Parameters
    ----------
    tasks : range
        Numbers of the tasks; a task is a pure function of seed, purpose and number.
    points : int
        Observations of a task.
    seed : int
        Of all draws.
    noise : float
        Standard deviation of what is added to the observed ``y``.
    places : int
        Length of the grid.
    purpose : str
        As in `Episodes`.

    Raises
    ------
    ValueError
        For a number out of range.
    """
    for field, value, least in (("points", points, 1), ("seed", seed, 0), ("places", places, 2)):
        check_count(field, value, least)
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise: not a standard deviation, got {noise!r}; use a number of at least 0")
    grid = np.linspace(-5.0, 5.0, places)
    x, y = np.empty((2, len(tasks), points))
    truth = np.empty((len(tasks), places))
    for line, task in enumerate(tasks):
        rng = _generator(seed, f"sine line {purpose}", task)
        is_line = rng.random() < 0.5
        slope, offset = rng.uniform(-3.0, 3.0, 2)
        height, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        x[line] = rng.uniform(-5.0, 5.0, points)
        for at, into in ((x[line], y), (grid, truth)):
            into[line] = slope * at + offset if is_line else height * np.sin(at + phase)
        y[line] += noise * rng.standard_normal(points)
    return Curves(*(each.astype(np.float32) for each in (x, y, grid, truth)))


def _generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Stream of one purpose and number."""
    # crc32, because Python's own hash of a string changes from process to process.
    key = (zlib.crc32(purpose.encode()), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
