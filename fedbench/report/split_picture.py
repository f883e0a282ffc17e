"""A picture of who holds what: clients against classes, coloured by domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.federation import Federation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito, its two colours that print worst at the end; grey is for mixed clients.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MIXED = "#7F7F7F"

# More clients than this are shown by every n-th: to average neighbours would hide the skew.
MOST_CLIENTS = 100


def split_picture(federation: Federation, path: str | Path, title: str | None = None) -> None:
    """Write a PNG with a bubble for every client and class, its area the number of training rows.

    The longer of the two axes lies across, and bars along the clients show their sizes. Data without
    classes get the bars alone; of more than 100 clients every n-th is shown; more domains than there are
    safe colours are not told apart.

    Parameters
    ----------
    federation : Federation
        What to show.
    path : str or Path
        Where the picture goes; the folder must exist.
    title : str or None
        Headline; the name of the data set and the number of clients where it is ``None``.
    """
    from matplotlib.figure import Figure  # slow to import, so only here

    total, classes = len(federation.clients), list(federation.meta.classes)
    every = -(-total // MOST_CLIENTS)
    clients = list(range(0, total, every))
    sizes = [federation.clients[client].num_examples for client in clients]
    across = len(clients) >= len(classes)  # clients lie across
    columns, rows = (len(clients), len(classes)) if across else (len(classes), len(clients))

    # Inches: a row is high enough for its name, and the whole fits a page.
    row = 0.12 if rows > 25 else 0.17 if columns > 40 else 0.24
    width = min(max(4.2, 0.11 * columns), 11.0)
    height = min(max(1.5, row * rows), 12.0)
    strip = 0.7 if across else 0.9
    size = (width + 1.3, height + strip + 1.6) if across else (width + strip + 1.3, height + 1.6)
    figure = Figure(size, dpi=150, facecolor="white", layout="constrained")
    if title is None:
        title = f"{federation.dataset.name}, {total} client{'s' if total > 1 else ''}"
    figure.suptitle(title, fontsize=11)

    colours, legend = _colours(federation, clients)
    named = "client" if every == 1 else f"client (one of every {every} shown)"
    if not classes:
        bars = figure.subplots()
        client_axis = bars.xaxis
    else:
        if across:
            bars, grid = figure.subplots(2, 1, sharex=True, height_ratios=(strip, height))
            client_axis, class_axis = grid.xaxis, grid.yaxis
        else:
            grid, bars = figure.subplots(1, 2, sharey=True, width_ratios=(width, strip))
            client_axis, class_axis = grid.yaxis, grid.xaxis
        cell = 72 * min(width / columns, height / rows)
        legend += _bubbles(grid, _counts(federation, clients), colours, across, cell)
        turned = not across and len("".join(classes)) > 12 * width
        _name_ticks(class_axis, classes, 100, "class", turned)
    _name_ticks(client_axis, [str(client) for client in clients], 26 if across else 100, named)
    _bars(bars, sizes, colours, across)
    if legend:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 6, "frameon": False}
        figure.legend(handles=legend, fontsize=8, columnspacing=1.4, handletextpad=0.7, **place)
    figure.savefig(path)


def _colours(federation: Federation, clients: list[int]) -> tuple[list[str], list[Any]]:
    """Colour of every client, and legend entries where there is more than one domain to tell apart."""
    from matplotlib.lines import Line2D

    names = federation.dataset.domains
    if len(names) > len(COLOURS):
        return [COLOURS[0]] * len(clients), []
    palette = {**dict(enumerate(COLOURS)), -1: MIXED}
    domains = [federation.clients[client].domain for client in clients]
    present = [domain for domain in (*range(len(names)), -1) if domain in domains]
    marks = [
        Line2D(
            [], [], color=palette[domain], marker="s", ls="", label="mixed" if domain < 0 else names[domain]
        )
        for domain in present
    ]
    return [palette[domain] for domain in domains], marks if len(names) > 1 else []


def _counts(federation: Federation, clients: list[int]) -> Any:
    """Training rows, shape (clients, classes)."""
    labels, classes = federation.dataset.arrays["y"], len(federation.meta.classes)
    return np.stack([np.bincount(labels[federation.clients[c].train], minlength=classes) for c in clients])


def _bubbles(axes: Axes, counts: Any, colours: list[str], across: bool, cell: float) -> list[Any]:
    """Draw the counts, the largest filling a cell of that many points; return legend entries of two sizes."""
    from matplotlib.lines import Line2D

    client, label = np.nonzero(counts)
    largest, diameter = counts.max(), 0.92 * min(cell, 22.0)
    # A bubble never vanishes: whether a client has a class at all is what a reader looks for first.
    area = np.maximum(counts[client, label] / largest * diameter**2, 1.0)
    x, y = (client, label) if across else (label, client)
    axes.scatter(x, y, s=area, c=[colours[each] for each in client], linewidths=0, zorder=2)
    columns, rows = counts.shape if across else counts.shape[::-1]
    axes.set(xlim=(-0.8, columns - 0.2), ylim=(rows - 0.2, -0.8))
    axes.grid(color="#ECECEC", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    style: dict[str, Any] = {"color": "#BBBBBB", "marker": "o", "ls": "", "markeredgewidth": 0}
    return [
        Line2D([], [], markersize=diameter * float(np.sqrt(n / largest)), label=f"{n} rows", **style)
        for n in sorted({int(largest), max(1, int(largest) // 4)}, reverse=True)
    ]


def _bars(axes: Axes, sizes: list[int], colours: list[str], across: bool) -> None:
    (axes.bar if across else axes.barh)(range(len(sizes)), sizes, 0.8, color=colours)
    values, names = (axes.yaxis, axes.xaxis) if across else (axes.xaxis, axes.yaxis)
    values.set_label_text("training rows", fontsize=8)
    values.set_tick_params(labelsize=7)
    names.set_tick_params(length=0)
    axes.locator_params(axis="y" if across else "x", nbins=3 if across else 2, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_ticks(axis: Any, labels: list[str], most: int, title: str, turned: bool = False) -> None:
    """Name every position, or every n-th, in round steps, where more than ``most`` names would not fit."""
    need = len(labels) / most
    every = next((step for step in (1, 2, 5, 10, 20, 50, 100) if step >= need), int(need) + 1)
    size = 8 if len(labels) <= 25 or every > 1 else 6.5
    axis.set_ticks(range(0, len(labels), every), labels[::every], rotation=90 if turned else 0, fontsize=size)
    axis.set_tick_params(length=0)
    axis.set_label_text(title, fontsize=9)
