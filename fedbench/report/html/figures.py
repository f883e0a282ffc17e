"""Figures of a report as data: what is drawn, in a form that the page's script turns into plotly's.

A figure has an ``id``, a ``title``, a ``note``, the ``columns`` of its CSV file, and ``variants`` that a
reader picks from, each with a ``name``, axis titles ``x`` and ``y``, and ``traces``. A trace has a ``kind``
and the ``method`` it belongs to (a place in the report's list; None for none):

=======  =========================================================================================
line     ``x``, ``y``, ``e`` (standard deviation, drawn as a band) and ``n`` (runs), a number a point
step     ``x`` (lower edges of bins, then the last upper one), ``y``
bar      ``x`` (names), ``y``, ``e``, ``n``
point    ``x``, ``y``, ``ex``, ``ey``, ``n``: a single point
heat     ``x`` (names), ``methods``, ``z`` of shape (methods, clients)
path     ``x``, ``y``, and a ``label`` at its end; the parts of a critical-difference diagram
=======  =========================================================================================
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedbench.report.comparison import megabytes
from fedbench.report.statistics import Friedman, interval

from .gather import Group, Material, Section, Setting, finite, scaled, seconds, spent

Figure = dict[str, Any]

MOST_CLIENTS = 200
"""Clients that a heat map shows one by one; more are counted."""
MOST_DOMAINS = 40
"""Domains that bars are drawn for."""
BINS = 30


def figures(section: Section, setting: Setting, material: Material) -> list[Figure]:
    """Figures of a setting that it has numbers for."""
    made = (make(section, setting, material) for make in (curves, domains, clients, pareto))
    return [figure for figure in made if figure]


def rounded(value: float | None) -> float | None:
    """Nine significant digits, which is more than a float32 model's scores have; None where not finite."""
    value = finite(value)
    return None if value is None else float(f"{value:.9g}")


def curves(section: Section, setting: Setting, material: Material) -> Figure | None:
    """AVG on test rows by round, megabytes and seconds, with the deviation over seeds as a band."""
    virtual = any(
        s.get("virtual_seconds") is not None for g in setting.groups.values() for s in g.runs.values()
    )
    names = ("round", "MB", "virtual seconds" if virtual else "seconds")
    variants = []
    for axis, name in enumerate(names):
        traces = []
        for group in setting.groups.values():
            points = _by_round(group, section.scale)
            if points:
                xs, ys, es, ns = zip(*((p[axis], *p[3:]) for p in points), strict=True)
                traces.append(trace("line", group, material, x=xs, y=ys, e=es, n=ns))
        variants.append({"name": name, "x": name, "y": f"{section.axis}, AVG", "traces": traces})
    if not any(v["traces"] for v in variants):
        return None
    return {
        "id": "curves",
        "title": "Learning curves",
        "note": "AVG on test rows after every evaluation; band: ± standard deviation over seeds. "
        "MB and seconds are spread evenly over a run's rounds.",
        "choice": "against",
        "columns": ["method", "{x}", "mean", "std", "seeds"],
        "variants": variants,
    }


def _by_round(group: Group, scale: float) -> list[tuple[float, float | None, float | None, Any, Any, int]]:
    """Round, mean megabytes and seconds until it, mean score, its deviation, and runs that have it."""
    held: dict[int, list[tuple[float, float, float | None]]] = {}
    for summary in group.runs.values():
        for point in summary.get("history") or ():
            cost = spent(summary, point)
            held.setdefault(int(point["round"]), []).append((*cost, scaled(finite(point["avg"]), scale)))
    points = []
    for number in sorted(held):
        megabytes_, seconds_, scores = zip(*held[number], strict=True)
        found = interval(scores)
        points.append(
            (
                float(number),
                rounded(statistics.fmean(megabytes_)),
                rounded(statistics.fmean(seconds_)),
                rounded(found.mean),
                rounded(found.std),
                found.n,
            )
        )
    return points


