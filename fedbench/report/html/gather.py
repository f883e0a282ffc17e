"""Runs sorted into what the report shows: a section a metric, a setting a federation, a group a method."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbench.errors import UserError, nearest
from fedbench.report.comparison import megabytes, score_digits
from fedbench.results.run_dir import read_summary

Summary = Mapping[str, Any]

CONDITIONS = ("data", "scenario", "attack", "system")
"""Groups whose choices make the setting that methods are compared in; all others belong to a method."""
_NEUTRAL = ("engine", "experiment")
"""Choices that no result depends on, or that stand for others."""
_SHOWN = 3
"""Settings that a name mentions where runs of one name differ."""
BASELINE = "fedavg"
"""Held against the others where it is among them and nothing else is asked for."""


@dataclass(frozen=True)
class Trouble:
    """A run that no table shows, and why."""

    run: str
    label: str
    setting: str
    seed: int | None
    why: str


@dataclass(frozen=True)
class Group:
    """Runs of one method in one setting, by seed; ``paths`` are their directories."""

    method: str
    runs: dict[int, Summary]
    paths: dict[int, Path]

    @property
    def first(self) -> Summary:
        """Run of the lowest seed, where one has to stand for all."""
        return self.runs[min(self.runs)]

    @property
    def personal(self) -> bool:
        """Whether its clients predict with models of their own."""
        return bool(self.first.get("personal"))

    def values(self, pick: Callable[[Summary], float | None]) -> dict[int, float | None]:
        """A number of every run, by seed; None where it is missing or not finite."""
        return {seed: finite(pick(self.runs[seed])) for seed in sorted(self.runs)}


@dataclass(frozen=True)
class Setting:
    """A federation, and the methods that ran on it."""

    name: str
    groups: dict[str, Group]
    baseline: str

    @property
    def domains(self) -> list[str]:
        """Test domains in the order of the runs; only those with results."""
        return list(
            dict.fromkeys(
                d for g in self.groups.values() for s in g.runs.values() for d in s["final"]["domains"]
            )
        )


@dataclass(frozen=True)
class Section:
    """All runs that are measured by one metric."""

    headline: str
    higher_is_better: bool
    settings: list[Setting]
    verdict_on: str
    """Key of a point that verdicts compare: ``avg``, or ``mean_client`` where a method is personal."""

    @property
    def scale(self) -> float:
        """What scores are multiplied with to be shown."""
        return 100.0 if self.headline == "accuracy" else 1.0

    @property
    def unit(self) -> str:
        """Said after a difference."""
        return "points" if self.headline == "accuracy" else ""

    @property
    def axis(self) -> str:
        """Name of the scores on an axis."""
        return f"{self.headline} in %" if self.headline == "accuracy" else self.headline

    @property
    def digits(self) -> int:
        """Digits after the point of a score."""
        return score_digits(self.headline)

    @property
    def methods(self) -> list[str]:
        """Methods of all settings; the baseline of the first setting leads."""
        names = dict.fromkeys(m for s in self.settings for m in s.groups)
        return sorted(names, key=lambda m: m != self.settings[0].baseline)

    def score(self, group: Group, key: str, at: str = "final") -> dict[int, float | None]:
        """A number of a point of every run, by seed, as it is shown."""
        return group.values(lambda s: scaled((s.get(at) or {}).get(key), self.scale))

    def results(self, setting: Setting) -> dict[str, dict[int, float | None]]:
        """What verdicts compare: method to result by seed."""
        return {m: self.score(g, self.verdict_on) for m, g in setting.groups.items()}


@dataclass(frozen=True)
class Material:
    """All that a report shows.

    Parameters
    ----------
    sections : list of Section
        One a metric.
    methods : list of str
        All methods, baselines first; their order gives their colours.
    troubles : list of Trouble
        Runs that are left out.
    environments : list of (dict, int)
        Each different environment, and how many runs had it.
    """

    sections: list[Section]
    methods: list[str]
    troubles: list[Trouble] = field(default_factory=list)
    environments: list[tuple[dict[str, Any], int]] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """Runs that the tables show."""
        return sum(len(g.runs) for s in self.sections for x in s.settings for g in x.groups.values())

    @property
    def personal(self) -> set[str]:
        """Methods whose clients predict with models of their own."""
        groups = (g for s in self.sections for x in s.settings for g in x.groups.values())
        return {g.method for g in groups if g.personal}


# --- numbers -----------------------------------------------------------------------------------------


def finite(value: float | None) -> float | None:
    """The number, or None where there is none or it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def scaled(value: float | None, by: float) -> float | None:
    """The number times ``by``; None stays None."""
    return None if value is None else by * value


