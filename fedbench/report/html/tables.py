"""Tables of a report: HTML that is whole without a script, and that the page's script reads to export it.

A cell's number stands in full in ``data-v`` (its deviation in ``data-s``); a row's method in ``data-method``,
by which the page shows and hides it; a column's direction in ``data-better``, by which it marks the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from fedbench.report.comparison import megabytes
from fedbench.report.statistics import Contrast, Friedman, Interval, against, interval, over_settings
from fedbench.report.statistics import seeds_needed as fewest_seeds

from .gather import Group, Material, Section, Setting, Summary, finite, scaled, seconds, spent

Better = Literal["", "max", "min"]

MOST_DOMAINS = 30
"""Domains that a table shows one by one."""
TARGETS = (95, 90, 99, 80)
"""Shares, in per cent, of the best method's result that the cost table asks for; the first is shown first."""
_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column of numbers: its name, the digits it is shown with, and which way is better."""

    name: str
    digits: int = 2
    better: Better = ""
    about: str = ""


@dataclass(frozen=True)
class Cell:
    """A number, or a text where ``text`` is given; ``contends`` says whether it may be marked as the best."""

    mean: float | None = None
    std: float | None = None
    text: str = ""
    contends: bool = True
    kind: str = ""

    @classmethod
    def of(cls, found: Interval, contends: bool = True) -> Cell:
        """Mean and standard deviation, and how many runs had no number."""
        lost = f" ({found.missing} missing)" if found.missing and found.n else ""
        return cls(found.mean, found.std, lost, contends)


@dataclass(frozen=True)
class Row:
    """A row: the method's place in the report's list (None for what is no method), its label, its cells."""

    method: int | None
    label: str
    cells: Sequence[Cell]


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Row], note: str = "", first: str = "method"
) -> str:
    """A table with its tools, as HTML; all text is escaped."""
    rows = list(rows)
    best = [
        _best(column, [row.cells[i] for row in rows if row.method is not None])
        for i, column in enumerate(columns)
    ]
    head = "".join(
        f'<th scope="col" data-better="{c.better}"{_title(c.about)}>{escape(c.name)}</th>' for c in columns
    )
    body = []
    for row in rows:
        cells = "".join(
            _cell(cell, column, cell is mark)
            for cell, column, mark in zip(row.cells, columns, best, strict=True)
        )
        which = ' class="reference"' if row.method is None else f' data-method="{row.method}"'
        body.append(f'<tr{which}><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    return (
        f'<div class="table" data-name="{escape(caption)}"><div class="scroll" tabindex="0" role="group" '
        f'aria-label="{escape(caption)}, scrolls sideways"><table><caption>{escape(caption)}</caption>'
        f'<thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</div>"
    )


def choice(label: str, options: Mapping[str, str]) -> str:
    """Several pieces of HTML of which a reader picks one; the first is shown at first."""
    if len(options) == 1:
        return next(iter(options.values()))
    names = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(options))
    parts = "".join(
        f'<div class="option"{" hidden" if i else ""}>{part}</div>' for i, part in enumerate(options.values())
    )
    pick = f'<label class="pick">{escape(label)} <select>{names}</select></label>'
    return f'<div class="choice">{pick}{parts}</div>'


def _title(about: str) -> str:
    return f' title="{escape(about)}"' if about else ""


def _cell(cell: Cell, column: Column, best: bool) -> str:
    data = "" if cell.mean is None else f' data-v="{cell.mean:.12g}"'
    data += "" if cell.mean is None or cell.std is None else f' data-s="{cell.std:.12g}"'
    data += "" if cell.contends else " data-apart"
    names = [name for name in ("best" if best else "", cell.kind) if name]
    data += f' class="{" ".join(names)}"' if names else ""
    return f"<td{data}>{_text(cell, column.digits)}</td>"


def _text(cell: Cell, digits: int) -> str:
    if cell.mean is None:
        return escape(cell.text) or _MISSING
    spread = "" if cell.std is None else f' <span class="std">± {cell.std:.{digits}f}</span>'
    return f"{number(cell.mean, digits)}{spread}{escape(cell.text)}"


def number(value: float, digits: int) -> str:
    """A number with a minus sign that is one, and none before a zero."""
    return f"{value:z.{digits}f}".replace("-", "−")


def _best(column: Column, cells: Sequence[Cell]) -> Cell | None:
    held = [c for c in cells if c.mean is not None and c.contends]
    if not column.better or len(held) < 2:
        return None
    pick = max if column.better == "max" else min
    return pick(held, key=lambda c: c.mean or 0.0)


# --- results -----------------------------------------------------------------------------------------


def fairness(clients: Iterable[float | None], higher_is_better: bool) -> dict[str, float]:
    """How evenly a run's clients fare; empty where no client has a score.

    ``worst`` client, ``decile``: mean of the worst tenth of the clients (one at least), ``variance`` over
    clients (population), and Jain's index (sum x)^2 / (n sum x^2), 1 where all are equal (Jain, Chiu and
    Hawe, DEC report TR-301, 1984).

    Parameters
    ----------
    clients : iterable of float or None
        Score of each client on its own test rows.
    higher_is_better : bool
        Direction of the score.
    """
    held = sorted((v for c in clients if (v := finite(c)) is not None), reverse=not higher_is_better)
    if not held:
        return {}
    tenth = max(1, len(held) // 10)
    squares = sum(c * c for c in held)
    found = {
        "worst": held[0],
        "decile": statistics.fmean(held[:tenth]),
        "variance": statistics.pvariance(held),
    }
    return found | ({"jain": sum(held) ** 2 / (len(held) * squares)} if squares else {})


def results(section: Section, setting: Setting, material: Material, at: str = "final") -> str:
    """Scores of every method at a point of its runs: by domain, over domains, and over clients."""
    up: Better = "max" if section.higher_is_better else "min"
    domains = setting.domains if 1 < len(setting.domains) <= MOST_DOMAINS else []
    digits = section.digits
    columns = [Column(d, digits, up) for d in domains]
    columns += [
        Column("AVG", digits, up, "mean over test domains"),
        Column("STD", digits, "min", "standard deviation over test domains"),
        Column("clients", digits, up, "mean over clients, each on its own test rows"),
        Column("worst client", digits, up, "on its own test rows"),
        Column("worst 10%", digits, up, "mean of the worst tenth of the clients"),
        Column("variance", digits, "min", "of the score over clients"),
        Column("Jain", 3, "max", "Jain's index of the clients' scores: 1 where all fare alike"),
    ]

    def fair(key: str, power: int) -> Callable[[Summary], float | None]:
        def pick(summary: Summary) -> float | None:
            scores = (summary.get(at) or {}).get("clients") or {}
            return scaled(fairness(scores.values(), section.higher_is_better).get(key), section.scale**power)

        return pick

    def domain(name: str) -> Callable[[Summary], float | None]:
        return lambda s: scaled(((s.get(at) or {}).get("domains") or {}).get(name), section.scale)

    rows = []
    for group in setting.groups.values():
        ours = not group.personal
        cells = [by_seed(group.values(domain(d)), ours) for d in domains]
        cells += [by_seed(section.score(group, key, at), ours) for key in ("avg", "std")]
        cells += [by_seed(section.score(group, "mean_client", at))]
        cells += [
            by_seed(group.values(fair(key, power)))
            for key, power in (("worst", 1), ("decile", 1), ("variance", 2), ("jain", 0))
        ]
        rows.append(Row(material.methods.index(group.method), _label(group), cells))
    rows += _references(section, setting, domains, at, len(columns))
    kept = [i for i in range(len(columns)) if any(r.cells[i].mean is not None for r in rows)]
    if len(setting.domains) < 2:
        kept = [i for i in kept if columns[i].name != "STD"]
    columns = [columns[i] for i in kept]
    rows = [Row(r.method, r.label, [r.cells[i] for i in kept]) for r in rows]
    when = "last round" if at == "final" else "best round on validation rows"
    return table(f"{section.axis}, {when}", columns, rows, _results_note(setting))


def _results_note(setting: Setting) -> str:
    seeds = [len(g.runs) for g in setting.groups.values()]
    span = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    note = f"Mean ± standard deviation over {span} seeds" if max(seeds) > 1 else "One seed"
    note += "; STD is over domains, variance and Jain's index over clients."
    if any(g.personal for g in setting.groups.values()):
        note += (
            " †: models of the clients' own, whose domain scores are on the clients' own test rows and "
            "contend with no one's; the columns from clients on have all methods on the same rows."
        )
    if len(setting.domains) > MOST_DOMAINS:
        note += f" {len(setting.domains)} domains are too many to be shown one by one."
    return note


def _references(section: Section, setting: Setting, domains: Sequence[str], at: str, width: int) -> list[Row]:
    """Predictors without training, as the runs scored them; those of a global method where there is one."""
    groups = list(setting.groups.values())
    group = next((g for g in groups if not g.personal), groups[0])
    named = (group.first.get(at) or {}).get("references") or {}
    rows = []
    for name in named:
        found = [((s.get(at) or {}).get("references") or {}).get(name) or {} for s in group.runs.values()]
        cells = [Cell.of(interval([scaled(f.get(d), section.scale) for f in found])) for d in domains]
        means = [statistics.fmean(f.values()) for f in found if f]
        spreads = [statistics.pstdev(f.values()) for f in found if f]
        cells += [Cell.of(interval([section.scale * v for v in values])) for values in (means, spreads)]
        cells += [Cell()] * (width - len(cells))
        rows.append(Row(None, name.replace("_", " "), cells))
    return rows


def by_seed(values: Mapping[int, float | None], contends: bool = True) -> Cell:
    """Mean and standard deviation over seeds."""
    return Cell.of(interval(values.values()), contends)


def _label(group: Group) -> str:
    return group.method + (" †" if group.personal else "")


# --- cost --------------------------------------------------------------------------------------------


def target(section: Section, setting: Setting, share: float) -> float | None:
    """The score that is ``share`` of the best method's mean AVG (its 1 / share where lower is better)."""
    means = [interval(section.score(g, "avg").values()).mean for g in setting.groups.values()]
    held = [m for m in means if m is not None]
    if not held:
        return None
    best = max(held) if section.higher_is_better else min(held)
    if best <= 0:
        return None
    return best * share if section.higher_is_better else best / share


