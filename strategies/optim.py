"""Optimisers as pure functions: parameters, gradients and state in, parameters and state out.

``torch.optim`` updates in place and so cannot run under ``torch.func.vmap``; these follow its update
rules to the letter (a test holds them equal) and serve one client and a cohort alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import StrategyError
from .functional import Params

State = dict[str, Params]


class Optimizer(Protocol):
    """An optimiser's two functions."""

    def init(self, params: Params) -> State:
        """State before the first step, shaped like ``params``."""

    def step(self, params: Params, grads: Params, state: State, lr: float | Tensor) -> tuple[Params, State]:
        """Parameters and state after one step."""

    def mass(self, steps: Tensor) -> Tensor:
        """Sum of the weights of all gradients in the way that ``steps`` steps go, in units of ``lr``.

        The way is ``lr * mass * g`` where every gradient is ``g``: the norm of the accumulation vector
        ``a_i`` of FedNova. Raises StrategyError for an optimiser whose way is not a weighted sum.
        """


def _decayed(params: Params, grads: Params, weight_decay: float) -> Params:
    if not weight_decay:
        return grads
    return {k: g + weight_decay * params[k] for k, g in grads.items()}


def _minus(p: Tensor, lr: float | Tensor, direction: Tensor) -> Tensor:
    """``p - lr * direction`` in one pass over memory."""
    if isinstance(lr, Tensor):
        return torch.addcmul(p, direction, lr, value=-1)
    return torch.sub(p, direction, alpha=lr)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent as in ``torch.optim.SGD`` (dampening 0)."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def init(self, params: Params) -> State:
        """Zero momentum: equal to torch's first step, which sets the buffer to the gradient."""
        return {"momentum": {k: torch.zeros_like(p) for k, p in params.items()}} if self.momentum else {}

    def step(self, params: Params, grads: Params, state: State, lr: float | Tensor) -> tuple[Params, State]:
        """One step."""
        grads = _decayed(params, grads, self.weight_decay)
        if self.momentum:
            velocity = {k: self.momentum * state["momentum"][k] + g for k, g in grads.items()}
            state = {"momentum": velocity}
            grads = (
                {k: g + self.momentum * velocity[k] for k, g in grads.items()} if self.nesterov else velocity
            )
        return {k: _minus(p, lr, grads[k]) for k, p in params.items()}, state

    def mass(self, steps: Tensor) -> Tensor:
        """``steps`` without momentum; with it, gradient ``j`` of ``K`` weighs ``(1 - m^(K-j+1)) / (1 - m)``.

        Nesterov's look-ahead adds one more term of the geometric series to each weight.
        """
        m = self.momentum
        if not m:
            return steps
        ahead = m if self.nesterov else 1.0
        return (steps - ahead * m * (1 - m**steps) / (1 - m)) / (1 - m)


@dataclass(frozen=True)
class Adam:
    """Adam as in ``torch.optim.Adam`` (no amsgrad), and AdamW where the decay is ``decoupled``."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def init(self, params: Params) -> State:
        """Zero moments; the step count is a tensor so that clients of a cohort may differ in it."""
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        # float64: in float32, 1 - 0.999 is off by 1e-5 of itself.
        count = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
        return {"first": zeros, "second": dict(zeros), "count": {"t": count}}

    def step(self, params: Params, grads: Params, state: State, lr: float | Tensor) -> tuple[Params, State]:
        """One step."""
        b1, b2 = self.betas
        if self.decoupled:
            params = {k: p * (1 - lr * self.weight_decay) for k, p in params.items()}
        else:
            grads = _decayed(params, grads, self.weight_decay)
        t = state["count"]["t"] + 1
        first = {k: b1 * state["first"][k] + (1 - b1) * g for k, g in grads.items()}
        second = {k: b2 * state["second"][k] + (1 - b2) * g * g for k, g in grads.items()}
        scale, root = lr / (1 - b1**t), (1 - b2**t).sqrt()
        moved = {}
        for k, p in params.items():
            spread = second[k].sqrt() / root.to(p.dtype) + self.eps
            moved[k] = p - scale.to(p.dtype) * first[k] / spread
        return moved, {"first": first, "second": second, "count": {"t": t}}

    def mass(self, steps: Tensor) -> Tensor:  # noqa: ARG002 - part of the contract
        """Raise StrategyError: Adam's way is no weighted sum of gradients."""
        raise StrategyError("the method is derived for SGD and cannot be used with Adam; set optimizer=sgd")


@dataclass(frozen=True)
class Clipped:
    """An optimiser of gradients that are shortened to a norm, as ``torch.nn.utils.clip_grad_norm_`` does.

    Parameters
    ----------
    optimizer : Optimizer
        What takes the steps.
    norm : float
        Longest that all gradients together may be.
    """

    optimizer: Optimizer
    norm: float

    def init(self, params: Params) -> State:
        """The optimiser's."""
        return self.optimizer.init(params)

    def step(self, params: Params, grads: Params, state: State, lr: float | Tensor) -> tuple[Params, State]:
        """One step."""
        length = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        scale = (self.norm / (length + 1e-6)).clamp(max=1)
        return self.optimizer.step(params, {k: g * scale for k, g in grads.items()}, state, lr)

    def mass(self, steps: Tensor) -> Tensor:
        """The optimiser's, of gradients as they were shortened."""
        return self.optimizer.mass(steps)
