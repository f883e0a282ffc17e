"""How near federated training comes to plain training: samples a second of an engine and of a bare loop.

The limit of any simulator is the training itself. Here the same model takes the same number of samples in the
same batches once in a plain PyTorch loop (one model, ``torch.optim.SGD``, data in memory) and once in rounds
of several clients, with all that an engine does besides: messages, clients' states, averaging, books. The two
take turns, and medians are compared, because a machine's speed wanders. Every workload runs in a process of
its own, with one thread an operation.

By default the engine is the serial one, which like the plain loop is one process. ``--workers N`` measures
the Ray engine, on CPUs or sharing one GPU, against the same single loop: more than 100 % is then possible.

    python benchmarks/centralised_limit.py                        # some ten minutes; wants a quiet machine
    python benchmarks/centralised_limit.py --quick                # little work, one turn, nothing written
    python benchmarks/centralised_limit.py --device cuda resnet18
    python benchmarks/centralised_limit.py --device cuda --workers 4

Writes ``benchmarks/results/centralised_limit_DEVICE.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from harness import measure_apart, show
from machine import describe, load, write_table
from torch.nn import functional
from workloads import BenchmarkCNN, Workload, app_factory, splits, tensors

from clients.models.gcvit import GCViT
from clients.models.mlp import MLP
from clients.models.resnet18 import ResNet18

WORKLOADS = {
    "mlp": Workload("MLP 64-200-10", MLP, (64,), 20, 20, 500, 5, 0.05),
    "cnn": Workload("CNN 1.6 M", BenchmarkCNN, (3, 32, 32), 10, 10, 100, 5, 0.05, byte_sized=True),
    "resnet18": Workload(
        "ResNet-18, GroupNorm", ResNet18, (3, 32, 32), 4, 4, 64, 3, 0.05, 32, byte_sized=True
    ),
    "gcvit": Workload("GC ViT micro", GCViT, (3, 64, 64), 4, 4, 128, 3, 0.05, 16, byte_sized=True),
}
"""Clients, rows of each, turns, learning rate, batch size."""
ON_GPU = 8
"""Times as many rows of each client on a GPU, which is through the others in no time."""


def workload_of(key: str, device: str, quick: bool) -> Workload:
    """The workload of a name, of a size for a device."""
    workload = WORKLOADS[key]
    if quick:
        return replace(workload, clients=2, cohort=2, rows=workload.batch_size * 2, rounds=1)
    return replace(workload, rows=workload.rows * ON_GPU) if device == "cuda" else workload


class Plain:
    """A plain PyTorch loop over the rows of all clients."""

    def __init__(self, workload: Workload, device: str) -> None:
        self.batch_size = workload.batch_size
        self.module = workload.module().to(device)
        self.optimizer = torch.optim.SGD(self.module.parameters(), workload.lr)
        self.x, self.y = (t.to(device) for t in tensors(workload, slice(None)))

    def epoch(self) -> None:
        """One pass over all rows, in random order."""
        total = torch.zeros((), device=self.x.device)
        for rows in torch.randperm(len(self.x)).to(self.x.device).split(self.batch_size):
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.module(self.x[rows]), self.y[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        float(total)  # waits for a GPU, as whoever reads the loss does


class Federated:
    """Rounds of all clients on one of fedbench's engines, by Flower's FedAvg."""

    def __init__(self, workload: Workload, device: str, workers: int) -> None:
        from fedbench.engine.grid import EngineGrid, Exchange
        from fedbench.engine.ray import RayGrid
        from fedbench.engine.serial import SerialGrid

        books: list[Exchange] = []  # fedbench's own accounts are part of what its rounds cost
        options: dict[str, Any] = {"cohort": None, "partial_sums": True}
        arguments: Any = (app_factory(workload, device), workload.sizes().tolist(), books.append)
        if workers:
            share = 1 / workers if device == "cuda" else 0.0
            options |= {"workers": workers, "gpus_per_worker": share}
        engine: Any = RayGrid if workers else SerialGrid
        self.grid: EngineGrid = engine(*arguments, **options)
        self.grid.wait()
        self.strategy = FedAvg(fraction_evaluate=0.0)
        self.arrays = ArrayRecord(workload.module().state_dict())
        self.round_number = 0

    def epoch(self) -> None:
        """One round: each client passes over its rows once."""
        self.round_number += 1
        messages = self.strategy.configure_train(self.round_number, self.arrays, ConfigRecord(), self.grid)
        replies = list(self.grid.send_and_receive(messages))
        aggregated = self.strategy.aggregate_train(self.round_number, replies)[0]
        if aggregated is None or any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed")
        self.arrays = aggregated


def child(key: str, device: str, workers: int, quick: bool) -> dict[str, Any]:
    """Seconds of each turn of both sides, after one turn that warms up."""
    from fedbench.engine.worker import settle_process

    settle_process()  # as `fedbench run` does; the plain loop has what it brings, too
    workload = workload_of(key, device, quick)
    sides = {"plain": Plain(workload, device), "federated": Federated(workload, device, workers)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(workload.rounds + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            side.epoch()
            seconds[name].append(time.perf_counter() - began)
    samples = sum(len(part.train) for part in splits(workload))
    return {"samples": samples, **{name: taken[1:] for name, taken in seconds.items()}}


def row(key: str, device: str, workers: int, quick: bool) -> dict[str, object]:
    """One line of the table."""
    workload = workload_of(key, device, quick)
    took = measure_apart(__file__, key, device, workers, quick)
    plain, federated = median(took["plain"]), median(took["federated"])
    ratios = [p / f for p, f in zip(took["plain"], took["federated"], strict=True)]
    print(f"{key}: {100 * plain / federated:.1f} %", file=sys.stderr)
    return {
        "model": workload.title,
        "batch": workload.batch_size,
        "clients x rows": f"{workload.clients} x {workload.rows}",
        "engine": f"ray, {workers} worker{'s' * (workers > 1)}" if workers else "serial",
        "plain samples/s": f"{took['samples'] / plain:.0f}",
        "fedbench samples/s": f"{took['samples'] / federated:.0f}",
        "fedbench / plain %": f"{100 * plain / federated:.1f}",
        "lowest-highest turn %": f"{100 * min(ratios):.0f}-{100 * max(ratios):.0f}",
        "turns": len(ratios),
    }


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where both sides compute")
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 is the serial engine")
    parser.add_argument("--quick", action="store_true", help="little work, one turn; writes nothing")
    options = parser.parse_args()
    if unknown := set(options.models) - set(WORKLOADS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; of {', '.join(WORKLOADS)}")
    if options.workers < 0:
        parser.error("--workers: must be 0 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no GPU here")
    before = load()
    rows = [row(key, options.device, options.workers, options.quick) for key in options.models or WORKLOADS]
    show("Federated rounds against a plain training loop", rows)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    notes = [
        f"{describe()}. Load average before: {before:.2f}. Both sides on {where}.",
        "Plain: one process, one thread. A round: every client passes over its rows once, then FedAvg. "
        "Median of turns; lowest-highest: of neighbouring turns.",
    ]
    print("\n".join(notes))
    if not options.quick:
        name = f"centralised_limit_{options.device}" + (f"_{options.workers}" if options.workers else "")
        path = write_table(name, "Federated rounds against a plain training loop", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