def reached(section: Section, summary: Summary, score: float) -> tuple[int, float, float] | None:
    """Round, megabytes and seconds at the first evaluation with an AVG as good as ``score``, or None."""
    for point in summary["history"]:
        value = finite(point["avg"])
        if value is None:
            continue
        value *= section.scale
        if value >= score if section.higher_is_better else value <= score:
            return (int(point["round"]), *spent(summary, point))
    return None


def cost(section: Section, setting: Setting, material: Material, share: float | None) -> str:
    """What every method took in all, and until it reached a common target."""
    goal = None if share is None else target(section, setting, share)
    columns = [
        Column("MB", 1, "min", "up and down, without evaluation"),
        Column("s", 1, "min", "after start-up"),
    ]
    if goal is not None:
        columns += [
            Column("reached", 0, "", "runs that reached the target"),
            *(
                Column(f"{unit} to target", digits, "min")
                for unit, digits in (("rounds", 1), ("MB", 1), ("s", 1))
            ),
        ]
    rows = []
    for group in setting.groups.values():
        cells = [by_seed(group.values(megabytes)), by_seed(group.values(seconds))]
        if goal is not None:
            found = [reached(section, s, goal) for s in group.runs.values()]
            hits = [f for f in found if f is not None]
            cells.append(Cell(text=f"{len(hits)} of {len(found)}"))
            whole = len(hits) == len(found)
            cells += [Cell.of(interval([h[i] for h in hits]), whole) for i in range(3)]
        rows.append(Row(material.methods.index(group.method), _label(group), cells))
    note = "MB and s in all are of the whole run; MB up and down, without evaluation."
    if goal is not None and share is not None:
        sign, percent = ("≥", share) if section.higher_is_better else ("≤", 1 / share)
        note = (
            f"Target: AVG {sign} {goal:.{section.digits}f}, {100 * percent:.0f}% of the best method's last "
            "round, at the first evaluation that has it; means are over the runs that do, and only a method "
            f"all of whose runs do can be marked. {note} Until the target they are spread evenly over rounds."
        )
    return table("Cost", columns, rows, note)


