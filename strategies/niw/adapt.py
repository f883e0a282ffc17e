"""A new client: from the learned prior and k examples to predictions.

Kim and Hospedales, arXiv 2306.09702, fix ``phi`` to the mode of ``q(phi)`` and solve a variational problem
(as public reviews of the paper have it; RECONSTRUCTED). The cheaper ways are derived here. Nothing is sent
back, so that the cost is that of fine-tuning on k examples. With k = 0 the functions that look at data return
the prior itself: no rows, no curvature.

Losses are sums over examples (see `estimators`), the functions run under ``torch.func.vmap`` with ``noise``
in place of a generator.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..functional import Batch, Differentiate, Params, differentiate_functionally
from ..local import part, prefixed
from .estimators import Curvature, Descent, Loss, Newton, Output, laplace
from .posterior import Gaussian, Prior, Quadratic, local_posterior, standard_normal

TestPrior = Literal["mode", "train"]
LONG = Descent(steps=100)


def fixed_prior(prior: Prior, test_prior: TestPrior = "train") -> Prior:
    """The prior with the precision that a new client is given.

    Parameters
    ----------
    test_prior : {"train", "mode"}
        ``P = n0/V0``, under which the prior was trained, or that at the mode of ``q(phi)``, the papers':
        ``(n0 + 3)/V0`` (``n0 + d + 2`` in the full family), four times as much at ``n0 = 1``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if test_prior not in get_args(TestPrior):
        raise ValueError(f"test_prior: must be 'train' or 'mode', got {test_prior!r}")
    if test_prior == "train":
        return prior
    ratio = prior.mode_ratio
    shift = ratio.log() if isinstance(ratio, Tensor) else math.log(ratio)
    return replace(prior, log_precision={k: p + shift for k, p in prior.log_precision.items()})


def prior_predictive(prior: Prior) -> Gaussian:
    """``N(m0, 1/P)``, all that is known of a client without examples."""
    return Gaussian(prior.m0, {k: 1 / p for k, p in prior.precision.items()})


def personalise(
    loss: Loss,
    prior: Prior,
    data: Batch,
    curvature: Curvature,
    *,
    solver: Descent | Newton = LONG,
    test_prior: TestPrior = "train",
    max_curvature: float = math.inf,
    differentiate: Differentiate = differentiate_functionally,
) -> Gaussian:
    """The MAP and Laplace's variance around it (`estimators.laplace`), the recommended way (derived).

    Raises
    ------
    ValueError, StrategyError
        As `fixed_prior` and `estimators.laplace`.
    """
    q, _ = laplace(
        loss,
        fixed_prior(prior, test_prior),
        data,
        curvature,
        solver=solver,
        max_curvature=max_curvature,
        differentiate=differentiate,
    )
    return q


def closed_form(prior: Prior, quadratic: Quadratic, test_prior: TestPrior = "train") -> Gaussian:
    """The posterior for a quadratic model of the loss, from any estimator; see `fixed_prior` (derived)."""
    return local_posterior(fixed_prior(prior, test_prior), quadratic)


def variational(
    loss: Loss,
    prior: Prior,
    data: Batch,
    *,
    solver: Descent = LONG,
    test_prior: TestPrior = "mode",
    generator: torch.Generator | None = None,
    noise: Params | None = None,
    differentiate: Differentiate = differentiate_functionally,
) -> Gaussian:
    """The papers' way: minimise over ``N(m, s^2)`` the expected loss plus the divergence from the prior.

    From ``m = m0``, ``s = P^-1/2``, one sample a step, with gradients ``u + P (m - m0)`` in ``m`` and
    ``u eps s + P s^2 - 1`` in ``log s``, ``u`` being the loss's at ``m + s eps`` (derived). Steps and
    rate of the papers are not known.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the noise; this or ``noise``.
    noise : dict of Tensor, optional
        Standard normal draws of shape (steps, shape of the tensor).

    Raises
    ------
    ValueError
        If there is not one source of noise; as `fixed_prior`.
    """
    if (generator is None) == (noise is None):
        raise ValueError("generator, noise: give one of the two")
    prior = fixed_prior(prior, test_prior)
    m0, precision = prior.m0, prior.precision
    params = prefixed("m.", m0) | prefixed("s.", {k: -p.log() / 2 for k, p in precision.items()})
    state = solver.optimizer.init(params)
    for t in range(solver.steps):
        m, s = part("m.", params), {k: v.exp() for k, v in part("s.", params).items()}
        if noise is not None:
            eps = {k: v[t] for k, v in noise.items()}
        else:
            assert generator is not None
            eps = standard_normal(m0, generator)
        slope, _ = differentiate(lambda p: loss(p, data), {k: v + s[k] * eps[k] for k, v in m.items()})
        by_mean = {k: u + precision[k] * (m[k] - m0[k]) for k, u in slope.items()}
        by_log = {k: u * eps[k] * s[k] + precision[k] * s[k].square() - 1 for k, u in slope.items()}
        params, state = solver.optimizer.step(
            params, prefixed("m.", by_mean) | prefixed("s.", by_log), state, solver.lr
        )
    return Gaussian(part("m.", params), {k: (2 * v).exp() for k, v in part("s.", params).items()})


