"""First and second moments of each class, and their exact merge over clients.

Steps A and B of GGEUR (arXiv 2503.06457): a client describes each class by ``(n, mu, Sigma)``, the server
pools these with Eq. 4. All of it in float64 and centred: ``E[x x^T] - mu mu^T`` loses most of its digits
where the mean is long compared with the spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassMoments:
    """Moments of one class.

    Parameters
    ----------
    count : int
        Number of samples ``n``.
    mean : ndarray of float64, shape (d,)
        Class mean, the "prototype".
    cov : ndarray, shape (d, d) or (d(d+1)/2,)
        Covariance with divisor ``n``, so that one sample gives zero and Eq. 4 is exact; or its upper triangle
        from `pack_triangle`, as it travels.
    """

    count: int
    mean: Float64
    cov: Array


def class_moments(x: Array, y: Array, min_count: int = 1) -> dict[int, ClassMoments]:
    """Describe each class that a client holds (step A).

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Frozen embeddings, one row a sample.
    y : ndarray of integers, shape (n,)
        Labels, matched exactly (D5: the published code matches parts of names, so class 1 absorbs 10 to 19).
    min_count : int
        Classes with fewer samples are withheld: the moments of one or two samples reveal the samples.

    Returns
    -------
    dict of int to ClassMoments
        In ascending order of class; absent and withheld classes are left out.

    Raises
    ------
    ValueError
        If the shapes do not fit, labels are no integers, or a class has values that are not finite.
    """
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x, y: need shapes (n, d) and (n,), got {x.shape} and {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y: labels must be integers, got {y.dtype}")
    moments = {}
    for label, count in zip(*np.unique(y, return_counts=True), strict=True):
        if count < min_count:
            continue
        rows = x[y == label].astype(np.float64)
        mean = rows.mean(axis=0)
        if not np.isfinite(mean).all():
            raise ValueError(f"x: class {label} has values that are not finite")
        centred = rows - mean
        moments[int(label)] = ClassMoments(int(count), mean, centred.T @ centred / count)
    return moments


def merge(parts: Iterable[ClassMoments], between: bool = True) -> ClassMoments:
    """Pool the moments of one class over clients (step B, Eq. 4).

    ``Sigma = (1/N) [sum_k n_k Sigma_k + sum_k n_k (mu_k - mu)(mu_k - mu)^T]``, the law of total covariance:
    exact and associative, so merges of merges give the same result. It holds entry by entry, so that packed
    covariances are pooled as they are.

    Parameters
    ----------
    parts : iterable of ClassMoments
        What the clients sent, at least one sample in all; with packed covariances or none.
    between : bool
        Whether to count the scatter of the clients' means; ``False`` is an ablation, not the method.

    Returns
    -------
    ClassMoments
        Moments of the union of the clients' samples, packed where they were.

    Raises
    ------
    ValueError
        If there is nothing to merge or the dimensions differ.
    """
    parts = list(parts)
    total = sum(part.count for part in parts)
    if total == 0:
        raise ValueError("parts: nothing to merge, got no samples")
    shapes = [(*part.mean.shape, *part.cov.shape) for part in parts]
    if len(set(shapes)) > 1:
        raise ValueError(f"parts: dimensions differ, got {shapes}")
    mean = merge_means(parts)
    scatter = np.zeros(parts[0].cov.shape)
    for part in parts:
        scatter += np.multiply(part.count, part.cov, dtype=np.float64)
    if between:
        spread = np.array([math.sqrt(part.count) * (part.mean - mean) for part in parts])
        outer = spread.T @ spread
        scatter += outer if scatter.ndim == 2 else pack_triangle(outer, np.float64)
    scatter /= total
    return ClassMoments(total, mean, scatter)


def merge_means(parts: Sequence[ClassMoments]) -> Float64:
    """Mean of the union of the clients' samples, as `merge` gives it."""
    counts = [part.count for part in parts]
    means = np.array([part.mean for part in parts], dtype=np.float64)
    mean: Float64 = np.array(counts, dtype=np.float64) @ means / sum(counts)
    return mean


def guides(counts: Sequence[int], fraction: float) -> list[int]:
    """Pick the clients whose moments shape a class (D4).

    The paper merges all clients; its code the largest ones that hold 80 % of the class.

    Parameters
    ----------
    counts : sequence of int
        Samples of the class at each client.
    fraction : float
        Share of the class to cover, in (0, 1]; 1 takes every client that has the class.

    Returns
    -------
    list of int
        The smallest such set of clients, as ascending indices; ties go to the lower index.

    Raises
    ------
    ValueError
        If ``fraction`` lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: must lie in (0, 1], got {fraction}")
    # Counts are integers: the slack only absorbs the rounding of fraction * total.
    enough = fraction * sum(counts) * (1 - 1e-12)
    chosen: list[int] = []
    covered = 0
    for k in sorted(range(len(counts)), key=lambda k: -counts[k]):
        if covered >= enough:
            break
        chosen.append(k)
        covered += counts[k]
    return sorted(chosen)


def pack_triangle(cov: Array, dtype: npt.DTypeLike) -> Array:
    """Return the upper triangle of ``cov`` (d, d), row by row, as (d(d+1)/2,) of ``dtype``.

    One that is packed already only changes its dtype.
    """
    packed = cov if cov.ndim == 1 else cov[_upper(len(cov))]
    return packed.astype(dtype, copy=False)


def unpack_triangle(packed: Array, d: int) -> Float64:
    """Rebuild a symmetric float64 matrix (d, d) from `pack_triangle`.

    Raises
    ------
    ValueError
        If ``packed`` does not have d(d+1)/2 entries.
    """
    if packed.shape != (d * (d + 1) // 2,):
        raise ValueError(f"packed: need {d * (d + 1) // 2} entries for d = {d}, got shape {packed.shape}")
    cov, upper = np.empty((d, d)), _upper(d)
    cov[upper] = packed
    cov.T[upper] = packed
    return cov


@lru_cache(maxsize=1)
def _upper(d: int) -> npt.NDArray[np.bool_]:
    """Mask of the upper triangle: to select by it takes a third of the time that indices take."""
    return np.tri(d, dtype=bool).T


def to_sums(moments: ClassMoments) -> Float64:
    """What adds up over clients: ``(n, sum x, upper triangle of sum x x^T)``, as ((d+1)(d+2)/2,).

    It is the packed ``sum z z^T`` with ``z = (1, x)``.
    """
    first = np.concatenate([[1.0], moments.mean])
    sums = pack_triangle(np.outer(first, first), np.float64)
    sums[first.size :] += pack_triangle(moments.cov, np.float64)
    return moments.count * sums


def from_sums(packed: Array) -> ClassMoments:
    """Moments, packed, of the examples that went into sums, exact or noisy; the inverse of `to_sums`.

    A count with noise is rounded, and a covariance from noisy sums may have negative eigenvalues: `merge`
    is linear in the sums, so the noise of several clients still averages out, which a projection before it
    would prevent. `eigen_geometry` projects what comes out of it.

    Raises
    ------
    ValueError
        If the count is below one half, or ``packed`` is not a packed triangle.
    """
    width = (math.isqrt(8 * packed.size + 1) - 1) // 2
    if packed.shape != (width * (width + 1) // 2,):
        raise ValueError(f"packed: need the entries of a triangle, got shape {packed.shape}")
    count = round(packed[0])
    if count < 1:
        raise ValueError(f"packed: a class needs a count of at least 1, got {packed[0]}")
    mean = packed[1:width] / count
    return ClassMoments(count, mean, packed[width:] / count - pack_triangle(np.outer(mean, mean), np.float64))