def costs(section: Section, setting: Setting, material: Material) -> str:
    """The cost table for each of several targets."""
    if target(section, setting, 1.0) is None:
        return cost(section, setting, material, None)
    return choice(
        "target",
        {
            (f"{t}%" if section.higher_is_better else f"{10000 / t:.0f}%") + " of the best AVG": cost(
                section, setting, material, t / 100
            )
            for t in TARGETS
        },
    )


# --- verdicts ----------------------------------------------------------------------------------------


def contrasts(
    section: Section,
    setting_results: Mapping[str, Mapping[Any, float | None]],
    baseline: str,
    material: Material,
    overlap: float = 0.0,
) -> str:
    """Every method against the baseline: difference, interval, p values, and how many seeds would do.

    Means stand there for a single setting only: pooled, they would be of different settings.
    """
    digits = section.digits
    pooled = any(isinstance(key, tuple) for results in setting_results.values() for key in results)
    unit = "runs" if pooled else "seeds"
    up: Better = "max" if section.higher_is_better else "min"
    columns = [
        Column(section.axis, digits, up),
        Column("difference", digits, "", "method minus baseline"),
        Column("95% interval"),
        Column("p (t)", 4, "", "paired t test"),
        Column("p (Holm)", 4, "", "the same, corrected for all methods"),
        Column("p (signed rank)", 4, "", "Wilcoxon's test, uncorrected"),
        Column("Hedges g", 2, "", "mean difference over its deviation, without small-sample bias"),
        Column("above", 0, "", "pairs in which the method scored higher, ties half"),
        Column("pairs", 0),
        Column(f"{unit} needed", 0, "", "for a chance of 0.8 to show this difference"),
        Column("verdict"),
    ]
    found = against(baseline, setting_results, section.higher_is_better, overlap=overlap)
    base = interval(setting_results[baseline].values())
    rows = [
        Row(
            material.methods.index(baseline),
            marked(baseline, material),
            [Cell.of(base), *[Cell()] * (len(columns) - 2), Cell(text="baseline")][pooled:],
        )
    ]
    for contrast in found:
        mean = interval(setting_results[contrast.method].values())
        rows.append(
            Row(
                material.methods.index(contrast.method),
                marked(contrast.method, material),
                [Cell.of(mean), *_contrast(contrast, digits, overlap)][pooled:],
            )
        )
    return table(f"Against {baseline}", columns[pooled:], rows, _contrasts_note(found, pooled))


