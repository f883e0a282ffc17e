from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from scenarios.datasets.gaussian_domains import GaussianDomains

E4 = GaussianDomains(
    dim=256,
    classes=50,
    train_per_class=100,
    test_per_class=40,
    spectrum="harmonic",
    basis_mix=0.4,
    mean_std=0.2,
    mean_rank=40,
    common_norm=7,
)


def central_accuracy(options: GaussianDomains) -> float:
    data = options.load()
    x, y = data.arrays["x"], data.arrays["y"]
    test = np.isin(np.arange(len(data)), data.test)
    return LogisticRegression(C=0.1, max_iter=100).fit(x[~test], y[~test]).score(x[test], y[test])


def test_rows_of_every_cell() -> None:
    data = GaussianDomains(domains=3, train_per_class=5, test_per_class=2, classes=4, dim=6).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype, y.dtype) == ((84, 6), np.float32, np.int64)
    assert data.domains == ("domain_0", "domain_1", "domain_2")
    assert (np.bincount(data.domain * 4 + y) == 7).all()
    assert data.test is not None
    assert (np.bincount((data.domain * 4 + y)[data.test]) == 2).all()
    assert len(np.unique(x, axis=0)) == 84
    assert data.meta.shape == (6,)
    assert len(data.meta.classes) == 4


def test_the_seed_decides_and_split_sizes_do_not_touch_each_other() -> None:
    data = GaussianDomains().load()
    assert data.fingerprint() == GaussianDomains().load().fingerprint()
    assert data.fingerprint() != GaussianDomains(seed=1).load().fingerprint()
    fewer = GaussianDomains(train_per_class=10).load()
    assert np.array_equal(fewer.arrays["x"][fewer.test], data.arrays["x"][data.test])


def covariances(options: GaussianDomains) -> np.ndarray:
    data = options.load()
    x = data.arrays["x"].reshape(options.domains, options.classes, -1, options.dim).astype(float)
    x -= x.mean(axis=2, keepdims=True)
    return np.einsum("qcni,qcnj->qcij", x, x) / x.shape[2]


def test_spectra_and_shapes() -> None:
    many: dict[str, Any] = {"dim": 6, "classes": 2, "domains": 2, "train_per_class": 20_000}
    same = covariances(GaussianDomains(**many))
    geometric = np.geomspace(0.01, 4, 6)
    assert np.allclose(np.linalg.eigvalsh(same), geometric, rtol=0.06)
    harmonic = covariances(GaussianDomains(**many, spectrum="harmonic"))
    assert np.allclose(np.linalg.eigvalsh(harmonic), 60 / 2.45 / np.arange(6, 0, -1), rtol=0.06)
    assert np.abs(same[0] - same[1]).max() < 0.15
    assert np.abs(same[0, 0] - same[0, 1]).max() > 0.3
    turned = covariances(GaussianDomains(**many, rerandomise=0.5))
    assert np.allclose(np.linalg.eigvalsh(turned), geometric, rtol=0.06)
    assert (np.abs(turned[0] - turned[1]).max(axis=(1, 2)) > 0.3).all()


def test_norms() -> None:
    x = E4.load().arrays["x"]
    assert np.linalg.norm(x, axis=1).mean() == pytest.approx(10.5, abs=0.1)
    x = GaussianDomains(unit_norm=True).load().arrays["x"]
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)


def test_a_central_classifier_gets_what_is_published() -> None:
    assert central_accuracy(GaussianDomains()) == pytest.approx(0.704, abs=0.06)
    domains = GaussianDomains(domains=4, train_per_class=60, test_per_class=60)
    assert central_accuracy(domains) == pytest.approx(0.708, abs=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim: .*got 0; use a whole number of at least 1"),
        ({"classes": 1}, "classes: .*got 1; use a whole number of at least 2"),
        ({"spectrum": "harmonics"}, r"spectrum: unknown, .*did you mean 'harmonic'\?"),
        ({"rerandomise": 1.5}, r"rerandomise: .*got 1\.5; use one from 0 to 1"),
        ({"mean_std": -1}, "mean_std: .*got -1; use one from 0"),
        ({"mean_rank": 65}, "mean_rank: above dim=64, got 65; use at most 64"),
        ({"unit_norm": 1}, "unit_norm: .*use true or false"),
        ({"test_per_class": 0}, "test_per_class: .*at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GaussianDomains(**options)
