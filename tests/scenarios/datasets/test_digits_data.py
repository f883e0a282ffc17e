import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from scenarios.datasets.digits import Digits


def test_every_digit_is_in_one_domain_and_classes_are_even() -> None:
    data = Digits().load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype, y.dtype) == ((1797, 1, 16, 16), np.uint8, np.int64)
    assert np.array_equal(y, load_digits().target), "row i is digit i, so none is there twice"
    assert data.domains == ("scanned", "inverted", "blurred", "textured")
    counts = np.array([np.bincount(y[data.domain == q], minlength=10) for q in range(4)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert data.test is None
    assert data.meta.shape == (1, 16, 16)
    assert data.meta.classes == tuple("0123456789")


def test_the_seed_decides() -> None:
    assert Digits().load().fingerprint() == Digits(seed=0).load().fingerprint()
    assert Digits().load().fingerprint() != Digits(seed=1).load().fingerprint()


@pytest.mark.parametrize("size", [8, 28])
def test_size(size: int) -> None:
    assert Digits(size=size).load().arrays["x"].shape == (1797, 1, size, size)


def test_scanned_keeps_the_pixels() -> None:
    data = Digits(size=8).load()
    rows = data.domain == 0
    original = load_digits().images[rows] * (255 / 16)
    assert np.abs(data.arrays["x"][rows, 0] - original).max() <= 0.5


def test_a_probe_learns_each_domain_and_transfers_worse() -> None:
    data = Digits().load()
    x = data.arrays["x"].reshape(len(data), -1) / 255
    y, train = data.arrays["y"], np.random.default_rng(1).random(len(data)) < 0.7
    accuracy = np.empty((4, 4))
    for source in range(4):
        rows = train & (data.domain == source)
        probe = LogisticRegression(C=0.1, max_iter=200).fit(x[rows], y[rows])
        for target in range(4):
            rows = ~train & (data.domain == target)
            accuracy[source, target] = probe.score(x[rows], y[rows])
    own = np.diag(accuracy)
    assert own.min() > 0.8, accuracy
    assert (accuracy.sum() - own.sum()) / 12 < own.mean() - 0.3, accuracy
    # Each target domain is served best by its own probe, by a margin, from the average other domain.
    assert ((accuracy.sum(axis=0) - own) / 3 < own - 0.2).all(), accuracy


@pytest.mark.parametrize(
    ("options", "field"), [({"size": 4}, "size"), ({"size": 16.0}, "size"), ({"seed": -1}, "seed")]
)
def test_options_are_checked(options: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: .*got .*; use a whole number of at least \d"):
        Digits(**options)  # type: ignore[arg-type]
