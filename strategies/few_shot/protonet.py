"""Heads in closed form, and prototypical networks, which train a body under one.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv 1703.05175.
Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
arXiv 1805.08136 (ridge regression).

A body is ``body(params, batch)``, which gives representations (rows, d). A head takes those of a support set,
its labels, those of queries and the number of classes, and gives logits; it has no parameters, so that it
does not matter which class has which number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ..functional import Params, differentiate_functionally
from ..niw.estimators import Output
from ..optim import Adam, Optimizer, State
from .trial import Trial, mean_of

Head = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def prototypes(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Mean representation of each class (equation 1); 0 for a class without rows.

    Parameters
    ----------
    z : Tensor, shape (rows, d)
        Representations.
    y : Tensor of int64, shape (rows,)
        Classes, from 0 to below ``ways``.

    Returns
    -------
    Tensor, shape (ways, d)
    """
    member = one_hot(y, ways).to(z.dtype)
    return member.T @ z / member.sum(0).clamp(min=1)[:, None]


def prototype_logits(z: Tensor, y: Tensor, queries: Tensor, ways: int) -> Tensor:
    """Negative squared distances of queries (rows, d) from the prototypes (equation 2); (rows, ways)."""
    return -(queries[:, None] - prototypes(z, y, ways)).square().sum(-1)


def ridge_logits(
    z: Tensor, y: Tensor, queries: Tensor, ways: int, *, strength: float = 1.0, scale: float = 1.0
) -> Tensor:
    """Outputs of ridge regression on one-hot labels, without intercept (equations 4 to 6); (rows, ways).

    ``scale * Q Z^T (Z Z^T + strength I)^-1 Y``: a system of as many equations as there are support rows.

    Parameters
    ----------
    strength : float
        Penalty on the squared weights. The paper learns it, and ``scale`` and a bias.
    scale : float
        From regression outputs to logits.

    Raises
    ------
    ValueError
        For a strength that is not above 0.
    """
    if not strength > 0:
        raise ValueError(f"strength: must be above 0, got {strength}")
    gram = z @ z.T + strength * torch.eye(len(z), dtype=z.dtype, device=z.device)
    return scale * (queries @ z.T) @ torch.linalg.solve(gram, one_hot(y, ways).to(z.dtype))


def episode_logits(body: Output, head: Head, ways: int, params: Params, trial: Trial) -> Tensor:
    """Logits of a trial's queries given its support set, in one pass of the body; (queries, ways)."""
    rows = len(trial.support["y"])
    z = body(params, trial.all)
    return head(z[:rows], trial.support["y"], z[rows:], ways)


def protonet_step(
    body: Output,
    params: Params,
    trials: Sequence[Trial],
    state: State,
    ways: int,
    *,
    head: Head = prototype_logits,
    optimizer: Optimizer | None = None,
    lr: float = 1e-3,
) -> tuple[Params, State, Tensor]:
    """One step on the mean cross-entropy of queries given the support set.

    Parameters
    ----------
    head : callable
        `prototype_logits`, or `ridge_logits`.
    state : dict
        The optimiser's, from its ``init(params)``.
    optimizer : Optimizer, optional
        Adam without it.

    Returns
    -------
    tuple
        Parameters, state, and the loss.

    Raises
    ------
    StrategyError
        Where there are no trials.
    """

    def loss(p: Params, trial: Trial) -> Tensor:
        return cross_entropy(episode_logits(body, head, ways, p, trial), trial.query["y"])

    parts = [differentiate_functionally(lambda p, t=t: loss(p, t), params) for t in trials]  # type: ignore[misc]
    gradient, value = mean_of(parts)
    params, state = (optimizer or Adam()).step(params, gradient, state, lr)
    return params, state, value
