"""What benchmark scripts share: measurements in processes of their own, and tables of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def measure_apart(script: str, *arguments: Any, tolerate: bool = False, **environment: str) -> Any:
    """What ``child(*arguments)`` of a script gives in a new process with one thread an operation.

    Parameters
    ----------
    script : str
        The script's ``__file__``; it is imported by name there, so that classes in it can be too.
    *arguments
        Anything that JSON carries, as must be what ``child`` gives.
    tolerate : bool
        Give ``None`` where the child fails, instead of stopping.
    **environment : str
        Further variables for the process.
    """
    here = Path(script)
    code = f"from harness import answer; from {here.stem} import child; answer(child)"
    variables = {
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        message = f"{here.stem} {json.dumps(arguments)}: failed\n{done.stderr[-4000:]}"
        if not tolerate:
            raise SystemExit(message)
        print(message, file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def answer(child: Callable[..., Any]) -> None:
    """Call a script's ``child`` with the arguments of this process, and print what it gives as JSON."""
    print("\n" + json.dumps(child(*json.loads(sys.argv[1]))), flush=True)


def show(title: str, rows: Sequence[Mapping[str, object]], key: str | None = None) -> None:
    """Print rows as a table, with a line between those that differ in the column ``key``."""
    table = Table(*rows[0], title=title)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = key is not None and following is not None and row[key] != following[key]
        table.add_row(*map(str, row.values()), end_section=ends)
    Console(width=None if sys.stdout.isatty() else 170).print(table)
