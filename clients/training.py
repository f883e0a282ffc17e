"""Local training: the batches a client sees, and one pure step that any engine can run or vectorise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from strategies.local import Batch, LocalRule, Params, Round

from .errors import ClientError
from .optim import SGD, Adam, Optimizer, State
from .tasks.base import Task

OptimizerName = Literal["sgd", "adam"]
Weighting = Literal["examples", "uniform"]


@dataclass(frozen=True)
class Training:
    """How a client trains in one round, the same for every method that is compared.

    Parameters
    ----------
    optimizer : {"sgd", "adam"}
        Made anew in every round.
    lr, lr_decay : float
        Learning rate of round ``t`` is ``lr * lr_decay ** (t - 1)``.
    momentum, weight_decay : float
        As in ``torch.optim``; momentum is SGD's alone.
    batch_size : int
        Rows a step; the last batch of an epoch may be smaller.
    epochs : int
        Passes over the client's rows in a round, unless ``steps`` is given.
    steps : int or None
        Optimiser steps in a round, whatever the number of rows: what makes arms with more (synthetic)
        rows comparable with those that have fewer.
    replace : bool
        Draw each batch independently with replacement instead of shuffling; needs ``steps``.
    weighting : {"examples", "uniform"}
        Weight that a client reports for averaging: its number of training rows, or 1.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = 0.05
    lr_decay: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    epochs: int = 1
    steps: int | None = None
    replace: bool = False
    weighting: Weighting = "examples"

    def __post_init__(self) -> None:
        for name, known in (("optimizer", get_args(OptimizerName)), ("weighting", get_args(Weighting))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("lr", "lr_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name in ("batch_size", "epochs", "steps"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}: must be 1 or more, got {count}")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if self.replace and self.steps is None:
            raise ValueError("replace: drawing with replacement has no epochs; set steps to a number a round")
        if self.momentum and self.optimizer == "adam":
            raise ValueError(f"momentum: is SGD's option, got {self.momentum} with optimizer=adam")

    def build_optimizer(self) -> Optimizer:
        """The optimiser as pure functions."""
        if self.optimizer == "adam":
            return Adam(weight_decay=self.weight_decay)
        return SGD(momentum=self.momentum, weight_decay=self.weight_decay)

    def learning_rate(self, server_round: int) -> float:
        """Learning rate of a round, counted from 1."""
        return self.lr * self.lr_decay ** (server_round - 1)

    def plan(self, rows: int, rng: np.random.Generator, smallest: int = 1) -> list[npt.NDArray[np.int64]]:
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
        batches: list[npt.NDArray[np.int64]] = []
        epochs = self.epochs if self.steps is None else math.inf
        epoch = 0
        while epoch < epochs and (self.steps is None or len(batches) < self.steps):
            order = rng.permutation(rows)
            epoch_batches = [order[i : i + self.batch_size] for i in range(0, rows, self.batch_size)]
            batches += [b for b in epoch_batches if len(b) >= min(smallest, rows)]
            epoch += 1
        return batches[: self.steps]


class Stateless:
    """A resident ``nn.Module`` as a pure function of its parameters and buffers.

    Parameters and floating buffers together are what a federation averages; integer buffers
    (``num_batches_tracked``) stay at the module's initial values.
    """

    def __init__(self, module: nn.Module, task: Task, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device)
        self.task = task
        self.device = torch.device(device)
        self.trainable = frozenset(k for k, p in module.named_parameters() if p.requires_grad)
        self.shared = tuple(k for k, v in module.state_dict(keep_vars=True).items() if v.is_floating_point())
        self._fixed = {k: b for k, b in module.named_buffers() if not b.is_floating_point()}
        self._dtypes = {k: v.dtype for k, v in module.state_dict().items()}
        self.has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())

    def initial(self) -> Params:
        """Copies of the module's own parameters and floating buffers."""
        state = self.module.state_dict()
        return {k: state[k].detach().clone() for k in self.shared}

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Output of the module at ``params``; BatchNorm in training mode updates ``params`` in place."""
        fixed = {k: v.clone() for k, v in self._fixed.items()}
        return functional_call(self.module, {**params, **fixed}, self.task.inputs(batch))

    def to_device(self, params: Mapping[str, Tensor]) -> Params:
        """Tensors on the model's device; those with a name of the model's, in the model's type.

        Flower's FedAdam, for one, hands float32 parameters back as float64.
        """
        return {k: v.to(self.device, self._dtypes.get(k, v.dtype)) for k, v in params.items()}


Differentiate = Callable[[Callable[[Params], Tensor], Params], tuple[Params, Tensor]]


def backpropagate(loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    """Gradient and value of ``loss`` by ordinary autograd, which allows layers that write to buffers."""
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    value = loss(leaves)
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(leaves.items(), grads, strict=True)
    }, value.detach()


def differentiate_functionally(loss: Callable[[Params], Tensor], params: Params) -> tuple[Params, Tensor]:
    """Gradient and value of ``loss`` by ``torch.func``, which composes with ``vmap``."""
    return torch.func.grad_and_value(loss)(params)


def local_step(
    rule: LocalRule,
    optimizer: Optimizer,
    params: Params,
    state: State,
    batch: Batch,
    round: Round,
    differentiate: Differentiate = backpropagate,
) -> tuple[Params, State, Tensor]:
    """One optimiser step of one client, as a pure function: what a cohort maps over its clients.

    Returns
    -------
    params, state, loss
        Parameters and optimiser state after the step, and the loss before it.
    """
    moving = {k: v for k, v in params.items() if k in round.trainable}
    resting = {k: v for k, v in params.items() if k not in round.trainable}
    grads, loss = differentiate(lambda p: rule.loss({**resting, **p}, batch, round), moving)
    grads = rule.gradient(grads, params, round)
    moved, state = optimizer.step(moving, grads, state, round.lr)
    return {k: moved.get(k, v) for k, v in params.items()}, state, loss


def train_client(
    rule: LocalRule, optimizer: Optimizer, round: Round, data: Batch, plan: list[npt.NDArray[np.int64]]
) -> tuple[Params, float]:
    """Train one client through its plan of batches.

    Parameters
    ----------
    rule, optimizer, round
        The method's client half, the optimiser, and what the client knows of this round.
    data : dict of Tensor
        All training rows of the client, with ``weight``.
    plan : list of ndarray
        Row positions of every batch, from :meth:`Training.plan`.

    Returns
    -------
    params, loss
        Where training ended, and the mean loss over the steps.
    """
    device = next(iter(data.values())).device
    params = {k: v.detach().clone() for k, v in rule.begin(round).items()}
    state = optimizer.init({k: v for k, v in params.items() if k in round.trainable})
    total = torch.zeros((), device=device)
    for rows in plan:
        index = torch.from_numpy(rows).to(device)
        batch = {k: v[index] for k, v in data.items()}
        params, state, loss = local_step(rule, optimizer, params, state, batch, round)
        total += loss
    return params, float(total) / max(len(plan), 1)


def evaluate(model: Stateless, params: Params, data: Batch, batch_size: int = 1024) -> dict[str, float]:
    """Summed metrics of a model over rows; the sums add up exactly over clients.

    Parameters
    ----------
    model : Stateless
        The model, put into evaluation mode for the call.
    params : dict of Tensor
        Parameters and floating buffers.
    data : dict of Tensor
        Rows with ``weight``.
    batch_size : int
        Rows a forward pass.
    """
    rows = len(data["weight"])
    sums = dict.fromkeys(model.task.sums, 0.0)
    was_training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            for start in range(0, rows, batch_size):
                batch = {k: v[start : start + batch_size] for k, v in data.items()}
                for key, value in model.task.metrics(model(params, batch), batch).items():
                    sums[key] += float(value)
    finally:
        model.module.train(was_training)
    return sums
