"""The client half of a method, as pure functions on tensors.

A :class:`LocalRule` changes how a client trains; a :class:`DataRule` changes what it trains on. A rule
never touches messages, files or global state, so the same rule serves one client or, through
``torch.func.vmap``, a whole cohort at once, in fedbench's client or in anybody's own training loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message
from torch import Tensor

from .errors import StrategyError
from .functional import Batch, Differentiate, Model, Params, backpropagate
from .optim import SGD, Optimizer, State


@dataclass(frozen=True)
class Round:
    """Everything that a rule may look at during one round of one client.

    Parameters
    ----------
    model : Model
        ``model(params, batch) -> output``: the client's model as a pure function. ``model.embed`` gives the
        representation too, ``model.frozen`` is the same in evaluation mode.
    task_loss : callable
        ``task_loss(output, batch) -> scalar``: the weighted mean loss over the batch.
    received : dict of Tensor
        All parameters and floating buffers: as the server sent them, and where it sent none, as the
        module was made.
    trainable : frozenset of str
        Names in ``received`` that an optimiser may move (buffers are not).
    head, norms : frozenset of str
        Names in ``received`` that belong to the last layer, and to normalisation layers.
    data : dict of Tensor
        All training rows of this client, with ``weight`` (0 marks padding).
    kept : dict of Tensor
        What this client kept from its last round; :meth:`LocalRule.keep` before the first.
    sent : dict of dict of Tensor
        Further array records of the server's message, by key (SCAFFOLD's control variate, say).
    config : mapping
        The config record of the server's message.
    steps : int or Tensor
        Number of optimiser steps that this client takes in this round.
    lr : float or Tensor
        Learning rate of this round.
    optimizer : Optimizer
        The local optimiser, as pure functions.
    differentiate : callable
        ``differentiate(f, params) -> (gradient, value)`` of a scalar function.
    generator : torch.Generator or None
        Source of the rule's own random draws, keyed by (seed, round, node); ``None`` inside ``vmap``.
    """

    model: Model
    task_loss: Callable[[Tensor, Batch], Tensor]
    received: Params
    trainable: frozenset[str]
    head: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    data: Batch = field(default_factory=dict)
    kept: Params = field(default_factory=dict)
    sent: Mapping[str, Params] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: int | Tensor = 0
    lr: float | Tensor = 0.0
    optimizer: Optimizer = field(default_factory=SGD)
    differentiate: Differentiate = backpropagate
    generator: torch.Generator | None = None

    @property
    def mass(self) -> Tensor:
        """Sum of the weights that this round's steps give to gradients: ``way = lr * mass * gradient``.

        A scalar in the model's type: the number of steps, for SGD without momentum.
        """
        exact = torch.as_tensor(self.steps, dtype=torch.float64)
        like = next(iter(self.received.values()))
        return torch.as_tensor(self.optimizer.mass(exact)).to(like.device, like.dtype)


@dataclass(frozen=True)
class Upload:
    """What a client hands back after a round.

    Parameters
    ----------
    arrays : dict of Tensor
        The record that the server averages.
    kept : dict of Tensor
        What this client keeps for its next round; never sent.
    extra : dict of dict of Tensor
        Further records to send, by key.
    metrics : dict of Tensor or float
        Numbers to report.
    """

    arrays: Params
    kept: Params = field(default_factory=dict)
    extra: Mapping[str, Params] = field(default_factory=dict)
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Steps of a round during which the same tensors move.

    Parameters
    ----------
    steps : int
        Number of steps.
    moving : frozenset of str
        Names that the optimiser moves; its state is made anew for each phase.
    """

    steps: int
    moving: frozenset[str]


@dataclass(frozen=True)
class FineTune:
    """Training on a client's own rows before it predicts, with the task's loss alone.

    Parameters
    ----------
    steps, epochs : int or None
        How long; one of the two.
    lr : float or None
        Learning rate of plain SGD; ``None`` takes the round's own optimiser and rate.
    """

    steps: int | None = None
    epochs: int | None = None
    lr: float | None = None


