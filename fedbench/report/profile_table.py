"""Where the rounds' wall time went, as a table: for files, for people and on the terminal."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedbench.engine.profile import PARTS, Row


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write a line for each round: number, whether it was traced, seconds of each part and of the whole."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "traced", *PARTS, "wall"])
        for row in rows:
            seconds = [f"{s:.6f}" for s in (*(row.parts[part] for part in PARTS), row.wall)]
            writer.writerow([row.round, int(row.traced), *seconds])


def read_csv(path: str | Path) -> list[Row]:
    """Rows that :func:`write_csv` wrote."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            Row(
                int(line["round"]),
                line["traced"] == "1",
                {part: float(line[part]) for part in PARTS},
                float(line["wall"]),
            )
            for line in csv.DictReader(file)
        ]


def mean_seconds(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds a round of each part, of their ``sum``, and of the ``wall``, which was measured apart.

    The traced round is left out, because tracing takes time, unless it is the only one.
    """
    rows = [r for r in rows if not r.traced] or rows
    means = {part: statistics.fmean(r.parts[part] for r in rows) for part in PARTS}
    return means | {"sum": sum(means.values()), "wall": statistics.fmean(r.wall for r in rows)}


def markdown(rows: Sequence[Row]) -> str:
    """The means as a Markdown table."""
    lines = ["| part | seconds a round | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {seconds} | {share} |" for name, seconds, share in _lines(rows)]
    return "\n".join(lines) + f"\n\n{_caption(rows)}.\n"


def profile_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """The means as a terminal table."""
    table = Table(
        title=title,
        caption=_caption(rows),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("part")
    table.add_column("s a round", justify="right")
    table.add_column("share", justify="right")
    for line in _lines(rows):
        table.add_row(*line)
    return table


def _lines(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    means = mean_seconds(rows)
    return [(name, f"{s:.4f}", f"{100 * s / means['wall']:.1f} %") for name, s in means.items()]


def _caption(rows: Sequence[Row]) -> str:
    counted = sum(not r.traced for r in rows) or len(rows)
    text = f"mean of {counted} round{'s' if counted > 1 else ''}"
    traced = [r.round for r in rows if r.traced]
    if not traced:
        return text
    if counted < len(rows):
        return f"{text}; round {traced[0]}, slowed by the trace of torch's operators, is left out"
    return f"{text}, slowed by the trace of torch's operators"
