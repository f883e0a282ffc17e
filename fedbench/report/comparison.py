"""Runs side by side: one row a method, mean and standard deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedbench.errors import UserError

At = Literal["final", "last_5", "best_validation"]
_TITLES = {
    "final": "last round",
    "last_5": "mean of the last 5 evaluated rounds",
    "best_validation": "best round on validation rows",
}
_POINTS = {"AVG": "avg", "clients": "mean_client", "worst": "worst_client", "STD": "std"}
"""Columns that are one number of a run's result."""


@dataclass(frozen=True)
class Cell:
    """Mean and spread over seeds of one number; ``std`` is None for a single run."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """Sample standard deviation (ddof 1) where there is more than one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """One method: its label, the seeds it was run with, and a cell for each column.

    The clients of a ``personal`` method predict with models of their own, so that its domain scores are
    theirs on their own test rows and not one model's on all of a domain's.
    """

    label: str
    seeds: list[int]
    cells: dict[str, Cell]
    personal: bool = False
    reference: bool = False
    """Whether it is a predictor without training, to hold the methods against."""


@dataclass(frozen=True)
class Comparison:
    """A table of methods.

    Parameters
    ----------
    headline : str
        Metric of the score columns.
    higher_is_better : bool
        Its direction.
    at : str
        Which round the scores are of.
    scores : list of str
        Score columns: domains, AVG, where a method is personal the mean over clients, and worst client.
    rows : list of Row
        One a method, in the order in which they were given.
    left_out : list of str
        Runs that count for nothing, in words: never evaluated, or the same settings and seed again.
    """

    headline: str
    higher_is_better: bool
    at: At
    scores: list[str]
    rows: list[Row]
    left_out: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """All columns in order."""
        return [*self.scores, *(["STD"] if "AVG" in self.scores else []), "MB", "s"]

    def digits(self, column: str) -> int:
        """Digits after the point that a column is shown with."""
        return 1 if column in ("s", "MB") else score_digits(self.headline)


