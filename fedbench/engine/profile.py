"""Where the rounds' wall time goes: spans of the server and of every worker, their sums, and a trace."""

from __future__ import annotations

import json
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from strategies.timing import BROADCAST, LOAD, TRAIN, UPLOAD, listen

AGGREGATE = "aggregate"
"""The server's half of the method, from replies to the next model."""
EVALUATE = "evaluate"
"""Predicting validation and test rows, on clients and on the server."""
IDLE = "idle"
"""Waiting: the server for any reply, and in the table a worker for the others."""
OTHER = "other"
"""What the testbed does itself: choosing clients, books, metrics file, checkpoint, lists of work."""

PARTS = (LOAD, BROADCAST, TRAIN, UPLOAD, AGGREGATE, EVALUATE, IDLE, OTHER)
"""All names of spans, in the order of the table."""

SERVER = -1
"""Track of the process that runs the rounds; the others are numbers of workers."""

_PID = 1 << 23
"""Process id of our tracks in a trace: larger than those that Linux gives, so that it meets none of them."""

_active: Profile | None = None


class Span(NamedTuple):
    """A stretch of time on a track, in nanoseconds since 1970."""

    name: str
    start: int
    end: int
    track: int = SERVER

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


class Row(NamedTuple):
    """A round in the table: seconds of every part, and of the whole, which was measured apart."""

    round: int
    traced: bool
    parts: dict[str, float]
    wall: float


class Profile:
    """What a run's process records.

    Parameters
    ----------
    rounds : int
        Number of the last round: the second of those that are recorded is traced with all of torch's
        operators, or the only one.
    """

    def __init__(self, rounds: int) -> None:
        self.last = rounds
        self.spans: list[Span] = []
        self.rounds: dict[int, Span] = {}
        """The rounds that were completed, by number."""
        self.traced: int | None = None
        """Round in which torch's operators were recorded, which takes time of its own."""
        self.workers = 0
        """Worker processes; 0 where clients run in this one."""
        self._torch: dict[str, Any] = {}

    @contextmanager
    def round(self, number: int) -> Iterator[None]:
        """A block that is a round."""
        traces = self.traced is None and (bool(self.rounds) or number == self.last)
        with self._operators(number) if traces else nullcontext():
            start = time.time_ns()
            yield
            self.rounds[number] = Span(f"round {number}", start, time.time_ns())

    def take(self, worker: int, spans: Sequence[Span], submitted: int) -> None:
        """Add what a worker recorded of a list that was given to it at ``submitted`` and is back now.

        Until the first and after the last of its spans, list and results were on their way. Where they do not
        lie between the two, the clock of the worker's machine is wrong by so much, and is put right.
        """
        if not spans:
            return
        now = time.time_ns()
        first, last = min(s.start for s in spans), max(s.end for s in spans)
        shift = 0 if submitted <= first and last <= now else (submitted + now - first - last) // 2
        ways = Span(BROADCAST, submitted, first + shift), Span(UPLOAD, last + shift, now)
        moved = (Span(s.name, s.start + shift, s.end + shift) for s in spans)
        self.spans += [s._replace(track=worker) for s in (*ways, *moved)]

    def table(self) -> list[Row]:
        """Where each round's time went.

        At every moment the innermost span on a track counts. With workers, a part is the mean over the
        workers of the time that a worker spent on it, or the server where the worker did nothing; a worker is
        idle where it did nothing and the server did nothing but wait. Time that no span covers is in no
        part, so that the sum of the parts tells whether anything was missed.
        """
        spans = sorted(self.spans, key=lambda s: s.start)
        rows = []
        for number, whole in self.rounds.items():
            inside = spans[_at(spans, whole.start) : _at(spans, whole.end)]
            seen = [
                _sums(s for s in inside if s.track in (SERVER, worker)) for worker in range(self.workers or 1)
            ]
            parts = {part: sum(sums[part] for sums in seen) / len(seen) / 1e9 for part in PARTS}
            rows.append(Row(number, number == self.traced, parts, whole.duration / 1e9))
        return rows

    def trace(self) -> dict[str, Any]:
        """The Chrome trace: all spans, and torch's operators in one round."""
        base = int(self._torch.get("baseTimeNanoseconds", 0))
        names = {0: "rounds", 1: "server"} | {2 + w: f"worker {w}" for w in range(self.workers)}
        events: list[dict[str, Any]] = [_named("process", 0, "fedbench")]
        events += [_named("thread", track, name) for track, name in names.items()]
        tracks = [(0, s) for s in self.rounds.values()] + [(s.track + 2, s) for s in self.spans]
        events += [
            {
                "ph": "X",
                "cat": "fedbench",
                "name": span.name,
                "pid": _PID,
                "tid": track,
                "ts": (span.start - base) / 1e3,
                "dur": span.duration / 1e3,
            }
            for track, span in tracks
        ]
        operators = self._torch.get("traceEvents", [])
        return {"displayTimeUnit": "ms"} | self._torch | {"traceEvents": [*events, *operators]}

    @contextmanager
    def _operators(self, number: int) -> Iterator[None]:
        """A block in which torch records every operator of this process."""
        from torch.profiler import profile

        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # nobody needs to hear that a profiler starts
        with profile() as recorded:
            yield
        self.traced = number
        with tempfile.TemporaryDirectory(prefix="fedbench-trace-") as directory:
            path = Path(directory) / "trace.json"
            recorded.export_chrome_trace(str(path))
            self._torch = json.loads(path.read_text())
        self._torch.pop("traceName", None)


@contextmanager
def profiling(rounds: int) -> Iterator[Profile]:
    """A block in which this process records what it does, and its engine what its workers do."""
    global _active
    _active = profile = Profile(rounds)
    with recording(profile.spans):
        try:
            yield profile
        finally:
            _active = None


def active() -> Profile | None:
    """The profile that is being recorded, if one is."""
    return _active


@contextmanager
def recording(spans: list[Span] | None) -> Iterator[None]:
    """A block in which what this process does is added to a list; ``None`` records nothing."""
    if spans is None:
        yield
        return

    @contextmanager
    def record(name: str) -> Iterator[None]:
        start = time.time_ns()
        try:
            yield
        finally:
            spans.append(Span(name, start, time.time_ns()))

    listen(record)
    try:
        yield
    finally:
        listen(None)


def _sums(spans: Iterable[Span]) -> dict[str, int]:
    """Nanoseconds of each part; a worker's span comes before the server's, an inner one before its outer."""
    sums = dict.fromkeys(PARTS, 0)
    edges = sorted(edge for s in spans for edge in ((s.start, False, s), (s.end, True, s)))
    running: list[Span] = []
    before = 0
    for now, ends, span in edges:
        if running and now > before:
            inner = max(running, key=lambda s: (s.track, s.start, -s.end))
            sums[inner.name] += now - before
        before = now
        if ends:
            running.remove(span)
        else:
            running.append(span)
    return sums


def _at(spans: Sequence[Span], moment: int) -> int:
    return bisect_left(spans, moment, key=lambda s: s.start)


def _named(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": f"{kind}_name", "pid": _PID, "tid": track, "args": {"name": name}}
