import itertools

import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError, build_federation
from scenarios.datasets.markets import Markets
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


def test_blocks_follow_the_order_of_the_rows():
    data = toy()
    parts = split(data, np.arange(len(data)), clients_per_domain=4, blocks=True)
    assert np.array_equal(np.concatenate([part.rows for part in parts]), np.arange(len(data)))
    assert [len(part.rows) for part in parts] == [25] * 4 + [13, 13, 12, 12] + [51, 50, 50, 50]


def test_the_rate_of_blocks_is_the_end_of_what_may_be_trained_on():
    data = toy()
    pool = train_part(data)  # 0 to 69, 100 to 134 and 150 to 289
    parts = split(data, pool, clients_per_domain=2, rate=0.4, blocks=True)
    held = [(part.rows[0], part.rows[-1]) for part in parts]
    assert held == [(42, 55), (56, 69), (121, 127), (128, 134), (234, 261), (262, 289)]
    assert sum(len(part.rows) for part in parts) == 28 + 14 + 56
    parts = split(data, pool, rate=0.3, rate_of="domain", blocks=True)
    assert [(part.rows[0], part.rows[-1]) for part in parts] == [(40, 69), (120, 134), (230, 289)]


def test_blocks_of_series_are_stretches_of_time():
    data = Markets(markets=2, hours=600).load()
    blocks, dealt = (build_federation(data, DomainSkew(3, blocks=flag), 0) for flag in (True, False))
    start = data.arrays["start"]
    for domain in range(2):
        mine = [start[c.train] for c in blocks.clients if c.domain == domain]
        assert all(one.max() < other.min() for one, other in itertools.pairwise(mine))
        assert all(np.array_equal(one, np.arange(one[0], one[-1] + 1)) for one in mine)
    assert all(np.array_equal(blocks.tests[name], dealt.tests[name]) for name in data.domains)


def test_blocks_of_data_with_units_are_blocks_of_units():
    unit = np.array([3, 0, 2, 1, 3, 0, 2, 1, 4, 5, 4, 5])
    data = Dataset(
        "toy", {"y": np.zeros(12, int)}, np.repeat([0, 1], [8, 4]), ("a", "b"), Meta("classification", (1,)),
        test=np.array([4, 11]), unit=unit,
    )  # fmt: skip
    clients = build_federation(data, DomainSkew(2, blocks=True), 0, val_fraction=0).clients
    assert [set(unit[c.train].tolist()) for c in clients] == [{0, 1}, {2, 3}, {4}, {5}]


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
        ({"blocks": "yes"}, "blocks"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        DomainSkew(**options)
