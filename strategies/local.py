"""The client half of a method, as pure functions on tensors.

A :class:`LocalRule` changes how a client trains; a :class:`DataRule` changes what it trains on. A rule
never touches messages, files or global state, so the same rule serves one client or, through
``torch.func.vmap``, a whole cohort at once, in fedbench's client or in anybody's own training loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message
from torch import Tensor

Params = dict[str, Tensor]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Round:
    """Everything that a rule may look at during one round of one client.

    Parameters
    ----------
    model : callable
        ``model(params, batch) -> output``: the client's model as a pure function.
    task_loss : callable
        ``task_loss(output, batch) -> scalar``: the weighted mean loss over the batch.
    received : dict of Tensor
        Parameters and floating buffers as the server sent them.
    trainable : frozenset of str
        Names in ``received`` that an optimiser may move (buffers are not).
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
    generator : torch.Generator or None
        Source of the rule's own random draws, keyed by (seed, round, node); ``None`` inside ``vmap``.
    """

    model: Callable[[Params, Batch], Tensor]
    task_loss: Callable[[Tensor, Batch], Tensor]
    received: Params
    trainable: frozenset[str]
    kept: Params = field(default_factory=dict)
    sent: Mapping[str, Params] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: int | Tensor = 0
    lr: float | Tensor = 0.0
    generator: torch.Generator | None = None


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


class LocalRule:
    """Plain local training: the client half of FedAvg, and the base of every other rule."""

    def keep(self, received: Params) -> Params:  # noqa: ARG002 - part of the contract
        """Tensors that a client keeps before its first round (zero control variates, say)."""
        return {}

    def begin(self, round: Round) -> Params:
        """Parameters at which local training, and local evaluation, start."""
        return round.received

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Loss of one batch: the task's, plus the method's own term."""
        return round.task_loss(round.model(params, batch), batch)

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:  # noqa: ARG002
        """Gradient that the optimiser is given in place of ``grads``."""
        return grads

    def end(self, params: Params, round: Round) -> Upload:
        """What goes up and what stays, once the last step is taken."""
        return Upload(arrays=params, kept=round.kept)


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


Action = Callable[[Message, Context, Examples], Message]


class DataRule(ABC):
    """Client half of a method that acts on the training set and leaves training alone."""

    @abstractmethod
    def actions(self) -> Mapping[str, Action]:
        """Query actions that the ClientApp has to answer, by name."""

    @abstractmethod
    def training_set(self, context: Context, examples: Examples) -> Examples:
        """Training set in place of ``examples``; must give the same arrays at every call."""
