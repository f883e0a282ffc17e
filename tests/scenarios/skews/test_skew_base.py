import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError
from scenarios.federation import Parts
from scenarios.skews.base import (
    DRAWS,
    draw_counts,
    even_sizes,
    group_rows,
    holdings,
    labels_of,
    largest_remainder,
    portion,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_largest_remainder_by_hand():
    # Quotas 4.5, 3.0, 2.4, 0.1: floors 4, 3, 2, 0 leave one for the largest fraction, 0.5.
    assert largest_remainder(np.array([45, 30, 24, 1]), 10, rng()).tolist() == [5, 3, 2, 0]


def test_largest_remainder_adds_up_row_by_row_and_stays_within_one_of_the_quota():
    weights = rng(1).dirichlet(np.full(7, 0.1), size=500)
    totals = rng(2).integers(0, 300, 500)
    counts = largest_remainder(weights, totals, rng(3))
    assert (counts.sum(axis=1) == totals).all()
    assert (counts >= 0).all()
    assert (np.abs(counts - weights * totals[:, None]) < 1).all()


def test_equal_fractions_are_ordered_by_lot():
    generator = rng(4)
    wins = sum(largest_remainder(np.ones(4), 2, generator) for _ in range(400))
    assert wins.sum() == 800
    assert wins.min() > 150


def test_nothing_goes_to_weight_zero():
    counts = largest_remainder(np.array([0, 1, 1, 1, 0]), 2, rng(5))
    assert counts.sum() == 2
    assert counts[[0, 4]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("fraction", "total", "expected"), [(0.29, 100, 29), (0.3, 10, 3), (0.1, 9, 0), (0.5, 3, 1)]
)
def test_portion_rounds_down_what_is_really_below(fraction, total, expected):
    assert portion(fraction, total) == expected


def test_group_rows_keeps_every_row_with_its_key():
    groups = group_rows(np.array([10, 11, 12, 13, 14]), np.array([2, 0, 2, 5, 0]))
    assert {key: rows.tolist() for key, rows in groups.items()} == {0: [11, 14], 2: [10, 12], 5: [13]}
    assert group_rows(np.empty(0, np.int64), np.empty(0, np.int64)) == {}


def test_labels_are_one_class_without_class_labels():
    def data(**arrays):
        return Dataset("t", arrays, np.zeros(3, np.int64), ("d",), Meta("any", (1,)))

    assert labels_of(data(y=np.array([2, 0, 1]))).tolist() == [2, 0, 1]
    for other in ({}, {"y": np.array([0.5, 1.5, 2.5])}, {"y": np.ones((3, 2), np.int64)}):
        assert labels_of(data(**other)).tolist() == [0, 0, 0]


def test_domain_of_a_client_is_read_from_its_rows():
    data = Dataset("t", {}, np.array([0, 1, 1]), ("a", "b"), Meta("any", (1,)))
    parts = Parts.of([np.array([2, 1]), np.empty(0, np.int64), np.array([0, 1])])
    clients = holdings(data, parts)
    assert [(client.rows.tolist(), client.domain) for client in clients] == [
        ([1, 2], 1),
        ([], -1),
        ([0, 1], -1),
    ]


def test_even_sizes_are_those_of_array_split():
    for total, parts in ((10, 3), (9, 3), (2, 4), (0, 2)):
        assert even_sizes(total, parts).tolist() == [*map(len, np.array_split(np.arange(total), parts))]


@pytest.mark.parametrize("weights", [np.ones(9), np.array([1, 1, 2, 0, 3, 3, 3, 0, 1.5]), None])
def test_largest_remainder_is_what_sorting_all_fractions_gives(weights):
    for seed in range(50):
        w = rng(seed).dirichlet(np.ones(9), 4) if weights is None else weights
        total = np.array([seed, 3, 7, 2 * seed]) if weights is None else np.array(seed)
        quota = w / w.sum(axis=-1, keepdims=True) * total[..., None]
        order = np.lexsort((rng(seed).random(quota.shape), np.floor(quota) - quota), axis=-1)
        missing = total - np.floor(quota).sum(axis=-1)
        expected = np.floor(quota) + (np.argsort(order, axis=-1) < missing[..., None])
        assert largest_remainder(w, total, rng(seed)).tolist() == expected.tolist()


def test_draws_are_bounded_and_the_error_says_how_close_they_came():
    calls = []

    def draw():
        calls.append(1)
        return np.array([[3, len(calls) % 3], [3, 0]])

    with pytest.raises(ScenarioError, match=r"4 rows or more .*\(the best left 2\); lower it"):
        draw_counts(draw, 4, "lower it")
    assert len(calls) == DRAWS
    assert draw_counts(draw, 2, "").tolist() == [[3, 2], [3, 0]]


def test_large_draws_are_tried_less_often(monkeypatch):
    monkeypatch.setattr("scenarios.skews.base.NUMBERS", 100)
    with pytest.raises(ScenarioError, match="none of 250 draws left 1 rows"):
        draw_counts(lambda: np.zeros((4, 100), np.int64), 1, "")
