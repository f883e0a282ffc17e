import numpy as np
import pytest
from scipy.stats import chi2_contingency

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.iid import Iid


def toy(rows=5000, classes=5):
    labels = np.sort(np.arange(rows) % classes)  # sorted, so that consecutive blocks would show
    return Dataset("toy", {"y": labels}, np.zeros(rows, np.int64), ("d",), Meta("classification", (1,)))


def test_every_row_goes_to_one_client_and_sizes_differ_by_one_at_most():
    pool = np.arange(7, 4990)
    parts = Iid(clients=12).split(toy(), pool, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate([part.rows for part in parts])), pool)
    sizes = [len(part.rows) for part in parts]
    assert len(sizes) == 12
    assert max(sizes) - min(sizes) == 1
    assert {part.domain for part in parts} == {0}


def test_classes_are_mixed_by_chance():
    data = toy()
    parts = Iid(clients=10).split(data, np.arange(5000), np.random.default_rng(1))
    table = np.stack([np.bincount(data.arrays["y"][part.rows], minlength=5) for part in parts])
    assert 1e-3 < chi2_contingency(table).pvalue < 1 - 1e-3


def test_one_client_is_central_training():
    (part,) = Iid(clients=1).split(toy(), np.arange(100), np.random.default_rng(0))
    assert part.rows.tolist() == list(range(100))


def test_more_clients_than_rows_says_how_many_would_do():
    with pytest.raises(ScenarioError, match="at most 9 clients"):
        Iid(clients=10).split(toy(), np.arange(9), np.random.default_rng(0))
    assert len(Iid(clients=9).split(toy(), np.arange(9), np.random.default_rng(0))) == 9


@pytest.mark.parametrize("clients", [0, -1, 2.0, "3", True, None])
def test_bad_options(clients):
    with pytest.raises(ValueError, match=r"^clients: .* got .*; use a whole number of at least 1"):
        Iid(clients=clients)
