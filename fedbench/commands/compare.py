"""``fedbench compare``."""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench.errors import NotApplicable, RunFailed, UserError, say

from .shown import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedbench.planner import Item, Outcome

_HELP = """\
Compare methods: run what is asked for and report on it, or line finished runs up.

KEY=VALUE words, as `fedbench run -m` has them, name the runs of a comparison. Those that are there already
are not run again, begun ones go on after their last checkpoint, and the tables and report.html are about all
of them. Repeat the command after an interruption, or with one more method or seed: only what is missing runs.
RUN directories are lined up in a table, one row a method, mean and standard deviation over seeds.

examples:
  fedbench compare scenario=domain_skew strategy=fedavg,scaffold,ggeur seed=0,1,2
  fedbench compare scenario=label_skew seed=0,1,2,3,4 engine=serial --jobs 4 -o runs/label-skew
  fedbench compare scenario=domain_skew strategy=fedavg,fedbn client.model.norm=batch --dry-run
  fedbench compare runs/20261124-*

exit code: 0 done (methods that make no sense with the other settings are left out), 1 a run failed,
2 a mistake in what was asked for, or nothing is left to compare.
"""
_REPORTED = ("output", "baseline", "overlap")
_FOR_RUNS_TO_MAKE = (*_REPORTED, "jobs", "dry_run", "config_dir")
"""Options that finished runs have no use for, or find at ``fedbench report``."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    compare = commands.add_parser(
        "compare",
        help="run a comparison and report on it, or line finished runs up",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Of this name, words may stand before and after options.
    compare.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE|RUN",
        help="what to compare, several values with commas; or run directories, or ones that hold several",
    )
    compare.add_argument(
        "--at",
        choices=["final", "last_5", "best_validation"],
        default="final",
        help="which round the table is about",
    )
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    new = compare.add_argument_group("with KEY=VALUE")
    new.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="where the runs and report.html go, and earlier runs are looked for "
        "(runs/compare-<data>-<scenario>); a name that ends in .html is of the report alone",
    )
    new.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time (1), each in a process with an engine of its own; with engine=serial each keeps "
        "one core busy",
    )
    new.add_argument("--baseline", metavar="METHOD", help="what the others are held against (fedavg)")
    new.add_argument(
        "--overlap",
        type=float,
        metavar="RATIO",
        help="test rows over training rows where every seed draws them anew from one pool, as for report",
    )
    new.add_argument(
        "--dry-run",
        action="store_true",
        default=None,
        help="say what would run and what is there, and stop",
    )
    new.add_argument("--config-dir", metavar="DIR", help="a directory with your own groups, as for run")
    compare.set_defaults(function=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.overrides
    runs = [word for word in words if "=" not in word or Path(word).is_dir()]
    if not runs:
        return _plan_and_run(arguments)
    if len(runs) < len(words):
        other = next(word for word in words if word not in runs)
        raise UserError(
            f"'{runs[0]}' would be a finished run, '{other}' a setting of runs to make; give one kind of them"
        )
    for name in _FOR_RUNS_TO_MAKE:
        if getattr(arguments, name) is not None:
            hint = "; fedbench report has it for finished ones" if name in _REPORTED else ""
            raise UserError(f"--{name.replace('_', '-')} goes with runs to make, KEY=VALUE...{hint}")
    from fedbench.results.run_dir import find_runs, read_summary

    _line_up([read_summary(run) for run in find_runs(runs)], arguments)
    return 0


def _line_up(summaries: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from fedbench.report.comparison import compare, markdown, table, verdict

    comparison = compare(summaries, arguments.at)
    if arguments.markdown:
        print(markdown(comparison), end="")
        return
    console = Console()
    console.print(table(comparison, width=console.width))
    if said := verdict(comparison):
        console.print(said, highlight=False, markup=False)


# --- comparisons to run ------------------------------------------------------------------------------


def _plan_and_run(arguments: argparse.Namespace) -> int:
    from fedbench.config.compose import plan
    from fedbench.planner import default_directory, execute, plan_items

    jobs = 1 if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be 1 or more")
    configs = plan(arguments.overrides, multirun=True, config_dir=arguments.config_dir)
    base, page = _places(arguments.output, configs[0].run_dir or default_directory(configs))
    items = plan_items(configs, base)
    if arguments.dry_run:
        for item in items:
            print(f"{item.state:6}  {item.directory}")
        print(_counts(items))
        return 0
    print(_counts(items), flush=True)
    todo = [item for item in items if item.state != "there"]
    outcomes: list[Outcome] = []
    told: set[str] = set()
    try:
        with closing(execute(todo, jobs, partial(print, flush=True))) as ending:
            for outcome in ending:
                outcomes.append(outcome)
                _say_failure(outcome, told)
    except KeyboardInterrupt:
        ended = f"interrupted after {len(outcomes)} of {len(todo)} runs"
        return say(f"{ended}; what they had is kept, and the same command goes on", 130)
    failed = any(isinstance(outcome.error, RunFailed) for outcome in outcomes)
    # What failed has its place in the report, if it got so far as to have a directory.
    gone = [o.item.directory for o in outcomes if o.error is not None]
    done = [item.directory for item in items if item.directory not in gone]
    if not done:
        return 1 if failed else say("no method was left to run", 2)
    _show(done, arguments)
    _report([*done, *(d for d in gone if d.is_dir())], page, arguments)
    return 1 if failed else 0


def _places(output: str | None, default: str | Path) -> tuple[Path, Path]:
    """Directory of the runs, and file of the report."""
    asked = Path(output).expanduser() if output else None
    base, page = asked or Path(default).expanduser(), None
    if asked is not None and asked.suffix == ".html":
        base, page = Path(default).expanduser(), asked
        if page.is_dir() or not page.parent.is_dir():
            raise UserError(f"-o {output}: give the name of a file in a folder that exists")
    if base.exists() and not base.is_dir():
        raise UserError(f"{base}: is no directory")
    if (base / "config.yaml").exists():
        raise UserError(f"{base}: is a run; give a directory that holds runs, or a new one")
    return base, page or base / "report.html"


def _counts(items: Sequence[Item]) -> str:
    states = [item.state for item in items]
    counts = {"to run": states.count("run"), "to resume": states.count("resume")}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to run"
    return f"{len(items)} run{'s' if len(items) > 1 else ''}: {states.count('there')} there already, {told}"


def _say_failure(outcome: Outcome, told: set[str]) -> None:
    """Say what went wrong, once: a method that makes no sense makes none with every seed."""
    if outcome.error is None:
        return
    left_out = isinstance(outcome.error, NotApplicable)
    line = f"{'left out' if left_out else outcome.item.directory.name}: {outcome.error}"
    if line not in told:
        told.add(line)
        say(line, 0)


def _show(done: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Print a table for each federation: methods on different ones are no rivals."""
    from fedbench.report.html.gather import gather

    for section in gather(done).sections:
        for setting in section.settings:
            summaries = [dict(run) for group in setting.groups.values() for run in group.runs.values()]
            if arguments.markdown or arguments.at != "final":
                _line_up(summaries, arguments)
            else:
                show(summaries, setting.name)


def _report(runs: Sequence[Path], page: Path, arguments: argparse.Namespace) -> None:
    from fedbench.report.html import write_report

    overlap = 0.0 if arguments.overlap is None else arguments.overlap
    for said in write_report(runs, page, arguments.baseline, overlap):
        print(said)
    print(f"report: {page}")
