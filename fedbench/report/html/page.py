"""The page: what is said first, the order of its parts, and the one file that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fedbench.errors import UserError
from fedbench.report.split_picture import COLOURS, MIXED
from fedbench.report.statistics import Friedman, friedman, over_settings, sentence

from . import figures, personal, tables
from .gather import Material, Section, Setting, gather
from .pictures import Album

_ON = {"avg": "AVG over test domains", "mean_client": "the mean over clients, each on its own test rows"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")
_STROKES = {"solid": "", "dash": "5 3", "dot": "1.5 2.5", "dashdot": "5 2 1.5 2"}
_DARK = {"#000000": "#F2F2F2"}
"""What stands on a dark page for a colour that would drown there."""


def write_report(
    paths: Iterable[str | Path], output: str | Path, baseline: str | None = None, overlap: float = 0.0
) -> list[str]:
    """Write the report of runs into one file, which an earlier one of that name gives way to.

    Parameters
    ----------
    paths : iterable of path
        Run directories, or directories that hold several.
    output : path
        The HTML file; its folder must exist.
    baseline : str, optional
        Method that the others are held against; ``fedavg`` where it ran.
    overlap : float
        As for :func:`fedbench.report.statistics.paired`.

    Returns
    -------
    list of str
        What the page says first of every metric.

    Raises
    ------
    UserError
        If there is nothing to report, or the file cannot be written.
    """
    if not 0 <= overlap < math.inf:
        raise UserError(
            f"--overlap {overlap}: not a ratio of test to training rows; 0.43 where 0.3 are held out"
        )
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"-o {output}: give the name of a file in a folder that exists")
    material = gather(paths, baseline)
    page = render(material, overlap)
    partial = target.with_name(target.name + ".tmp")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"-o {output}: cannot be written ({error.strerror})") from error
    return [verdict(section, overlap) for section in material.sections]


def render(material: Material, overlap: float = 0.0) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs  # slow to import, so only here

    album, drawn, links = Album(), [], []
    body = []
    for number, section in enumerate(material.sections):
        html, found, names = _section(section, material, album, overlap, f"s{number}")
        body.append(html)
        drawn += found
        links += names
    body.append(_tail(material))
    links += [("configuration", "Configuration"), ("environment", "Environment"), ("failures", "Failures")]
    data = {
        "methods": [tables.marked(m, material) for m in material.methods],
        "symbols": [_symbol(i) for i in range(len(material.methods))],
        "dashes": [_dash(i) for i in range(len(material.methods))],
        "figures": {f["id"]: f for f in drawn},
    }
    return Template(_piece("page.html")).substitute(
        title=escape(_title(material)),
        about=escape(_about(material)),
        css=_piece("page.css") + _colours(material),
        links="".join(f'<a href="#{i}">{escape(name)}</a>' for i, name in links),
        methods="".join(_tick(i, m, material) for i, m in enumerate(material.methods)),
        body="".join(body),
        data=script_json(data),
        plotly=get_plotlyjs(),
        downloads=_piece("downloads.js"),
        script=_piece("page.js"),
    )


def script_json(data: Any) -> str:
    """JSON that cannot end, or comment out, the script element that holds it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _piece(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


# --- words -------------------------------------------------------------------------------------------


def verdict(section: Section, overlap: float = 0.0) -> str:
    """What the runs of a metric say, over all of its settings."""
    if len(section.settings) == 1:
        return _said(section, section.settings[0], overlap)
    pooled = tables.pooled_results(section)
    baseline = section.settings[0].baseline
    return _sentence(section, pooled, baseline, overlap)


def _said(section: Section, setting: Setting, overlap: float) -> str:
    return _sentence(section, section.results(setting), setting.baseline, overlap)


def _sentence(
    section: Section, results: Mapping[str, Mapping[Any, float | None]], baseline: str | None, overlap: float
) -> str:
    return sentence(
        results, section.higher_is_better, baseline, unit=section.unit, digits=section.digits, overlap=overlap
    )


def _title(material: Material) -> str:
    names = [s.settings[0].name for s in material.sections if len(s.settings) == 1]
    return ", ".join(dict.fromkeys(names)) if len(names) == len(material.sections) else "Comparison"


def _about(material: Material) -> str:
    settings = sum(len(s.settings) for s in material.sections)
    groups = [g for s in material.sections for x in s.settings for g in x.groups.values()]
    seeds = {len(g.runs) for g in groups}
    span = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return ", ".join(
        [
            _count(material.runs, "run"),
            _count(len(material.methods), "method"),
            _count(settings, "setting"),
            f"{span} seed{'' if span == '1' else 's'} each",
        ]
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- parts -------------------------------------------------------------------------------------------

Links = list[tuple[str, str]]


def _section(
    section: Section, material: Material, album: Album, overlap: float, prefix: str
) -> tuple[str, list[figures.Figure], Links]:
    """Verdicts of a metric, then a part for each of its settings."""
    drawn: list[figures.Figure] = []
    several = len(section.settings) > 1
    heading = f"Verdict: {section.headline}" if len(material.sections) > 1 else "Verdict"
    links: Links = [(f"{prefix}-verdict", heading)]
    html = f'<section id="{prefix}-verdict"><h2>{escape(heading)}</h2>{_verdict(section, overlap)}'
    if several:
        ranking = _ranking(section)
        pooled, baseline = tables.pooled_results(section), section.settings[0].baseline
        html += tables.by_setting(section, material, ranking)
        if ranking:
            drawn.append(figures.critical_difference(ranking, material, prefix))
            html += _figure(drawn[-1])
        if len(pooled) > 1:
            html += tables.contrasts(section, pooled, baseline, material, overlap)
    elif len(section.methods) > 1:
        setting = section.settings[0]
        html += tables.contrasts(section, section.results(setting), setting.baseline, material, overlap)
    html += "</section>"
    for number, setting in enumerate(section.settings):
        name = f"{prefix}-{number}"
        found = figures.figures(section, setting, material)
        found = [
            f | {"id": f"{name}-{f['id']}"} for f in [*found, *personal.figures(section, setting, material)]
        ]
        drawn += found
        links.append((name, setting.name))
        html += f'<section id="{name}"><h2>{escape(setting.name)}</h2>'
        html += f'<p class="about">{escape(_conditions(setting))}</p>'
        if several:
            html += f'<p class="said">{escape(_said(section, setting, overlap))}</p>'
            if len(setting.groups) > 1:
                results = section.results(setting)
                html += tables.contrasts(section, results, setting.baseline, material, overlap)
        points = figures.points(setting)
        html += tables.choice(
            "scores at",
            {title: tables.results(section, setting, material, at) for at, title in points.items()},
        )
        html += personal.tables(section, setting, material) + tables.costs(section, setting, material)
        html += f'<div class="figures">{"".join(map(_figure, found))}</div>'
        html += _pictures(setting, album) + "</section>"
    return html, drawn, links


def _verdict(section: Section, overlap: float) -> str:
    several = len(section.settings) > 1
    lead = f'<p class="lead">{escape(verdict(section, overlap))}</p>'
    results = tables.pooled_results(section) if several else section.results(section.settings[0])
    if len(results) > 2:
        among = _sentence(section, results, None, overlap)
        lead += f"<p>Among all methods, with none chosen beforehand: {escape(among)}</p>"
    if several:
        items = "".join(
            f"<li><b>{escape(s.name)}:</b> {escape(_said(section, s, overlap))}</li>"
            for s in section.settings
        )
        lead += f"<ul>{items}</ul>"
    way = "higher" if section.higher_is_better else "lower"
    told = f"{section.axis}, {_ON[section.verdict_on]}, at the last round; {way} is better."
    return f'<div class="verdict">{lead}<p class="note">{escape(told)}</p></div>'


def _ranking(section: Section) -> Friedman | None:
    try:
        return friedman(over_settings(tables.pooled_results(section)), section.higher_is_better)
    except ValueError:  # too few methods or settings to rank
        return None


def _conditions(setting: Setting) -> str:
    first = next(iter(setting.groups.values())).first
    split = first.get("split")
    number = len(split) if isinstance(split, Sequence) else (split or {}).get("clients")
    rounds = sorted({int(s["rounds"]) for g in setting.groups.values() for s in g.runs.values()})
    model = {str(s["choices"].get("client")) for g in setting.groups.values() for s in g.runs.values()}
    seeds = sorted({seed for g in setting.groups.values() for seed in g.runs})
    parts = [
        _count(number, "client") if number else "",
        _count(len(setting.domains), "test domain"),
        f"model {', '.join(sorted(model))}",
        f"{rounds[0]} rounds" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]} rounds",
        f"seeds {', '.join(map(str, seeds))}",
    ]
    return "; ".join(p for p in parts if p)