def seconds(summary: Summary) -> float:
    """Seconds of a run after start-up: of a system's clock where there is one, else of the wall's."""
    if summary.get("virtual_seconds") is not None:
        return float(summary["virtual_seconds"])
    timing = summary.get("timing") or {}
    return float(timing.get("total", 0.0) - timing.get("start", 0.0))


def spent(summary: Summary, point: Summary) -> tuple[float, float]:
    """Megabytes and seconds until the round of ``point``, an entry of ``history``.

    What precedes round 1 counts in full; what the rounds took is spread evenly over them, which is exact
    where all rounds have as many clients. A system's clock is exact.
    """
    share = point["round"] / max(summary["rounds"], 1)
    before = (
        sum(
            b["up"] + b["down"] for phase, b in summary["bytes"].items() if phase not in ("train", "evaluate")
        )
        / 1e6
    )
    sent = before + share * (megabytes(summary) - before)
    if point.get("virtual_seconds") is not None:
        return sent, float(point["virtual_seconds"])
    prepared = float((summary.get("timing") or {}).get("prepare", 0.0))
    return sent, prepared + share * (seconds(summary) - prepared)


# --- reading and sorting -----------------------------------------------------------------------------


def gather(paths: Iterable[str | Path], baseline: str | None = None) -> Material:
    """Read runs at or below the given paths and sort them.

    Parameters
    ----------
    paths : iterable of path
        Run directories, or directories that hold several.
    baseline : str, optional
        Method that the others are held against; ``fedavg`` where it ran, else the first method.

    Raises
    ------
    UserError
        If a path is no directory, no run has a result, or no run is of the baseline.
    """
    read: dict[Path, Summary] = {}
    troubles: list[Trouble] = []
    for path in _runs(paths):
        try:
            summary = read_summary(path)
            label, setting, seed = str(summary["label"]), _conditions_name(summary), int(summary["seed"])
        except (UserError, KeyError) as error:
            why = str(error) if isinstance(error, UserError) else f"its summary.json has no {error}"
            if not (path / "summary.json").is_file():
                why = "unfinished: no summary.json; `fedbench resume` may go on with it"
            troubles.append(Trouble(str(path), "", "", None, why))
            continue
        if summary["status"] != "completed":
            why = f"{summary['status']} in round {summary.get('rounds', 0)}: {_last_words(path)}"
            troubles.append(Trouble(str(path), label, setting, seed, why))
        elif not summary.get("final"):
            troubles.append(Trouble(str(path), label, setting, seed, "never evaluated"))
        else:
            read[path] = summary
    if not read:
        told = f"; the first: {troubles[0].why}" if troubles else ""
        raise UserError(f"none of {len(troubles)} runs has a result to report{told}")
    by_metric: dict[tuple[str, bool], dict[Path, Summary]] = defaultdict(dict)
    for path, run in read.items():
        by_metric[run["headline"], bool(run["higher_is_better"])][path] = run
    sections = [_section(key, runs, baseline, troubles) for key, runs in by_metric.items()]
    methods = list(dict.fromkeys(m for s in sections for m in s.methods))
    if baseline is not None and baseline not in methods:
        raise UserError(f"--baseline {baseline}: no such method in these runs{nearest(baseline, methods)}")
    return Material(sections, methods, troubles, _environments(read))


def _runs(paths: Iterable[str | Path]) -> list[Path]:
    """Directories of runs, begun ones too."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such directory")
        below = {p.parent for name in ("summary.json", "config.yaml") for p in path.rglob(name)}
        if not below:
            raise UserError(f"{path}: holds no run (no summary.json in or below it)")
        found |= dict.fromkeys(sorted(below))
    return list(found)


def _last_words(path: Path) -> str:
    """Last line of a run's log."""
    log = path / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last[:300] or "its log says nothing"


