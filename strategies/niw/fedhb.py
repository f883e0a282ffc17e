"""FedHB: hierarchical Bayesian federated learning, as closed forms.

Kim and Hospedales, "FedHB: Hierarchical Bayesian Federated Learning", arXiv 2305.04979. RECONSTRUCTED: only
the abstract was available; the formulas are derived from the model in `posterior` by block-coordinate descent
on its bound, the families of local posteriors (spikes with dropout; mixtures) are as recalled.

Clients find their ``q_i`` with the server's ``q(phi)`` fixed, the server ``q(phi)`` with all ``q_i`` fixed.
``q_i`` is, for each weight, a mixture ``p N(m_i, eps^2) + (1 - p) N(0, eps^2)``, p the probability that
dropout keeps it. With ``p = 1`` and ``V0`` or ``n0/V0`` fixed this is FedAvg or FedProx.

Two warnings. In the full family the pull ``n0/V0`` on a client grows with ``d`` and all but switches
personalisation off: take the other one for networks. Spikes have no width, so that clients seem more alike
than they are: `gaussian_moments` keeps the clients' variances.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..functional import Batch, Differentiate, Params, differentiate_functionally
from .estimators import FULL, Descent, Loss, Newton, map_estimate, resting
from .posterior import Prior, match_names, uniform
from .server import Moments, conjugate_update
from .server import moments as gaussian_moments

__all__ = [
    "client_spike",
    "dropped",
    "gaussian_moments",
    "mixture_penalty",
    "mixture_responsibilities",
    "mixture_update",
    "server_update",
    "spike_moments",
    "spike_penalty",
]


def spike_penalty(prior: Prior, spike: Params, keep: float = 1.0) -> Tensor:
    """``p/2 sum_j (n0/V0) (m - m0)^2``: what the prior adds to a client's loss.

    The rest of its divergence, ``1/2 sum P [(1 - p) m0^2 + eps^2]``, does not depend on ``m``.
    """
    terms = [(p * (spike[k] - prior.m0[k]).square()).sum() for k, p in prior.precision.items()]
    return keep / 2 * torch.stack(terms).sum()


def dropped(spike: Params, keep: float, draws: Params) -> Params:
    """Weights of one sample from the mixture with ``eps = 0``.

    Parameters
    ----------
    draws : dict of Tensor
        Uniform on [0, 1), shaped like the weights; they stay where the draw is below ``keep``.
    """
    return {k: torch.where(draws[k] < keep, m, torch.zeros_like(m)) for k, m in spike.items()}


def client_spike(
    loss: Loss,
    prior: Prior,
    data: Batch,
    keep: float = 1.0,
    solver: Descent | Newton = FULL,
    differentiate: Differentiate = differentiate_functionally,
    generator: torch.Generator | None = None,
    draws: Params | None = None,
) -> Params:
    """A client's ``m_i``: minimise ``E_dropout[loss] + spike_penalty``, from ``m0``.

    Parameters
    ----------
    loss : callable
        Sum over examples.
    keep : float
        Probability p with which dropout keeps a weight.
    generator : torch.Generator, optional
        Source of a mask for each step. With neither this nor ``draws``, the loss is taken as it is: that of a
        model with layers for dropout, say.
    draws : dict of Tensor, optional
        In place of the generator, under ``vmap``: uniform on [0, 1), of shape (steps, shape of the tensor).

    Raises
    ------
    ValueError
        If ``keep`` is no probability above 0, both sources are given, or masks come with Newton's method.
    StrategyError
        As `estimators.GGN.solve`.
    """
    _check(keep)
    if generator is None and draws is None:
        precision = {k: keep * p for k, p in prior.precision.items()}
        return map_estimate(loss, prior.m0, precision, data, solver, differentiate)
    if generator is not None and draws is not None:
        raise ValueError("generator, draws: give one of the two")
    if isinstance(solver, Newton):
        raise ValueError("solver: masks need a Descent, got Newton")  # noqa: TRY004 - an option's value
    prior = replace(prior, m0=resting(prior.m0), log_precision=resting(prior.log_precision))
    spike = prior.m0
    state = solver.optimizer.init(spike)
    for t in range(solver.steps):
        u = uniform(spike, generator) if generator else {k: v[t] for k, v in (draws or {}).items()}

        def value(m: Params, u: Params = u) -> Tensor:
            return loss(dropped(m, keep, u), data) + spike_penalty(prior, m, keep)

        slope, _ = differentiate(value, spike)
        spike, state = solver.optimizer.step(spike, slope, state, solver.lr)
    return spike


def spike_moments(spike: Params, centre: Params, keep: float = 1.0, variance: float = 1e-8) -> Moments:
    """Moments of one client's mixture about a centre ``r``, from its upload ``m_i`` (derived).

    ``E[theta - r] = p (m - r) - (1 - p) r``, ``E[(theta - r)^2] = p (m - r)^2 + (1 - p) r^2 + eps^2``.
    Tensors of ``spike`` may have a leading dimension more, of clients, over which the sums go.

    Parameters
    ----------
    variance : float
        ``eps^2``.

    Raises
    ------
    ValueError
        If ``keep`` is no probability above 0.
    """
    _check(keep)
    match_names(centre, spike, "the spike")
    first, second, count = {}, {}, 1
    for k, r in centre.items():
        away = spike[k] - r
        one, two = keep * away - (1 - keep) * r, keep * away.square() + (1 - keep) * r.square() + variance
        if away.ndim > r.ndim:
            count, one, two = len(away), one.sum(0), two.sum(0)
        first[k], second[k] = one, two
    return Moments(first, second, count)


def _check(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep: must lie in (0, 1], got {keep}")


def server_update(hyper: Prior, sums: Moments, centre: Params, n0: float | None = None) -> Prior:
    """The server's block, an exact minimiser in both families: `server.conjugate_update`.

    For spikes about 0 it reads ``m0 = (lambda0 mu0 + p sum m_i) / (lambda0 + N)`` and ``V0 = Sigma0 + N eps^2
    + lambda0 mu0^2 + p sum m_i^2 - (lambda0 + N) m0^2``, ``l0 = N + lambda0``, ``n0 = N + nu0``.
    """
    return conjugate_update(hyper, sums, centre, n0)


def _distances(spike: Params, prototypes: list[Params], variance: float) -> Tensor:
    """``-|m_i - r_j|^2 / (2 sigma^2)``, shape (K,)."""
    return torch.stack(
        [
            -torch.stack([(m - r[k]).square().sum() for k, m in spike.items()]).sum() / (2 * variance)
            for r in prototypes
        ]
    )


def mixture_responsibilities(spike: Params, prototypes: list[Params], variance: float) -> Tensor:
    """FedHB-Mix: how much each of K prototypes explains a client, ``c_j``, shape (K,) (derived).

    Parameters
    ----------
    spike : dict of Tensor
        The client's ``m_i``.
    prototypes : list of dict of Tensor
        ``r_j``.
    variance : float
        ``sigma^2``; squared distances grow with d, so that it should be d times a typical weight's variance.
    """
    return _distances(spike, prototypes, variance).softmax(0)


def mixture_penalty(spike: Params, prototypes: list[Params], variance: float) -> Tensor:
    """FedHB-Mix: what a client's loss gets, ``-log sum_j exp(-|m - r_j|^2 / (2 sigma^2))`` (derived)."""
    return -_distances(spike, prototypes, variance).logsumexp(0)


def mixture_update(spikes: list[Params], prototypes: list[Params], variance: float) -> list[Params]:
    """FedHB-Mix: one pass of the server, ``r_j = sum_i c_ij m_i / (sigma^2 + sum_i c_ij)`` (derived).

    The prior of the prototypes is N(0, I); a few passes make a round.
    """
    c = torch.stack([mixture_responsibilities(m, prototypes, variance) for m in spikes])  # (N, K)
    weights = c / (variance + c.sum(0))
    stacked = {k: torch.stack([m[k] for m in spikes]) for k in spikes[0]}
    return [{k: torch.tensordot(w.to(m.dtype), m, 1) for k, m in stacked.items()} for w in weights.unbind(1)]
