"""What a round of small clients costs: Flower's own simulation and pfl-research beside fedbench's engines.

All systems train the same clients of the same synthetic federation by FedAvg: the same initial weights, the
same clients a round and the same batches in the same order, one epoch of plain SGD. Every system runs each
workload in a process of its own with one thread an operation. The first rounds warm up; the table shows the
median of the others and how many times Flower's and pfl's figures are of each. ``whole`` is from the start
of the engine to the end of the last round, without the imports of the measuring process. All systems must
end at the same weights: ``apart`` is the distance of a system's weights from those of the serial engine
without cohorts, as a share of the way from the initial weights, and the script fails where it is not small.

- **Flower** ``run_simulation`` with 2 actors. The ClientApp is plain PyTorch: one model a process, tensors in
  memory, ``torch.optim.SGD``, no DataLoader. FedAvg is Flower's. Flower draws nodes at random; which client a
  node stands for is told by the message.
- **pfl-research** 0.6 in one process: ``FederatedAveraging`` on a ``SimulatedBackend`` with ``PyTorchModel``.
  pfl shuffles nothing itself, neither rows nor batches: each user's data are handed to it in the order of the
  round's batches. Needs ``pip install '.[bench]'``; left out where it is not installed.
- **fedbench** serial (one process) and Ray (2 workers), with cohorts and partial sums, and without both:
  ``one by one``. The strategy is Flower's FedAvg here too.

::

    python benchmarks/cross_device.py                  # a quarter of an hour; wants a quiet machine
    python benchmarks/cross_device.py --quick          # few small clients, nothing written
    python benchmarks/cross_device.py mlp64 lr         # some of the workloads
    python benchmarks/cross_device.py mlp64 --turns 3  # where the machine's speed wanders

Writes ``benchmarks/results/cross_device.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from harness import measure_apart, show
from machine import describe, load, write_table
from torch import Tensor, nn
from torch.nn import functional
from workloads import QUICK, SEED, WORKLOADS, Workload, app_factory, mean_loss, splits, tensors

from fedbench.engine.grid import EngineGrid, Exchange

WORKERS = 2
FLOWER, PFL, REFERENCE = "Flower run_simulation", "pfl-research", "fedbench serial one by one"
CLOSE = 1e-2
"""Largest ``apart``: rounding errors, which training makes grow; other batches go much further apart."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Ended:
    """When each round ended, by ``time.perf_counter``, how long it took, and where it all ended."""

    seconds: list[float]
    ends: list[float]
    weights: Weights


def workload_of(key: str, quick: bool) -> Workload:
    """The workload of a name."""
    return (QUICK if quick else WORKLOADS)[key]


# --- what Flower's strategy does in Flower's and in fedbench's engines ----------------------------------


class TimedFedAvg(FedAvg):
    """Flower's FedAvg with a clock and the benchmark's choice of clients, whole cohorts from round 1 on."""

    def __init__(self, workload: Workload, available: int) -> None:
        super().__init__(
            fraction_train=workload.cohort / workload.clients,
            fraction_evaluate=0.0,
            min_train_nodes=workload.cohort,
            min_available_nodes=available,
        )
        self.workload = workload
        self.seconds: list[float] = []
        self.ends: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the clock, and choose this round's clients."""
        self.began = time.perf_counter()
        chosen = self.workload.chosen(server_round)
        if isinstance(grid, EngineGrid):
            with grid.cohort(chosen):
                return super().configure_train(server_round, arrays, config, grid)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, partition in zip(messages, chosen, strict=True):
            told = ConfigRecord({**config, "partition": partition})
            message.content = RecordDict({"arrays": arrays, "config": told})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and stop the clock."""
        replies = list(replies)
        rows = sum(int(reply.content["metrics"]["num-examples"]) for reply in replies)  # type: ignore[index]
        if rows != self.workload.sizes()[self.workload.chosen(server_round)].sum():
            raise RuntimeError(f"round {server_round}: not all clients replied")
        aggregated = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        self.seconds.append(self.ends[-1] - self.began)
        return aggregated


# --- Flower -----------------------------------------------------------------------------------------------

flower_client = ClientApp()


@cache
def resident(key: str, quick: bool) -> tuple[Workload, nn.Module, list[Any], Tensor, Tensor]:
    """What an actor keeps: the model, and all rows as tensors."""
    workload = workload_of(key, quick)
    x, y = tensors(workload, slice(0))
    if not workload.byte_sized:  # bytes grow fourfold as floats, so only what is in use is scaled
        x, y = tensors(workload, slice(None))
    return workload, workload.module(), splits(workload), x, y


@flower_client.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """One epoch of plain PyTorch on one client."""
    config = message.content.config_records["config"]
    partition: Any = config["partition"]
    server_round: Any = config["server-round"]
    workload, module, parts, x, y = resident(str(config["workload"]), bool(config["quick"]))
    rows = parts[partition].train
    x, y = (x[rows], y[rows]) if len(x) else tensors(workload, rows)
    module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(module.parameters(), workload.lr)
    plan = workload.plan(len(rows), server_round, partition)
    total = torch.zeros(())
    for batch in map(torch.from_numpy, plan):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        total += loss.detach()
    numbers = MetricRecord({"num-examples": len(rows), "train_loss": float(total) / len(plan)})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": numbers})
    return Message(content, reply_to=message)


def run_flower(workload: Workload, key: str, quick: bool) -> Ended:
    """Flower's simulation engine."""
    from flwr.simulation import run_simulation

    strategy = TimedFedAvg(workload, workload.clients)
    server_app, weights = ServerApp(), {}

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        config = ConfigRecord({"workload": key, "quick": quick})
        arrays = ArrayRecord(workload.module().state_dict())
        result = strategy.start(grid, arrays, num_rounds=workload.all_rounds, train_config=config)
        weights.update(result.arrays.to_torch_state_dict())

    resources: Any = {"init_args": {"num_cpus": WORKERS}, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server_app, flower_client, workload.clients, backend_config=resources)
    return Ended(strategy.seconds, strategy.ends, weights)


