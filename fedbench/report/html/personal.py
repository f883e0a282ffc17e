"""What a report shows of personalization: gains of clients, clients that never trained, and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbench.report.gain_table import gain
from fedbench.report.statistics import interval

from .figures import MOST_CLIENTS, Figure, rounded, trace
from .gather import Group, Material, Section, Setting, Summary, finite, scaled
from .tables import Better, Cell, Column, Row, by_seed, plain, table

_MEASURES = {"loss": "negative log-likelihood", "ece": "expected calibration error"}


def tables(section: Section, setting: Setting, material: Material) -> str:
    """Tables of a setting that it has numbers for."""
    return "".join(make(section, setting, material) for make in (gains, newcomers, told))


def figures(section: Section, setting: Setting, material: Material) -> list[Figure]:
    """Figures of a setting that it has numbers for."""
    made = (make(section, setting, material) for make in (gain_bars, newcomer_lines, reliability))
    return [figure for figure in made if figure]


def gains(section: Section, setting: Setting, material: Material) -> str:
    """The global model against clients' own on the same rows, for methods that have both."""
    up: Better = "max" if section.higher_is_better else "min"
    columns = [
        Column("global", section.digits, up, "the global model on clients' test rows, mean over clients"),
        Column("own", section.digits, up, "clients' own models on the same rows"),
        Column("gain", section.digits, "", "own minus global"),
        Column("clients better", 0, "max", "share of the clients, in %, that gain; ties half"),
        Column("p (signed rank)", 4, "", "over the clients of all seeds"),
    ]
    rows = []
    for group in setting.groups.values():
        found = gain(list(group.runs.values()))
        if found is None:
            continue
        shared = group.values(
            lambda s: scaled((s["final"].get("global") or {}).get("mean_client"), section.scale)
        )
        own = section.score(group, "mean_client")
        both = {seed: _minus(own[seed], shared[seed]) for seed in own}
        better = found.superiority
        if better is not None:
            better = 100 * (better if section.higher_is_better else 1 - better)
        cells = [by_seed(shared), by_seed(own), by_seed(both), Cell(better), Cell(found.wilcoxon_p)]
        rows.append(Row(material.methods.index(group.method), group.method, cells))
    note = (
        "At the last round. The test is over clients, which share a global model: it describes this "
        "federation and says nothing of another."
    )
    return table("What clients' own models gain", columns, rows, note) if rows else ""


def newcomers(section: Section, setting: Setting, material: Material) -> str:
    """Clients that never trained, by the rows from which they personalise."""
    shots = _shots(setting)
    rows = []
    up: Better = "max" if section.higher_is_better else "min"
    columns = [Column(f"{s} rows", section.digits, up) for s in shots]
    measures = [m for m in _MEASURES if _has(setting, m) and m != section.headline]
    columns += [Column(f"{m}, {s} rows", 3, "min", _MEASURES[m]) for m in measures for s in shots]
    for group in setting.groups.values():
        cells = [by_seed(_scores(group, s, section.headline, section.scale)) for s in shots]
        cells += [by_seed(_scores(group, s, m)) for m in measures for s in shots]
        if any(cell.mean is not None for cell in cells):
            rows.append(Row(material.methods.index(group.method), group.method, cells))
    note = (
        "Clients that took no part in training, after the last round, all their test rows together; by the "
        "number of own rows from which each personalises."
    )
    return table(f"New clients, {section.axis}", columns, rows, note) if rows else ""


def told(section: Section, setting: Setting, material: Material) -> str:  # noqa: ARG001
    """What methods say of themselves at the end, mean over seeds."""
    found = {
        m: {
            key: interval([(s.get("diagnostics") or {}).get(key) for s in group.runs.values()]).mean
            for key in group.first.get("diagnostics") or {}
        }
        for m, group in setting.groups.items()
    }
    methods = [m for m, held in found.items() if held]
    keys = dict.fromkeys(key for m in methods for key in found[m])
    lines = [
        (key.replace("_", " "), ["" if (v := found[m].get(key)) is None else f"{v:.4g}" for m in methods])
        for key in keys
    ]
    return plain("What methods say of themselves", "number", methods, lines)


