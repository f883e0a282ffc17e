from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from strategies.ggeur.geometry import Geometry, eigen_geometry
from strategies.ggeur.moments import ClassMoments, class_moments

Array = npt.NDArray[Any]


def covariance(spectrum: Array, seed: int = 0) -> Array:
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum), len(spectrum))))[0]
    return (basis * spectrum) @ basis.T


def sample_moments(n: int, d: int) -> ClassMoments:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3
    return class_moments(x, np.zeros(n, np.int64))[0]


def rebuilt(shape: Geometry) -> Array:
    return (shape.vectors * shape.values) @ shape.vectors.T


@pytest.mark.parametrize(("n", "d"), [(2, 40), (13, 40), (40, 40), (400, 40), (30, 3)])
def test_v5_geometry_rebuilds_the_covariance(n: int, d: int) -> None:
    moments = sample_moments(n, d)
    shape = eigen_geometry(moments)
    assert (shape.dim, shape.rank, shape.count) == (d, min(d, n - 1), n)
    assert shape.values.shape == (shape.rank,)
    assert np.linalg.norm(rebuilt(shape) - moments.cov) <= 1e-8 * np.linalg.norm(moments.cov)
    assert np.abs(shape.vectors.T @ shape.vectors - np.eye(shape.rank)).max() <= 1e-8
    assert (np.diff(shape.values) <= 0).all()
    assert (shape.values > 0).all()
    assert shape.trace == pytest.approx(np.trace(moments.cov), rel=1e-8)
    assert shape.effective_rank == pytest.approx(
        np.trace(moments.cov) ** 2 / np.trace(moments.cov @ moments.cov), rel=1e-8
    )


def test_v5_rank_comes_from_the_spectrum_too() -> None:
    # 1000 samples allow full rank: only the tolerance can find the two directions without spread.
    cov = covariance(np.array([3.0, 2.0, 1.0, 0.0, 0.0]))
    assert eigen_geometry(cov, 1000).rank == 3
    in_f32 = eigen_geometry(covariance(np.array([3.0, 2.0, 1e-8, 0.0])), 1000, rank_tol=1e-6)
    assert in_f32.rank == 2


def test_what_noise_could_make_is_dropped() -> None:
    cov = covariance(np.array([3.0, 2.0, 1.0, 0.5, -0.5]))
    assert np.allclose(eigen_geometry(cov, 1000, floor=1.5).values, [3, 2])
    assert eigen_geometry(cov, 1000, floor=4.0).rank == 0
    assert eigen_geometry(cov, 1000).rank == 4
    with pytest.raises(ValueError, match=r"^floor: must not be negative"):
        eigen_geometry(cov, 1000, floor=-1.0)


def test_v5_rank_stays_below_the_count() -> None:
    # Rounded to float32 on the way, and read with the tolerance of float64.
    moments = sample_moments(13, 40)
    assert eigen_geometry(moments.cov.astype(np.float32), 1000).rank > 12
    assert eigen_geometry(moments.cov.astype(np.float32), 13).rank == 12


def test_v5_negative_round_off_and_asymmetry_are_removed() -> None:
    cov = covariance(np.array([2.0, 1.0, -1e-7]))
    skewed = cov + np.array([[0, 0.1, 0], [-0.1, 0, 0], [0, 0, 0]])
    shape = eigen_geometry(skewed, 50, rank_tol=0)
    assert shape.rank == 2
    assert np.allclose(shape.values, [2.0, 1.0], atol=1e-8)


def test_rank_keeps_the_leading_pairs() -> None:
    moments = sample_moments(100, 20)
    full, cut = eigen_geometry(moments), eigen_geometry(moments, rank=5)
    assert np.array_equal(cut.values, full.values[:5])
    assert np.array_equal(cut.vectors, full.vectors[:, :5])
    assert eigen_geometry(moments, rank=500).rank == 20