def student_t(prior: Prior) -> tuple[float, Params]:
    """Degrees of freedom and scale (a variance) of the weights' distribution with ``phi`` integrated out.

    Full: a d-dimensional t with ``n0 - d + 1`` degrees and ``(l0 + 1) V0 / (l0 (n0 - d + 1))``; otherwise one
    t for each weight, with ``n0`` in place of ``n0 - d + 1`` (derived). The centre is ``m0``.
    """
    df = float(prior.n0) - (prior.d - 1 if prior.family == "full" else 0)
    factor = (prior.l0 + 1) / (prior.l0 * df)
    return df, {k: factor * v for k, v in prior.scale.items()}


def student_penalty(prior: Prior, params: Params) -> Tensor:
    """Negative log density of `student_t`, less its minimum: in place of the MAP's quadratic.

    ``(n0 + 1)/2 sum_j log(1 + l0 (theta - m0)^2 / ((l0 + 1) V0))``, the sum inside the logarithm in the full
    family. Heavy tails let a few weights go far.
    """
    way = {
        k: prior.l0 / (prior.l0 + 1) * (params[k] - prior.m0[k]).square() / v for k, v in prior.scale.items()
    }
    if prior.family == "full":
        logs = torch.stack([v.sum() for v in way.values()]).sum().log1p()
    else:
        logs = torch.stack([v.log1p().sum() for v in way.values()]).sum()
    return (prior.n0 + 1) / 2 * logs


def _outputs(
    output: Output,
    q: Gaussian,
    batch: Batch,
    samples: int,
    generator: torch.Generator | None,
    noise: Params | None,
) -> Tensor:
    """Outputs at ``samples`` draws of the weights, or at their mean; (S, n, ...)."""
    if samples == 0:
        return output(q.mean, batch)[None]
    if (generator is None) == (noise is None):
        raise ValueError("generator, noise: give one of the two")
    outs = []
    for s in range(samples):
        if noise is not None:
            eps = {k: v[s] for k, v in noise.items()}
        else:
            assert generator is not None
            eps = standard_normal(q.mean, generator)
        outs.append(output(q.at(eps), batch))
    return torch.stack(outs)


def predict_classes(
    output: Output,
    q: Gaussian,
    batch: Batch,
    samples: int = 0,
    generator: torch.Generator | None = None,
    noise: Params | None = None,
) -> Tensor:
    """Logarithms of class probabilities, averaged as probabilities over draws of the weights.

    Parameters
    ----------
    output : callable
        Logits, (n, C).
    samples : int
        Number of draws S; 0 predicts with the mean. The official setting is 2.
    generator, noise
        As in `variational`, for draws; ``noise`` has shape (S, shape of the tensor).

    Returns
    -------
    Tensor, shape (n, C)

    Raises
    ------
    ValueError
        If there is not one source of noise for samples.
    """
    logits = _outputs(output, q, batch, samples, generator, noise)
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def predict_values(
    output: Output,
    q: Gaussian,
    batch: Batch,
    variance: float | Tensor,
    samples: int = 0,
    generator: torch.Generator | None = None,
    noise: Params | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a regression's predictive distribution, a mixture of S normals.

    Parameters are those of `predict_classes`, and ``variance``, that of the observations.

    Returns
    -------
    tuple of Tensor
        The mean of the outputs; the observations' variance plus that of the outputs (divisor S).

    Raises
    ------
    ValueError
        As `predict_classes`.
    """
    outs = _outputs(output, q, batch, samples, generator, noise)
    return outs.mean(0), variance + outs.var(0, correction=0)