def grouped(summaries: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Runs that differ by seed alone, under a label that tells them from the others."""
    # The same settings with the same seed are the same run, and no second witness.
    by_seed: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for s in summaries:
        by_seed[json.dumps([s["label"], s["settings"], _stopped(s)], sort_keys=True)][s["seed"]] = s
    groups = [list(seeds.values()) for seeds in by_seed.values()]
    return list(zip(_labels([g[0] for g in groups]), groups, strict=True))


def compare(summaries: Iterable[Mapping[str, Any]], at: At = "final") -> Comparison:
    """Group runs that differ by seed alone, and line the groups up.

    Parameters
    ----------
    summaries : iterable of mapping
        Contents of ``summary.json``.
    at : {"final", "last_5", "best_validation"}
        Round that is reported; never the best round on test rows.

    Raises
    ------
    UserError
        If the runs have no metric in common, or lack the round asked for.
    """
    summaries = list(summaries)
    headlines = {s["headline"] for s in summaries}
    if len(headlines) != 1:
        raise UserError(
            f"these runs measure different things ({', '.join(sorted(headlines))}); compare them apart"
        )
    evaluated = [s for s in summaries if s["final"]]
    if not evaluated:
        raise UserError("none of these runs got as far as an evaluation; their log.txt says why")
    for s in evaluated:
        if s[at] is None:
            raise UserError(f"run '{s['label']}' seed {s['seed']} has no '{at}' result: no validation rows")
    named = grouped(evaluated)
    groups = [group for _, group in named]
    repeated = len(evaluated) - sum(len(group) for group in groups)
    left_out = [
        f"{count} {what} left out"
        for count, what in ((len(summaries) - len(evaluated), "never evaluated"), (repeated, "repeated"))
        if count
    ]
    summaries = evaluated
    domains = list(dict.fromkeys(d for s in summaries for d in s[at]["domains"]))
    rows = []
    for label, group in named:
        cells = {}
        for domain in domains:
            values = [s[at]["domains"][domain] for s in group if domain in s[at]["domains"]]
            if values:
                cells[domain] = Cell.of([100 * v for v in values] if _percent(group[0]) else values)
        for name, key in _POINTS.items():
            values = [s[at][key] for s in group if s[at].get(key) is not None]
            if values:
                cells[name] = Cell.of([100 * v for v in values] if _percent(group[0]) else values)
        cells["MB"] = Cell.of([megabytes(s) for s in group])
        cells["s"] = Cell.of([s["timing"].get("total", 0.0) - s["timing"].get("start", 0.0) for s in group])
        personal = bool(group[0].get("personal"))
        label += (" †" if personal else "") + _stopped(group[0])
        rows.append(Row(label, sorted(s["seed"] for s in group), cells, personal))
    first = summaries[0]
    # Where all methods are personal, it is on their clients' own rows, as they are.
    rows += _references(next((g for g in groups if not g[0].get("personal")), groups[0]))
    clients = ["clients"] if any(row.personal for row in rows) else []
    scores = [*domains, *(["AVG"] if len(domains) > 1 else []), *clients, "worst"]
    return Comparison(first["headline"], first["higher_is_better"], at, scores, rows, left_out)


def _references(group: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Predictors without training, scored by every run on the domains' test rows."""
    rows = []
    for name in group[0]["final"].get("references") or ():
        found = [s["final"]["references"][name] for s in group]
        scale = 100 if _percent(group[0]) else 1
        cells = {d: Cell.of([scale * f[d] for f in found]) for d in found[0]}
        if len(cells) > 1:
            cells["AVG"] = Cell.of([scale * statistics.fmean(f.values()) for f in found])
        rows.append(Row(name.replace("_", " "), sorted(s["seed"] for s in group), cells, reference=True))
    return rows


def _stopped(summary: Mapping[str, Any]) -> str:
    """What a label says of a run that did not reach its last round."""
    return "" if summary["status"] == "completed" else f", stopped in round {summary['rounds']}"


def megabytes(summary: Mapping[str, Any]) -> float:
    """Megabytes up and down for training and what precedes it; evaluation is ours and not the method's."""
    return sum(b["up"] + b["down"] for phase, b in summary["bytes"].items() if phase != "evaluate") / 1e6


def score_digits(headline: str) -> int:
    """Digits after the point of a score: percentages have two."""
    return 2 if headline == "accuracy" else 3


def _percent(summary: Mapping[str, Any]) -> bool:
    return bool(summary["headline"] == "accuracy")


def _labels(groups: list[Mapping[str, Any]]) -> list[str]:
    """Method names, with the choices and then the settings in which groups of one name differ."""
    labels = []
    for g in groups:
        alike = [other for other in groups if other["label"] == g["label"]]
        choices = [k for k in g["choices"] if any(o["choices"].get(k) != g["choices"][k] for o in alike)]
        same = [o["settings"] for o in alike if o["choices"] == g["choices"]]
        settings = [k for k in g["settings"] if any(o.get(k) != g["settings"][k] for o in same)]
        shown = [f"{k}={g['choices'][k]}" for k in choices if k != "engine"]
        shown += [f"{k}={g['settings'][k]}" for k in settings[:4]]
        labels.append(f"{g['label']} ({' '.join(shown)})" if shown else g["label"])
    return labels


_LABEL_WIDTH = 24
"""Longer labels are folded where a table would not fit otherwise."""


def table(comparison: Comparison, title: str = "", width: int | None = None) -> Table:
    """The comparison as a terminal table; the best value of each score column is bold.

    Parameters
    ----------
    comparison : Comparison
        What to show.
    title : str
        Printed above.
    width : int, optional
        Columns of the terminal. A table that is wider has its deviations put below the means, and if that is
        not enough, it leaves the domains out; no number is ever cut.
    """
    every = comparison.columns
    few = [c for c in every if c in (*_POINTS, "MB", "s")]
    layouts = [(every, " ± ", 1), (every, " ± ", 0), (every, "\n±", 1), (every, "\n±", 0), (few, "\n±", 0)]
    longest = max(len(row.label) for row in comparison.rows)
    for columns, join, gap in layouts:
        result = _layout(comparison, columns, join, gap)
        needed = Console(width=1000).measure(result).maximum - longest + min(longest, _LABEL_WIDTH)
        if width is None or needed <= width:
            break
    result.title = title or None
    result.caption = _caption(comparison)
    if columns != every:
        result.caption += "; the terminal is too narrow for the domains, --markdown shows them"
    return result


def _caption(comparison: Comparison) -> str:
    unit = "%" if comparison.headline == "accuracy" else ""
    caption = f"{comparison.headline}{f' in {unit}' if unit else ''}, {_TITLES[comparison.at]}; "
    caption += "STD: over domains; worst: client; MB: up and down, without evaluation; s: after start-up"
    if any(row.personal for row in comparison.rows):
        caption += "; †: models of the clients' own, each on its own test rows, as in the mean over clients"
    caption += "".join(f"; {text}" for text in comparison.left_out)
    if any(row.reference for row in comparison.rows):
        caption += "; without a number of MB: predictors without training"
    seeds = [len(r.seeds) for r in comparison.rows]
    low, high = min(seeds), max(seeds)
    if high > 1:
        span = str(high) if low == high else f"{low} to {high}"
        caption += f"; mean ± standard deviation over {span} seeds"
    if len(comparison.rows) > 1 and low < 3:
        caption += f"; {low} seed{'s' if low > 1 else ''} cannot tell small differences from chance"
    return caption


def _layout(comparison: Comparison, columns: list[str], join: str, gap: int) -> Table:
    result = Table(
        title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False
    )
    result.add_column("method", overflow="fold")
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    best = _best(comparison)
    for row in comparison.rows:
        cells = [
            Text(_text(row.cells.get(c), comparison.digits(c), join), "bold" if best.get(c) is row else "")
            for c in columns
        ]
        result.add_row(Text(row.label), *cells)
    return result


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table."""
    columns = comparison.columns
    lines = [
        "| method | seeds | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for row in comparison.rows:
        cells = [_text(row.cells.get(c), comparison.digits(c)) for c in columns]
        lines.append(f"| {row.label} | {len(row.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _best(comparison: Comparison) -> dict[str, Row]:
    """The best method of each score column, where there are several methods."""
    methods = [r for r in comparison.rows if not r.reference]
    if len(methods) < 2:
        return {}
    pick = max if comparison.higher_is_better else min
    best = {}
    for column in comparison.scores:
        on_own_rows = column in ("clients", "worst")
        held = [r for r in methods if column in r.cells and (on_own_rows or not r.personal)]
        if held:
            best[column] = pick(held, key=lambda r: r.cells[column].mean)
    return best


def _text(cell: Cell | None, digits: int, join: str = " ± ") -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.{digits}f}" + ("" if cell.std is None else f"{join}{cell.std:.{digits}f}")


def verdict(comparison: Comparison) -> str:
    """One honest sentence: which method is ahead, by how much, and whether the seeds can bear it."""
    methods = [r for r in comparison.rows if not r.reference]
    if len(methods) < 2:
        return ""
    # All methods are tested on the same rows in the mean over clients; in domains, personal ones are not.
    column = next((c for c in ("clients", "AVG") if c in comparison.scores), comparison.scores[0])
    ranked = sorted(
        (r for r in methods if column in r.cells),
        key=lambda r: r.cells[column].mean,
        reverse=comparison.higher_is_better,
    )
    first, second = ranked[0], ranked[1]
    gap = abs(first.cells[column].mean - second.cells[column].mean)
    digits = comparison.digits(column)
    if round(gap, digits) == 0:
        return f"{first.label} and {second.label} are level in {column}."
    said = f"{first.label} is ahead of {second.label} by {gap:.{digits}f} in {column}"
    spread = [r.cells[column].std for r in (first, second)]
    if None in spread:
        return f"{said}, on one seed; add -m seed=0,1,2 to learn whether that holds."
    noise = max(s for s in spread if s is not None)
    weight = "less than" if gap < noise else "more than"
    return f"{said}, {weight} the spread over seeds ({noise:.{digits}f})."
