"""A picture of who holds what: clients against classes, or how many clients hold how much, by domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbench.results.split import LISTED
from scenarios.federation import Federation, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, its two colours that print worst at the end; grey is for mixed clients.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MIXED = "#7F7F7F"

# More clients than this are shown by every n-th: to average neighbours would hide the skew.
MOST_CLIENTS = 100

# Columns of a histogram.
BINS = 30


def split_picture(federation: Federation, path: str | Path, title: str | None = None) -> None:
    """Write a PNG with a bubble for every client and class, its area the number of training rows.

    The longer of the two axes lies across, and bars along the clients show their sizes. Data without
    classes get the bars alone; of more than 100 clients every n-th is shown; more domains than there are
    safe colours are not told apart. More than 1,000 clients are counted instead: by their training rows, by
    the share of their most frequent class, and the share of every class among all clients of a domain.

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

    total = len(federation.clients)
    figure = Figure(dpi=150, facecolor="white", layout="constrained")
    if title is None:
        title = f"{federation.dataset.name}, {total} client{'s' if total > 1 else ''}"
    figure.suptitle(title, fontsize=11)
    legend = (_crowd if total > LISTED else _one_by_one)(figure, federation)
    if legend:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 6, "frameon": False}
        figure.legend(handles=legend, fontsize=8, columnspacing=1.4, handletextpad=0.7, **place)
    figure.savefig(path)


def _one_by_one(figure: Figure, federation: Federation) -> list[Any]:
    """Draw clients against classes; return the entries of the legend."""
    total, classes = len(federation.clients), list(federation.meta.labels)
    every = -(-total // MOST_CLIENTS)
    clients = list(range(0, total, every))
    sizes = federation.sizes[clients].tolist()
    across = len(clients) >= len(classes)  # clients lie across
    columns, rows = (len(clients), len(classes)) if across else (len(classes), len(clients))

    # Inches: a row is high enough for its name, and the whole fits a page.
    row = 0.12 if rows > 25 else 0.17 if columns > 40 else 0.24
    width = min(max(4.2, 0.11 * columns), 11.0)
    height = min(max(1.5, row * rows), 12.0)
    strip = 0.7 if across else 0.9
    figure.set_size_inches(
        (width + 1.3, height + strip + 1.6) if across else (width + strip + 1.3, height + 1.6)
    )

    colours, legend = _colours(federation, federation.clients.domain[clients].tolist())
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
    return legend


def _crowd(figure: Figure, federation: Federation) -> list[Any]:
    """Draw how many clients hold how much; return the entries of the legend."""
    domain, sizes, labels = federation.clients.domain, federation.sizes, federation.meta.labels
    groups = np.unique(domain)
    colours, legend = _colours(federation, groups.tolist())
    height = min(0.6 + 0.24 * len(groups), 8.0)
    figure.set_size_inches(7.0, 2.8 + (height if labels else 0))
    if labels:
        grid = figure.add_gridspec(2, 2, height_ratios=(2.0, height))
        rows, single, together = (figure.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, :]))
        _share_panels(single, together, federation, groups, colours)
    else:
        rows = figure.subplots()
    low, high = int(sizes.min()), int(sizes.max())
    steps = np.geomspace if high > 50 * low else np.linspace
    edges = np.unique(np.rint(steps(low, high + 1, BINS + 1))) - 0.5  # between whole numbers
    by_domain = [sizes[domain == group] for group in groups]
    _histogram(rows, by_domain, edges, colours, "training rows of a client")
    if steps is np.geomspace:
        rows.set_xscale("log")
    else:
        rows.locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
    return legend


def _share_panels(
    single: Axes, together: Axes, federation: Federation, groups: Rows, colours: list[str]
) -> None:
    """Draw what the largest class is of single clients, and every class of all clients of a domain."""
    held, domain, labels = federation.clients.train, federation.clients.domain, federation.meta.labels
    owner, label = held.owner, federation.dataset.arrays["y"][held.rows]
    share = _largest(owner, label, len(labels)) / held.sizes
    edges = np.linspace(0, 1, BINS + 1)
    by_domain = [share[domain == group] for group in groups]
    _histogram(single, by_domain, edges, colours, "share of a client's most frequent class")

    cells = np.searchsorted(groups, domain)[owner] * len(labels) + label
    counts = np.bincount(cells, minlength=len(groups) * len(labels)).reshape(len(groups), -1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    darkest = max(shares.max(), 2 / len(labels))  # classes of equal size are a middle grey
    image = together.imshow(shares, "Greys", aspect="auto", vmin=0, vmax=darkest)
    bar = together.figure.colorbar(image, ax=together)
    bar.set_label("share of rows", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _name_ticks(together.yaxis, [federation.domains.names[group] for group in groups], 25, "domain")
    _name_ticks(together.xaxis, list(labels), 40, "class", len("".join(labels)) > 80)


def _largest(owner: Rows, label: Rows, classes: int) -> Rows:
    """Rows of every client's most frequent class, shape (clients,)."""
    cells = np.sort(owner * classes + label)
    first = np.flatnonzero(np.diff(cells, prepend=-1))
    client = cells[first] // classes
    return np.maximum.reduceat(np.diff(first, append=len(cells)), np.flatnonzero(np.diff(client, prepend=-1)))


def _histogram(axes: Axes, values: list[Any], edges: Any, colours: list[str], title: str) -> None:
    """Number of clients by some number, those of each domain on top of the others."""
    axes.hist(values, edges, stacked=True, color=colours)
    axes.set_xlabel(title, fontsize=8)
    axes.set_ylabel("clients", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(federation: Federation, domains: list[int]) -> tuple[list[str], list[Any]]:
    """Colour of each of these domains, and legend entries where there is more than one to tell apart."""
    from matplotlib.lines import Line2D

    names = federation.dataset.domains
    if len(names) > len(COLOURS):
        return [COLOURS[0]] * len(domains), []
    palette = {**dict(enumerate(COLOURS)), -1: MIXED}
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
    labels, classes = federation.dataset.arrays["y"], len(federation.meta.labels)
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