def marked(method: str, material: Material) -> str:
    """A method's label with the mark of personal ones."""
    return method + (" †" if method in material.personal else "")


def _contrast(contrast: Contrast, digits: int, overlap: float) -> list[Cell]:
    pair = contrast.paired
    bounds = pair.difference.bounds
    span = f"{number(bounds[0], digits)} to {number(bounds[1], digits)}" if bounds else ""
    kind = {"better": "better", "worse": "worse"}.get(contrast.verdict, "open")
    would = ""
    if kind == "open" and pair.t_p is not None and pair.difference.mean:
        level = 0.05 / max(contrast.tests, 1)  # Bonferroni's, on the side of more seeds than Holm's
        needed = fewest_seeds(pair.differences.values(), level=level, overlap=overlap)
        would = f"about {needed}" if needed else "more than 10,000"
    left = f" ({pair.left_out} left out)" if pair.left_out else ""
    return [
        Cell(pair.difference.mean),
        Cell(text=span),
        *(_p(p) for p in (pair.t_p, contrast.p_holm, pair.wilcoxon_p)),
        Cell(pair.hedges_g),
        Cell(text=_MISSING if pair.superiority is None else f"{100 * pair.superiority:.0f}%"),
        Cell(text=f"{pair.n}{left}"),
        Cell(text=would),
        Cell(text="not shown" if kind == "open" else contrast.verdict, kind=kind),
    ]