def _section(
    key: tuple[str, bool], runs: Mapping[Path, Summary], baseline: str | None, troubles: list[Trouble]
) -> Section:
    by_setting: dict[str, dict[Path, Summary]] = defaultdict(dict)
    for path, summary in runs.items():
        choices, settings = _part(summary, conditions=True)
        by_setting[_key(choices, settings)][path] = summary
    firsts = [next(iter(held.values())) for held in by_setting.values()]
    names = _names([(_conditions_name(s), *_part(s, conditions=True)) for s in firsts])
    found = [
        _setting(name, held, baseline, troubles)
        for name, held in zip(names, by_setting.values(), strict=True)
    ]
    groups = [g for s in found for g in s.groups.values()]
    has_clients = all(s["final"].get("mean_client") is not None for g in groups for s in g.runs.values())
    mixed = any(g.personal for g in groups) and has_clients
    return Section(key[0], key[1], found, "mean_client" if mixed else "avg")


def _setting(
    name: str, runs: Mapping[Path, Summary], baseline: str | None, troubles: list[Trouble]
) -> Setting:
    by_method: dict[str, dict[Path, Summary]] = defaultdict(dict)
    for path, summary in runs.items():
        by_method[_key(summary["label"], *_part(summary, conditions=False))][path] = summary
    firsts = [next(iter(held.values())) for held in by_method.values()]
    labels = _names([(s["label"], *_part(s, conditions=False)) for s in firsts])
    groups = {}
    for label, held in zip(labels, by_method.values(), strict=True):
        by_seed: dict[int, Summary] = {}
        paths: dict[int, Path] = {}
        for path, summary in held.items():
            seed = int(summary["seed"])
            if seed in by_seed:  # the same run, and no second witness
                troubles.append(Trouble(str(path), label, name, seed, f"the same run as {paths[seed]}"))
            else:
                by_seed[seed], paths[seed] = summary, path
        groups[label] = Group(label, by_seed, paths)
    every = {seed for group in groups.values() for seed in group.runs}
    for label, group in groups.items():
        if missing := sorted(every - set(group.runs)):
            why = f"no result for seed {', '.join(map(str, missing))}, which other methods have"
            troubles.append(Trouble("", label, name, None, why))
    chosen = baseline if baseline in groups else _baseline(groups)
    return Setting(name, {m: groups[m] for m in sorted(groups, key=lambda m: m != chosen)}, chosen)


def _baseline(groups: Mapping[str, Group]) -> str:
    plain = (m for m, g in groups.items() if g.first["label"] == BASELINE)
    return next(plain, next(iter(groups)))


def _part(summary: Summary, conditions: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choices and settings of the conditions, or of the method."""

    def belongs(key: str) -> bool:
        return (key.partition(".")[0] in CONDITIONS) == conditions and key != "data.root"

    choices = summary.get("choices") or {}
    settings = summary.get("settings") or {}
    return (
        {k: v for k, v in choices.items() if belongs(k) and k not in _NEUTRAL},
        {k: v for k, v in settings.items() if belongs(k)},
    )


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _conditions_name(summary: Summary) -> str:
    choices = summary.get("choices") or {}
    named = [choices.get(group) for group in CONDITIONS]
    return ", ".join(str(name) for name in named if name not in (None, "none")) or "one setting"


def _names(parts: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Names, with the choices and then the settings in which those of one name differ."""
    names: list[str] = []
    for name, choices, settings in parts:
        alike = [p for p in parts if p[0] == name]
        shown = [k for k in choices if any(p[1].get(k) != choices[k] for p in alike)]
        told = [f"{k}={choices[k]}" for k in shown]
        same = [p for p in alike if p[1] == choices]
        differ = [k for k in settings if any(p[2].get(k) != settings[k] for p in same)]
        told += [f"{k}={settings[k]}" for k in differ[:_SHOWN]]
        full = f"{name} ({' '.join(told)})" if told else name
        again = sum(n == full or n.startswith(f"{full} #") for n in names)
        names.append(f"{full} #{again + 1}" if again else full)
    return names


def _environments(runs: Mapping[Path, Summary]) -> list[tuple[dict[str, Any], int]]:
    counts: dict[str, int] = defaultdict(int)
    for path in runs:
        file = path / "environment.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError:
            found = {}
        if isinstance(found, dict) and found:
            counts[json.dumps(found, sort_keys=True)] += 1
    return [(json.loads(text), count) for text, count in counts.items()]
