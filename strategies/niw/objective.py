"""The objective of NIW-Meta and its gradients in the prior.

Kim and Hospedales, arXiv 2306.09702; RECONSTRUCTED, the gradients derived (see `posterior`). For one client

    ``J = f + g/2 + d/(2 l0)``,   ``f = E[loss(m + sqrt(V) eps)]``,
    ``g = log|V0| - log|V| + sum_j P V + P (m - m0)^2 - psi``

with ``(m, V)`` from `posterior.local_posterior`. Up to ``d/2 (log 2 + 1)`` this is ``f + E_q(phi) KL``. The
quadratic model is a constant: nothing is differentiated through the steps that found it. What is learned is
``m0`` and ``log P``; ``n0`` and ``l0`` may be, by autograd. All losses are sums over a client's examples.

Where the quadratic model is exact, the total gradient is the partial one at fixed ``(m, V)``
(`envelope_gradient`), and the method lies between two others: ``dJ/dm0`` goes to ``P (m0 - mbar)``, a Reptile
step, where ``A >> P``, and to ``A (m0 - mbar)``, the loss's gradient at ``m0`` as in FedSGD, where
``A << P``. Where few inner steps are taken in a network it is not exact, and the envelope drives ``P`` up;
`meta_gradient` asks the network itself.

All functions run under ``torch.func.vmap``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import Batch, Differentiate, Params, differentiate_functionally
from .estimators import Loss
from .posterior import (
    Gaussian,
    Prior,
    Quadratic,
    Scalar,
    local_posterior,
    penalty,
    scale_excess,
    total,
)


@dataclass(frozen=True)
class PriorGradient:
    """Gradient of an objective in ``m0`` and ``log P``, shaped like the two in the prior."""

    m0: Params
    log_precision: Params


def regulariser(prior: Prior, q: Gaussian) -> Tensor:
    """``g``, see the module's head; a scalar of the weights' type."""
    value = penalty(prior, q) + scale_excess(prior) + prior.d * math.log(2)
    return value.to(next(iter(prior.m0.values())).dtype)


def expected_quadratic(quadratic: Quadratic, q: Gaussian) -> Tensor:
    """``f`` for a quadratic loss with minimum 0, exactly: ``1/2 sum_j A ((m - mbar)^2 + V)``."""
    terms = {
        k: a * ((q.mean[k] - quadratic.mbar[k]).square() + q.variance[k])
        for k, a in quadratic.curvature.items()
    }
    return (total(terms) / 2).to(next(iter(q.mean.values())).dtype)


def objective(prior: Prior, q: Gaussian, f: Tensor) -> Tensor:
    """``f + g/2 + d/(2 l0)``."""
    return f + regulariser(prior, q) / 2 + prior.d / (2 * prior.l0)


def sampled_objective(
    loss: Loss, prior: Prior, quadratic: Quadratic, data: Batch, noise: Params | None = None
) -> Tensor:
    """`objective` with ``f`` from one sample, to be differentiated in the prior by autograd.

    Parameters
    ----------
    loss : callable
        ``loss(params, data)``, a sum over examples.
    noise : dict of Tensor, optional
        Standard normal, shaped like ``m0``; none takes the loss at the posterior mean, which serves
        regression better.
    """
    q = local_posterior(prior, quadratic)
    return objective(prior, q, loss(q.at(noise), data))


def envelope_gradient(prior: Prior, q: Gaussian) -> PriorGradient:
    """Gradient of ``J`` at fixed ``q``, the total one where the quadratic model is exact (derived).

    ``dJ/dm0 = P (m0 - m)``, ``dJ/dlogP = 1/2 [P ((m - m0)^2 + V) - 1]``.
    """
    away = {k: q.mean[k] - m0 for k, m0 in prior.m0.items()}
    return PriorGradient(
        {k: -p * away[k] for k, p in prior.precision.items()},
        prior.as_log_precision(
            {k: (p * (away[k].square() + q.variance[k]) - 1) / 2 for k, p in prior.precision.items()}
        ),
    )


def sample_gradient(prior: Prior, q: Gaussian, slope: Params, noise: Params | None = None) -> PriorGradient:
    """Gradient of ``J`` for one sample without autograd (derived).

    Parameters
    ----------
    q : Gaussian
        The client's `posterior.local_posterior`.
    slope : dict of Tensor
        Gradient of the summed loss at ``q.at(noise)``.
    noise : dict of Tensor, optional
        The sample's standard normal draws.
    """
    by_mean, by_precision = {}, {}
    for k, p in prior.precision.items():
        v, away, u = q.variance[k], q.mean[k] - prior.m0[k], slope[k]
        share = p * v  # dm/dm0, and -d log V / d log P
        moves = -share * away  # dm/dlogP
        by_mean[k] = u * share + p * away * (share - 1)
        spread = 0 if noise is None else -noise[k] * v.sqrt() * share / 2
        by_precision[k] = (
            u * (moves + spread)
            + (-1 + 2 * share - share.square() + p * away.square()) / 2
            + p * away * moves
        )
    return PriorGradient(by_mean, prior.as_log_precision(by_precision))


def meta_gradient(
    loss: Loss,
    prior: Prior,
    quadratic: Quadratic,
    data: Batch,
    noise: Params | None = None,
    differentiate: Differentiate = differentiate_functionally,
) -> tuple[PriorGradient, Gaussian, Tensor]:
    """One client's part of a step of meta-training: one backward pass of the network, at its sample.

    Parameters
    ----------
    loss, noise
        As in `sampled_objective`.
    quadratic : Quadratic
        From an estimator that started at ``m0``.
    differentiate : callable
        Gradient and value of a function of parameters.

    Returns
    -------
    PriorGradient
        Of ``f + g/2``; server halves average it uniformly over clients, whatever their size.
    Gaussian
        The client's posterior.
    Tensor
        ``f``, the loss at the sample.
    """
    q = local_posterior(prior, quadratic)
    slope, f = differentiate(lambda theta: loss(theta, data), q.at(noise))
    return sample_gradient(prior, q, slope, noise), q, f


def hyper_gradient(prior: Prior, hyper: Prior) -> PriorGradient:
    """Gradient of `posterior.hyper_kl` at fixed ``n0`` and ``l0``, the same in both families (derived).

    To be divided by the number of clients and added to their mean gradient.
    """
    by_mean, by_precision = {}, {}
    scale = hyper.scale
    for k, p in prior.precision.items():
        away = prior.m0[k] - hyper.m0[k]
        by_mean[k] = hyper.l0 * p * away
        by_precision[k] = (p * (hyper.l0 * away.square() + scale[k]) - hyper.n0) / 2
    return PriorGradient(by_mean, prior.as_log_precision(by_precision))


def health(prior: Prior, quadratic: Quadratic, q: Gaussian) -> dict[str, Scalar]:
    """What tells a working run from one that a bound or the prior decides.

    Returns
    -------
    dict
        ``clip_fraction`` (alarming above 0.5), ``curvature_over_precision``, the median of ``A/P`` (alarming
        outside [1e-3, 1e3]), and ``way``, the median of ``|m - m0| sqrt(P)``.
    """
    p = torch.cat([v.flatten() for v in prior.precision.values()])
    a = torch.cat([quadratic.curvature[k].expand(m0.shape).flatten() for k, m0 in prior.m0.items()])
    way = torch.cat([(q.mean[k] - m0).flatten() for k, m0 in prior.m0.items()])
    return {
        "clip_fraction": quadratic.clip_fraction,
        "curvature_over_precision": (a / p).median(),
        "way": (way.abs() * p.sqrt()).median(),
    }
