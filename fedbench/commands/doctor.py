"""``fedbench doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from fedbench.health import OK, PROBLEM, WARNING, Finding, examine


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    doctor = commands.add_parser(
        "doctor",
        help="check this machine and installation",
        description="Check versions, GPUs, Ray, memory, data sets and disk, and say what to do about what is "
        "wrong.\nThe exit code is 1 where there is a problem; a warning is none.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "--deep", action="store_true", help="also start Ray, and read every data set (a minute)"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--run-dir", metavar="DIR", default="runs", help="where runs are to go (runs)")
    doctor.set_defaults(function=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    findings = []
    show = None if arguments.json else _shower()
    for finding in examine(arguments.run_dir, deep=arguments.deep):
        findings.append(finding)
        if show:
            show(finding)
    count = {status: sum(f.status == status for f in findings) for status in (PROBLEM, WARNING)}
    if arguments.json:
        about = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"ok": not count[PROBLEM], "findings": about}, indent=2))
    else:
        print(
            ", ".join(f"{number or 'no'} {status}{'s' * (number != 1)}" for status, number in count.items())
        )
    return 1 if count[PROBLEM] else 0


def _shower() -> Callable[[Finding], None]:
    """What prints a finding: in colour on a terminal, plain in a log or where rich is not there."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return lambda finding: print(
            *(f"{word}{line}" for word, line in _lines(finding)), sep="\n", flush=True
        )
    console = Console()
    colours = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}

    def show(finding: Finding) -> None:
        for word, line in _lines(finding):
            console.print(Text(word, colours[finding.status]) + Text(line), soft_wrap=True)

    return show


def _lines(finding: Finding) -> Iterator[tuple[str, str]]:
    yield f"{finding.status:<8}", f"{finding.check:<14}{finding.found}"
    if finding.todo:
        yield " " * 8, f"{'':<14}-> {finding.todo}"
