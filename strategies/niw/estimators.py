"""Where the quadratic model of a client's loss comes from: four estimators of its centre and curvature.

Kim and Hospedales, arXiv 2306.09702, take moments of stochastic-gradient Langevin dynamics (E1;
RECONSTRUCTED from the abstract, public reviews and a third-party port). The others are derived here:
optimiser steps and a Gauss-Newton or Fisher diagonal (E2), Laplace's method at the MAP (E3), one curvature
for each tensor (E4).

A ``loss(params, data)`` is always a *sum* over the examples in ``data``, never a mean. Data are a dict of
tensors with one row an example; in an entry ``weight``, 0 marks rows of padding. All estimators start at
tensors without a graph and give such, and run under ``torch.func.vmap`` (with ``noise`` in place of a
generator), unless ``differentiate`` is ``functional.backpropagate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import StrategyError
from ..functional import Batch, Differentiate, Params, differentiate_functionally
from ..optim import SGD, Adam, Optimizer
from .posterior import Gaussian, Prior, Quadratic, Scalar, standard_normal

Loss = Callable[[Params, Batch], Tensor]
Output = Callable[[Params, Batch], Tensor]

PLAIN = SGD()
"""Optimiser that makes of `sgld_moments` a Langevin chain."""
OFFICIAL_LIKE = Adam()
"""Optimiser for `sgld_moments` as the official code is said to use: no sampler, see there."""
LEAST_CURVATURE = 1e-4
LEAST_VARIANCE = 1e-12
MOST_NEWTON = 10_000
"""Most weights for which `GGN.solve` forms a square matrix (800 MB in float64)."""


def examples(data: Batch) -> Scalar:
    """Number of examples: the sum of weights where there are any, else the number of rows."""
    return data["weight"].sum() if "weight" in data else len(next(iter(data.values())))


def _chunks(data: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(next(iter(data.values()))), size):
        yield {k: v[start : start + size] for k, v in data.items()}


class Curvature(Protocol):
    """A way to measure the curvature of a summed loss."""

    def diagonal(self, params: Params, data: Batch) -> Params:
        """Diagonal at ``params``, not negative, shaped like them; zeros where there are no rows."""


@dataclass(frozen=True)
class Fisher:
    """Empirical Fisher: squares of single examples' gradients, summed (not the square of the sum).

    Parameters
    ----------
    loss : callable
        See the module's head. With weights other than 0 and 1, squares are weighted by their squares.
    chunk : int
        Examples that are differentiated at a time; each takes the memory of a model.
    """

    loss: Loss
    chunk: int = 64

    def diagonal(self, params: Params, data: Batch) -> Params:
        """Sum over examples of ``(d loss / d theta)^2``."""
        gradient = torch.func.grad(lambda p, row: self.loss(p, {k: v[None] for k, v in row.items()}))
        sums = {k: torch.zeros_like(p) for k, p in params.items()}
        for rows in _chunks(data, self.chunk):
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels do not vectorise over rows
                each = torch.func.vmap(gradient, in_dims=(None, 0))(params, rows)
            sums = {k: s + each[k].square().sum(0) for k, s in sums.items()}
        return sums


def softmax_factor(logits: Tensor) -> Tensor:
    """``L`` with ``L L^T = diag(p) - p p^T``, the Hessian of cross-entropy in ``logits`` (C,); (C, C)."""
    p = logits.softmax(0)
    return p.sqrt().diag() - torch.outer(p, p.sqrt())


def gaussian_factor(variance: float) -> Callable[[Tensor], Tensor]:
    """`softmax_factor`'s counterpart for squared errors over ``2 variance``, of outputs (C,)."""

    def factor(output: Tensor) -> Tensor:
        return torch.eye(len(output), dtype=output.dtype, device=output.device) / variance**0.5

    return factor


