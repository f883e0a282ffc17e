"""Models, data and clients of the speed benchmarks: the same for every system that they compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional

from clients.app import ClientSpec, make_client_app
from clients.models.linear import Linear
from clients.models.mlp import MLP
from clients.tasks.classification import Classification
from clients.training import Plan, Training
from strategies.local import LocalRule
from strategies.seeding import generator

CLASSES = 10
SEED = 0


class BenchmarkCNN(nn.Module):
    """The CNN of pfl-research's CIFAR-10 benchmark without dropout: 1.63 M weights at 32 x 32 x 3."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        return self.head(self.body(x))


@dataclass(frozen=True)
class Workload:
    """A federation of synthetic data and what is trained on it.

    Parameters
    ----------
    title : str
        Name in tables.
    model : callable
        ``model(shape, classes)`` makes the module.
    shape : tuple of int
        Of one example; images and byte vectors are uint8, others float32.
    clients, cohort, rows : int
        Clients, how many take part in a round, and rows of each; the mean where they are ``uneven``.
    rounds : int
        Measured rounds, after those that warm up.
    lr : float
        Learning rate of plain SGD.
    batch_size : int
        Rows a step, for one epoch a round.
    uneven : bool
        Whether clients' sizes are log-normal instead of equal.
    byte_sized : bool
        Whether examples are uint8.
    warm_up : int
        Rounds before those that are measured: fedbench records its steps after some hundred of them.
    """

    title: str
    model: Callable[[Sequence[int], int], nn.Module]
    shape: tuple[int, ...]
    clients: int
    cohort: int
    rows: int
    rounds: int
    lr: float
    batch_size: int = 10
    uneven: bool = False
    byte_sized: bool = False
    warm_up: int = 1

    @property
    def all_rounds(self) -> int:
        """Rounds that warm up and rounds that are measured."""
        return self.warm_up + self.rounds

    @property
    def training(self) -> Training:
        """Local training: one epoch of plain SGD."""
        return Training(batch_size=self.batch_size, epochs=1, steps=None, lr=self.lr)

    def module(self) -> nn.Module:
        """The model with its initial weights, the same in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.model(self.shape, CLASSES)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each client."""
        if not self.uneven:
            return np.full(self.clients, self.rows)
        spread = np.random.default_rng(SEED).lognormal(-0.32, 0.8, self.clients)  # of mean 1
        return np.clip(self.rows * spread, 5, 10 * self.rows).astype(np.int64)

    def chosen(self, server_round: int) -> list[int]:
        """Partitions that take part in a round."""
        if self.cohort == self.clients:
            return list(range(self.clients))
        rng = generator(SEED, "clients", server_round)
        return sorted(rng.choice(self.clients, self.cohort, replace=False).tolist())

    def plan(self, rows: int, server_round: int, partition: int) -> Plan:
        """Batches of a client, the same that fedbench's own client draws."""
        return self.training.plan(rows, generator(SEED, "batches", server_round, partition))


_LR = Workload("LR 784-10, bytes", Linear, (784,), 1_000, 10, 60, 100, 0.03, uneven=True, byte_sized=True)
_CNN = Workload("CNN 1.6 M", BenchmarkCNN, (3, 32, 32), 1_000, 50, 50, 3, 0.05, byte_sized=True)
WORKLOADS = {
    "mlp64": Workload("MLP 64-200-10", MLP, (64,), 100, 100, 100, 10, 0.1, warm_up=12),
    "mlp512": Workload("MLP 512-200-10", MLP, (512,), 100, 100, 100, 10, 0.05, warm_up=12),
    "lr": _LR,
    "cnn": _CNN,
}
QUICK = {
    "mlp64": replace(WORKLOADS["mlp64"], clients=20, cohort=20, rounds=2, warm_up=1),
    "mlp512": replace(WORKLOADS["mlp512"], clients=20, cohort=20, rounds=2, warm_up=1),
    "lr": replace(_LR, clients=100, rounds=5),
    "cnn": replace(_CNN, clients=10, cohort=4, rows=20, rounds=1),
}


@dataclass(frozen=True)
class Rows:
    """Rows of one client; all of them train."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def splits(workload: Workload) -> list[Rows]:
    """Consecutive rows for each client."""
    none = np.empty(0, dtype=np.int64)
    ends = np.cumsum(workload.sizes())
    starts = [0, *ends[:-1]]
    return [Rows(np.arange(a, b), none, none) for a, b in zip(starts, ends, strict=True)]


@cache
def examples(workload: Workload) -> dict[str, npt.NDArray[Any]]:
    """Synthetic ``x`` and ``y`` of all clients, held once a process; labels follow from a linear teacher."""
    rng = np.random.default_rng(SEED)
    shape = (int(workload.sizes().sum()), *workload.shape)
    byte_sized = workload.byte_sized
    x = rng.integers(0, 256, shape, np.uint8) if byte_sized else rng.standard_normal(shape, np.float32)
    seen = x.reshape(len(x), -1)[:, : min(64, prod(workload.shape))].astype(np.float32)
    y = ((seen - seen.mean(axis=0)) @ rng.standard_normal((seen.shape[1], CLASSES), np.float32)).argmax(1)
    return {"x": x, "y": y.astype(np.int64)}


def tensors(workload: Workload, rows: Any) -> tuple[Tensor, Tensor]:
    """Inputs, scaled as :class:`Classification` scales them, and labels."""
    arrays = examples(workload)
    x = torch.from_numpy(arrays["x"][rows])
    return x.float() / 255 if workload.byte_sized else x, torch.from_numpy(arrays["y"][rows])


def app_factory(workload: Workload, device: str = "cpu") -> Callable[[], ClientApp]:
    """What fedbench's engines make their ClientApp with."""
    spec = ClientSpec(
        arrays=examples(workload),
        splits=splits(workload),
        domains=["all"] * workload.clients,
        model=workload.module,
        task=Classification(),
        training=workload.training,
        rule=LocalRule(),
        seed=SEED,
        device=device,
        classes=CLASSES,
    )
    return partial(make_client_app, spec)


def mean_loss(workload: Workload, weights: dict[str, Tensor], rows: int = 1_000) -> float:
    """Cross-entropy of a model on the first rows of the federation."""
    module = workload.module()
    module.load_state_dict(weights)
    x, y = tensors(workload, slice(rows))
    with torch.no_grad():
        return float(functional.cross_entropy(module(x), y))
