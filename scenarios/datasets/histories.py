"""Histories of users: what all recommendation data sets share."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import ARCHIVE_ERRORS
from scenarios.datasets.options import check_choice, check_flag, check_number, check_whole
from scenarios.federation import ClientSplits, Dataset, Meta, Rows, ScenarioError

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
EXAMPLES = ("sequences", "positions")
FEWEST = 3
"""Training events that leave-one-out leaves a user at least."""


@dataclass(frozen=True)
class Events:
    """Who had which item when, in any order.

    Parameters
    ----------
    user : ndarray of int64, shape (events,)
        Numbers of users, 0 or more; gaps do no harm. A user is of one domain.
    item : ndarray of int64, shape (events,)
        Ids 1..V.
    time : ndarray of float64, shape (events,), or None
        In days; ``None`` where only the order is known.
    domain : ndarray of int64, shape (events,)
        Index into ``domains``.
    domains : tuple of str
        Names of the domains, such as marketplaces.
    category : ndarray of int64, shape (V + 1,)
        Category of every item, 1 for the first of ``categories`` and 0 for none.
    categories : tuple of str
        Names of the categories.
    complete : bool
        Whether items without an event keep their ids; otherwise ids are given anew to those with one.
    """

    user: Rows
    item: Rows
    time: Values | None
    domain: Rows
    domains: tuple[str, ...]
    category: Rows
    categories: tuple[str, ...] = ()
    complete: bool = False


class Spans(NamedTuple):
    """What each user's events are for, in numbers of events from the user's first; all of shape (users,).

    Parameters
    ----------
    train : ndarray of int64
        The first ``train`` events are trained on; 0 for a user that is held out.
    val, val_until, test, test_until : ndarray of int64
        Targets of validation are the events from ``val`` to before ``val_until``, all before them are their
        history; there is no such example where the two are equal. Likewise for test.
    """

    train: Rows
    val: Rows
    val_until: Rows
    test: Rows
    test_until: Rows

    @classmethod
    def held_out(cls, part: Rows, count: Rows, history: Rows) -> Spans:
        """Train on users of ``part`` 0; those of 1 (validation) and 2 (test) have targets after a history."""
        none = np.zeros_like(count)
        return cls(
            np.where(part == 0, count, 0),
            *(np.where(part == which, span, none) for which in (1, 2) for span in (history, count)),
        )

    @property
    def known(self) -> Rows:
        """Events that say what a user is like: those of training, or a held-out user's history."""
        ahead = np.where(self.test_until > self.test, self.test, 0)
        ahead = np.where(self.val_until > self.val, self.val, ahead)
        return np.where(self.train > 0, self.train, ahead)


