import numpy as np
import pytest
from scipy.stats import chi2_contingency

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.quantity_skew import QuantitySkew


def toy(rows=4000, classes=4):
    labels = np.sort(np.arange(rows) % classes)
    return Dataset("toy", {"y": labels}, np.zeros(rows, np.int64), ("d",), Meta("classification", (1,)))


def sizes(skew, rows=4000, seed=0):
    parts = skew.split(toy(), np.arange(rows), np.random.default_rng(seed))
    assert np.array_equal(np.sort(np.concatenate([part.rows for part in parts])), np.arange(rows))
    return np.array([len(part.rows) for part in parts])


def test_alpha_sets_the_spread_of_sizes():
    spread = [
        np.mean([sizes(QuantitySkew(10, alpha), seed=s).std() for s in range(20)]) for alpha in (0.1, 1, 1e6)
    ]
    assert spread[0] > 1.5 * spread[1] > 100 * spread[2]
    # For Dirichlet(1) over 10 clients a share has standard deviation sqrt(0.1 * 0.9 / 11).
    assert spread[1] == pytest.approx(4000 * np.sqrt(0.09 / 11), rel=0.25)


def test_classes_stay_mixed():
    data = toy()
    parts = QuantitySkew(5, 1.0).split(data, np.arange(4000), np.random.default_rng(3))
    table = np.stack([np.bincount(data.arrays["y"][part.rows], minlength=4) for part in parts])
    assert 1e-3 < chi2_contingency(table).pvalue < 1 - 1e-3


def test_min_size_is_met_even_where_the_draw_gives_nothing():
    for seed in range(20):
        assert sizes(QuantitySkew(10, 1e-3, min_size=30), seed=seed).min() >= 30
    assert sizes(QuantitySkew(10, 0.1, min_size=4), rows=40).tolist() == [4] * 10


def test_infeasible_min_size():
    with pytest.raises(ScenarioError, match=r"39 rows .* at most 9 clients"):
        sizes(QuantitySkew(10, 0.1, min_size=4), rows=39)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"clients": 0}, "clients"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"min_size": 0}, "min_size"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        QuantitySkew(**options)