def domains(section: Section, setting: Setting, material: Material) -> Figure | None:
    """Score of every method in every test domain at each point of a run that is reported."""
    names = setting.domains
    if not 1 < len(names) <= MOST_DOMAINS:
        return None
    variants = []
    for at, title in points(setting).items():
        traces = []
        for group in setting.groups.values():
            found = [interval(group.values(_domain(at, name, section.scale)).values()) for name in names]
            traces.append(
                trace(
                    "bar",
                    group,
                    material,
                    x=names,
                    y=[rounded(f.mean) for f in found],
                    e=[rounded(f.std) for f in found],
                    n=[f.n for f in found],
                )
            )
        variants.append({"name": title, "x": "test domain", "y": section.axis, "traces": traces})
    return {
        "id": "domains",
        "title": "By domain",
        "note": "Mean over seeds; bars: ± standard deviation over seeds.",
        "choice": "at",
        "columns": ["method", "domain", "mean", "std", "seeds"],
        "variants": variants,
    }


def points(setting: Setting) -> dict[str, str]:
    """Points of a run that all runs of a setting have, and their names."""
    every = [s for g in setting.groups.values() for s in g.runs.values()]
    names = {"final": "last round", "best_validation": "best round on validation rows"}
    return {at: name for at, name in names.items() if all(s.get(at) for s in every)}


def _domain(at: str, name: str, scale: float) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda s: scaled(s[at]["domains"].get(name), scale)


def clients(section: Section, setting: Setting, material: Material) -> Figure | None:
    """Score of every client under every method, mean over seeds; how many fare how where clients are many."""
    scores = {m: _client_scores(g, section.scale) for m, g in setting.groups.items()}
    nodes = sorted({node for held in scores.values() for node in held})
    if len(nodes) < 2:
        return None
    if len(nodes) > MOST_CLIENTS:
        return _spread(section, setting, material)
    split = next(iter(setting.groups.values())).first.get("split")
    split = split if isinstance(split, list) else []
    of_domain = [str(split[n]["domain"]) if n < len(split) else "" for n in nodes]
    order = sorted(range(len(nodes)), key=lambda i: (setting.domains + of_domain).index(of_domain[i]))
    told = len(set(of_domain)) > 1
    names = [f"{nodes[i]} {of_domain[i]}".strip() if told else str(nodes[i]) for i in order]
    methods = list(setting.groups)
    z = [[rounded(scores[m].get(nodes[i])) for i in order] for m in methods]
    heat: dict[str, Any] = {"kind": "heat", "method": None, "x": names, "z": z}
    heat["methods"] = [material.methods.index(m) for m in methods]
    return {
        "id": "clients",
        "title": "By client",
        "note": "Every client on its own test rows at the last round, mean over seeds; ordered by domain. "
        "Where the scenario draws clients anew, a client's rows differ from seed to seed.",
        "columns": ["method", "client", "mean"],
        "variants": [{"name": "", "x": "client", "y": "", "z": section.axis, "traces": [heat]}],
    }


def _client_scores(group: Group, scale: float) -> dict[int, float]:
    held: dict[int, list[float]] = {}
    for summary in group.runs.values():
        for node, score in (summary["final"].get("clients") or {}).items():
            if (value := finite(score)) is not None:
                held.setdefault(int(node), []).append(scale * value)
    return {node: statistics.fmean(values) for node, values in held.items()}


def _spread(section: Section, setting: Setting, material: Material) -> Figure:
    """Share of clients by score, all seeds together, in bins that all methods share."""
    scores = {
        m: [
            section.scale * v
            for s in g.runs.values()
            for score in (s["final"].get("clients") or {}).values()
            if (v := finite(score)) is not None
        ]
        for m, g in setting.groups.items()
    }
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(v, float) for v in scores.values()]), BINS)
    traces = []
    for method, values in scores.items():
        if values:
            share = 100 * np.histogram(values, edges)[0] / len(values)
            group = setting.groups[method]
            x, y = [rounded(e) for e in edges.tolist()], [rounded(v) for v in share.tolist()]
            traces.append(trace("step", group, material, x=x, y=y))
    return {
        "id": "clients",
        "title": "Over clients",
        "note": "Clients by their score on their own test rows at the last round, all seeds together.",
        "columns": ["method", "from", "percent of clients"],
        "variants": [{"name": "", "x": section.axis, "y": "clients in %", "traces": traces}],
    }


