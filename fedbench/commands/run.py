"""``fedbench run``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench.errors import NotApplicable, RunFailed, say

from .shown import show, show_profiles

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HELP = """\
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


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    run = commands.add_parser(
        "run",
        help="run methods on a federation",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def _run(arguments: argparse.Namespace) -> int:
    from fedbench.config.compose import as_yaml, plan

    configs = plan(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
    if arguments.cfg:
        print("---\n".join(as_yaml(config) for config in configs), end="")
        return 0
    return _run_all(configs)


def _run_all(configs: list[DictConfig]) -> int:
    from rich.console import Console

    from fedbench.run import run, run_name, stamp

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
            say(f"left out: {error}", 0)
        except RunFailed as error:  # the other runs of a sweep are worth having all the same
            failed += 1
            say(f"{run_name(config)}: {error}" if several else str(error), 1)
    if not summaries:
        return 1 if failed else say("no method was left to run", 2)
    choices = configs[0].choices
    title = f"{choices.data}, {choices.scenario}, {choices.client}, {configs[0].rounds} rounds"
    show(summaries, title)
    show_profiles(directories)
    console.print(f"results: {base}", highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0
