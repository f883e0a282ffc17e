"""Local training: which batches a client sees, and how a model is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from strategies.functional import Batch
from strategies.optim import SGD, Adam, Clipped, Optimizer

from .augment import Augmentation
from .errors import ClientError
from .tasks.base import Task

OptimizerName = Literal["sgd", "adam", "adamw"]
Weighting = Literal["examples", "uniform"]
Plan = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Training:
    """How a client trains in one round, the same for every method that is compared.

    Parameters
    ----------
    optimizer : {"sgd", "adam", "adamw"}
        Made anew in every round.
    lr, lr_decay, lr_hold : float, float, int
        Learning rate of the first ``lr_hold`` rounds is ``lr``; after them each round's is ``lr_decay`` times
        the one before.
    lr_cosine : int or None
        Rounds over which the rate falls to 0 along a half cosine, in place of ``lr_decay``.
    momentum, weight_decay : float
        As in ``torch.optim``; momentum is SGD's alone.
    clip : float or None
        Longest gradient, of all parameters together; longer ones are shortened to it.
    batch_size : int
        Rows a step; the last batch of an epoch may be smaller.
    epochs : int
        Passes over the client's rows in a round, unless ``steps`` is given.
    steps : int or None
        Optimiser steps in a round, whatever the number of rows: what makes arms with more (synthetic)
        rows comparable with those that have fewer.
    replace : bool
        Draw each batch independently with replacement instead of shuffling; needs ``steps``.
    augment : {"none", "crop_flip", "rand_augment"}
        Random changes of training images, drawn for each row once a round; see :mod:`clients.augment`.
    weighting : {"examples", "uniform"}
        Weight that a client reports for averaging: its number of training rows, or 1.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = 0.05
    lr_decay: float = 1.0
    lr_hold: int = 1
    lr_cosine: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    batch_size: int = 32
    epochs: int = 1
    steps: int | None = None
    replace: bool = False
    augment: Augmentation = "none"
    weighting: Weighting = "examples"

    def __post_init__(self) -> None:
        choices = {"optimizer": OptimizerName, "augment": Augmentation, "weighting": Weighting}
        for name, known in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("lr", "lr_decay", "clip"):
            if (size := getattr(self, name)) is not None and not size > 0:
                raise ValueError(f"{name}: must be above 0, got {size}")
        if self.lr_cosine is not None and self.lr_decay != 1:
            raise ValueError(f"lr_cosine: takes the place of lr_decay, got {self.lr_decay} there; use 1")
        for name in ("batch_size", "epochs", "steps", "lr_hold", "lr_cosine"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}: must be 1 or more, got {count}")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if self.replace and self.steps is None:
            raise ValueError("replace: drawing with replacement has no epochs; set steps to a number a round")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum: is SGD's option, got {self.momentum} with optimizer={self.optimizer}"
            )

    def build_optimizer(self) -> Optimizer:
        """The optimiser as pure functions."""
        optimizer: Optimizer
        if self.optimizer == "sgd":
            optimizer = SGD(momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            optimizer = Adam(weight_decay=self.weight_decay, decoupled=self.optimizer == "adamw")
        return optimizer if self.clip is None else Clipped(optimizer, self.clip)

    def learning_rate(self, server_round: int) -> float:
        """Learning rate of a round, counted from 1."""
        if self.lr_cosine is not None:
            done = min(server_round - 1, self.lr_cosine) / self.lr_cosine
            return self.lr / 2 * (1 + math.cos(math.pi * done))
        return self.lr * self.lr_decay ** max(server_round - self.lr_hold, 0)

    def examples(self, rows: int) -> int:
        """Rows that pass through the model in a round of a client that has ``rows``, repetitions included."""
        if rows == 0:
            return 0
        if self.replace:
            return (self.steps or 1) * min(self.batch_size, rows)
        if self.steps is None:
            return self.epochs * rows
        epochs, further = divmod(self.steps, math.ceil(rows / self.batch_size))
        return epochs * rows + further * self.batch_size

    def plan(self, rows: int, rng: np.random.Generator, smallest: int = 1) -> Plan:
        """Positions of the rows of every batch of a round, in order.

        Parameters
        ----------
        rows : int
            Number of training rows of the client.
        rng : numpy.random.Generator
            Keyed by (seed, round, node).
        smallest : int
            Batches below this size are left out (BatchNorm cannot train on one row).

        Raises
        ------
        ClientError
            If no batch could reach ``smallest``.
        """
        if self.batch_size < smallest:
            raise ClientError(
                f"batch_size: a model with BatchNorm needs {smallest} or more rows a batch, "
                f"got {self.batch_size}"
            )
        if rows == 0:
            return []
        if self.replace:
            return list(rng.integers(rows, size=(self.steps or 1, min(self.batch_size, rows))))
        batches: Plan = []
        epochs = self.epochs if self.steps is None else math.inf
        epoch = 0
        while epoch < epochs and (self.steps is None or len(batches) < self.steps):
            order = rng.permutation(rows)
            epoch_batches = [order[i : i + self.batch_size] for i in range(0, rows, self.batch_size)]
            batches += [b for b in epoch_batches if len(b) >= min(smallest, rows)]
            epoch += 1
        return batches[: self.steps]


def evaluate(
    task: Task, predict: Callable[[Batch], Tensor], data: Batch, batch_size: int | None = None
) -> dict[str, float]:
    """Summed metrics of a model over rows; the sums add up exactly over clients.

    Parameters
    ----------
    task : Task
        What the outputs mean.
    predict : callable
        ``predict(batch) -> output``, in evaluation mode.
    data : dict of Tensor
        Rows with ``weight``.
    batch_size : int, optional
        Rows a forward pass; as many as suit the task by default.
    """
    rows = len(data["weight"])
    batch_size = batch_size or task.rows_at_once
    sums = dict.fromkeys(task.sums, 0.0)
    with torch.no_grad():
        for start in range(0, rows, batch_size):
            batch = {k: v[start : start + batch_size] for k, v in data.items()}
            for key, value in task.metrics(predict(batch), batch).items():
                sums[key] += float(value)
    return sums
