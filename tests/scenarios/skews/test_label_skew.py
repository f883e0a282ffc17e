import time

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.label_skew import LabelSkew


def toy(per_class=300, classes=6, domains=1):
    labels = np.repeat(np.arange(classes), per_class)
    names = tuple(f"class{index}" for index in range(classes))
    domain = np.arange(len(labels)) % domains
    return Dataset("toy", {"y": labels}, domain, tuple("abcd"[:domains]), Meta("classification", (1,), names))


def table(data, skew, seed=0):
    """Counts by client and class; asserts that every row is held once."""
    parts = skew.split(data, np.arange(len(data)), np.random.default_rng(seed))
    assert np.array_equal(np.sort(np.concatenate([part.rows for part in parts])), np.arange(len(data)))
    classes = len(data.meta.classes)
    return np.stack([np.bincount(data.arrays["y"][part.rows], minlength=classes) for part in parts])


def test_large_alpha_is_near_iid_and_small_is_not():
    assert chi2_contingency(table(toy(), LabelSkew(8, 1e6))).pvalue > 0.9
    assert chi2_contingency(table(toy(), LabelSkew(8, 0.5))).pvalue < 1e-12


def test_tiny_alpha_gives_a_class_to_about_one_client():
    counts = table(toy(classes=40), LabelSkew(4, 1e-3))
    largest = counts.max(axis=0) / 300
    assert np.mean(largest > 0.99) > 0.9
    assert len(np.unique(counts.argmax(axis=0))) == 4  # not the same client for all


def test_shares_of_a_class_follow_the_dirichlet():
    shares = np.concatenate(
        [table(toy(classes=50), LabelSkew(5, 0.5), seed)[:, :] / 300 for seed in range(6)]
    )
    # Variance of a share under Dirichlet(a) over K clients: (1/K)(1 - 1/K) / (K a + 1).
    assert shares.var() == pytest.approx(0.2 * 0.8 / 3.5, rel=0.1)


@pytest.mark.parametrize("minimum", [1, 5])
def test_every_client_gets_the_guaranteed_rows_of_every_class(minimum):
    counts = table(toy(), LabelSkew(10, 0.01, min_per_class=minimum))
    assert counts.min() == minimum  # at this alpha most cells get no more
    assert (counts == minimum).sum() > 30
    assert table(toy(), LabelSkew(10, 0.01)).min() == 0


def test_guarantee_may_take_every_row():
    assert (table(toy(per_class=20), LabelSkew(10, 0.1, min_per_class=2)) == 2).all()


def test_guarantee_that_cannot_be_met_names_the_class_and_the_limit():
    data = toy()
    pool = np.setdiff1d(np.arange(len(data)), np.arange(2 * 300, 2 * 300 + 292))  # leaves 8 of class2
    with pytest.raises(ScenarioError, match=r"'class2' has 8 rows .* needs 10; .* at most 8$"):
        LabelSkew(10, 0.5, min_per_class=1).split(data, pool, np.random.default_rng(0))
    assert len(LabelSkew(8, 0.5, min_per_class=1).split(data, pool, np.random.default_rng(0))) == 8


def test_min_size_is_met_by_drawing_anew():
    smallest = [table(toy(), LabelSkew(10, 0.3), seed).sum(axis=1).min() for seed in range(10)]
    assert min(smallest) < 60  # else the next line shows nothing
    for seed in range(10):
        assert table(toy(), LabelSkew(10, 0.3, min_size=60), seed).sum(axis=1).min() >= 60


def test_min_size_that_is_out_of_reach_ends_with_advice():
    started = time.monotonic()
    with pytest.raises(
        ScenarioError, match=r"raise alpha \(0.001\), use fewer clients \(50\) or lower min_size"
    ):
        table(toy(), LabelSkew(50, 0.001, min_size=20))
    with pytest.raises(ScenarioError, match="at most 18 clients"):
        table(toy(), LabelSkew(50, 0.5, min_size=100))
    assert time.monotonic() - started < 10


def test_same_generator_same_split_and_rows_not_in_the_order_of_the_data():
    data = toy(classes=1)
    first, again, other = (
        [
            part.rows.tolist()
            for part in LabelSkew(3, 1.0).split(data, np.arange(300), np.random.default_rng(seed))
        ]
        for seed in (5, 5, 6)
    )
    assert first == again != other
    assert any(np.diff(rows).max() > 1 for rows in first)


def test_domains_are_mixed_unless_there_is_one():
    for domains, expected in ((1, 0), (4, -1)):
        data = toy(domains=domains)
        parts = LabelSkew(4, 10.0).split(data, np.arange(len(data)), np.random.default_rng(0))
        assert {part.domain for part in parts} == {expected}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"clients": 0}, "clients"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": "0.5"}, "alpha"),
        ({"min_per_class": -1}, "min_per_class"),
        ({"min_size": 0}, "min_size"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        LabelSkew(**options)
