"""MAML: an initialisation from which a few gradient steps fit a new task.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017, arXiv
1703.03400. First-order MAML takes the gradient at the adapted parameters for that at the initial ones
(section 5.2 there), and so keeps no graph of the inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import Batch, Params, differentiate_functionally
from ..niw.estimators import Loss, resting
from ..optim import Adam, Optimizer, State
from .trial import Trial, mean_of


@dataclass(frozen=True)
class GradientSteps:
    """Plain gradient steps on all of a task's data, through which can be differentiated.

    Parameters
    ----------
    steps : int
        Number of steps; 0 leaves the parameters as they are.
    lr : float
        Rate.

    Raises
    ------
    ValueError
        For a number out of range.
    """

    steps: int = 5
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: must be 0 or more, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr: must be above 0, got {self.lr}")

    def __call__(self, loss: Loss, params: Params, data: Batch) -> Params:
        """Parameters after the last step (equation 1)."""
        for _ in range(self.steps):
            slope = torch.func.grad(loss)(params, data)
            params = {k: p - self.lr * slope[k] for k, p in params.items()}
        return params


def maml_gradient(
    loss: Loss, params: Params, trial: Trial, inner: GradientSteps, *, first_order: bool = False
) -> tuple[Params, Tensor]:
    """Gradient of the loss on the query set after adapting to the support set, and that loss.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)``, a scalar.
    inner : GradientSteps
        How a task is adapted to.
    first_order : bool
        Leave out the derivative of the adapted parameters by the initial ones. Without this, memory grows
        with the number of inner steps.
    """
    if first_order:
        adapted = resting(inner(loss, resting(params), trial.support))
        return differentiate_functionally(lambda p: loss(p, trial.query), adapted)
    return differentiate_functionally(lambda p: loss(inner(loss, p, trial.support), trial.query), params)


def maml_step(
    loss: Loss,
    params: Params,
    trials: Sequence[Trial],
    state: State,
    inner: GradientSteps,
    *,
    first_order: bool = False,
    optimizer: Optimizer | None = None,
    lr: float = 1e-3,
) -> tuple[Params, State, Tensor]:
    """One outer step on the mean of `maml_gradient` over trials.

    Parameters
    ----------
    loss, inner, first_order
        As in `maml_gradient`.
    state : dict
        The outer optimiser's, from its ``init(params)``.
    optimizer : Optimizer, optional
        The outer one; Adam without it.
    lr : float
        Its rate.

    Returns
    -------
    tuple
        Parameters, state, and the mean loss on query sets after adapting.

    Raises
    ------
    StrategyError
        Where there are no trials.
    """
    parts = [maml_gradient(loss, params, trial, inner, first_order=first_order) for trial in trials]
    gradient, value = mean_of(parts)
    params, state = (optimizer or Adam()).step(params, gradient, state, lr)
    return params, state, value
