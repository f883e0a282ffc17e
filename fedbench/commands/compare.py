"""``fedbench compare``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    compare = commands.add_parser(
        "compare",
        help="line finished runs up in a table",
        description="Line finished runs up: one row a method, mean and standard deviation over seeds.\n\n"
        "example:\n  fedbench compare runs/20261124-*",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or one that holds several")
    compare.add_argument(
        "--at", choices=["final", "last_5", "best_validation"], default="final", help="which round"
    )
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    compare.set_defaults(function=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from fedbench.report.comparison import compare, markdown, table, verdict
    from fedbench.results.run_dir import find_runs, read_summary

    comparison = compare([read_summary(r) for r in find_runs(arguments.runs)], arguments.at)
    if arguments.markdown:
        print(markdown(comparison), end="")
    else:
        console = Console()
        console.print(table(comparison, width=console.width))
        if said := verdict(comparison):
            console.print(said, highlight=False, markup=False)
    return 0