@dataclass(frozen=True)
class Histories:
    """How users' events are divided and cut into examples; base of the data sets, whose options these are.

    Parameters
    ----------
    history : int
        Events that a model sees at most, the newest ones.
    split : {"leave_one_out", "time", "users"}
        ``leave_one_out``: a user's last event is the test target, the one before it that of validation, and
        users with fewer than 3 others are dropped. ``time``: all events before a moment are for training, a
        user's later ones are the targets, from a second moment on those of test; users without training
        events are dropped. ``users``: of the users, a tenth each is held out for validation and test, the
        first 80 % of their events (rounded down, but one at least) being history and the others targets.
    examples : {"sequences", "positions"}
        Training examples. ``sequences``: a user's training events in windows of ``history``, from the newest
        backwards, each beginning with the last event of the one before, so that every step from an event to
        the next is in one of them; there are no targets beside. ``positions``: each training event is the
        target of an example.
    min_history : int
        With ``examples="positions"``: training events that a user must have before a target.
    core : int
        Items and users with fewer events than this are dropped, again and again until there are none.
    repeats : bool
        Whether users may be recommended what they had already; otherwise only their first event with an item
        counts.
    period : float or None
        Days that are 1 in the times of events: a natural period of the data. With ``None``, or where the data
        have no times, an event's time is its place among its user's events divided by 4.
    val_from, test_from : float
        With ``split="time"``: shares of all events before the two moments.
    seed : int
        With ``split="users"``: of the draw of those that are held out.
    """

    splits: ClassVar[tuple[str, ...]] = ("leave_one_out", "time", "users")

    history: int = 50
    split: str = "leave_one_out"
    examples: str = "sequences"
    min_history: int = 1
    core: int = 0
    repeats: bool = False
    period: float | None = 1.0
    val_from: float = 0.8
    test_from: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("split", self.split, self.splits)
        check_choice("examples", self.examples, EXAMPLES)
        # A window of one event has nothing to follow another.
        check_whole("history", self.history, 2 if self.examples == "sequences" else 1)
        check_whole("min_history", self.min_history, 1)
        check_whole("core", self.core, 0)
        check_whole("seed", self.seed, 0)
        check_flag("repeats", self.repeats)
        if self.period is not None:
            check_number("period", self.period)
            if not self.period:
                raise ValueError("period: 0 days are none; use a number above 0, or null for no times")
        for field in ("val_from", "test_from"):
            check_number(field, getattr(self, field), 0, 1)
        if not 0 < self.val_from < self.test_from < 1:
            raise ValueError(
                f"val_from: {self.val_from} and test_from={self.test_from} leave a span empty; "
                "use 0 < val_from < test_from < 1"
            )

    def cut(self, name: str, events: Events) -> HistoryDataset:
        """Cut events into examples.

        Parameters
        ----------
        name : str
            Of the data set.
        events : Events
            In any order; events of a user at one time stay in theirs.

        Raises
        ------
        ScenarioError
            Where no user has enough events, there are too few to hold some out, or times are missing that
            ``split`` needs.
        """
        user, item, domain, time = self._filtered(events)
        if not len(user):
            self._too_few(name)
        count = np.bincount(user)
        spans = self.divide(name, count, domain[np.cumsum(count) - 1], time)
        used = (spans.train > 0) | (spans.val_until > spans.val) | (spans.test_until > spans.test)
        if not used.any():
            self._too_few(name)
        kept = used[user]
        user, item, domain = _dense(user[kept]), item[kept], domain[kept]
        time = None if time is None else time[kept]
        count, spans = count[used], Spans(*(span[used] for span in spans))

        category = events.category
        if not events.complete:
            ids, item = np.unique(item, return_inverse=True)
            item, category = item + 1, np.concatenate([[0], category[ids]])
        width, first = len(category), np.cumsum(count) - count
        place = np.arange(len(user)) - first[user]
        training = place < spans.train[user]
        home = domain[first]
        popularity = np.bincount((domain * width + item)[training], minlength=len(events.domains) * width)
        has = np.unique((user * width + item)[training])
        dominant = _dominant(user, category[item], place < spans.known[user], len(count))

        owner, start, end, until, sizes = self._rows(first, spans)
        named, y = np.unique(dominant[owner], return_inverse=True)
        names = ("none" if events.categories else "all", *events.categories)
        bounds = np.cumsum(sizes)
        return HistoryDataset(
            name=name,
            arrays={
                "start": start,
                "end": end,
                "until": until,
                "user": owner,
                "person": owner.copy(),
                "y": y.astype(np.int64),
                "market": home[owner],
            },
            domain=home[owner],
            domains=events.domains,
            meta=Meta("recommendation", (self.history,), (), tuple(names[each] for each in named)),
            test=np.arange(bounds[1], bounds[2]),
            val=np.arange(bounds[0], bounds[1]),
            shared={
                "item": item.astype(np.int32),
                "time": self._times(time, place),
                "category": category.astype(np.int64),
                "popularity": popularity.reshape(-1, width).astype(np.float32),
                "taken_from": np.searchsorted(has // width, np.arange(len(count) + 1)),
                "taken": has % width,
            },
            unit=owner.copy(),
            users=len(count),
            repeats=self.repeats,
            examples=self.examples,
        )

    def divide(self, name: str, count: Rows, domain: Rows, time: Values | None) -> Spans:  # noqa: ARG002
        """Say what each user's events are for.

        Parameters
        ----------
        name : str
            Of the data set.
        count : ndarray of int64, shape (users,)
            Events of every user, 1 or more.
        domain : ndarray of int64, shape (users,)
            Of every user.
        time : ndarray of float64, shape (events,), or None
            Of all users' events, one user after the other.

        Raises
        ------
        ScenarioError
            Where there are too few users to hold some out, or times are missing.
        """
        if self.split == "time":
            if time is None:
                raise ScenarioError(
                    f"data '{name}': has no times to split by; use split=leave_one_out or split=users"
                )
            first = np.cumsum(count) - count
            moments = np.quantile(time, [self.val_from, self.test_from])
            train, later = (np.add.reduceat((time < moment).astype(np.int64), first) for moment in moments)
            later, count = (np.where(train > 0, span, 0) for span in (later, count))
            return Spans(train, train, later, later, count)
        if self.split == "users":
            return Spans.held_out(self._drawn(name, len(count)), count, np.maximum(4 * count // 5, 1))
        last = np.where(count >= FEWEST + 2, count, 0)
        before, two_before = np.maximum(last - 1, 0), np.maximum(last - 2, 0)
        return Spans(two_before, two_before, before, before, last)

    def _drawn(self, name: str, users: int) -> Rows:
        """0 for users to train on, 1 for those of validation, 2 for those of test; shape (users,)."""
        tenth = tenth_of(name, users)
        # A stream of its own, lest who is held out goes with what a generator draws from the same seed.
        (stream,) = np.random.SeedSequence(self.seed).spawn(1)
        part = np.zeros(users, dtype=np.int64)
        drawn = np.random.default_rng(stream).permutation(users)
        part[drawn[:tenth]], part[drawn[tenth : 2 * tenth]] = 1, 2
        return part

    def _too_few(self, name: str) -> None:
        raise ScenarioError(
            f"data '{name}': no user is left with events enough for split={self.split} and core={self.core}; "
            "lower core or use more data"
        )

    def _filtered(self, events: Events) -> tuple[Rows, Rows, Rows, Values | None]:
        """User (0, 1, ...), item, domain and time of the events that count, user by user and then by time."""
        time = events.time
        keys = (events.user,) if time is None else (time, events.user)
        rows = np.lexsort(keys)
        if not self.repeats:
            pair = events.user[rows] * len(events.category) + events.item[rows]
            _, foremost = np.unique(pair, return_index=True)
            rows = rows[np.sort(foremost)]
        while self.core and len(rows):
            few = [np.bincount(key[rows])[key[rows]] < self.core for key in (events.user, events.item)]
            drop = few[0] | few[1]
            if not drop.any():
                break
            rows = rows[~drop]
        return (
            _dense(events.user[rows]),
            events.item[rows],
            events.domain[rows],
            None if time is None else time[rows],
        )

    def _times(self, time: Values | None, place: Rows) -> Values:
        if time is None or self.period is None:
            return place / 4
        return (time - time.min()) / self.period

    def _rows(self, first: Rows, spans: Spans) -> tuple[Rows, Rows, Rows, Rows, list[int]]:
        """User, start, end and until of all rows (training, validation, test), and how many each has."""
        if self.examples == "sequences":
            step = self.history - 1
            number = np.maximum(-(-(spans.train - 1) // step), 0)
            owner = np.repeat(np.arange(len(first)), number)
            newer = np.cumsum(number)[owner] - 1 - np.arange(len(owner))
            ends = [(first + spans.train)[owner] - newer * step]
            untils = [ends[0]]
        else:
            number = np.maximum(spans.train - self.min_history, 0)
            owner = np.repeat(np.arange(len(first)), number)
            ends = [(first + self.min_history - np.cumsum(number) + number)[owner] + np.arange(len(owner))]
            untils = [ends[0] + 1]
        owners = [owner]
        for begin, until in ((spans.val, spans.val_until), (spans.test, spans.test_until)):
            owners.append(np.flatnonzero(until > begin))
            ends.append((first + begin)[owners[-1]])
            untils.append((first + until)[owners[-1]])
        owner, end = np.concatenate(owners), np.concatenate(ends)
        start = np.maximum(end - self.history, first[owner])
        return owner, start, end, np.concatenate(untils), list(map(len, owners))


@dataclass(frozen=True)
class HistoryDataset(Dataset):
    """A data set whose rows are stretches of users' histories; the unit of a row is its user.

    Items are ids 1..V, 0 is none. Events of all users lie one after the other, each user's by time.
    ``arrays``, int64:

    - ``start``, ``end``, ``until``: the history is the events from ``start`` to before ``end``, the targets
      are those from ``end`` to before ``until``, none where the two are equal.
    - ``user``: number of the user among those of the client that holds the row, -1 where nobody does; before
      the data are divided it is ``person``, the user's number among all.
    - ``y``: stratum, the most frequent category of the user's training events (of a held-out user's history).
    - ``market``: index of the domain.

    ``shared``:

    - ``item`` (events,), int32, and ``time`` (events,), float64, counted from the earliest event.
    - ``category`` (V + 1,), int64, 0 for none.
    - ``popularity`` (domains, V + 1), float32: number of training events with an item.
    - ``taken``, ``taken_from``: distinct items of person p's training events, sorted, are
      ``taken[taken_from[p] : taken_from[p + 1]]``.

    Parameters
    ----------
    users : int
        The most users that one client holds; before the data are divided, all.
    repeats : bool
        Whether users may be recommended what they had already.
    examples : str
        What training rows are; see :class:`Histories`.
    """

    users: int = 0
    repeats: bool = True
    examples: str = "sequences"

    @property
    def facts(self) -> dict[str, Any]:
        """Also of the items and users; ``categories`` is None where items have none."""
        category = self.shared["category"]
        return {
            **super().facts,
            "items": len(category) - 1,
            "users": self.users,
            "history": self.meta.shape[0],
            "categories": tuple(category.tolist()) if category.any() else None,
            "popularity": self.shared["popularity"],
            "repeats": self.repeats,
            "examples": self.examples,
        }

    def localised(self, clients: ClientSplits) -> HistoryDataset:
        """With users numbered within the client that holds them."""
        person, everyone = self.arrays["person"], len(self.shared["taken_from"]) - 1
        parts = (clients.train, clients.val, clients.test)
        rows = np.concatenate([part.rows for part in parts])
        held, at = np.unique(
            np.concatenate([part.owner for part in parts]) * everyone + person[rows], return_inverse=True
        )
        number = np.bincount(held // everyone, minlength=len(clients))
        rank = np.arange(len(held)) - np.repeat(np.cumsum(number) - number, number)
        user = np.full(len(self), -1, dtype=np.int64)
        user[rows] = rank[at]
        return replace(self, arrays={**self.arrays, "user": user}, users=int(number.max(initial=0)))


def tenth_of(name: str, users: int) -> int:
    """A tenth of the users, rounded down; ScenarioError where that is nobody."""
    if users < 10:
        raise ScenarioError(
            f"data '{name}': {users} users are too few to hold a tenth out twice; "
            "use 10 or more, or split=leave_one_out"
        )
    return users // 10


def _dense(ordered: Rows) -> Rows:
    """Ascending numbers, without the gaps between them."""
    return np.cumsum(np.diff(ordered, prepend=ordered[:1]) > 0)


def _dominant(user: Rows, category: Rows, counted: Flags, users: int) -> Rows:
    """Most frequent category among every user's events that are counted, of equal ones the smallest id."""
    width = int(category.max(initial=0)) + 1
    pair, often = np.unique((user * width + category)[counted], return_counts=True)
    best = np.lexsort((pair % width, -often, pair // width))
    who, first = np.unique(pair[best] // width, return_index=True)
    dominant = np.zeros(users, dtype=np.int64)
    dominant[who] = pair[best][first] % width
    return dominant


@dataclass(frozen=True)
class Table:
    """A CSV file as text, which says of a wrong cell where it is.

    Parameters
    ----------
    path : Path
        The file.
    cells : DataFrame
        Its columns as text.
    """

    path: Path
    cells: Any

    @classmethod
    def read(cls, path: Path, columns: Sequence[str], sep: str = ",") -> Table:
        """Read a ``.csv`` file, or such a file as ``.gz``, with at least these columns.

        Raises
        ------
        ScenarioError
            Where it cannot be read, has no line, or lacks a column.
        """
        import pandas as pd  # type: ignore[import-untyped]  # slow to import, so only here

        try:
            cells = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, skipinitialspace=True)
        except (*ARCHIVE_ERRORS, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ScenarioError(f"{path}: cannot be read as CSV ({reason})") from error
        for column in columns:
            if column not in cells.columns:
                near = difflib.get_close_matches(column, list(cells.columns), n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(cells.columns)}"
                raise ScenarioError(f"{path}: has no column '{column}'{hint}")
        if not len(cells):
            raise ScenarioError(f"{path}: has no line below that of the columns' names")
        return cls(path, cells)

    def refuse(self, column: str, wrong: Flags, what: str) -> None:
        """Raise ScenarioError for the first line that is ``wrong``."""
        if wrong.any():
            at = int(np.argmax(wrong))
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                written = [number for number, line in enumerate(file, 1) if line.strip()]
            raise ScenarioError(
                f"{self.path}, line {written[at + 1]}, column '{column}': {what}, "
                f"got '{self.cells[column].iloc[at]}'"
            )

    def codes(self, column: str, *, gaps: bool = False) -> tuple[Rows, tuple[str, ...]]:
        """Number of every cell among the distinct ones, sorted, and these.

        With ``gaps``, empty cells have the number -1; otherwise they are refused.
        """
        import pandas as pd

        cells = self.cells[column]
        empty = (cells.str.strip() == "").to_numpy()
        if not gaps:
            self.refuse(column, empty, "must not be empty")
        codes, names = pd.factorize(cells.where(~empty), sort=True)
        return codes.astype(np.int64), tuple(names)

    def days(self, column: str) -> Values:
        """Times in days: seconds where the first cell is a number, otherwise ISO dates."""
        import pandas as pd

        cells = self.cells[column]
        if pd.notna(pd.to_numeric(cells.iloc[:1], errors="coerce")).all():
            seconds = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
            self.refuse(column, ~np.isfinite(seconds), "must be seconds, as on the first line")
            return seconds / 86_400
        dates = pd.to_datetime(cells, errors="coerce", format="ISO8601", utc=True)
        self.refuse(column, dates.isna().to_numpy(), "must be seconds or a date such as 2024-01-31T18:00")
        return ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)