# --- pfl-research -----------------------------------------------------------------------------------------


def run_pfl(workload: Workload, key: str, quick: bool) -> Ended:  # noqa: ARG001 - as the others
    """The simulated backend of pfl, in this process."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    module: Any = workload.module()
    module.loss = lambda x, y: functional.cross_entropy(module(x), y)
    module.metrics = lambda x, y: {"loss": Weighted(float(module.loss(x, y)) * len(y), len(y))}
    parts = splits(workload)
    users = ((t, p) for t in range(1, workload.all_rounds + 1) for p in workload.chosen(t))

    def data_of(user: tuple[int, int]) -> PyTorchTensorDataset:
        server_round, partition = user
        rows = parts[partition].train
        order = np.concatenate(workload.plan(len(rows), server_round, partition))
        return PyTorchTensorDataset(tensors(workload, rows[order]), user_id=str(partition))

    ends = [time.perf_counter()]

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
            ends.append(time.perf_counter())
            return False, Metrics()

    np.random.seed(SEED)  # noqa: NPY002 - pfl's own choice
    data = FederatedDataset(data_of, lambda: next(users))
    parameters = NNAlgorithmParams(
        central_num_iterations=workload.all_rounds,
        evaluation_frequency=workload.all_rounds + 1,
        train_cohort_size=workload.cohort,
        val_cohort_size=None,
    )
    training = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=workload.lr, local_batch_size=workload.batch_size
    )
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    FederatedAveraging().run(
        algorithm_params=parameters,
        backend=SimulatedBackend(data, data, [WeightByDatapoints()]),
        model=model,
        model_train_params=training,
        callbacks=[Clock()],
    )
    return Ended(np.diff(ends).tolist(), ends[1:], module.state_dict())


# --- fedbench ---------------------------------------------------------------------------------------------


def fedbench(engine: str, **options: Any) -> Callable[[Workload, str, bool], Ended]:
    """How to run one of fedbench's engines."""

    def run(workload: Workload, key: str, quick: bool) -> Ended:  # noqa: ARG001 - as the others
        from fedbench.engine.ray import RayGrid
        from fedbench.engine.serial import SerialGrid
        from fedbench.engine.worker import settle_process

        settle_process()  # as `fedbench run` does
        strategy = TimedFedAvg(workload, workload.cohort)
        books: list[Exchange] = []  # fedbench's own accounts are part of what its rounds cost
        arguments: Any = (app_factory(workload), workload.sizes().tolist(), books.append)
        grid_class: Any = SerialGrid if engine == "serial" else RayGrid
        workers = {} if engine == "serial" else {"workers": WORKERS}
        with grid_class(*arguments, **workers, **options) as grid:
            arrays = ArrayRecord(workload.module().state_dict())
            result = strategy.start(grid, arrays, num_rounds=workload.all_rounds)
        return Ended(strategy.seconds, strategy.ends, result.arrays.to_torch_state_dict())

    return run