def _figure(figure: figures.Figure) -> str:
    names = [v["name"] for v in figure["variants"]]
    options = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))
    pick = ""
    if len(names) > 1:
        pick = f'<label class="pick">{escape(figure["choice"])} <select>{options}</select></label>'
    name, title = escape(figure["id"]), escape(figure["title"])
    return (
        f'<figure data-figure="{name}" aria-labelledby="{name}-title" class="{name.rpartition("-")[2]}">'
        f'<div class="head"><h3 id="{name}-title">{title}</h3><div class="tools">{pick}'
        f'<button type="button" data-save="svg" aria-label="{title}: download as SVG">SVG</button>'
        f'<button type="button" data-save="csv" aria-label="{title}: download as CSV">CSV</button>'
        "</div></div>"
        f'<div class="plot" role="img" aria-label="{title}; its numbers are in the table below"></div>'
        f'<figcaption class="note">{escape(figure["note"])}</figcaption>'
        '<details class="numbers"><summary>Numbers</summary><div class="scroll" tabindex="0" role="group" '
        f'aria-label="{title}, numbers"></div></details></figure>'
    )


def _pictures(setting: Setting, album: Album) -> str:
    html = ""
    for caption, uri in album.pictures(setting):
        picture = f'<img src="{uri}" alt="{escape(caption)}">' if uri else ""
        text = f'<figcaption class="note">{escape(caption)}</figcaption>'
        html += f'<figure class="picture">{picture}{text}</figure>'
    return f'<div class="figures">{html}</div>' if html else ""