def _p(p: float | None) -> Cell:
    """A p value; what would round to nothing is told apart from it."""
    return Cell(text="< 0.0001") if p is not None and p < 0.0001 else Cell(p)


def _contrasts_note(found: Sequence[Contrast], pooled: bool) -> str:
    if not found:
        return ""
    pairs = max(c.paired.n for c in found)
    note = (
        f"Paired by {'setting and ' if pooled else ''}seed; intervals are of each difference alone, p (Holm) "
        "holds for all together, whichever are shown. Where every seed draws its test rows anew from one "
        "pool, plain tests are too sure; the option --overlap corrects them."
    )
    if pairs < 2:
        return (
            "One seed: no test is possible, and a difference may be chance. Run at least 3 seeds, better 5."
        )
    if pairs < 6:
        note = f"{pairs} pairs: the signed-rank test cannot come below p = {2 / 2**pairs:.3g}. {note}"
    return note


def by_setting(section: Section, material: Material, ranking: Friedman | None) -> str:
    """Mean of every method in every setting, over the seeds that all methods there have in common."""
    pooled = pooled_results(section)
    means = over_settings(pooled)
    up: Better = "max" if section.higher_is_better else "min"
    names = [s.name for s in section.settings]
    columns = [Column(name, section.digits, up) for name in names]
    columns.append(Column("mean", section.digits, up, "over the settings, where the method has all of them"))
    if ranking:
        columns.append(Column("average rank", 2, "min", "1 is the best"))
    rows = []
    for method in section.methods:
        values = [means[method].get(name) for name in names]
        held = [v for v in values if v is not None]
        cells = [Cell(v) for v in values]
        cells.append(Cell(statistics.fmean(held) if len(held) == len(values) else None))
        if ranking:
            cells.append(Cell(ranking.ranks.get(method)))
        rows.append(Row(material.methods.index(method), marked(method, material), cells))
    return table(
        f"{section.axis} by setting",
        columns,
        rows,
        "Means over the seeds that all methods of a setting share.",
    )


def pooled_results(section: Section) -> dict[str, dict[tuple[str, int], float | None]]:
    """Method to result by (setting, seed)."""
    pooled: dict[str, dict[tuple[str, int], float | None]] = {m: {} for m in section.methods}
    for setting in section.settings:
        for method, values in section.results(setting).items():
            pooled[method] |= {(setting.name, seed): value for seed, value in values.items()}
    return pooled


# --- the rest ----------------------------------------------------------------------------------------


def differences(section: Section, material: Material) -> str:
    """Options in which settings differ, whatever the method, and those in which methods differ."""
    by_setting = [[_flat(g.first) for g in s.groups.values()] for s in section.settings]
    by_method = [
        [_flat(s.groups[m].first) for s in section.settings if m in s.groups] for m in section.methods
    ]
    between = [
        (option, texts)
        for option, texts in _differing(by_setting)
        if all(len({held.get(option, "") for held in runs}) == 1 for runs in by_setting)
    ]
    shown = plain("Between settings", "option", [s.name for s in section.settings], between)
    own = [
        (option, texts)
        for option, texts in _differing(by_method)
        if any(len({held.get(option, "") for held in runs}) > 1 for runs in by_setting)
    ]
    shown += plain("Between methods", "option", [marked(m, material) for m in section.methods], own)
    return shown or "<p>Nothing differs but the seed.</p>"