@dataclass(frozen=True)
class GGN:
    """Exact generalised Gauss-Newton matrix ``sum_x J^T H J``, the Hessian itself of a linear model.

    Parameters
    ----------
    output : callable
        ``output(params, data)``, of shape (n, C) or (n,).
    factor : callable
        ``L`` with ``L L^T = H``, the Hessian of one example's loss in its output (C,); shape (C, R).
    chunk : int
        Examples at a time; each takes R times the memory of a model.
    """

    output: Output
    factor: Callable[[Tensor], Tensor] = softmax_factor
    chunk: int = 64

    def _roots(self, params: Params, rows: Batch) -> Params:
        """``L^T J`` of each row: (n, R, shape) for each tensor."""

        def root(row: Batch) -> Params:
            one = {k: v[None] for k, v in row.items()}
            out, pull = torch.func.vjp(lambda p: self.output(p, one).flatten(), params)[:2]
            columns = self.factor(out.detach())
            if "weight" in row:
                columns = columns * row["weight"].sqrt()
            pulled: Params = torch.func.vmap(pull)(columns.T)[0]
            return pulled

        roots: Params = torch.func.vmap(root)(rows)
        return roots

    def diagonal(self, params: Params, data: Batch) -> Params:
        """Diagonal of the matrix."""
        sums = {k: torch.zeros_like(p) for k, p in params.items()}
        for rows in _chunks(data, self.chunk):
            roots = self._roots(params, rows)
            sums = {k: s + roots[k].square().sum((0, 1)) for k, s in sums.items()}
        return sums

    def solve(self, params: Params, data: Batch, precision: Params, slope: Params) -> Params:
        """``(G + diag(P))^-1 slope``, in float64 (float32 on MPS) whatever the type.

        Raises
        ------
        StrategyError
            If there are more than `MOST_NEWTON` weights, and rows that take more memory than its square.
        """
        first = next(iter(params.values()))
        wide = torch.float32 if first.device.type == "mps" else torch.float64
        d = sum(p.numel() for p in params.values())
        pull, slopes = (torch.cat([v[k].flatten() for k in params]).to(wide) for v in (precision, slope))
        kept: list[Tensor] = []
        matrix, held = None, 0
        for rows in _chunks(data, self.chunk):
            each = self._roots(params, rows)
            flat = torch.cat([each[k].flatten(2) for k in params], 2).flatten(0, 1).to(wide)
            held += len(flat)
            if d > MOST_NEWTON and held * d > MOST_NEWTON**2:
                raise StrategyError(
                    f"Newton's method on {d} weights is too large; take a Descent above {MOST_NEWTON}"
                )
            if matrix is None and held > d:
                matrix = pull.diag() + sum(r.T @ r for r in kept)
                kept = []
            if matrix is None:
                kept.append(flat)
            else:
                matrix = matrix + flat.T @ flat
        if matrix is not None:
            step = torch.linalg.solve(matrix, slopes)
        elif kept:
            # Woodbury: fewer rows than weights.
            rows_ = torch.cat(kept)
            inner = rows_ @ (rows_ / pull).T
            inner = inner + torch.eye(len(rows_), dtype=wide, device=first.device)
            step = (slopes - rows_.T @ torch.linalg.solve(inner, rows_ @ (slopes / pull))) / pull
        else:
            step = slopes / pull
        parts = step.split([p.numel() for p in params.values()])
        return {
            k: part.reshape(p.shape).to(p.dtype) for (k, p), part in zip(params.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class Descent:
    """Steps of a first-order optimiser on all of the data.

    Parameters
    ----------
    steps : int
        Number of steps.
    lr : float or Tensor
        Learning rate, for gradients of the summed loss.
    optimizer : Optimizer
        Adam with a short memory, which suits few steps.
    """

    steps: int = 50
    lr: Scalar = 0.02
    optimizer: Optimizer = field(default_factory=lambda: Adam(betas=(0.9, 0.99)))

    def minimise(
        self,
        value: Callable[[Params], Tensor],
        start: Params,
        differentiate: Differentiate = differentiate_functionally,
    ) -> Params:
        """Parameters after the last step."""
        params = resting(start)
        state = self.optimizer.init(params)
        for _ in range(self.steps):
            slope, _ = differentiate(value, params)
            params, state = self.optimizer.step(params, slope, state, self.lr)
        return resting(params)


SHORT, FULL = Descent(steps=30), Descent()


@dataclass(frozen=True)
class Newton:
    """Newton's method for linear heads and other convex losses (Gauss-Newton elsewhere).

    Each step goes the best of the lengths 1, 1/4, ... 4^-8 and 0, and so not uphill but by rounding.

    Parameters
    ----------
    ggn : GGN
        Curvature of the loss.
    steps : int
        Number of steps; a softmax head takes about six from nearby.
    """

    ggn: GGN
    steps: int = 10


def resting(params: Params) -> Params:
    """The tensors without their graph."""
    return {k: p.detach() for k, p in params.items()}


def clipped(curvature: Params, most: float, least: float = 0.0) -> tuple[Params, Tensor]:
    """Curvatures brought into [least, most], and the share of those at the upper bound.

    Raises
    ------
    ValueError
        If the bounds are not in order.
    """
    if not 0 <= least <= most:
        raise ValueError(f"max_curvature: must be at least {least}, got {most}")
    out = {k: a.clamp(least, most) for k, a in curvature.items()}
    return out, torch.cat([(a >= most).flatten() for a in out.values()]).float().mean()


def map_estimate(
    loss: Loss,
    mean: Params,
    precision: Params,
    data: Batch,
    solver: Descent | Newton = FULL,
    differentiate: Differentiate = differentiate_functionally,
    start: Params | None = None,
) -> Params:
    """Minimise ``loss(theta, data) + 1/2 sum_j P (theta - m0)^2``, FedProx's with a strength for each weight.

    Parameters
    ----------
    mean, precision : dict of Tensor
        ``m0`` and ``P``, of the same shapes; a precision of 0 is plain training (but not for Newton).
    start : dict of Tensor, optional
        Where to start; at the mean where there is none.

    Raises
    ------
    StrategyError
        As `GGN.solve`.
    """
    mean, precision = resting(mean), resting(precision)

    def value(params: Params) -> Tensor:
        pull = sum(((p - mean[k]).square() * precision[k]).sum() for k, p in params.items())
        return loss(params, data) + pull / 2

    params = resting(start or mean)
    if isinstance(solver, Descent):
        return solver.minimise(value, params, differentiate)
    like = next(iter(params.values()))
    lengths = torch.cat([0.25 ** torch.arange(9), torch.zeros(1)]).to(like.device, like.dtype)
    for _ in range(solver.steps):
        slope, _ = differentiate(value, params)
        way = solver.ggn.solve(params, data, precision, slope)
        ends = {k: p - lengths.reshape(-1, *[1] * p.ndim) * way[k] for k, p in params.items()}
        # A length at which the loss overflows is no candidate. Where values differ by rounding alone, near
        # the minimum, the longest is best: argmax takes the first of equals.
        tried = torch.func.vmap(value)(ends).nan_to_num(torch.inf, torch.inf)
        least = tried.min()
        near = tried <= least + 16 * torch.finfo(tried.dtype).eps * least.abs()
        best = near.int().argmax()
        params = {k: v.index_select(0, best[None])[0] for k, v in ends.items()}
    return resting(params)


def sgld_moments(
    loss: Loss,
    start: Params,
    data: Batch,
    *,
    steps: int,
    burnin: int = 0,
    alpha: float = 1e-6,
    max_curvature: float = 1e3,
    optimizer: Optimizer = PLAIN,
    generator: torch.Generator | None = None,
    noise: Params | None = None,
    differentiate: Differentiate = differentiate_functionally,
) -> Quadratic:
    """E1: moments of a Langevin chain, ``theta <- theta - eta/2 grad(loss) + sqrt(eta) xi``.

    ``eta = alpha / N``, N the number of examples; centre and curvature are the mean and the inverse variance
    of the iterates after the burn-in. Near stationarity the variance tends to ``1 / (A (1 - eta A / 4))``.
    With few or short steps, ``eta A steps << 1``, it is that of a random walk, ``eta (n + 1) / 6`` for n kept
    iterates, whatever the data, and the clipping decides: so it is with the official flags (alpha 1e-6, 3
    steps, bound 1e3).

    Parameters
    ----------
    steps, burnin : int
        Steps in all, and how many of them are not counted.
    alpha : float
        Step size times number of examples.
    max_curvature : float
        Upper bound of the curvature; the lower one is 1e-4.
    optimizer : Optimizer
        What takes a step of length eta along the noisy gradient. `OFFICIAL_LIKE` is Adam, as the official
        code is said to use; it scales the noise away and samples from nothing in particular.
    generator : torch.Generator, optional
        Source of the noise; this or ``noise``.
    noise : dict of Tensor, optional
        Standard normal draws of shape (steps, shape of the tensor), for use under ``vmap``.

    Raises
    ------
    ValueError
        If there is not one source of noise, or the burn-in is as long as the chain.
    """
    if (generator is None) == (noise is None):
        raise ValueError("generator, noise: give one of the two")
    if not 0 <= burnin < steps:
        raise ValueError(f"burnin: must lie in [0, steps = {steps}), got {burnin}")
    params = resting(start)
    state = optimizer.init(params)
    step_size = alpha / examples(data)
    mean = {k: torch.zeros_like(p) for k, p in params.items()}
    scatter = dict(mean)
    for t in range(steps):
        slope, _ = differentiate(lambda p: loss(p, data), params)
        if noise is not None:
            xi = {k: v[t] for k, v in noise.items()}
        else:
            assert generator is not None
            xi = standard_normal(params, generator)
        noisy = {k: g / 2 + xi[k] / step_size**0.5 for k, g in slope.items()}
        params, state = optimizer.step(params, noisy, state, step_size)
        if (n := t - burnin + 1) > 0:
            # Welford's recursion: theta^2 - mean^2 would cancel in float32.
            old = {k: p - mean[k] for k, p in params.items()}
            mean = {k: m + old[k] / n for k, m in mean.items()}
            scatter = {k: s + old[k] * (params[k] - mean[k]) for k, s in scatter.items()}
    n = steps - burnin
    if n < 2:
        curvature = {k: torch.zeros_like(p) for k, p in params.items()}
    else:
        curvature = {k: 1 / (s / (n - 1)).clamp(min=LEAST_VARIANCE) for k, s in scatter.items()}
    curvature, share = clipped(curvature, max_curvature, LEAST_CURVATURE)
    return Quadratic(resting(mean), resting(curvature), share)


def adapted(
    loss: Loss,
    start: Params,
    data: Batch,
    curvature: Curvature,
    *,
    solver: Descent = SHORT,
    max_curvature: float = 1e4,
    differentiate: Differentiate = differentiate_functionally,
) -> Quadratic:
    """E2: optimiser steps from ``start`` on the loss alone, and its curvature at the last iterate (derived).

    Parameters
    ----------
    curvature : Curvature
        `GGN`, or `Fisher` for any likelihood.
    max_curvature : float
        Upper bound of the curvature.
    """
    centre = solver.minimise(lambda p: loss(p, data), start, differentiate)
    diagonal, share = clipped(curvature.diagonal(centre, data), max_curvature)
    return Quadratic(centre, resting(diagonal), share)


def laplace(
    loss: Loss,
    prior: Prior,
    data: Batch,
    curvature: Curvature,
    *,
    solver: Descent | Newton = FULL,
    max_curvature: float = 1e4,
    differentiate: Differentiate = differentiate_functionally,
    start: Params | None = None,
) -> tuple[Gaussian, Quadratic]:
    """E3: Laplace's method at the MAP under the prior (derived); best for heads and convex losses.

    Returns
    -------
    Gaussian
        Mean: the MAP; variance ``1 / (A + P)`` with the curvature there.
    Quadratic
        The model whose `posterior.local_posterior` this is: its centre is ``theta + P (theta - m0) / A``.
    """
    at = map_estimate(loss, prior.m0, prior.precision, data, solver, differentiate, start)
    diagonal, share = clipped(curvature.diagonal(at, data), max_curvature)
    diagonal, precision = resting(diagonal), resting(prior.precision)
    variance = {k: 1 / (a + precision[k]) for k, a in diagonal.items()}
    # Where A = 0 the data say nothing and any centre will do.
    centre = {
        k: torch.where(a > 0, at[k] + precision[k] * (at[k] - prior.m0[k].detach()) / a, at[k])
        for k, a in diagonal.items()
    }
    return Gaussian(at, variance), Quadratic(centre, diagonal, share)


def tensorwise(quadratic: Quadratic) -> Quadratic:
    """E4: each curvature replaced by the mean over its tensor, shape (); centres as they are (derived)."""
    return Quadratic(
        quadratic.mbar, {k: a.mean() for k, a in quadratic.curvature.items()}, quadratic.clip_fraction
    )