def _tail(material: Material) -> str:
    html = '<section id="configuration"><h2>Configuration</h2>'
    for section in material.sections:
        if len(material.sections) > 1:
            html += f"<h3>{escape(section.headline)}</h3>"
        html += tables.differences(section, material)
        if said := tables.notes(section):
            items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in said)
            html += f"<h3>Notes of the data sets</h3><dl>{items}</dl>"
    html += (
        f'</section><section id="environment"><h2>Environment</h2>{tables.environment(material)}</section>'
    )
    return html + f'<section id="failures"><h2>Failures</h2>{tables.failures(material)}</section>'


# --- how methods look --------------------------------------------------------------------------------


def _symbol(method: int) -> str:
    return _SYMBOLS[method % len(_SYMBOLS)]


def _dash(method: int) -> str:
    """Dashes change where colours begin again, so that no two of 32 methods look alike."""
    return _DASHES[method // len(COLOURS) % len(_DASHES)]


def _colours(material: Material) -> str:
    """Colours of the methods as CSS variables, light and dark."""
    light = [COLOURS[i % len(COLOURS)] for i in range(len(material.methods))]
    shades = {"light": light, "dark": [_DARK.get(c, c) for c in light]}
    both = {
        k: "".join(f"--m{i}:{c};" for i, c in enumerate(v)) + f"--mixed:{MIXED};" for k, v in shades.items()
    }
    return (
        f":root{{{both['light']}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{both['dark']}}}}}\n"
        f":root[data-theme=dark]{{{both['dark']}}}\n"
    )


def _tick(number: int, method: str, material: Material) -> str:
    """A checkbox that shows a method, with the line that it is drawn with."""
    stroke = _STROKES[_dash(number)]
    dashes = f' stroke-dasharray="{stroke}"' if stroke else ""
    return (
        f'<label class="method"><input type="checkbox" value="{number}" checked>'
        f'<svg width="26" height="12" aria-hidden="true"><line x1="0" y1="6" x2="26" y2="6" stroke-width="3" '
        f'stroke="var(--m{number})"{dashes}/></svg>{escape(tables.marked(method, material))}</label>'
    )
