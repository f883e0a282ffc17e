"""A run in progress, as a terminal or a log shows it."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import get_console
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "_.-~=+*#"
"""For terminals that know ASCII alone."""
_DOMAINS = 8
_REFRESHES = 4
"""A second."""
_MIN_BAR, _MAX_BAR, _MAX_SPARK = 5, 40, 40
_MAX_NAME = 20
"""Columns of a metric or a domain; six fewer where there is little room."""


class LiveView:
    """What a run is doing: redrawn in place on a terminal, a line for each evaluation in a log.

    A terminal is drawn by a thread of its own, so that a run only writes down a few numbers each round.

    Parameters
    ----------
    label : str
        The method's name.
    rounds : int
        Rounds in all.
    headline : str
        Name of the metric.
    higher_is_better : bool
        Whether the best round on validation rows is that of the highest score.
    start_round : int
        Round after which the run goes on.
    console : rich.console.Console or None
        Where to draw; ``None`` is standard output.
    """

    def __init__(
        self,
        label: str,
        rounds: int,
        headline: str,
        higher_is_better: bool,
        start_round: int = 0,
        console: Console | None = None,
    ) -> None:
        self.label, self.rounds, self.headline = label, rounds, headline
        self.console = console or get_console()
        self._pick = max if higher_is_better else min
        self._start, self._round = start_round, start_round
        self._began = self._last = self.console.get_time()
        self._clients = self._bytes = self._failures = self._lost = 0
        self._averages: list[float] = []
        self._validated: list[float | None] = []
        self._at: list[int] = []
        self._domains: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._done = False
        self._plain = not self.console.is_terminal or self.console.is_dumb_terminal
        self._live = Live(
            get_renderable=self.__rich__,
            console=self.console,
            refresh_per_second=_REFRESHES,
            auto_refresh=True,
        )

    def __enter__(self) -> LiveView:
        self._began = self._last = self.console.get_time()
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done = True
        if not self._plain:
            self._live.stop()

    def round_done(self, round: int, clients: int, bytes: int, failures: int, lost: int) -> None:
        """Take note of a round.

        Parameters
        ----------
        round : int
            Its number.
        clients : int
            Clients that worked in this round.
        bytes, failures, lost : int
            Bytes sent both ways, clients that failed and clients lost, in the whole run so far.
        """
        self._round, self._last = round, self.console.get_time()
        self._clients += clients
        self._bytes, self._failures, self._lost = bytes, failures, lost

    def evaluated(self, point: Mapping[str, Any]) -> None:
        """Take note of an evaluation, as in a run's history; one before ``start_round`` is not news."""
        with self._lock:
            self._averages.append(point["avg"])
            self._validated.append(point["val"])
            self._at.append(point["round"])
            for name, value in point["domains"].items():
                self._domains.setdefault(name, []).append(value)
        if self._plain and point["round"] > self._start:
            self.console.print(self._line(point), soft_wrap=True, markup=False, highlight=False)

    # --- words -----------------------------------------------------------------------------------

    def _line(self, point: Mapping[str, Any]) -> str:
        """An evaluation as a line of a log."""
        domains = [f"{name} {_number(value)}" for name, value in list(point["domains"].items())[:_DOMAINS]]
        if more := len(point["domains"]) - len(domains):
            domains.append(f"{more} more")
        done = max(self._round, point["round"])
        clock = f"elapsed {_clock(self.console.get_time() - self._began)}, ETA {self._eta(done)}"
        parts = [
            f"{self.label} round {point['round']}/{self.rounds}: {self.headline} {_number(point['avg'])}",
            self._best(),
            ", ".join(domains),
            clock,
            ", ".join(self._books()),
        ]
        return "; ".join(filter(None, parts))

    def _best(self) -> str:
        """The round that validation rows choose, since test rows must not."""
        known = [v for v in self._validated if v is not None and math.isfinite(v)]
        if not known:
            return ""
        chosen = self._validated.index(self._pick(known))
        return f"best on val {_number(self._averages[chosen])} (round {self._at[chosen]})"

    def _books(self) -> list[str]:
        spent = self._last - self._began
        speed = f"{self._clients / spent:,.1f}" if spent > 0 and self._clients else "-"
        return [
            f"{speed} clients/s",
            decimal(self._bytes),
            f"{self._failures:,} failed",
            f"{self._lost:,} lost",
        ]

    def _eta(self, done: int) -> str:
        """Time to the last round, at the pace so far."""
        now = self.console.get_time()
        # A round under way has had its share of the time since the last one ended.
        until = self._last if done == self._round and done > self._start else now
        rounds = done - self._start
        if rounds <= 0:
            return "-:--:--"
        pace = (until - self._began) / rounds
        return _clock(max(pace * (self.rounds - done) - (now - until), 0))

    # --- the drawing -----------------------------------------------------------------------------

    def __rich__(self) -> Group:
        with self._lock:
            width = self.console.width
            ascii_only = self.console.options.ascii_only
            lines = [self._top(width, ascii_only)]
            if self._averages:
                lines += self._scores(width, _PLAIN_BLOCKS if ascii_only else _BLOCKS)
            lines.append(Text("  " + "  ".join(self._books()), style="dim"))
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        return Group(*lines)

    def _top(self, width: int, ascii_only: bool) -> Text:
        """How far the run is."""
        count = f" round {self._round}/{self.rounds} "
        clock = f" {_clock(self.console.get_time() - self._began)}"
        if not self._done:
            clock += f" ETA {self._eta(self._round)}"
        room = width - len(count) - len(clock)
        name = min(cell_len(self.label), max(room - _MIN_BAR, _MIN_BAR))
        bar = min(room - name, _MAX_BAR)
        line = Text(set_cell_size(self.label, name), style="bold").append(count, style="not bold")
        if bar >= _MIN_BAR:
            full = round(bar * self._round / self.rounds)
            line.append(("#" if ascii_only else "━") * full, style="not bold green")
            line.append(("-" if ascii_only else "─") * (bar - full), style="not bold dim")
        return line.append(clock, style="not bold")

    def _scores(self, width: int, blocks: str) -> list[Text]:
        """The headline and, as long as the run goes on, the domains."""
        shown = list(self._domains.items())[:_DOMAINS] if not self._done else []
        names = [f"  {self.headline}", *(f"    {name}" for name, _ in shown)]
        column = min(max(map(cell_len, names)), _MAX_NAME if width >= 80 else _MAX_NAME - 6)
        best = self._best()
        tail = f" {best}" if best else ""
        rows = zip(names, [self._averages, *(values for _, values in shown)], strict=True)
        lines = []
        for name, values in rows:
            head = f"{set_cell_size(name, column)} {_number(values[-1]):>8} "
            line = Text(head)
            line.append(
                sparkline(values, min(width - cell_len(head) - len(tail), _MAX_SPARK), blocks), "cyan"
            )
            lines.append(line)
        lines[0].append(tail)
        if not self._done and (rest := [values[-1] for values in list(self._domains.values())[_DOMAINS:]]):
            mean = _number(statistics.fmean(rest))
            lines.append(Text(f"    and {len(rest)} more domains, {mean} on average", style="dim"))
        return lines


def sparkline(values: Sequence[float], width: int, blocks: str = _BLOCKS) -> str:
    """Values as blocks from their lowest to their highest, at most ``width`` of them.

    Where there are more values, each block is the last of those that it stands for, so that the final block
    is the final value. A value that is no finite number is a blank.
    """
    width = min(width, len(values))
    if width < 1:
        return ""
    shown = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    known = [v for v in shown if math.isfinite(v)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    top = len(blocks) - 1
    return "".join(
        (blocks[round((v - low) / span * top)] if span else blocks[top // 2]) if math.isfinite(v) else " "
        for v in shown
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