def _flat(summary: Summary) -> dict[str, str]:
    options = {**(summary.get("choices") or {}), **(summary.get("settings") or {})}
    return {k: str(v) for k, v in options.items() if not k.endswith("_target_")}


def _differing(columns: Sequence[Sequence[Mapping[str, str]]]) -> list[tuple[str, list[str]]]:
    """Options and their text in each column, which holds several runs, where the columns differ."""
    options = dict.fromkeys(k for column in columns for held in column for k in held)
    lines = []
    for option in options:
        texts = [
            " | ".join(dict.fromkeys(held.get(option, _MISSING) for held in column)) for column in columns
        ]
        if len(set(texts)) > 1:
            lines.append((option, texts))
    return lines


def plain(caption: str, first: str, columns: Sequence[str], lines: Iterable[tuple[str, list[str]]]) -> str:
    """A table of words; empty without a line."""
    rows = [Row(None, name, [Cell(text=text or _MISSING) for text in texts]) for name, texts in lines]
    if not rows:
        return ""
    return f'<div class="words">{table(caption, [Column(c) for c in columns], rows, first=first)}</div>'


def environment(material: Material) -> str:
    """Versions and machines of the runs, a column for each that differs."""
    if not material.environments:
        return "<p>These runs hold no environment.json.</p>"
    flat = []
    for found, _ in material.environments:
        packages = found.get("packages") or {}
        one = {k: v for k, v in found.items() if k != "packages"} | dict(packages)
        flat.append({k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in one.items()})
    columns = [f"{count} run{'s' if count > 1 else ''}" for _, count in material.environments]
    keys = dict.fromkeys(k for one in flat for k in one)
    lines = [(key, [one.get(key, "") or "none" for one in flat]) for key in keys]
    return plain("Where these runs ran", "part", columns, lines)


def failures(material: Material) -> str:
    """Runs that are in no table, and clients that failed or were lost in those that are."""
    shown = ""
    if material.troubles:
        lines = [
            (
                t.run or f"{t.label} in {t.setting}",
                [t.label, t.setting, "" if t.seed is None else str(t.seed), t.why],
            )
            for t in material.troubles
        ]
        shown += plain(
            "Runs that count for nothing, or are missing", "run", ["method", "setting", "seed", "why"], lines
        )
    rows = []
    names = ("dropout", "deadline", "surplus")
    for section in material.sections:
        for setting in section.settings:
            for group in setting.groups.values():
                counts = [sum(s.get("failures") or 0 for s in group.runs.values())]
                counts += [sum((s.get("lost") or {}).get(n, 0) for s in group.runs.values()) for n in names]
                if any(counts):
                    label = f"{_label(group)}, {setting.name}"
                    rows.append(
                        Row(material.methods.index(group.method), label, [Cell(float(c)) for c in counts])
                    )
    if rows:
        columns = [Column("errors", 0), *(Column(n, 0) for n in names)]
        note = "Work of clients over all rounds and seeds: errors in it, and what a system lost."
        shown += table("Clients that failed or were lost", columns, rows, note)
    return shown or "<p>No run failed, and no client was lost.</p>"


def notes(section: Section) -> list[tuple[str, str]]:
    """What data sets say of themselves, by setting."""
    found = []
    for setting in section.settings:
        said = next(iter(setting.groups.values())).first.get("notes") or {}
        for key, value in said.items() if isinstance(said, Mapping) else ():
            shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
            found.append((f"{setting.name}: {str(key).replace('_', ' ')}", shown))
    return found
