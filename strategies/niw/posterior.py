"""The normal-inverse-Wishart hierarchy of NIW-Meta: its prior, closed-form posteriors and divergences.

Kim and Hospedales, "A Hierarchical Bayesian Model for (Deep) Few-Shot Meta Learning", ICLR 2024, arXiv
2306.09702. RECONSTRUCTED: the paper's text was not available, so every formula here is derived from the model

    ``phi = (mu, Sigma) ~ NIW``,  ``theta_i ~ N(mu, Sigma)``,  ``D_i ~ p(D | theta_i)``

with the learned ``q(phi) = NIW(m0, V0, l0, n0)`` and a local ``q_i(theta_i) = N(m_i, diag(V_i))`` for each
client (or episode) ``i``. The convention is that of scale matrices,
``IW(Sigma; V, n) ~ |Sigma|^(-(n+d+1)/2) exp(-tr(V Sigma^-1)/2)``, so that ``E[Sigma^-1] = n V^-1``.

Two families of ``q(phi)`` share all formulas but two constants. In the ``"full"`` one ``Sigma`` is a random
d x d matrix and needs ``n0 > d - 1``; in the ``"diag"`` one coordinates are independent, ``Sigma_j`` inverse
gamma with shape ``n0/2`` and scale ``V0_j/2``, and any ``n0 > 0`` will do, which is what deep networks need.

Tensors come as ``Params``, name to tensor; ``d`` counts the elements of all of them. All functions run under
``torch.func.vmap``. Sums that cancel are taken in float64, whatever the parameters' type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import StrategyError
from ..functional import Params

Family = Literal["full", "diag"]
Scalar = float | Tensor


@dataclass(frozen=True)
class Prior:
    """``q(phi)``, the learned distribution of clients' weights; a fixed hyper-prior has the same form.

    Parameters
    ----------
    m0 : dict of Tensor
        Mean of the weights.
    log_precision : dict of Tensor
        ``log P``, ``P = n0 / V0`` the expected precision of a client's weights; shaped like ``m0``, or a
        scalar for a whole tensor.
    n0 : float or Tensor
        Degrees of freedom. A scalar tensor where it is learned, as ``d - 1 + softplus(.)`` or ``exp(.)``; its
        value is then not checked.
    l0 : float or Tensor
        Number of pseudo-observations of the mean; 0 in a hyper-prior that says nothing about it.
    family : {"diag", "full"}
        See the module's head.

    Raises
    ------
    StrategyError
        If names or shapes do not fit, or ``n0`` or ``l0`` lies outside its range.
    ValueError
        If there is no such family.
    """

    m0: Params
    log_precision: Params
    n0: Scalar
    l0: Scalar
    family: Family = "diag"

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"family: must be 'full' or 'diag', got {self.family!r}")
        match_names(self.m0, self.log_precision, "log_precision")
        for k, p in self.log_precision.items():
            if p.shape not in (self.m0[k].shape, ()):
                raise StrategyError(
                    f"log_precision of '{k}' has shape {tuple(p.shape)}; give it that of m0, "
                    f"{tuple(self.m0[k].shape)}, or make it a scalar"
                )
        least = self.d - 1 if self.family == "full" else 0
        if not isinstance(self.n0, Tensor) and not self.n0 > least:
            raise StrategyError(
                f"n0: the {self.family} family needs n0 > {least}"
                + (f" (d - 1, d = {self.d})" if self.family == "full" else "")
                + f", got {self.n0}"
            )
        if not isinstance(self.l0, Tensor) and not self.l0 >= 0:
            raise StrategyError(f"l0: must not be negative, got {self.l0}")

    @property
    def d(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.m0.values())

    @property
    def precision(self) -> Params:
        """``P = E[Sigma^-1] = n0 / V0``, shaped like ``m0``."""
        return {k: p.exp().expand(self.m0[k].shape) for k, p in self.log_precision.items()}

    @property
    def scale(self) -> Params:
        """``V0 = n0 / P``, shaped like ``m0``."""
        return {k: self.n0 / p for k, p in self.precision.items()}

    @property
    def mode_ratio(self) -> Scalar:
        """Precision of the weights at the mode of ``q(phi)`` over ``P``; ``mu`` is ``m0`` there.

        The mode of ``Sigma`` is ``V0 / (n0 + d + 2)`` in the full family, ``V0 / (n0 + 3)`` in the other
        (derived).
        """
        return (self.n0 + (self.d + 2 if self.family == "full" else 3)) / self.n0

    def as_log_precision(self, values: Params) -> Params:
        """Gradient in ``log P`` of every weight, summed to the shape of ``log_precision`` (chain rule)."""
        return {k: v if self.log_precision[k].shape == v.shape else v.sum() for k, v in values.items()}


def from_scale(m0: Params, scale: Params, n0: float, l0: float, family: Family = "diag") -> Prior:
    """The prior with a given ``V0`` (``scale``, shaped like ``m0``) in place of the precision.

    Raises
    ------
    StrategyError, ValueError
        As `Prior`.
    """
    return Prior(m0, {k: math.log(n0) - v.log() for k, v in scale.items()}, n0, l0, family)


def hyper_prior(
    centre: Params,
    family: Family = "diag",
    variance: float = 1.0,
    lambda0: float = 1.0,
    nu0: float | None = None,
) -> Prior:
    """The customary hyper-prior ``p(phi)``: ``mu0 = centre``, ``Sigma0 = variance * I``.

    Parameters
    ----------
    centre : dict of Tensor
        ``mu0``: zeros in the papers, better the initial weights, towards which few clients shrink the mean.
    variance : float
        1 in the papers. Weights of a network vary far less, and ``variance / (N + 3)`` is about the least
        variance that N clients can learn: scale it to the weights.
    lambda0 : float
        Pseudo-observations of the mean; 0 for none.
    nu0 : float, optional
        Degrees of freedom; ``d + 2`` in the full family and 3 in the other.
    """
    d = sum(p.numel() for p in centre.values())
    nu0 = (d + 2 if family == "full" else 3) if nu0 is None else nu0
    scale = {k: torch.full_like(p, variance) for k, p in centre.items()}
    return from_scale(centre, scale, nu0, lambda0, family)


@dataclass(frozen=True)
class Quadratic:
    """Model ``1/2 (theta - mbar)^T diag(A) (theta - mbar) + const`` of a client's summed loss.

    Parameters
    ----------
    mbar : dict of Tensor
        Centre.
    curvature : dict of Tensor
        ``A``, not negative.
    clip_fraction : float or Tensor
        Share of the curvatures that lie at the upper bound of their estimator; above one half the bound, not
        the data, decides.
    """

    mbar: Params
    curvature: Params
    clip_fraction: Scalar = 0.0


@dataclass(frozen=True)
class Gaussian:
    """``N(mean, diag(variance))``, the local ``q_i`` of one client."""

    mean: Params
    variance: Params

    def at(self, noise: Params | None) -> Params:
        """``mean + sqrt(variance) * noise``, a sample where the noise is standard normal; ``None`` is 0."""
        if noise is None:
            return self.mean
        return {k: m + self.variance[k].sqrt() * noise[k] for k, m in self.mean.items()}


def standard_normal(like: Params, generator: torch.Generator) -> Params:
    """Independent draws from N(0, 1), shaped like ``like``, made where the generator is.

    Not for ``vmap``, whose functions take draws that were made outside.
    """
    return {
        k: torch.randn(p.shape, dtype=p.dtype, device=generator.device, generator=generator).to(p.device)
        for k, p in like.items()
    }


def uniform(like: Params, generator: torch.Generator) -> Params:
    """Independent draws from the uniform distribution on [0, 1); otherwise as `standard_normal`."""
    return {
        k: torch.rand(p.shape, dtype=p.dtype, device=generator.device, generator=generator).to(p.device)
        for k, p in like.items()
    }


def match_names(params: Params, others: Params, what: str) -> None:
    """Raise StrategyError unless two sets of parameters have the same names."""
    if params.keys() != others.keys():
        raise StrategyError(f"{what} has names {sorted(others)}; the weights are {sorted(params)}")


def local_posterior(prior: Prior, quadratic: Quadratic) -> Gaussian:
    """The ``q_i`` that minimises a quadratic loss plus the expected divergence from the prior.

    ``V = 1 / (A + P)`` and ``m = V (A mbar + P m0)``, the one minimum of a strictly convex problem (derived;
    Kim and Hospedales' closed form). Tensors of the quadratic may have further leading dimensions, one client
    each.

    Raises
    ------
    StrategyError
        If the names of the quadratic are not those of the prior.
    """
    match_names(prior.m0, quadratic.mbar, "the quadratic")
    mean, variance = {}, {}
    for k, p in prior.precision.items():
        total = quadratic.curvature[k] + p
        # As a step from m0: exact where A = 0 or P is infinite.
        mean[k] = prior.m0[k] + quadratic.curvature[k] / total * (quadratic.mbar[k] - prior.m0[k])
        variance[k] = 1 / total
    return Gaussian(mean, variance)


def _wide(value: Scalar, like: Tensor) -> Tensor:
    """A scalar in float64 (float32 on MPS, which has no other) on the device of ``like``."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.as_tensor(value, dtype=dtype, device=like.device)


def total(values: Params) -> Tensor:
    """Sum of all elements, in float64 (float32 on MPS)."""
    return torch.stack([_wide(v.sum(dtype=_wide(0, v).dtype), v) for v in values.values()]).sum()


def multivariate_digamma(x: Scalar, d: int) -> Tensor:
    """``psi_d(x) = sum_j digamma(x + (1 - j)/2)``, j = 1..d, for ``x > (d - 1)/2``; a scalar."""
    x = torch.as_tensor(x, dtype=None if isinstance(x, Tensor) else torch.float64)
    return torch.digamma(x - torch.arange(d, dtype=x.dtype, device=x.device) / 2).sum()


def multivariate_lgamma(x: Scalar, d: int) -> Tensor:
    """``log Gamma_d(x) = d(d-1)/4 log pi + sum_j lgamma(x + (1 - j)/2)`` for ``x > (d - 1)/2``; a scalar."""
    x = torch.as_tensor(x, dtype=None if isinstance(x, Tensor) else torch.float64)
    terms = torch.lgamma(x - torch.arange(d, dtype=x.dtype, device=x.device) / 2)
    return d * (d - 1) / 4 * math.log(math.pi) + terms.sum()


def _psi(n: Tensor, d: int, family: Family) -> Tensor:
    return multivariate_digamma(n / 2, d) if family == "full" else d * torch.digamma(n / 2)


def _lgamma(n: Tensor, d: int, family: Family) -> Tensor:
    return multivariate_lgamma(n / 2, d) if family == "full" else d * torch.lgamma(n / 2)


def scale_excess(prior: Prior) -> Tensor:
    """``d log(n0/2) - psi``, ``psi`` being ``psi_d(n0/2)`` or ``d digamma(n0/2)``; a float64 scalar.

    By how much the expected ``log|Sigma|`` exceeds ``-log|P|``; falls to 0 as ``n0`` grows.
    """
    n0 = _wide(prior.n0, next(iter(prior.m0.values())))
    return prior.d * (n0 / 2).log() - _psi(n0, prior.d, prior.family)


def penalty(prior: Prior, q: Gaussian) -> Tensor:
    """``sum_j P V + P (m - m0)^2 - log P - log V``: all that the weights' precision has to do with.

    A float64 scalar.
    """
    return total(
        {
            k: p * (q.variance[k] + (q.mean[k] - prior.m0[k]).square())
            - prior.log_precision[k]
            - q.variance[k].log()
            for k, p in prior.precision.items()
        }
    )


def expected_kl(prior: Prior, q: Gaussian) -> Tensor:
    """``E_q(phi) KL(q_i || N(mu, Sigma))`` in closed form (derived); a scalar of the weights' type.

    ``1/2 [ sum_j P (m - m0)^2 + P V - log V + log V0, - d log 2 - psi + d/l0 - d ]``.
    """
    like = next(iter(prior.m0.values()))
    value = penalty(prior, q) + scale_excess(prior) + prior.d * (1 / _wide(prior.l0, like) - 1)
    return (value / 2).to(like.dtype)


def mean_kl(prior: Prior, hyper: Prior) -> Tensor:
    """The part of `hyper_kl` that comes from ``mu`` given ``Sigma`` (derived).

    ``1/2 [ d (lambda0/l0 - 1 - log(lambda0/l0)) + lambda0 sum_j P (m0 - mu0)^2 ]``.
    """
    like = next(iter(prior.m0.values()))
    ratio = _wide(hyper.l0, like) / _wide(prior.l0, like)
    away = total({k: p * (prior.m0[k] - hyper.m0[k]).square() for k, p in prior.precision.items()})
    return ((prior.d * (ratio - 1 - ratio.log()) + hyper.l0 * away) / 2).to(like.dtype)


def scale_kl(prior: Prior, hyper: Prior) -> Tensor:
    """The part of `hyper_kl` that comes from ``Sigma``: an inverse Wishart's or d inverse gammas' (derived).

    ``nu0/2 log(|V0|/|Sigma0|) + (n0 - nu0)/2 psi(n0/2) + logGamma(nu0/2) - logGamma(n0/2)``
    ``+ n0/2 (tr(Sigma0 V0^-1) - d)``.
    """
    like = next(iter(prior.m0.values()))
    d, family = prior.d, prior.family
    n0, nu0 = _wide(prior.n0, like), _wide(hyper.n0, like)
    hyper_scale = hyper.scale
    # log(V0/Sigma0) = log(n0/nu0) - (log P of the prior - log P of the hyper-prior)
    log_ratio = d * (n0 / nu0).log() - total(
        {k: (p - hyper.log_precision[k]).expand(prior.m0[k].shape) for k, p in prior.log_precision.items()}
    )
    trace = total({k: p * hyper_scale[k] for k, p in prior.precision.items()})
    value = nu0 / 2 * log_ratio + (n0 - nu0) / 2 * _psi(n0, d, family) + (trace - n0 * d) / 2
    return (value + _lgamma(nu0, d, family) - _lgamma(n0, d, family)).to(like.dtype)


def hyper_kl(prior: Prior, hyper: Prior) -> Tensor:
    """``KL(q(phi) || p(phi))`` (derived); infinite for a hyper-prior with ``lambda0 = 0``.

    Raises
    ------
    StrategyError
        If the two differ in family or in their tensors.
    """
    if prior.family != hyper.family:
        raise StrategyError(f"the prior is of family {prior.family}, the hyper-prior of {hyper.family}")
    match_names(prior.m0, hyper.m0, "the hyper-prior")
    return mean_kl(prior, hyper) + scale_kl(prior, hyper)


def nlml(prior: Prior, quadratic: Quadratic) -> Tensor:
    """Negative log marginal likelihood of a quadratic loss under ``N(m0, 1/P)``, less the loss's minimum.

    ``1/2 sum_j [ (mbar - m0)^2 / (1/A + 1/P) + log(A + P) - log P ]`` (derived). With leading dimensions in
    the quadratic, the sum over its clients. A scalar of the weights' type.
    """
    terms = {}
    for k, p in prior.precision.items():
        a = quadratic.curvature[k]
        terms[k] = a * p / (a + p) * (quadratic.mbar[k] - prior.m0[k]).square() + torch.log1p(a / p)
    return (total(terms) / 2).to(next(iter(prior.m0.values())).dtype)


def hierarchy_gap(prior: Prior) -> Tensor:
    """``B(n0, l0) = 1/2 (d log(n0/2) - psi) + d/(2 l0)``: what a distribution over ``phi`` costs (derived).

    For a quadratic loss with minimum c, ``f + E_q(phi) KL = c + nlml + B`` at `local_posterior`, for every
    prior. Training ``(m0, P)`` is thus empirical Bayes, and ``n0`` and ``l0`` appear in B alone, which falls
    to 0 as they grow: they have no finite optimum without `hyper_kl`.
    """
    like = next(iter(prior.m0.values()))
    return ((scale_excess(prior) + prior.d / _wide(prior.l0, like)) / 2).to(like.dtype)
