"""``fedbench resume``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .shown import show, show_profiles


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    resume = commands.add_parser(
        "resume",
        help="go on with interrupted runs",
        description="Go on with interrupted runs after their last checkpoint, to the same end as if they had "
        "not stopped.\n\nexample:\n  fedbench resume runs/20261124-120000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resume.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    resume.set_defaults(function=_resume)


def _resume(arguments: argparse.Namespace) -> int:
    from fedbench.run import resume

    summaries = [resume(run) for run in arguments.runs]
    choices = summaries[0]["choices"]
    show(summaries, f"{choices['data']}, {choices['scenario']}, {choices['client']}")
    show_profiles([Path(run).expanduser() for run in arguments.runs])
    return 0
