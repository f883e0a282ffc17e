"""What a round costs when clients do nothing: Flower's own simulation beside fedbench's two engines.

A client sends a copy of the arrays that it received straight back, so all that is left is the engine:
messages out, placement, transport, replies back, and then Flower's FedAvg, which is the strategy of all
three. Every engine and shape runs in a process of its own. The first round warms up; the table shows the
median of the others in seconds, with the strategy's averaging and without, how many times Flower's figure is
of each, and the start-up: what the first round took longer than a median one, imports of the engine
included.

    python benchmarks/engine_overhead.py            # some 5 minutes on two cores; wants a quiet machine
    python benchmarks/engine_overhead.py --quick    # small shapes, 3 rounds, nothing written
    python benchmarks/engine_overhead.py --rounds 20

Writes ``benchmarks/results/engine_overhead.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from machine import describe, load, write_table
from rich.console import Console
from rich.table import Table

ENGINES = ("flower", "serial", "ray")
WORKERS = 2
ARRAYS = 8
"""Arrays that a model's bytes are spread over."""


@dataclass(frozen=True)
class Shape:
    """Federation of a measurement: ``cohort`` of ``clients`` take part, ``megabytes`` each way."""

    clients: int
    cohort: int
    megabytes: float

    def __str__(self) -> str:
        whole = f" of {self.clients:,}" if self.cohort < self.clients else ""
        return f"{self.cohort}{whole} clients, {self.megabytes:g} MB"

    def rounds(self, wanted: int) -> int:
        """Measured rounds; half as many where hundreds of megabytes move."""
        return wanted if self.cohort * self.megabytes < 100 else max(wanted // 2, 3)


SHAPES = (Shape(10, 10, 0.2), Shape(100, 100, 0.2), Shape(1_000, 50, 6.0))
QUICK = (Shape(10, 10, 0.2), Shape(40, 20, 1.0))


@dataclass(frozen=True)
class Timing:
    """Seconds of each measured round, with the averaging and without, and of the start."""

    whole: list[float]
    exchange: list[float]
    start: float


# --- what every engine runs ---------------------------------------------------------------------------

client_app = ClientApp()


@client_app.train()
def send_back(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """A client that does no work, but has arrays of its own to send, as one that trained would."""
    received = message.content.array_records["arrays"]
    copies = {k: Array(a.dtype, a.shape, a.stype, bytes(memoryview(a.data))) for k, a in received.items()}
    content = RecordDict({"arrays": ArrayRecord(copies), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def get_client_app() -> ClientApp:
    """The client, as fedbench's engines ask for it."""
    return client_app


class TimedFedAvg(FedAvg):
    """Flower's FedAvg with a clock; trains exactly the cohort from the first round on.

    ``fraction_train`` alone would sample from the nodes that happen to be registered in the first round.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(
            fraction_train=shape.cohort / shape.clients,
            fraction_evaluate=0.0,
            min_train_nodes=shape.cohort,
            min_available_nodes=shape.clients,
        )
        self.cohort = shape.cohort
        self.whole: list[float] = []
        self.exchange: list[float] = []
        self.first_ended = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the clock."""
        self.began = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stop the clock before averaging, and again after it."""
        self.exchange.append(time.perf_counter() - self.began)
        replies = list(replies)
        if len(replies) != self.cohort or any(r.has_error() for r in replies):
            raise RuntimeError(f"round {server_round}: not all {self.cohort} clients replied")
        aggregated = super().aggregate_train(server_round, replies)
        ended = time.perf_counter()
        self.whole.append(ended - self.began)
        self.first_ended = self.first_ended or ended
        return aggregated

    def timing(self, started: float) -> Timing:
        """Figures of all rounds but the first."""
        whole, exchange = self.whole[1:], self.exchange[1:]
        return Timing(whole, exchange, self.first_ended - started - median(whole))


# --- one engine, one shape, in a process of its own -----------------------------------------------------


def measure(engine: str, shape: Shape, rounds: int) -> Timing:
    """Time an engine in this process."""
    floats = int(shape.megabytes * 1e6 / 4 / ARRAYS)
    rng = np.random.default_rng(0)
    arrays = ArrayRecord([rng.standard_normal(floats, np.float32) for _ in range(ARRAYS)])
    strategy = TimedFedAvg(shape)
    random.seed(0)
    started = time.perf_counter()
    if engine == "flower":
        from flwr.simulation import run_simulation

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
            strategy.start(grid, arrays, num_rounds=rounds + 1)

        config: Any = {"init_args": {"num_cpus": WORKERS}, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
        run_simulation(server_app, client_app, shape.clients, backend_config=config)
    else:
        from fedbench.engine.grid import Exchange
        from fedbench.engine.ray import RayGrid
        from fedbench.engine.serial import SerialGrid

        sizes = [1] * shape.clients
        books: list[Exchange] = []  # fedbench's own accounts are part of what its rounds cost
        with (
            SerialGrid(get_client_app, sizes, books.append)
            if engine == "serial"
            else RayGrid(get_client_app, sizes, books.append, workers=WORKERS)
        ) as engine_grid:
            strategy.start(engine_grid, arrays, num_rounds=rounds + 1)
    return strategy.timing(started)


def child() -> None:
    """Measure what the first argument says, as JSON, and print the timing as the last line."""
    engine, shape, rounds = json.loads(sys.argv[1])
    print("\n" + json.dumps(asdict(measure(engine, Shape(**shape), rounds))), flush=True)


def measure_apart(engine: str, shape: Shape, rounds: int) -> Timing:
    """Time an engine in a new process; clients are found by name there, as those of an installed app."""
    here = Path(__file__)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
        "OMP_NUM_THREADS": "1",
    }
    code = f"from {here.stem} import child; child()"
    command = [sys.executable, "-c", code, json.dumps([engine, asdict(shape), rounds])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine}, {shape}: failed\n{done.stderr[-4000:]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


# --- the table ------------------------------------------------------------------------------------------


def row(engine: str, shape: Shape, timing: Timing, flower: Timing) -> dict[str, object]:
    """One line of the table."""
    whole, exchange = median(timing.whole), median(timing.exchange)
    return {
        "shape": str(shape),
        "engine": "Flower run_simulation" if engine == "flower" else f"fedbench {engine}",
        "round s": f"{whole:.4f}",
        "Flower / this": f"{median(flower.whole) / whole:.1f}",
        "without averaging s": f"{exchange:.4f}",
        "Flower / this, without": f"{median(flower.exchange) / exchange:.1f}",
        "fastest-slowest round s": f"{min(timing.whole):.4f}-{max(timing.whole):.4f}",
        "start-up s": f"{timing.start:.1f}",
        "rounds": len(timing.whole),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    table = Table(*rows[0], title="Engine overhead: no-op clients, FedAvg, median round")
    for i, values in enumerate(rows):
        table.add_row(*map(str, values.values()), end_section=i % len(ENGINES) == len(ENGINES) - 1)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds (half for the largest shape)")
    parser.add_argument("--quick", action="store_true", help="small shapes and 3 rounds; writes nothing")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: must be 1 or more")
    before = load()
    rows = []
    for shape in QUICK if options.quick else SHAPES:
        rounds = 3 if options.quick else shape.rounds(options.rounds)
        timings = {}
        for engine in ENGINES:
            timings[engine] = measure_apart(engine, shape, rounds)
            print(f"{shape}: {engine} {median(timings[engine].whole):.4f} s", file=sys.stderr)
        rows += [row(e, shape, t, timings["flower"]) for e, t in timings.items()]
    show(rows)
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"No-op clients, Flower's FedAvg, {WORKERS} workers (Flower: actors); median round after the first.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("engine_overhead", "Engine overhead", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