def pareto(section: Section, setting: Setting, material: Material) -> Figure | None:
    """Score against cost: what no other method beats in both lies on the line."""
    variants = []
    for name, measure in (("MB", megabytes), ("seconds", seconds)):
        traces = []
        for group in setting.groups.values():
            x, y = interval(group.values(measure).values()), interval(section.score(group, "avg").values())
            if x.mean is None or y.mean is None:
                continue
            numbers = {"x": x.mean, "y": y.mean, "ex": x.std, "ey": y.std}
            traces.append(
                trace("point", group, material, **{k: [rounded(v)] for k, v in numbers.items()}, n=[y.n])
            )
        axis = f"{name}, whole run"
        variants.append({"name": name, "x": axis, "y": f"{section.axis}, AVG", "traces": traces})
    if len(variants[0]["traces"]) < 2:
        return None
    return {
        "id": "pareto",
        "title": "Score against cost",
        "note": "Last round, mean ± standard deviation over seeds. On the dotted line lies what no other "
        "method beats in both.",
        "choice": "cost",
        "columns": ["method", "{x}", "score", "std of cost", "std of score", "seeds"],
        "front": "max" if section.higher_is_better else "min",
        "variants": variants,
    }


def critical_difference(ranking: Friedman, material: Material, prefix: str) -> Figure:
    """Average ranks on a line, the best left; methods under one bar are not shown to differ (Demšar 2006)."""
    k = len(ranking.ranks)
    half = (k + 1) // 2
    depth = 1.0 + 0.4 * len(ranking.groups)
    low, high = 0.7, k + 0.3
    traces: list[dict[str, Any]] = [
        {"kind": "path", "method": None, "role": "axis", "x": [1, k], "y": [0, 0], "label": ""}
    ]
    traces += [
        {"kind": "path", "method": None, "role": "tick", "x": [r, r], "y": [0, 0.25], "label": str(r)}
        for r in range(1, k + 1)
    ]
    for place, (method, rank) in enumerate(ranking.ranks.items()):
        left = place < half
        y = -depth - 0.9 * (place if left else k - 1 - place)
        traces.append(
            {
                "kind": "path",
                "method": material.methods.index(method),
                "role": "method",
                "x": [rounded(rank), rounded(rank), low if left else high],
                "y": [0, y, y],
                "label": f"{method} ({rank:.2f})",
                "side": "left" if left else "right",
            }
        )
    for number, group in enumerate(ranking.groups):
        ends = [ranking.ranks[group[0]] - 0.04, ranking.ranks[group[-1]] + 0.04]
        y = -0.5 - 0.4 * number
        traces.append(
            {
                "kind": "path",
                "method": None,
                "role": "group",
                "x": ends,
                "y": [y, y],
                "label": ", ".join(group),
            }
        )
    cd = ranking.critical_difference
    if cd <= k - 1:
        traces.append(
            {
                "kind": "path",
                "method": None,
                "role": "cd",
                "x": [1, rounded(1 + cd / 2), rounded(1 + cd)],
                "y": [1.5, 1.5, 1.5],
                "label": f"CD = {cd:.2f}",
            }
        )
    verdict = "differ" if ranking.f_p < ranking.level else "are not shown to differ"
    few = " So few settings make the p value rough." if ranking.settings < 10 else ""
    few += f" {ranking.left_out} settings lack a method and are left out." if ranking.left_out else ""
    return {
        "id": f"{prefix}-cd",
        "title": "Average ranks over settings",
        "note": f"{ranking.settings} settings; the methods {verdict} (Friedman's test in Iman and "
        f"Davenport's form: p = {ranking.f_p:.3g}; chi-squared {ranking.chi2:.2f}, p = {ranking.chi2_p:.3g})"
        f". Nemenyi's critical difference is {cd:.2f} ranks; a bar joins methods not shown to differ.{few} "
        "Ranks are among all methods, whichever are shown.",
        "columns": ["method", "average rank"],
        "height": int(120 + 30 * (depth + 0.9 * half)),
        "range": [low, high],
        "variants": [{"name": "", "x": "", "y": "", "traces": traces}],
    }


def trace(kind: str, group: Group, material: Material, **numbers: Any) -> dict[str, Any]:
    """A trace of a method."""
    return {"kind": kind, "method": material.methods.index(group.method), **numbers}
