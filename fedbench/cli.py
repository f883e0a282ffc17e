"""The command line: ``fedbench run``, ``resume``, ``compare``, ``report`` and ``list``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NotApplicable, RunFailed, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_RUN_HELP = """\
Run one method, or the product of several settings, on one federation.

examples:
  fedbench run scenario=domain_skew                      compare fedavg, fedprox and ggeur on embedded digits
  fedbench run scenario=domain_skew strategy=ggeur       one method
  fedbench run scenario=label_skew scenario.alpha=0.1 data=fashion_mnist strategy=fedavg client=cnn rounds=10
  fedbench run -m strategy=fedavg,ggeur seed=0,1,2       every combination, mean and deviation over seeds
  fedbench run strategy=scaffold align=ggeur             GGEUR around any strategy
  fedbench run strategy=krum attack=sign_flip            a robust strategy against attackers
  fedbench run system=cross_device strategy=fedbuff      an asynchronous method on unequal devices
  fedbench run experiment=ggeur_e1                       a preset with its own sweep

common keys: scenario, data, data.root, client, features, strategy, align, personalization, attack, privacy,
system, engine, rounds, seed, run_dir, profile, experiment; `fedbench list` shows every choice, `--cfg` all of
the settings.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 a run failed, 2 a mistake in the request."""
    parser = _parser()
    # argparse takes positional words in one place only; overrides may stand before and after options.
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    try:
        code: int = arguments.function(arguments)
    except UserError as error:
        return _say(str(error), 2)
    except RunFailed as error:
        return _say(str(error), 1)
    except ValueError as error:
        if not _for_people(error):
            raise
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say("interrupted; what the run had is kept in its directory", 130)
    return code


def _for_people(error: ValueError) -> bool:
    """Whether an error is one of those that our packages word for their users."""
    from clients.errors import ClientError
    from scenarios import ScenarioError

    return isinstance(error, (ClientError, ScenarioError))


def _say(message: str, code: int) -> int:
    print(f"fedbench: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedbench", description="A federated learning testbed.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter

    run = commands.add_parser(
        "run", help="run methods on a federation", description=_RUN_HELP, formatter_class=raw
    )
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change")
    run.add_argument(
        "-m", "--multirun", action="store_true", help="allow comma-separated values; run all of them"
    )
    run.add_argument(
        "--config-dir", metavar="DIR", help="a directory with your own groups, e.g. DIR/strategy/x.yaml"
    )
    run.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    run.set_defaults(function=_run)

    resume = commands.add_parser(
        "resume",
        help="go on with interrupted runs",
        description="Go on with interrupted runs after their last checkpoint, to the same end as if they had "
        "not stopped.\n\nexample:\n  fedbench resume runs/20261124-120000",
        formatter_class=raw,
    )
    resume.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    resume.set_defaults(function=_resume)

    compare = commands.add_parser(
        "compare",
        help="line finished runs up in a table",
        description="Line finished runs up: one row a method, mean and standard deviation over seeds.\n\n"
        "example:\n  fedbench compare runs/20261124-*",
        formatter_class=raw,
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or one that holds several")
    compare.add_argument(
        "--at", choices=["final", "last_5", "best_validation"], default="final", help="which round"
    )
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    compare.set_defaults(function=_compare)

    report = commands.add_parser(
        "report",
        help="write one HTML page about finished runs",
        description="Write one self-contained HTML page about finished runs: which method holds up, how sure "
        "that is,\nwhat it cost, and the tables and figures for a paper.\n\n"
        "example:\n  fedbench report runs/20261124-* -o report.html",
        formatter_class=raw,
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or one that holds several")
    report.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the page to write")
    report.add_argument("--baseline", metavar="METHOD", help="what the others are held against (fedavg)")
    report.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        metavar="RATIO",
        help="test rows over training rows where every seed draws them anew from one pool (0.43 where 0.3 "
        "are held out): makes the t tests as careful as that asks for",
    )
    report.set_defaults(function=_report)

    lister = commands.add_parser(
        "list",
        help="what can be chosen in each group",
        description="What can be chosen in each group.",
    )
    lister.add_argument("group", nargs="?", help="one group only, e.g. strategy")
    lister.add_argument("--config-dir", metavar="DIR", help="a directory with your own groups")
    lister.set_defaults(function=_list)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from .config.compose import as_yaml, plan

    configs = plan(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
    if arguments.cfg:
        print("---\n".join(as_yaml(config) for config in configs), end="")
        return 0
    return _run_all(configs)


def _run_all(configs: list[DictConfig]) -> int:
    from rich.console import Console

    from .run import run, run_name, stamp

    console = Console()
    base = Path(configs[0].run_dir).expanduser() if configs[0].run_dir else Path("runs") / stamp()
    summaries: list[dict[str, Any]] = []
    directories: list[Path] = []
    failed = 0
    several = len(configs) > 1
    for number, config in enumerate(configs):
        directory = base / f"{number:03d}-{run_name(config)}" if several else base
        if several:
            console.print(f"[{number + 1}/{len(configs)}] {run_name(config)}", highlight=False, markup=False)
        try:
            summaries.append(run(config, directory))
            directories.append(directory)
        except NotApplicable as error:
            if not several:
                raise
            _say(f"left out: {error}", 0)
        except RunFailed as error:  # the other runs of a sweep are worth having all the same
            failed += 1
            _say(f"{run_name(config)}: {error}" if several else str(error), 1)
    if not summaries:
        return 1 if failed else _say("no method was left to run", 2)
    choices = configs[0].choices
    title = f"{choices.data}, {choices.scenario}, {choices.client}, {configs[0].rounds} rounds"
    _show(summaries, title)
    _show_profiles(directories)
    console.print(f"results: {base}", highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0


def _show(summaries: list[dict[str, Any]], title: str) -> None:
    """Print the tables of finished runs."""
    from rich.console import Console

    from .report.client_table import client_table
    from .report.comparison import compare, table, verdict
    from .report.new_client_table import new_client_table

    console = Console()
    comparison = compare(summaries)
    console.print(table(comparison, title, console.width))
    if clients := client_table(summaries, [s["label"] for s in summaries]):
        console.print(clients)
    if newcomers := new_client_table(summaries):
        console.print(newcomers)
    if said := verdict(comparison):
        console.print(said, highlight=False, markup=False)


def _show_profiles(directories: list[Path]) -> None:
    """Print where the time of the profiled runs among these went."""
    profiles = [d / "profile" for d in directories if (d / "profile/table.csv").exists()]
    if not profiles:
        return
    from rich.console import Console

    from .report.profile_table import profile_table, read_csv

    console = Console()
    for profile in profiles:
        title = profile.parent.name if len(directories) > 1 else "where the rounds' time went"
        console.print(profile_table(read_csv(profile / "table.csv"), title))
        console.print(f"trace: {profile / 'trace.json'}", highlight=False, markup=False, soft_wrap=True)


def _resume(arguments: argparse.Namespace) -> int:
    from .run import resume

    summaries = [resume(run) for run in arguments.runs]
    choices = summaries[0]["choices"]
    _show(summaries, f"{choices['data']}, {choices['scenario']}, {choices['client']}")
    _show_profiles([Path(run).expanduser() for run in arguments.runs])
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from .report.comparison import compare, markdown, table, verdict
    from .results.run_dir import find_runs, read_summary

    comparison = compare([read_summary(r) for r in find_runs(arguments.runs)], arguments.at)
    if arguments.markdown:
        print(markdown(comparison), end="")
    else:
        console = Console()
        console.print(table(comparison, width=console.width))
        if said := verdict(comparison):
            console.print(said, highlight=False, markup=False)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from .report.html import write_report

    for said in write_report(arguments.runs, arguments.output, arguments.baseline, arguments.overlap):
        print(said)
    print(f"report: {arguments.output}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from .config.compose import GROUPS, check_config_dir, choices
    from .errors import nearest

    groups = GROUPS if arguments.group is None else (arguments.group,)
    if arguments.group is not None and arguments.group not in GROUPS:
        raise UserError(f"'{arguments.group}': no such group{nearest(arguments.group, GROUPS)}")
    if arguments.config_dir is not None:
        check_config_dir(arguments.config_dir)
    for group in groups:
        print(group)
        found = choices(group, arguments.config_dir)
        width = max(map(len, found), default=0)
        for name, description in found.items():
            print(f"  {name:<{width}}  {description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
