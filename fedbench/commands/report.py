"""``fedbench report``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    report = commands.add_parser(
        "report",
        help="write one HTML page about finished runs",
        description="Write one self-contained HTML page about finished runs: which method holds up, how sure "
        "that is,\nwhat it cost, and the tables and figures for a paper.\n\n"
        "example:\n  fedbench report runs/20261124-* -o report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def _report(arguments: argparse.Namespace) -> int:
    from fedbench.report.html import write_report

    for said in write_report(arguments.runs, arguments.output, arguments.baseline, arguments.overlap):
        print(said)
    print(f"report: {arguments.output}")
    return 0
