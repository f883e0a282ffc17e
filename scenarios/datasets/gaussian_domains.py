"""Gaussian classes in several domains whose means and covariances are known: the controlled experiment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scenarios.datasets.options import check_choice, check_flag, check_number, check_whole
from scenarios.federation import Dataset, Meta

Matrix = npt.NDArray[np.float64]

HARMONIC_TRACE = 60.0


@dataclass(frozen=True)
class GaussianDomains:
    """Vectors drawn from one Gaussian for each class and domain, made to look like image embeddings.

    The covariance of a class has a fixed spectrum; its basis mixes one random basis that all classes share
    with a random matrix of its own. Domains shift the means, and with ``rerandomise`` turn the bases as well.
    The defaults are the label-skew experiment of GGEUR's synthetic checks (E1). The others: domain skew (E2)
    ``domains=4 train_per_class=30 test_per_class=60``; both (E3) the same with ``train_per_class=60``; step
    budget (E4) ``dim=256 classes=50 train_per_class=100 test_per_class=40 spectrum=harmonic basis_mix=0.4
    mean_std=0.2 mean_rank=40 common_norm=7``.

    Parameters
    ----------
    dim, classes, domains : int
        Length of a vector, number of classes, number of domains.
    train_per_class, test_per_class : int
        Rows of each class in each domain.
    spectrum : {"geometric", "harmonic"}
        Eigenvalues of every covariance: 4 down to 0.01, or in proportion to 1/m with sum 60.
    basis_mix : float
        Weight of a class's own matrix in its basis, 0 to 1.
    rerandomise : float
        Weight of a random matrix of each domain and class in its basis: 0 means that a class has the same
        covariance in every domain, 0.5 that half of it is drawn anew, 1 that domains share nothing.
    mean_std : float
        Spread of the class means, for each coordinate.
    mean_rank : int or None
        The class means lie in a random subspace of this dimension; ``None`` for the whole space.
    common_norm : float
        Norm of a random vector that is added to everything.
    domain_shift_std, domain_class_shift_std : float
        Spread of a domain's shift of all means and of each single mean, for each coordinate. There are no
        shifts where there is one domain.
    unit_norm : bool
        Divide every vector by its norm.
    seed : int
        Of everything. Training and test rows have generators of their own: another number of one leaves the
        other and the distribution as they are.
    """

    dim: int = 64
    classes: int = 20
    domains: int = 1
    train_per_class: int = 200
    test_per_class: int = 100
    spectrum: str = "geometric"
    basis_mix: float = 0.5
    rerandomise: float = 0.0
    mean_std: float = 0.225
    mean_rank: int | None = None
    common_norm: float = 0.0
    domain_shift_std: float = 0.225
    domain_class_shift_std: float = 0.1125
    unit_norm: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field, minimum in (("dim", 1), ("classes", 2), ("domains", 1), ("seed", 0)):
            check_whole(field, getattr(self, field), minimum)
        for field in ("train_per_class", "test_per_class"):
            check_whole(field, getattr(self, field), 1)
        check_choice("spectrum", self.spectrum, ("geometric", "harmonic"))
        for field in ("basis_mix", "rerandomise"):
            check_number(field, getattr(self, field), 0, 1)
        for field in ("mean_std", "common_norm", "domain_shift_std", "domain_class_shift_std"):
            check_number(field, getattr(self, field))
        check_whole("mean_rank", self.mean_rank, 1, none="the whole space")
        if self.mean_rank is not None and self.mean_rank > self.dim:
            raise ValueError(f"mean_rank: above dim={self.dim}, got {self.mean_rank}; use at most {self.dim}")
        check_flag("unit_norm", self.unit_norm)

    def load(self) -> Dataset:
        """Draw the vectors.

        Returns
        -------
        Dataset
            ``x`` float32, shape (rows, dim), sorted by domain and class, training rows of a class before its
            test rows; ``test`` holds the latter.
        """
        shape_rng, train_rng, test_rng = map(
            np.random.default_rng, np.random.SeedSequence(self.seed).spawn(3)
        )
        means, factors = self._geometry(shape_rng)
        sizes = ((train_rng, self.train_per_class), (test_rng, self.test_per_class))
        cell = self.train_per_class + self.test_per_class
        cells = self.domains * self.classes
        x = np.empty((cells * cell, self.dim), dtype=np.float32)
        for number in range(cells):
            q, c = divmod(number, self.classes)
            noise = np.concatenate([rng.standard_normal((rows, self.dim)) for rng, rows in sizes])
            x[number * cell : (number + 1) * cell] = means[q, c] + noise @ factors[q][c]
        if self.unit_norm:
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        index = np.arange(len(x), dtype=np.int64)
        return Dataset(
            name="gaussian_domains",
            arrays={"x": x, "y": index // cell % self.classes},
            domain=index // (cell * self.classes),
            domains=tuple(f"domain_{q}" for q in range(self.domains)),
            meta=Meta("classification", (self.dim,), tuple(f"class_{c}" for c in range(self.classes))),
            test=index[index % cell >= self.train_per_class],
        )

    def _geometry(self, rng: np.random.Generator) -> tuple[Matrix, list[list[Matrix]]]:
        """Means, shape (domains, classes, dim), and for each what turns white noise into its own."""
        dim = self.dim
        values = np.geomspace(4, 0.01, dim) if self.spectrum == "geometric" else 1 / np.arange(1, dim + 1)
        if self.spectrum == "harmonic":
            values *= HARMONIC_TRACE / values.sum()
        scale = np.sqrt(values)[:, None]

        shared = _basis(rng.standard_normal((dim, dim)))
        own = rng.standard_normal((self.classes, dim, dim)) / np.sqrt(dim)
        bases = [_basis((1 - self.basis_mix) * shared + self.basis_mix * matrix) for matrix in own]

        rank = self.mean_rank or dim
        means = self.mean_std * rng.standard_normal((self.classes, rank))
        if rank < dim:
            means = means @ _basis(rng.standard_normal((dim, rank))).T
        common = rng.standard_normal(dim)
        means = means + self.common_norm * common / np.linalg.norm(common)
        if self.domains == 1:
            return means[None], [[scale * basis.T for basis in bases]]

        shift = self.domain_shift_std * rng.standard_normal((self.domains, 1, dim))
        shift = shift + self.domain_class_shift_std * rng.standard_normal((self.domains, self.classes, dim))
        factors = []
        for _ in range(self.domains):
            fresh = rng.standard_normal((self.classes, dim, dim)) / np.sqrt(dim)
            turned = [
                _basis((1 - self.rerandomise) * basis + self.rerandomise * matrix)
                for basis, matrix in zip(bases, fresh, strict=True)
            ]
            factors.append([scale * basis.T for basis in turned])
        return means + shift, factors


def _basis(matrix: Matrix) -> Matrix:
    """Orthonormal columns that span those of ``matrix``, one after the other."""
    q, r = np.linalg.qr(matrix)
    # The signs make the result unique, and an orthonormal matrix its own basis.
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)