def gain_bars(section: Section, setting: Setting, material: Material) -> Figure | None:
    """Own minus global score of every client, mean over seeds."""
    traces = []
    for group in setting.groups.values():
        found = gain(list(group.runs.values()))
        if found is None:
            continue
        held: dict[str, list[float]] = {}
        for key, difference in found.differences.items():
            held.setdefault(key[1], []).append(section.scale * difference)  # type: ignore[index]
        if not 1 < len(held) <= MOST_CLIENTS:
            continue
        nodes = sorted(held, key=int)
        spans = [interval(held[node]) for node in nodes]
        y, e, n = [rounded(s.mean) for s in spans], [rounded(s.std) for s in spans], [s.n for s in spans]
        traces.append(trace("bar", group, material, x=nodes, y=y, e=e, n=n))
    if not traces:
        return None
    return {
        "id": "gain",
        "title": "Gain of clients' own models",
        "note": "Own minus global score on the client's own test rows at the last round, mean over seeds.",
        "columns": ["method", "client", "mean", "std", "seeds"],
        "variants": [{"name": "", "x": "client", "y": f"gain, {section.axis}", "traces": traces}],
    }


def newcomer_lines(section: Section, setting: Setting, material: Material) -> Figure | None:
    """Scores of clients that never trained against the rows from which they personalise."""
    shots = _shots(setting)
    if len(shots) < 2:
        return None
    variants = []
    for measure in (section.headline, *(m for m in _MEASURES if _has(setting, m))):
        scale = section.scale if measure == section.headline else 1.0
        traces = []
        for group in setting.groups.values():
            spans = [interval(_scores(group, s, measure, scale).values()) for s in shots]
            if any(s.mean is not None for s in spans):
                y, e = [rounded(s.mean) for s in spans], [rounded(s.std) for s in spans]
                n = [s.n for s in spans]
                traces.append(trace("line", group, material, x=[int(s) for s in shots], y=y, e=e, n=n))
        name = section.axis if measure == section.headline else _MEASURES[measure]
        variants.append({"name": name, "x": "own rows", "y": name, "traces": traces})
    return {
        "id": "newcomers",
        "title": "New clients",
        "note": "Clients that took no part in training, after the last round; band: ± standard deviation "
        "over seeds.",
        "choice": "measure",
        "columns": ["method", "own rows", "mean", "std", "seeds"],
        "variants": variants,
    }


def reliability(section: Section, setting: Setting, material: Material) -> Figure | None:  # noqa: ARG001
    """Accuracy against confidence by bin, of the run of the lowest seed."""
    shots = _shots(setting)
    names = {"": "test rows"} | {k: f"new clients, {k} rows" for k in shots}
    diagonal = {"kind": "line", "method": None, "x": [0, 1], "y": [0, 1], "e": [None] * 2, "n": [0] * 2}
    variants = []
    for key, name in names.items():
        held = {m: _bins(g.first, key) for m, g in setting.groups.items()}
        traces = [_curve(bins, setting.groups[m], material) for m, bins in held.items() if bins]
        if traces:
            axes = {"x": "mean confidence of a bin", "y": "accuracy of the bin"}
            variants.append({"name": name, **axes, "traces": [*traces, diagonal]})
    if not variants:
        return None
    return {
        "id": "reliability",
        "title": "Reliability",
        "note": f"Of the lowest seed, at the last round, bins of {_FEWEST} rows or more. Predictions can be "
        "taken at their word on the diagonal; below it they are too sure.",
        "choice": "of",
        "columns": ["method", "confidence", "accuracy", "", "rows"],
        "variants": variants,
    }


_FEWEST = 10
"""Rows of a bin whose accuracy is shown."""


def _bins(summary: Summary, shots: str) -> Mapping[str, Any] | None:
    """Bins of confidence of all test rows, or of new clients with some rows of their own."""
    final = summary["final"]
    scores = (final.get("new_clients") or {}).get(shots, {}) if shots else final
    bins: Mapping[str, Any] | None = scores.get("reliability")
    return bins


def _curve(bins: Mapping[str, Any], group: Group, material: Material) -> dict[str, Any]:
    kept = [i for i, rows in enumerate(bins["rows"]) if rows >= _FEWEST]
    x, y = ([rounded(bins[name][i]) for i in kept] for name in ("confidence", "accuracy"))
    return trace(
        "line", group, material, x=x, y=y, e=[None] * len(kept), n=[int(bins["rows"][i]) for i in kept]
    )


def _shots(setting: Setting) -> list[str]:
    """Numbers of rows that new clients of some run had."""
    groups = setting.groups.values()
    return list(
        dict.fromkeys(k for g in groups for s in g.runs.values() for k in s["final"].get("new_clients") or ())
    )


def _has(setting: Setting, measure: str) -> bool:
    return any(
        measure in scores
        for g in setting.groups.values()
        for scores in (g.first["final"].get("new_clients") or {}).values()
    )


def _scores(group: Group, shots: str, measure: str, scale: float = 1.0) -> dict[int, float | None]:
    def pick(summary: Summary) -> float | None:
        return scaled(finite((summary["final"].get("new_clients") or {}).get(shots, {}).get(measure)), scale)

    return group.values(pick)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
