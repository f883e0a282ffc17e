import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.domain_skew import DomainSkew

SIZES = {"photo": 100, "art": 50, "sketch": 201}


def toy(sizes=SIZES):
    domain = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    labels = np.arange(len(domain)) % 5
    return Dataset("toy", {"y": labels}, domain, tuple(sizes), Meta("classification", (1,), tuple("abcde")))


def train_part(data, share=0.7):
    """First rows of every domain, as if the others were held out."""
    rows = [np.flatnonzero(data.domain == index) for index in range(len(data.domains))]
    return np.concatenate([of_domain[: int(share * len(of_domain))] for of_domain in rows])


def split(data, pool, seed=0, **options):
    parts = DomainSkew(**options).split(data, pool, np.random.default_rng(seed))
    rows = np.concatenate([part.rows for part in parts])
    assert len(np.unique(rows)) == len(rows)
    assert np.isin(rows, pool).all()
    for part in parts:
        assert (data.domain[part.rows] == part.domain).all()
    return parts


def test_one_client_holds_a_whole_domain():
    data = toy()
    parts = split(data, np.arange(len(data)))
    assert [part.domain for part in parts] == [0, 1, 2]
    assert [len(part.rows) for part in parts] == [100, 50, 201]


def test_several_clients_share_a_domain_evenly_and_at_random():
    data = toy()
    parts = split(data, np.arange(len(data)), clients_per_domain=4)
    assert [part.domain for part in parts] == [0] * 4 + [1] * 4 + [2] * 4
    assert sorted(len(part.rows) for part in parts[8:]) == [50, 50, 50, 51]
    assert np.diff(parts[8].rows).max() > 1  # not a block


def test_rate_of_the_training_rows():
    data = toy()
    parts = split(data, train_part(data), rate=0.1)  # of 70, 35 and 140 rows
    assert [len(part.rows) for part in parts] == [7, 3, 14]
    other = split(data, train_part(data), rate=0.1, seed=1)
    assert parts[2].rows.tolist() != other[2].rows.tolist()


def test_rate_of_the_whole_domain():
    data = toy()
    parts = split(data, train_part(data), rate=0.3, rate_of="domain")
    assert [len(part.rows) for part in parts] == [30, 15, 60]


def test_rate_of_the_whole_domain_above_what_may_be_trained_on():
    data = toy()
    with pytest.raises(ScenarioError, match=r"'photo' is 80 rows, but 70 of its 100 .* use rate=0.7 or less"):
        split(data, train_part(data), rate=0.8, rate_of="domain")
    assert len(split(data, train_part(data), rate=0.8)[0].rows) == 56


def test_one_domain_is_refused_with_names_of_data_that_fit():
    data = toy({"only": 30})
    with pytest.raises(ScenarioError, match=r"one domain only; .*Digits.*PACS.*Office-Home"):
        split(data, np.arange(30))


def test_too_few_rows_names_the_domain():
    data = toy()
    with pytest.raises(ScenarioError, match=r"domain 'art': 3 rows .* at most 3 clients"):
        split(data, train_part(data), rate=0.1, clients_per_domain=4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"clients_per_domain": 0}, "clients_per_domain"),
        ({"rate": 0}, "rate"),
        ({"rate": 1.01}, "rate"),
        ({"rate": True}, "rate"),
        ({"rate": "0.1"}, "rate"),
        ({"rate_of": "test"}, "rate_of"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        DomainSkew(**options)
