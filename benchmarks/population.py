"""What a round costs when a thousand of ever more registered clients are sampled.

The whole path of ``fedbench run``: a federation is split, started and trained with FedAvg, and a thousand
clients of each round train, and as many evaluate. Every client holds four training rows, so that the data
grow with the clients and their work does not. Every engine and number of clients runs in a process of its
own. The table shows the seconds until the first round begins, with building, picture and the engine's start;
the median seconds of the rounds after the first; the most memory that the process and, with Ray, its workers
and servers took together; and how many times the figures with 10,000 clients the last two are. Memory is the
proportional set size of Linux, in which pages that processes share count once.

    python benchmarks/population.py            # some 10 minutes on two cores; wants a quiet machine
    python benchmarks/population.py --quick    # fewer clients, 3 rounds, nothing written
    python benchmarks/population.py --rounds 20

Writes ``benchmarks/results/population.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness import measure_apart, show
from machine import describe, load, write_table

ENGINES = ("serial", "ray")
WORKERS = 2
CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
SAMPLED = 1_000
QUICK_CLIENTS, QUICK_SAMPLED = (1_000, 10_000, 50_000), 100
REFERENCE = 10_000
"""Registered clients that the others are compared with."""
ROWS, CLASSES, DIM, TESTS = 4, 20, 16, 200
"""Training rows of a client; classes, length of a vector, and test rows of a class."""


@dataclass(frozen=True)
class Cost:
    """Seconds until the first round and of each after the first, and bytes of all processes at most."""

    start: float
    rounds: list[float]
    memory: int


# --- one engine, one federation, in a process of its own ------------------------------------------------


def child(engine: str, clients: int, sampled: int, rounds: int) -> dict[str, Any]:
    """Seconds until the first round, and of each after the first."""
    started = time.perf_counter()
    from fedbench import run as fedbench_run
    from fedbench.config.compose import plan

    moments: list[float] = []

    class TimedRun(fedbench_run.Run):
        """A run that notes when its rounds begin and end; what lies between two ends is a whole round."""

        def _one_round(self, *given: Any) -> Any:
            moments[:] = moments or [time.perf_counter()]
            arrays = super()._one_round(*given)
            moments.append(time.perf_counter())
            return arrays

    fedbench_run.Run = TimedRun
    overrides = [
        "data=gaussian_domains",
        f"data.classes={CLASSES}",
        f"data.dim={DIM}",
        f"data.train_per_class={clients * ROWS // CLASSES}",
        f"data.test_per_class={TESTS}",
        "scenario=iid",
        f"scenario.clients={clients}",
        "features=none",
        "client=linear",
        "client.steps=5",
        "strategy=fedavg",
        f"clients_per_round={sampled}",
        f"eval_clients={sampled}",
        f"rounds={rounds + 1}",
        f"engine={engine}",
        *([f"engine.workers={WORKERS}"] if engine == "ray" else []),
    ]
    (config,) = plan(overrides)
    with tempfile.TemporaryDirectory() as directory:
        fedbench_run.run(config, Path(directory) / "run")
    begun, *ends = moments
    return {"start": begun - started, "rounds": [b - a for a, b in pairwise(ends)]}


# --- memory, seen from outside --------------------------------------------------------------------------


@dataclass
class MemoryWatch:
    """Looks at the memory of all processes below this one, twice a second, in a ``with`` block."""

    peak: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemoryWatch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.peak = max(self.peak, sum(map(proportional_bytes, descendants())))


def descendants() -> Iterator[int]:
    """Process ids of this process's children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(entry.name))
    below = [int(Path("/proc/self").readlink().name)]
    while below:
        below = [child for parent in below for child in children.get(parent, [])]
        yield from below


def proportional_bytes(process: int) -> int:
    """Memory of a process, pages that it shares divided by the number that share them; 0 once it ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


# --- the table ------------------------------------------------------------------------------------------


def measure(engine: str, clients: int, sampled: int, rounds: int) -> Cost:
    """Figures of one engine and one number of clients."""
    with MemoryWatch() as memory:
        found = measure_apart(__file__, engine, clients, min(sampled, clients), rounds)
    return Cost(found["start"], found["rounds"], memory.peak)


def row(engine: str, clients: int, sampled: int, cost: Cost, reference: Cost) -> dict[str, object]:
    """One line of the table."""
    seconds = median(cost.rounds)
    return {
        "engine": engine,
        "registered": f"{clients:,}",
        "sampled": f"{min(sampled, clients):,}",
        "build and start s": f"{cost.start:.1f}",
        "round s": f"{seconds:.3f}",
        f"round / {REFERENCE:,}": f"{seconds / median(reference.rounds):.2f}",
        "fastest-slowest round s": f"{min(cost.rounds):.3f}-{max(cost.rounds):.3f}",
        "peak memory MB": f"{cost.memory / 1e6:.0f}",
        f"memory / {REFERENCE:,}": f"{cost.memory / reference.memory:.2f}",
        "rounds": len(cost.rounds),
    }


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after the first")
    parser.add_argument("--quick", action="store_true", help="fewer clients and 3 rounds; writes nothing")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: must be 1 or more")
    if not Path("/proc/self/smaps_rollup").exists():
        parser.error("needs /proc/self/smaps_rollup, which Linux has")
    before = load()
    rounds = 3 if options.quick else options.rounds
    sampled = QUICK_SAMPLED if options.quick else SAMPLED
    rows = []
    for engine in ENGINES:
        costs = {}
        for clients in QUICK_CLIENTS if options.quick else CLIENTS:
            costs[clients] = measure(engine, clients, sampled, rounds)
            print(f"{engine}, {clients:,} clients: {median(costs[clients].rounds):.3f} s", file=sys.stderr)
        rows += [row(engine, n, sampled, cost, costs[REFERENCE]) for n, cost in costs.items()]
    show("Population: a round of FedAvg as registered clients grow", rows, "engine")
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"FedAvg, linear model, {ROWS} rows a client; all that were sampled train and as many evaluate; Ray "
        f"with {WORKERS} workers; median round after the first.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("population", "Population", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
