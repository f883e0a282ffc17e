"""A picture of where the rounds' wall time went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedbench.engine.profile import IDLE, OTHER, PARTS, Row

from .split_picture import COLOURS, MIXED

_PALETTE = dict(zip((p for p in PARTS if p not in (IDLE, OTHER)), COLOURS, strict=False))
_PALETTE |= {IDLE: "#DDDDDD", OTHER: MIXED}
"""Work in colours, the rest in grey."""

MOST_ROUNDS = 100
"""Of more rounds, every n-th is shown."""


def profile_picture(rows: Sequence[Row], path: str | Path, title: str) -> None:
    """Write a PNG with a bar for every round, stacked by parts, and a mark at the wall time.

    Parameters
    ----------
    rows : sequence of Row
        From :meth:`fedbench.engine.profile.Profile.table`.
    path : str or Path
        Where the picture goes; the folder must exist.
    title : str
        Headline.
    """
    from matplotlib.figure import Figure  # slow to import, so only here

    every = -(-len(rows) // MOST_ROUNDS)
    shown = rows[::every]
    at = np.arange(len(shown))
    width = min(max(4.2, 0.22 * len(shown)), 11.0)
    figure = Figure((width + 1.3, 3.6), dpi=150, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots()
    below = np.zeros(len(shown))
    for part in PARTS:
        seconds = np.array([row.parts[part] for row in shown])
        axes.bar(at, seconds, 0.8, bottom=below, color=_PALETTE[part], label=part)
        below += seconds
    walls = [row.wall for row in shown]
    axes.hlines(walls, at - 0.45, at + 0.45, color="black", linewidth=1.0, label="wall")
    step = -(-len(shown) // 25)
    names = [f"{row.round}{'*' if row.traced else ''}" for row in shown]
    axes.set_xticks(at[::step], names[::step], fontsize=8)
    starred = any(name.endswith("*") for name in names[::step])
    parts = ["round"]
    if every > 1:
        parts.append(f"one of every {every} shown")
    if starred:
        parts.append("*: slowed by the trace of torch's operators")
    axes.set_xlabel("; ".join(parts), fontsize=9)
    axes.set_ylabel("seconds", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path)