SYSTEMS: dict[str, Callable[[Workload, str, bool], Ended]] = {
    FLOWER: run_flower,
    PFL: run_pfl,
    "fedbench serial": fedbench("serial", cohort=None, partial_sums=True),
    REFERENCE: fedbench("serial", cohort=1, partial_sums=False),
    "fedbench ray": fedbench("ray", cohort=None, partial_sums=True),
    "fedbench ray one by one": fedbench("ray", cohort=1, partial_sums=False),
}


def child(system: str, key: str, quick: bool, path: str) -> dict[str, Any]:
    """Measure a system in this process, and leave its weights in a file."""
    workload = workload_of(key, quick)
    tensors(workload, slice(1))  # the data are there before the clock starts
    random.seed(SEED)
    started = time.perf_counter()
    ended = SYSTEMS[system](workload, key, quick)
    np.savez(path, **{name: w.detach().numpy() for name, w in ended.weights.items()})
    return {"seconds": ended.seconds, "whole": ended.ends[-1] - started}


# --- the table --------------------------------------------------------------------------------------------


def row(
    workload: Workload, system: str, measured: dict[str, dict[str, Any]], apart: float, loss: float
) -> dict[str, object]:
    """One line of the table."""
    middle = {name: median(m["seconds"]) for name, m in measured.items()}
    seconds = measured[system]["seconds"]
    return {
        "workload": f"{workload.title}, {workload.cohort} of {workload.clients:,}",
        "system": system,
        "round s": f"{middle[system]:.4f}",
        "Flower / this": f"{middle[FLOWER] / middle[system]:.1f}",
        "pfl / this": f"{middle[PFL] / middle[system]:.2f}" if PFL in middle else "",
        "fastest-slowest s": f"{min(seconds):.4f}-{max(seconds):.4f}",
        "rounds": len(seconds),
        "whole s": f"{median(measured[system]['whole']):.1f}",
        "loss": f"{loss:.4f}",
        "apart": f"{apart:.0e}",
    }


def compare(key: str, quick: bool, turns: int) -> list[dict[str, object]]:
    """Measure all systems on a workload, in turns, and hold their weights against each other."""
    workload = workload_of(key, quick)
    systems = [name for name in SYSTEMS if name != PFL or find_spec("pfl")]
    measured: dict[str, dict[str, Any]] = {system: {"seconds": [], "whole": []} for system in systems}
    ends = {}
    with tempfile.TemporaryDirectory() as directory:
        for system in systems * turns:
            path = Path(directory) / "weights.npz"
            took = measure_apart(__file__, system, key, quick, str(path))
            seconds = took["seconds"][workload.warm_up :]
            measured[system]["seconds"] += seconds
            measured[system]["whole"].append(took["whole"])
            with np.load(path) as weights:
                ends[system] = {name: torch.from_numpy(w) for name, w in weights.items()}
            print(f"{key}: {system} {median(seconds):.4f} s", file=sys.stderr)
    reference, start = ends[REFERENCE], workload.module().state_dict()
    way = distance(reference, start)
    apart = {system: distance(weights, reference) / way for system, weights in ends.items()}
    return [row(workload, s, measured, apart[s], mean_loss(workload, ends[s])) for s in systems]


def distance(one: Weights, other: Weights) -> float:
    """Euclidean distance of two models."""
    return float(sum(((one[k] - other[k]).double() ** 2).sum() for k in other) ** 0.5)


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="few small clients; writes nothing")
    parser.add_argument("--turns", type=int, default=1, help="times that every system is measured, in turn")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; of {', '.join(WORKLOADS)}")
    if not find_spec("pfl"):
        print("pfl-research is not installed and left out; pip install '.[bench]' adds it")
    before = load()
    rows = [
        line for key in options.workloads or WORKLOADS for line in compare(key, options.quick, options.turns)
    ]
    show("FedAvg over small clients, median round", rows, "workload")
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"FedAvg, one local epoch of SGD, batch 10, one thread a process; Flower: {WORKERS} actors, "
        f"fedbench ray: {WORKERS} workers, the others one process. Median round after those that warm up (12 "
        "for the MLPs, 1 for the others); whole: with start-up. apart: distance from the weights of the "
        "engine that trains one by one, over the way from the initial weights.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("cross_device", "Rounds of small clients", rows, notes)
        print(f"written to {path} and .csv")
    if far := [f"{r['system']} ({r['workload']})" for r in rows if not float(str(r["apart"])) < CLOSE]:
        raise SystemExit(f"these end at other weights than {REFERENCE}: {', '.join(far)}")


if __name__ == "__main__":
    main()
