"""NIW-Meta on episodes: a normal-inverse-Wishart prior over a body's weights, under a head in closed form.

Kim and Hospedales, "A Hierarchical Bayesian Model for (Deep) Few-Shot Meta Learning", ICLR 2024, arXiv
2306.09702; RECONSTRUCTED, see `strategies.niw.posterior`. The prior lies on the body and not on a head with
weights, because the numbers of an episode's classes mean nothing. An episode's loss is that of its queries
given its support set, a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..functional import Batch, Params
from ..local import part, prefixed
from ..niw.adapt import TestPrior, closed_form, predict_classes
from ..niw.estimators import PLAIN, Loss, Output, sgld_moments
from ..niw.objective import health, meta_gradient
from ..niw.posterior import Gaussian, Prior, Quadratic, Scalar, standard_normal
from ..niw.server import gradient_update, mean_gradient
from ..optim import Adam, Optimizer, State
from .protonet import Head, episode_logits, prototype_logits
from .trial import Trial


class Estimator(Protocol):
    """What makes a quadratic model of a summed loss around the prior's mean."""

    def __call__(self, loss: Loss, prior: Prior, data: Batch, generator: torch.Generator) -> Quadratic:
        """Centre and curvature, without a graph."""


@dataclass(frozen=True)
class LangevinMoments:
    """Moments of a Langevin chain, `strategies.niw.estimators.sgld_moments`.

    The defaults are the flags of the official code. With them every curvature lies at its bound, as in any
    chain so short: an episode's posterior is then the prior's mean with a little noise.

    Parameters
    ----------
    steps, burnin, alpha, max_curvature, optimizer
        As there.
    """

    steps: int = 3
    burnin: int = 0
    alpha: float = 1e-6
    max_curvature: float = 1e3
    optimizer: Optimizer = PLAIN

    def __call__(self, loss: Loss, prior: Prior, data: Batch, generator: torch.Generator) -> Quadratic:
        """Run the chain from the prior's mean."""
        return sgld_moments(
            loss,
            prior.m0,
            data,
            steps=self.steps,
            burnin=self.burnin,
            alpha=self.alpha,
            max_curvature=self.max_curvature,
            optimizer=self.optimizer,
            generator=generator,
        )


def _data(trial: Trial) -> Batch:
    """A trial as one batch, whose examples, by their weights, are the queries."""
    weight = torch.ones(len(trial.query["y"]), device=trial.query["y"].device)
    return prefixed("support.", trial.support) | prefixed("query.", trial.query) | {"weight": weight}


def _trial(data: Batch) -> Trial:
    return Trial(part("support.", data), part("query.", data))


def _summed_loss(body: Output, head: Head, ways: int) -> Loss:
    """Sum of the queries' cross-entropies given the support set."""

    def loss(params: Params, data: Batch) -> Tensor:
        trial = _trial(data)
        return cross_entropy(
            episode_logits(body, head, ways, params, trial), trial.query["y"], reduction="sum"
        )

    return loss


def niw_step(
    body: Output,
    prior: Prior,
    trials: Sequence[Trial],
    state: dict[str, State],
    ways: int,
    generator: torch.Generator,
    *,
    head: Head = prototype_logits,
    estimator: Estimator | None = None,
    noise: bool = True,
    optimizer: Optimizer | None = None,
    lr: float = 1e-3,
    lr_precision: float = 1e-3,
) -> tuple[Prior, dict[str, State], dict[str, float]]:
    """One step of the prior on the mean of ``f + g/2`` over trials; ``n0`` and ``l0`` stay as they are.

    Nothing is differentiated through the estimator, so that memory does not grow with its steps.

    Parameters
    ----------
    prior : Prior
        Over the body's weights.
    state : dict
        From `strategies.niw.server.gradient_state`.
    generator : torch.Generator
        Of the estimator's draws and of the samples.
    estimator : callable, optional
        `LangevinMoments` with the official flags without it.
    noise : bool
        Take the loss at a sample of an episode's posterior, not at its mean.
    optimizer : Optimizer, optional
        Adam without it.
    lr, lr_precision : float
        Rates of ``m0`` and ``log P``.

    Returns
    -------
    tuple
        Prior, state, and means over trials of `strategies.niw.objective.health` and of ``loss``, a query's.

    Raises
    ------
    StrategyError
        Where there are no trials.
    """
    estimator = estimator or LangevinMoments()
    loss = _summed_loss(body, head, ways)
    gradients = []
    told: list[dict[str, Scalar]] = []
    for trial in trials:
        data = _data(trial)
        quadratic = estimator(loss, prior, data, generator)
        draw = standard_normal(prior.m0, generator) if noise else None
        gradient, q, f = meta_gradient(loss, prior, quadratic, data, draw)
        gradients.append(gradient)
        told.append({"loss": f / len(data["weight"]), **health(prior, quadratic, q)})
    prior, state = gradient_update(
        prior, mean_gradient(gradients), optimizer or Adam(), state, lr, lr_precision
    )
    return prior, state, {k: sum(float(each[k]) for each in told) / len(told) for k in told[0]}


def niw_adapt(
    body: Output,
    prior: Prior,
    support: Batch,
    ways: int,
    generator: torch.Generator,
    *,
    head: Head = prototype_logits,
    estimator: Estimator | None = None,
    test_prior: TestPrior = "train",
) -> Gaussian:
    """Posterior of the body's weights for a new episode, in closed form from a quadratic model of its loss.

    Which loss the official code takes where there are no queries is not known; here the support set takes
    their place. With one example a class that is its own prototype, and says next to nothing.

    Parameters
    ----------
    support : dict of Tensor
        ``x`` and ``y``; the queries are not looked at.
    estimator
        As in `niw_step`.
    test_prior : {"train", "mode"}
        As in `strategies.niw.adapt.fixed_prior`.
    """
    loss = _summed_loss(body, head, ways)
    quadratic = (estimator or LangevinMoments())(loss, prior, _data(Trial(support, support)), generator)
    return closed_form(prior, quadratic, test_prior)


def niw_predict(
    body: Output,
    q: Gaussian,
    trial: Trial,
    ways: int,
    generator: torch.Generator,
    *,
    head: Head = prototype_logits,
    samples: int = 2,
) -> Tensor:
    """Logarithms of the queries' class probabilities, averaged over draws of the body; (queries, ways).

    Parameters
    ----------
    q : Gaussian
        From `niw_adapt`.
    samples : int
        Draws, 2 in the official code; 0 predicts with the mean.
    """

    def output(params: Params, data: Batch) -> Tensor:
        return episode_logits(body, head, ways, params, _trial(data))

    return predict_classes(output, q, _data(trial), samples, generator)