class LocalRule:
    """Plain local training: the client half of FedAvg, and the base of every other rule.

    A rule may train more tensors than the model has: :meth:`begin` returns those too, under names with a
    prefix (see :func:`prefixed` and :func:`part`).
    """

    sgd_only: ClassVar[bool] = False
    """Whether the method is derived for SGD and cannot be used with an adaptive local optimiser."""
    cuts_model: ClassVar[bool] = False
    """Whether the method needs a model with a body and, as its last layer, a ``head``."""
    needs_norms: ClassVar[bool] = False
    """Whether the method needs a model with normalisation layers."""
    needs_classes: ClassVar[bool] = False
    """Whether the method looks at class labels ``batch["y"]``."""
    needs_all_rows: ClassVar[bool] = False
    """Whether the method looks at ``round.data``, all of a client's training rows, besides its batches."""
    keeps_model: bool = False
    """Whether clients predict with tensors that they keep of their training."""
    parts: ClassVar[int] = 1
    """Into how many parts, at most, the method splits a batch; BatchNorm needs two rows in each."""

    @property
    def name(self) -> str:
        """What replies say they were made by, and the server half checks."""
        return type(self).__name__

    @property
    def fine_tunes(self) -> bool:
        """Whether clients train before they predict; see :meth:`fine_tune`."""
        return type(self).fine_tune is not LocalRule.fine_tune

    def keep(self, received: Params) -> Params:  # noqa: ARG002 - part of the contract
        """Tensors that a client keeps before its first round (zero control variates, say)."""
        return {}

    def begin(self, round: Round) -> Params:
        """Tensors with which local training starts."""
        return round.received

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """Which tensors move in which of the round's steps; ``round.steps`` is an int here."""
        return (Phase(int(round.steps), round.trainable),)

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Loss of one batch: the task's, plus the method's own term."""
        return round.task_loss(round.model(params, batch), batch)

    def direction(
        self, params: Params, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, Tensor]:
        """Gradient of the loss with respect to the ``moving`` tensors, and the loss."""
        resting = {k: v for k, v in params.items() if k not in moving}
        return round.differentiate(
            lambda p: self.loss({**resting, **p}, batch, round),
            {k: v for k, v in params.items() if k in moving},
        )

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:  # noqa: ARG002
        """Gradient that the optimiser is given in place of ``grads``."""
        return grads

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """One optimiser step: parameters and optimiser state after it, and the loss before it."""
        grads, loss = self.direction(params, moving, batch, round)
        grads = self.gradient(grads, params, round)
        moved, state = round.optimizer.step(
            {k: v for k, v in params.items() if k in moving}, grads, state, round.lr
        )
        return {k: moved.get(k, v) for k, v in params.items()}, state, loss

    def end(self, params: Params, round: Round) -> Upload:
        """What goes up and what stays, once the last step is taken."""
        return Upload(arrays=params, kept=round.kept)

    def predictor(self, round: Round) -> Params:
        """The model's tensors with which this client predicts, before any fine-tuning."""
        return self.begin(round)

    def fine_tune(self, round: Round) -> FineTune | None:  # noqa: ARG002
        """Training that :meth:`predictor`'s tensors need first; none for most methods."""
        return None

    def output(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Output with which this client predicts."""
        return round.model.frozen(params, batch)

    def queries(self) -> Mapping[str, Callable[[Round], Upload]]:
        """Answers to query messages other than training, by action name."""
        return {}


def prefixed(prefix: str, params: Mapping[str, Tensor]) -> Params:
    """Tensors under names with a prefix, to go with those of the model."""
    return {prefix + k: v for k, v in params.items()}


def part(prefix: str, params: Mapping[str, Tensor]) -> Params:
    """The tensors that :func:`prefixed` renamed, under their own names."""
    return {k[len(prefix) :]: v for k, v in params.items() if k.startswith(prefix)}


def split(batch: Batch, parts: int) -> tuple[Batch, ...]:
    """A batch dealt out to several: rows ``i``, ``i + parts``, ... to part ``i``.

    Padding lies behind the rows of a batch, so parts are the same with and without it.
    """
    return tuple({k: v[i::parts] for k, v in batch.items()} for i in range(parts))


def setting(round: Round, key: str, rule: LocalRule, server_half: str) -> Any:
    """A number that the server half sends with every message.

    Raises
    ------
    StrategyError
        If the message does not have it, because another server half sent it.
    """
    if key not in round.config:
        raise StrategyError(
            f"{type(rule).__name__} got no '{key}': its server half is missing; use {server_half}"
        )
    return round.config[key]


def sent(round: Round, key: str, rule: LocalRule, server_half: str) -> Params:
    """A record that the server half sends with every message; raises StrategyError as :func:`setting`."""
    if key not in round.sent:
        raise StrategyError(
            f"{type(rule).__name__} got no record '{key}': its server half is missing; use {server_half}"
        )
    return round.sent[key]


@dataclass(frozen=True)
class Examples:
    """The training set of one client, as a data rule sees it.

    Parameters
    ----------
    x : ndarray, shape (rows, features)
        Feature vectors.
    y : ndarray of int64, shape (rows,)
        Labels.
    domain : str
        Name of the client's domain.
    node : int
        Partition id, the key of the client's own random draws.
    seed : int
        Seed of the run.
    weight : int or None
        Number of examples to report to the server; ``None`` counts the rows.
    """

    x: npt.NDArray[np.floating[Any]]
    y: npt.NDArray[np.int64]
    domain: str
    node: int
    seed: int
    weight: int | None = None


Plan = Sequence[npt.NDArray[np.int64]]
"""Row positions of every batch of a round, in order."""

Action = Callable[[Message, Context, Examples], Message]


class DataRule(ABC):
    """Client half of a method that acts on the training set and leaves training alone."""

    @abstractmethod
    def actions(self) -> Mapping[str, Action]:
        """Query actions that the ClientApp has to answer, by name."""

    @abstractmethod
    def training_set(self, context: Context, examples: Examples) -> Examples:
        """Training set in place of ``examples``; must give the same arrays at every call."""
