r"""GGEUR's statistics under differential privacy: the Gaussian mechanism, applied by each client itself.

What is covered: one upload of one client is (epsilon, delta)-differentially private for adding or removing
one of its examples (record level; Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
2014, def. 2.4). A client that changes one example, its label say, removes one and adds one, so that the
mechanism holds twice. The client adds the noise, so that the server need not be trusted, and answers once.

What is not: the rounds. Model updates, and the number of examples that goes with them unless
``weighting="uniform"``, are as private as the wrapped strategy makes them.

Accounting. An example ``x`` with ``|x| <= C`` adds ``(1, x, x x^T)`` to the sums of its class. The upper
triangle, its off-diagonal entries times ``sqrt(2)``, has the Frobenius norm ``|x x^T| = |x|^2``; so the three
blocks change by at most ``1``, ``C`` and ``C^2``, and divided by that, jointly by
``sqrt(1 + |x|^2/C^2 + |x|^4/C^4) <= sqrt(3)``. One Gaussian mechanism of this sensitivity covers all three.
The blocks share it alike: sum and second moment disturb the covariance about as much as each other, and no
other split would lessen the noise of one by more than ``sqrt(3)``. An example is in one class, so classes
compose in parallel, as long as every class is noised, absent ones too: which classes a client then leaves
out follows from noisy counts alone. Clipping is per example; rounding and what the server does come later.

Noise comes from the run's keyed generator, so that runs repeat. Whoever knows the seed can take it off: a
deployment must draw from a secure source instead, and mind that floating-point Gaussians leak in their last
bits (Mironov, CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.ggeur.moments import ClassMoments, from_sums, pack_triangle

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

SENSITIVITY = math.sqrt(3)
"""Joint L2 sensitivity of count, sum and second moment, each divided by its own."""


def gaussian_delta(epsilon: float, std: float, sensitivity: float = 1.0) -> float:
    r"""Smallest delta for which Gaussian noise is (epsilon, delta)-differentially private.

    ``Phi(D/2s - e s/D) - exp(e) Phi(-D/2s - e s/D)`` (Balle and Wang, "Improving the Gaussian Mechanism for
    Differential Privacy", ICML 2018, Theorem 8), never too small by rounding of ``exp(e)``.
    """
    shift, slope = sensitivity / std / 2, epsilon * std / sensitivity
    a, b = shift - slope, shift + slope
    # exp(e) Phi(-b) = phi(a) Phi(-b) / phi(b), because b^2 - a^2 = 2 e: no factor then overflows.
    if b < 25:
        mills = math.sqrt(math.pi / 2) * math.erfc(b / math.sqrt(2)) * math.exp(b * b / 2)
    else:
        mills = b / (b * b + 1)  # a lower bound (Gordon, 1941), tight to 2 / b^4
    return math.erfc(-a / math.sqrt(2)) / 2 - math.exp(-a * a / 2) / math.sqrt(2 * math.pi) * mills


def gaussian_std(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Least standard deviation that is (epsilon, delta)-private, for any epsilon > 0, by bisection.

    The analytic Gaussian mechanism (Balle and Wang, Algorithm 1): less noise than the classic
    ``sqrt(2 ln(1.25/delta)) / epsilon``, which holds for epsilon < 1 alone.
    """
    low = high = sensitivity
    while gaussian_delta(epsilon, high, sensitivity) > delta:
        high *= 2
    while gaussian_delta(epsilon, low, sensitivity) <= delta:
        low /= 2
    while high > low * (1 + 1e-12):
        middle = (low + high) / 2
        if gaussian_delta(epsilon, middle, sensitivity) > delta:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class GaussianMechanism:
    """Gaussian noise on the count, sum and second moment of clipped examples.

    Parameters
    ----------
    epsilon, delta : float
        What one upload may reveal of one example.
    clip : float
        Longer feature vectors are shortened to this L2 norm ``C``.

    Raises
    ------
    ValueError
        For a value out of range, in one line.
    """

    epsilon: float
    delta: float
    clip: float

    def __post_init__(self) -> None:
        for name, value, high in (
            ("epsilon", self.epsilon, math.inf),
            ("delta", self.delta, 1),
            ("clip", self.clip, math.inf),
        ):
            if not 0 < value < high:
                raise ValueError(f"{name}: must be above 0 and below {high}, got {value}")

    @cached_property
    def std(self) -> float:
        """Standard deviation of the noise on a block of sensitivity 1."""
        return gaussian_std(self.epsilon, self.delta, SENSITIVITY)

    def clipped(self, x: Array) -> Float64:
        """Rows of ``x``, shortened to ``clip`` where they are longer."""
        rows = x.astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * (self.clip / np.maximum(norms, self.clip))

    def noisy_sums(self, clipped: Float64, rng: np.random.Generator) -> Float64:
        """Sums of one class as `to_sums` packs them, plus noise."""
        z = np.column_stack([np.ones(len(clipped)), clipped])
        std = np.full((z.shape[1], z.shape[1]), self.clip**2 / math.sqrt(2))
        np.fill_diagonal(std, self.clip**2)
        std[0] = self.clip
        std[0, 0] = 1.0
        std = self.std * pack_triangle(std, np.float64)
        return pack_triangle(z.T @ z, np.float64) + std * rng.standard_normal(std.size)

    def edge(self, dim: int, clients: int, count: int) -> float:
        """Largest eigenvalue that the noise alone gives to a covariance.

        ``2 tau sqrt(d)`` for a symmetric matrix with independent entries of standard deviation ``tau``
        (Furedi and Komlos, "The eigenvalues of random symmetric matrices", 1981); here ``tau`` is that of the
        off-diagonal sums of ``clients`` clients, over the pooled count. Half of the noise's eigenvalues are
        positive, so that clipping the negative ones alone would leave a trace of noise.
        """
        tau = self.std * self.clip**2 / math.sqrt(2) * math.sqrt(clients) / count
        return 2 * tau * math.sqrt(dim)


def private_moments(
    x: Array,
    y: Array,
    classes: int,
    mechanism: GaussianMechanism,
    rng_for: Callable[[int], np.random.Generator],
    min_count: int = 1,
) -> dict[int, ClassMoments]:
    """Describe each class as `class_moments` does, under differential privacy.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Frozen embeddings.
    y : ndarray of integers, shape (n,)
        Labels, all below ``classes``.
    classes : int
        Number of classes; every one of them is measured, whether the client has it or not.
    mechanism : GaussianMechanism
        Clipping and noise.
    rng_for : callable
        Class to a stream of its own.
    min_count : int
        Classes with a smaller noisy count are left out.

    Returns
    -------
    dict of int to ClassMoments
        In ascending order of class. Covariances are symmetric; see `from_sums` for where they are projected.

    Raises
    ------
    ValueError
        If values are not finite.
    """
    if not np.isfinite(x).all():
        raise ValueError("x: has values that are not finite")
    rows = mechanism.clipped(x)
    moments = {}
    for label in range(classes):
        sums = mechanism.noisy_sums(rows[y == label], rng_for(label))
        if round(sums[0]) >= max(min_count, 1):
            moments[label] = from_sums(sums)
    return moments
