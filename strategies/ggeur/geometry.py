"""Geometric shape of a class: the eigenvalues and eigenvectors of its global covariance.

Step B of GGEUR (arXiv 2503.06457, Fig. 3: ``GD_i = {xi_i^m, lambda_i^m}``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from strategies.ggeur.moments import ClassMoments, unpack_triangle

Boost = Literal["none", "code", "top10"]


@dataclass(frozen=True)
class Geometry:
    """Shape of one class.

    Parameters
    ----------
    values : ndarray, shape (r,)
        Eigenvalues that were kept, descending and positive.
    vectors : ndarray, shape (d, r)
        Their eigenvectors, one a column.
    count : int
        Number of samples ``N_i`` of the class over all clients.
    """

    values: npt.NDArray[Any]
    vectors: npt.NDArray[Any]
    count: int

    @property
    def rank(self) -> int:
        """Number of eigenpairs kept."""
        return self.vectors.shape[1]

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self.vectors.shape[0]

    @property
    def trace(self) -> float:
        """Mean squared length of the noise that has this covariance."""
        return float(self.values.sum(dtype=np.float64))

    @property
    def effective_rank(self) -> float:
        """Number of directions that carry the trace: ``(tr S)^2 / tr(S^2)``, 0 for no spread."""
        squares = float(np.square(self.values, dtype=np.float64).sum())
        return self.trace**2 / squares if squares > 0 else 0.0


def eigen_geometry(
    moments: ClassMoments | npt.NDArray[Any],
    count: int | None = None,
    *,
    rank: int | None = None,
    rank_tol: float = 1e-10,
    floor: float = 0.0,
    spectrum_boost: Boost = "none",
) -> Geometry:
    """Decompose the covariance of a class (step B).

    Parameters
    ----------
    moments : ClassMoments or ndarray of shape (d, d)
        Merged moments, packed or not, or their covariance alone.
    count : int, optional
        Global class count; by default that of the moments. Give it where fewer clients than all were
        merged (`guides`).
    rank : int, optional
        Keep at most so many leading pairs (D18: the follow-up keeps 5); by default all.
    rank_tol : float
        Pairs with an eigenvalue up to ``rank_tol`` times the largest are dropped as round-off: 1e-10 for
        moments that travelled in float64, 1e-6 for float32.
    floor : float
        Pairs with an eigenvalue up to this are dropped too: what noise in the moments makes by itself.
    spectrum_boost : {"none", "code", "top10"}
        D2. ``"code"`` multiplies the ten smallest eigenvalues by 5 to 1, as the published multi-domain code
        does (it takes an ascending spectrum for a descending one); ``"top10"`` the ten largest, as was
        presumably meant.

    Returns
    -------
    Geometry
        With ``r = 0`` where the class has no spread.

    Raises
    ------
    ValueError
        If an argument is out of range or the covariance is not a finite square matrix.
    """
    cov = moments.cov if isinstance(moments, ClassMoments) else moments
    count = moments.count if count is None and isinstance(moments, ClassMoments) else count
    if isinstance(moments, ClassMoments) and cov.ndim == 1:
        cov = unpack_triangle(cov, moments.mean.size)
    if count is None or count < 1:
        raise ValueError(f"count: need the number of samples, at least 1, got {count}")
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not np.isfinite(cov).all():
        raise ValueError(f"moments: covariance must be square and finite, got shape {cov.shape}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank: must be at least 1, or None for all, got {rank}")
    if not 0 <= rank_tol < 1:
        raise ValueError(f"rank_tol: must lie in [0, 1), got {rank_tol}")
    if not floor >= 0:
        raise ValueError(f"floor: must not be negative, got {floor}")
    if spectrum_boost not in get_args(Boost):
        raise ValueError(f"spectrum_boost: unknown, got {spectrum_boost!r}; one of {get_args(Boost)}")

    cov = cov.astype(np.float64, copy=False)
    # Moments are symmetric as they are, and eigh reads one triangle.
    values, vectors = np.linalg.eigh(cov if isinstance(moments, ClassMoments) else (cov + cov.T) / 2)
    if spectrum_boost != "none":
        factors = np.linspace(5, 1, 10)[: len(values)]
        ends = values if spectrum_boost == "code" else values[::-1]  # eigh is ascending
        ends[: len(factors)] *= factors
    order = np.argsort(-values, kind="stable")
    # Negative eigenvalues are round-off, or privacy noise, and fall with the rest.
    kept = int((values > max(rank_tol * values.max(initial=0), floor)).sum())
    # n samples span at most n - 1 directions around their mean; whatever lies beyond is round-off.
    order = order[: min(kept, count - 1, rank or kept)]
    vectors = vectors.take(order, axis=1)
    # Signs are arbitrary; a fixed choice keeps them from turning on the last bit of the covariance.
    largest = np.abs(vectors).argmax(axis=0)
    vectors *= np.where(vectors[largest, np.arange(len(order))] < 0, -1.0, 1.0)
    return Geometry(values[order], vectors, count)