def test_count_can_be_wider_than_the_moments() -> None:
    assert eigen_geometry(sample_moments(13, 40), 100).count == 100
    assert eigen_geometry(np.eye(4), 7).count == 7


def test_no_spread_gives_rank_zero() -> None:
    shape = eigen_geometry(np.zeros((6, 6)), 30)
    assert (shape.rank, shape.dim, shape.trace, shape.effective_rank) == (0, 6, 0.0, 0.0)


def test_signs_do_not_turn_on_the_last_bits() -> None:
    cov = covariance(np.geomspace(4, 0.01, 40))
    shaken = cov * (1 + 1e-13 * np.random.default_rng(5).standard_normal(cov.shape))
    a, b = eigen_geometry(cov, 100), eigen_geometry(shaken, 100)
    assert ((a.vectors * b.vectors).sum(axis=0) > 0.999).all()
    assert (a.vectors.max(axis=0) == np.abs(a.vectors).max(axis=0)).all()


def test_v17_the_published_boost_does_nothing() -> None:
    spectrum = np.geomspace(60, 1e-5, 256)
    cov = covariance(spectrum)
    plain = eigen_geometry(cov, 1000)
    code = eigen_geometry(cov, 1000, spectrum_boost="code")
    top = eigen_geometry(cov, 1000, spectrum_boost="top10")
    assert 0 < code.trace / plain.trace - 1 < 1e-5
    assert top.trace / plain.trace - 1 > 0.05
    for shape in (plain, code, top):
        assert shape.rank == 256
        assert (np.diff(shape.values) <= 0).all()
    factors = np.linspace(5, 1, 10)
    assert np.allclose(top.values[:10], spectrum[:10] * factors)
    assert np.allclose(top.values[10:], spectrum[10:])
    assert np.allclose(code.values, np.sort(np.r_[spectrum[:-10], spectrum[:-11:-1] * factors])[::-1])
    assert code.trace - plain.trace == pytest.approx((spectrum[:-11:-1] * (factors - 1)).sum(), rel=1e-6)


def test_v17_the_published_boost_is_a_no_op_on_low_rank() -> None:
    moments = sample_moments(20, 40)
    assert np.array_equal(
        eigen_geometry(moments).values, eigen_geometry(moments, spectrum_boost="code").values
    )


def test_v17_boosts_take_short_spectra() -> None:
    cov = np.diag([4.0, 3.9, 3.8])
    factors = np.linspace(5, 1, 10)[:3]
    assert np.allclose(eigen_geometry(cov, 9, spectrum_boost="top10").values, [4, 3.9, 3.8] * factors)
    code = eigen_geometry(cov, 9, spectrum_boost="code")
    assert np.allclose(code.values, [3.8, 3.9, 4] * factors)  # the order is turned round
    # and every boosted value stays with its own axis
    assert np.allclose(np.diag(rebuilt(code)), [4 * factors[2], 3.9 * factors[1], 3.8 * factors[0]])


def test_mistakes_are_named() -> None:
    eye: Any = np.eye(3)
    with pytest.raises(ValueError, match=r"^count: "):
        eigen_geometry(eye)
    with pytest.raises(ValueError, match=r"^count: "):
        eigen_geometry(eye, 0)
    with pytest.raises(ValueError, match=r"^moments: "):
        eigen_geometry(eye[:2], 5)
    with pytest.raises(ValueError, match=r"^moments: "):
        eigen_geometry(eye + np.inf, 5)
    with pytest.raises(ValueError, match=r"^rank: "):
        eigen_geometry(eye, 5, rank=0)
    with pytest.raises(ValueError, match=r"^rank_tol: "):
        eigen_geometry(eye, 5, rank_tol=-1)
    with pytest.raises(ValueError, match=r"^spectrum_boost: .*one of .*top10"):
        eigen_geometry(eye, 5, spectrum_boost="top")  # type: ignore[arg-type]
