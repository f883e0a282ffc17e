"""What a server does with clients' posteriors: updates of the prior from moments, quadratics or gradients.

Derived from the model of Kim and Hospedales, arXiv 2306.09702 and 2305.04979 (see `posterior`); neither text
gives a rule for partial participation that could be read. Clients count alike, whatever their size: what they
know enters through their curvatures. All sums are over clients, additive and *centred* on the mean ``r`` that
was sent: ``E[theta^2] - E[theta]^2`` would lose all its digits in float32 where variances are small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ..errors import StrategyError
from ..functional import Params
from ..optim import Optimizer, State
from .objective import PriorGradient
from .posterior import Gaussian, Prior, Quadratic, Scalar, from_scale, local_posterior, match_names

LOG_PRECISION_RANGE = (math.log(1e-6), math.log(1e6))
"""Where `gradient_update` keeps ``log P``."""


@dataclass(frozen=True)
class Moments:
    """Sums over clients of ``E[theta - r]`` and ``E[(theta - r)^2]`` under their posteriors.

    Parameters
    ----------
    first, second : dict of Tensor
        The two sums.
    count : float or Tensor
        Number of clients; 1 makes the sums means.
    """

    first: Params
    second: Params
    count: Scalar

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of clients, about the same centre."""
        match_names(self.first, other.first, "the other sum")
        return Moments(
            {k: v + other.first[k] for k, v in self.first.items()},
            {k: v + other.second[k] for k, v in self.second.items()},
            self.count + other.count,
        )

    def means(self) -> Moments:
        """The sums divided by the count.

        Raises
        ------
        StrategyError
            If there is no client.
        """
        if not isinstance(self.count, torch.Tensor) and not self.count > 0:
            raise StrategyError(f"moments of {self.count} clients: the prior needs at least one reply")
        return Moments(
            {k: v / self.count for k, v in self.first.items()},
            {k: v / self.count for k, v in self.second.items()},
            1,
        )

    def times(self, count: float) -> Moments:
        """Means (of `means` or `running_average`) as sums over ``count`` clients, for `conjugate_update`."""
        return Moments(
            {k: v * count for k, v in self.first.items()},
            {k: v * count for k, v in self.second.items()},
            self.count * count,
        )

    def recentred(self, shift: Params) -> Moments:
        """The same about ``r + shift``."""
        return Moments(
            {k: v - self.count * shift[k] for k, v in self.first.items()},
            {
                k: v - 2 * shift[k] * self.first[k] + self.count * shift[k].square()
                for k, v in self.second.items()
            },
            self.count,
        )


def moments(q: Gaussian, centre: Params) -> Moments:
    """What a client uploads about its posterior.

    Tensors of ``q`` may have one leading dimension more than those of ``centre``: one client each, summed.

    Raises
    ------
    StrategyError
        If names or shapes do not fit.
    """
    match_names(centre, q.mean, "the posterior")
    first, second, count = {}, {}, 1
    for k, r in centre.items():
        if r.shape not in (q.mean[k].shape, q.mean[k].shape[1:]):
            raise StrategyError(
                f"the posterior of '{k}' has shape {tuple(q.mean[k].shape)}; the prior's is {tuple(r.shape)}"
            )
        away = q.mean[k] - r
        square = away.square() + q.variance[k]
        if away.ndim > r.ndim:
            count, away, square = len(away), away.sum(0), square.sum(0)
        first[k], second[k] = away, square
    return Moments(first, second, count)


def moments_update(prior: Prior, sums: Moments, least_variance: float = 1e-6) -> Prior:
    """One step of expectation-maximisation: ``m0 + a`` and ``1/P = max(b - a^2, v_min)``.

    ``a`` and ``b`` are the means of the two moments, about ``prior.m0``. Never increases the marginal
    likelihood's negative logarithm where the quadratic models are exact; slow where clients differ much less
    than their data can tell. A ``log_precision`` that is a scalar gets the tensor's mean variance.

    Parameters
    ----------
    sums : Moments
        Of the clients' posteriors under ``prior``.
    least_variance : float
        ``v_min``, well below the variance of typical weights.

    Raises
    ------
    StrategyError
        If there is no client, or names do not fit.
    """
    match_names(prior.m0, sums.first, "the moments")
    mean = sums.means()
    log_precision = {}
    for k, p in prior.log_precision.items():
        spread = mean.second[k] - mean.first[k].square()
        spread = spread if spread.shape == p.shape else spread.mean()
        log_precision[k] = -spread.clamp(min=least_variance).log()
    return replace(prior, m0={k: v + mean.first[k] for k, v in prior.m0.items()}, log_precision=log_precision)


