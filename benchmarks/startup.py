"""How long a user waits for the first round: fedbench's engines and Flower's own simulation.

Seconds from the start of a process to the first training message that a strategy makes, and to the end of
round 1, for ``fedbench run scenario=domain_skew strategy=fedavg`` on the embedded digits. The Flower row runs
the same ClientApp on the same data by ``run_simulation``. All imports, reading the data, starting Ray and its
workers are in these times, so a file cache must be warm: one run of each that does not count goes first. The
strategy is Flower's FedAvg with a look at the clock, which fedbench finds as a user's own configuration.
Medians over the repeats, which take turns.

    python benchmarks/startup.py            # three repeats, some three minutes
    python benchmarks/startup.py --quick    # one repeat, nothing written

Writes ``benchmarks/results/startup.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from harness import measure_apart, show
from machine import describe, load, write_table

SYSTEMS = {"fedbench serial": "serial", "fedbench ray": "ray", "Flower run_simulation": "flower"}
WORKERS = 2
STARTED, STAMPS = "BENCHMARK_STARTED", "BENCHMARK_STAMPS"
"""Variables that name when the process was started, and the file for what is measured."""
OVERRIDES = ["scenario=domain_skew", "rounds=1"]


class StampedFedAvg(FedAvg):
    """Flower's FedAvg that leaves two times: of the first training message, and of the end of round 1."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Look at the clock once messages are made."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.first_message = time.time()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Look at the clock once the round is averaged, and write both times down."""
        replies = list(replies)
        if not replies or any(reply.has_error() for reply in replies):
            raise RuntimeError("not all clients replied")
        aggregated = super().aggregate_train(server_round, replies)
        stamps = [self.first_message, time.time()]
        Path(os.environ[STAMPS]).write_text(json.dumps(stamps))
        return aggregated


# --- what is measured -------------------------------------------------------------------------------------


def run_fedbench(engine: str, directory: Path) -> None:
    """The command line, with a strategy of the user's own."""
    from fedbench.cli import main

    group = directory / "strategy"
    group.mkdir()
    options = "fraction_evaluate: 0.0\nmin_train_nodes: 1\nmin_available_nodes: 1\n"
    (group / "stamped.yaml").write_text(f"# FedAvg with a clock\n_target_: startup.StampedFedAvg\n{options}")
    words = ["run", *OVERRIDES, "strategy=stamped", f"engine={engine}", f"run_dir={directory / 'run'}"]
    workers = ["engine.workers=2"] if engine == "ray" else []
    if code := main([*words, *workers, "--config-dir", str(directory)]):
        raise SystemExit(code)


flower_client = ClientApp()


@cache
def fedbench_client() -> ClientApp:
    """The ClientApp of the same configuration, once a process."""
    from clients.app import make_client_app
    from fedbench.bench import build
    from fedbench.config.compose import plan

    return make_client_app(build(plan([*OVERRIDES, "strategy=fedavg", "engine=serial"])[0]).spec)


@flower_client.train()
def train(message: Message, context: Context) -> Message:
    """What fedbench's client does."""
    return fedbench_client()(message, context)


def run_flower() -> None:
    """Flower's simulation of the same federation."""
    from flwr.simulation import run_simulation

    from fedbench.bench import build
    from fedbench.config.compose import plan

    bench = build(plan([*OVERRIDES, "strategy=fedavg", "engine=serial"])[0])
    clients = len(bench.federation.clients)
    strategy = StampedFedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        strategy.start(grid, ArrayRecord(bench.spec.model().state_dict()), num_rounds=1)

    resources: Any = {"init_args": {"num_cpus": WORKERS}, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server_app, flower_client, clients, backend_config=resources)


def child(system: str) -> list[float]:
    """Run one system to the end of round 1 in this process; gives seconds since the process was started."""
    with tempfile.TemporaryDirectory() as directory:
        stamps = Path(directory) / "stamps.json"
        os.environ[STAMPS] = str(stamps)
        if SYSTEMS[system] == "flower":
            run_flower()
        else:
            run_fedbench(SYSTEMS[system], Path(directory))
        return [stamp - float(os.environ[STARTED]) for stamp in json.loads(stamps.read_text())]


# --- the table --------------------------------------------------------------------------------------------


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each")
    parser.add_argument("--quick", action="store_true", help="one repeat; writes nothing")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    if repeats < 1:
        parser.error("--repeats: must be 1 or more")
    before = load()
    taken: dict[str, list[list[float]]] = {system: [] for system in SYSTEMS}
    for number in range(repeats + 1):
        for system in SYSTEMS:
            seconds = measure_apart(__file__, system, **{STARTED: str(time.time())})
            print(f"{system}: {seconds[0]:.1f} s, {seconds[1]:.1f} s", file=sys.stderr)
            if number:
                taken[system].append(seconds)
    middle = {s: [median(t[i] for t in times) for i in range(2)] for s, times in taken.items()}
    flower = middle["Flower run_simulation"]
    rows = [
        {
            "system": system,
            "to first training message s": f"{first:.1f}",
            "to end of round 1 s": f"{end:.1f}",
            "Flower / this, end of round 1": f"{flower[1] / end:.1f}",
            "fastest-slowest end s": f"{min(t[1] for t in taken[system]):.1f}-"
            f"{max(t[1] for t in taken[system]):.1f}",
            "repeats": repeats,
        }
        for system, (first, end) in middle.items()
    ]
    show("From command to first round: digits, domain_skew, 4 clients", rows)
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"Warm file cache; {WORKERS} workers (Flower: actors). Flower makes its first message before its "
        "actors are up, fedbench once its workers are: the end of round 1 compares.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("startup", "From command to first round", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
