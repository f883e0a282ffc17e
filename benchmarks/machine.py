"""What every benchmark writes beside its figures: where they were measured, and from which commit."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("flwr", "ray", "torch", "numpy")


def describe() -> str:
    """Commit, machine kind and versions in one line."""
    cores = os.cpu_count() or 1
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    machine = f"{cores} core{'s' * (cores > 1)} of {_cpu()}, {_memory()}, {platform.system()}"
    return f"Commit {commit()}; {machine}; Python {platform.python_version()}, {versions}"


def commit() -> str:
    """Abbreviated git commit, with ``-dirty`` where files other than results differ from it."""
    changed = _git("status", "--porcelain", "--", ":/", ":!/benchmarks/results")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def load() -> float:
    """Processes that wanted a core in the last minute; well below 1 on a quiet machine."""
    return os.getloadavg()[0]


def write_table(name: str, title: str, rows: Sequence[Mapping[str, object]], notes: Sequence[str]) -> Path:
    """Write rows as ``results/NAME.csv`` and, below the notes, ``results/NAME.md``; gives the latter."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"# {title}", "", *(f"{note}\n" for note in notes)]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows]
    path = RESULTS / f"{name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