def conjugate_update(hyper: Prior, sums: Moments, centre: Params, n0: float | None = None) -> Prior:
    """The ``q(phi)`` that is best for given ``q_i``: the conjugate posterior (derived).

    ``l0 = N + lambda0``, ``n0 = N + nu0``, ``m0 = (lambda0 mu0 + sum E[theta]) / l0``,
    ``V0 = Sigma0 + lambda0 (mu0 - m0)^2 + sum E[(theta - m0)^2]``.

    Parameters
    ----------
    hyper : Prior
        The hyper-prior; with ``lambda0 = 0`` the mean is not shrunk towards its centre.
    sums : Moments
        About ``centre``.
    n0 : float, optional
        Degrees of freedom, if they are to be others; V0 is the best for these.

    Raises
    ------
    StrategyError
        If there is no client, or names do not fit.
    """
    match_names(hyper.m0, sums.first, "the moments")
    sums.means()  # raises where there are none
    count = float(sums.count)
    l0 = float(hyper.l0 + count)
    shift = {k: (hyper.l0 * (hyper.m0[k] - r) + sums.first[k]) / l0 for k, r in centre.items()}
    m0 = {k: r + shift[k] for k, r in centre.items()}
    best = float(hyper.n0 + count)
    n0 = best if n0 is None else n0
    about = sums.recentred(shift).second
    scale = {
        k: (n0 / best) * (v + hyper.l0 * (hyper.m0[k] - m0[k]).square() + about[k])
        for k, v in hyper.scale.items()
    }
    return from_scale(m0, scale, n0, l0, hyper.family)


def moments_gradient(prior: Prior, sums: Moments) -> PriorGradient:
    """Mean over clients of `objective.envelope_gradient`, from their moments about ``prior.m0`` (derived).

    ``dJ/dm0 = -P mean(delta)``, ``dJ/dlogP = 1/2 (P mean(delta^2 + V) - 1)``.
    """
    mean = sums.means()
    return PriorGradient(
        {k: -p * mean.first[k] for k, p in prior.precision.items()},
        prior.as_log_precision({k: (p * mean.second[k] - 1) / 2 for k, p in prior.precision.items()}),
    )


def mean_gradient(gradients: Iterable[PriorGradient], further: PriorGradient | None = None) -> PriorGradient:
    """Uniform mean of clients' gradients, plus one that is the server's own (`hyper_gradient`, over N).

    Raises
    ------
    StrategyError
        If there is no client.
    """
    kept = list(gradients)
    if not kept:
        raise StrategyError("gradients of 0 clients: the prior needs at least one reply")

    def mean(parts: list[Params], more: Params | None) -> Params:
        sums = {k: torch.stack([p[k] for p in parts]).mean(0) for k in parts[0]}
        return sums if more is None else {k: v + more[k] / len(parts) for k, v in sums.items()}

    return PriorGradient(
        mean([g.m0 for g in kept], further.m0 if further else None),
        mean([g.log_precision for g in kept], further.log_precision if further else None),
    )


def gradient_state(prior: Prior, optimizer: Optimizer) -> dict[str, State]:
    """State for `gradient_update` before its first step."""
    return {"m0": optimizer.init(prior.m0), "log_precision": optimizer.init(prior.log_precision)}


def gradient_update(
    prior: Prior,
    gradient: PriorGradient,
    optimizer: Optimizer,
    state: dict[str, State],
    lr: float = 1e-2,
    lr_precision: float = 2e-2,
) -> tuple[Prior, dict[str, State]]:
    """One optimiser step of the prior (Adam, usually), which keeps ``P`` in [1e-6, 1e6].

    Parameters
    ----------
    lr, lr_precision : float
        Rates of the mean and of ``log P``.
    """
    m0, mean_state = optimizer.step(prior.m0, gradient.m0, state["m0"], lr)
    log_precision, precision_state = optimizer.step(
        prior.log_precision, gradient.log_precision, state["log_precision"], lr_precision
    )
    moved = {k: p.clamp(*LOG_PRECISION_RANGE) for k, p in log_precision.items()}
    return replace(prior, m0=m0, log_precision=moved), {"m0": mean_state, "log_precision": precision_state}


def evidence_gradient(prior: Prior, quadratics: Quadratic) -> PriorGradient:
    """Gradient of the mean ``f + g/2`` over clients whose quadratic models the server holds.

    Parameters
    ----------
    quadratics : Quadratic
        All clients', stacked along a leading dimension. The server may take many steps with them.
    """
    return moments_gradient(prior, moments(local_posterior(prior, quadratics), prior.m0))


def evidence_update(prior: Prior, quadratics: Quadratic, least_variance: float = 1e-6) -> Prior:
    """`moments_update` from the clients' quadratic models, stacked along a leading dimension."""
    return moments_update(prior, moments(local_posterior(prior, quadratics), prior.m0), least_variance)


def averaging_rate(round_number: int, least: float = 0.2) -> float:
    """``rho = max(least, 1/round)`` for `running_average`; rounds count from 1."""
    return max(least, 1 / round_number)


def running_average(kept: Moments | None, new: Moments, rho: float) -> Moments:
    """``(1 - rho) kept + rho new`` of means about the same centre, where few clients take part in a round.

    Before the next round, move the result to the new centre: ``average.recentred(m0_new - m0)``.

    Parameters
    ----------
    kept : Moments or None
        Means so far, from here; none before the first round.
    new : Moments
        This round's sums.
    rho : float
        See `averaging_rate`.
    """
    mean = new.means()
    if kept is None:
        return mean
    match_names(kept.first, mean.first, "this round's sum")
    return Moments(
        {k: (1 - rho) * v + rho * mean.first[k] for k, v in kept.first.items()},
        {k: (1 - rho) * v + rho * mean.second[k] for k, v in kept.second.items()},
        1,
    )
