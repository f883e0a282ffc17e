import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError, build_federation
from scenarios.skews.base import ClientRows
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_domain_skew import LabelDomainSkew
from scenarios.skews.label_skew import LabelSkew
from scenarios.skews.quantity_skew import QuantitySkew

SKEWS = [
    Iid(7),
    LabelSkew(7, 0.3),
    QuantitySkew(7, 0.5),
    DomainSkew(2),
    DomainSkew(2, rate=0.2),
    LabelDomainSkew(0.3, 2),
]


def toy(rows=3000, classes=5, domains=3, test=None, seed=0):
    generator = np.random.default_rng(seed)
    labels, domain = generator.integers(0, classes, rows), generator.integers(0, domains, rows)
    meta = Meta("classification", (1,), tuple("abcdefgh"[:classes]))
    return Dataset("toy", {"y": labels}, domain, tuple("uvwxyz"[:domains]), meta, test)


def held(federation):
    return [np.sort(np.concatenate([client.train, client.val])).tolist() for client in federation.clients]


def sets(federation):
    return [
        [rows.tolist() for rows in (client.train, client.val, client.test)] for client in federation.clients
    ]


def cell_counts(data, rows):
    return np.bincount(data.domain[rows] * 5 + data.arrays["y"][rows], minlength=15)


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_sets_never_overlap_and_hold_sorted_rows(skew):
    data = toy()
    federation = build_federation(data, skew, 3)
    for kind in ("train", "val", "test"):
        assert all(getattr(client, kind).dtype == np.int64 for client in federation.clients)
    rows = np.concatenate(
        [part for client in federation.clients for part in (client.train, client.val, client.test)]
    )
    assert len(np.unique(rows)) == len(rows)
    parts = [part for client in federation.clients for part in (client.train, client.val, client.test)]
    for part in [*parts, *federation.tests.values()]:
        assert (np.diff(part) > 0).all()
    held_out = np.concatenate(list(federation.tests.values()))
    assert not np.isin(held_out, np.concatenate([*map(np.array, held(federation))])).any()
    assert np.isin(np.concatenate([client.test for client in federation.clients]), held_out).all()


@pytest.mark.parametrize("skew", SKEWS[:4], ids=repr)
def test_nothing_is_lost_where_the_skew_drops_nothing(skew):
    data = toy()
    federation = build_federation(data, skew, 3)
    rows = np.concatenate(
        [part for client in federation.clients for part in (client.train, client.val, client.test)]
    )
    assert np.array_equal(np.sort(rows), np.arange(3000))


def test_held_out_rows_are_stratified_by_domain_and_class():
    data = toy()
    tests = build_federation(data, Iid(2), 0, test_fraction=0.3).tests
    assert list(tests) == ["u", "v", "w"]
    for index, name in enumerate("uvw"):
        assert (data.domain[tests[name]] == index).all()
        assert len(tests[name]) == int(0.3 * np.count_nonzero(data.domain == index))
    whole = cell_counts(data, np.arange(3000))
    assert (np.abs(cell_counts(data, np.concatenate(list(tests.values()))) - 0.3 * whole) < 1).all()


def test_held_out_rows_are_drawn_at_random():
    one, other = (build_federation(toy(domains=1), Iid(2), seed).tests["u"] for seed in (0, 1))
    assert 0.2 < len(np.intersect1d(one, other)) / len(one) < 0.4  # 0.3 by chance


def test_official_test_rows_are_used_as_they_are():
    official = np.array([2999, 5, 17, 1000])
    data = toy(test=official)
    federation = build_federation(data, Iid(3), 0, test_fraction=0.5)
    assert sorted(np.concatenate(list(federation.tests.values())).tolist()) == [5, 17, 1000, 2999]
    assert sum(map(len, held(federation))) == 2996


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_official_validation_rows_are_dealt_to_those_who_hold_their_cell(skew):
    official = np.arange(1000, 1600)
    data = dataclasses.replace(toy(), val=official)
    federation = build_federation(data, skew, 0, val_fraction=0.5)
    dealt = np.concatenate([client.val for client in federation.clients])
    assert len(np.unique(dealt)) == len(dealt) > 300
    assert np.isin(dealt, official).all()
    assert not np.isin(official, np.concatenate([client.train for client in federation.clients])).any()
    for client in federation.clients:
        cells, holds = cell_counts(data, client.val) > 0, cell_counts(data, client.train) > 0
        assert (holds | ~cells).all()


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_the_same_seed_gives_the_same_federation_and_another_does_not(skew):
    first, again, other = (build_federation(toy(), skew, seed) for seed in (1, 1, 2))
    assert sets(first) == sets(again)
    assert sets(first) != sets(other)
    assert {name: rows.tolist() for name, rows in first.tests.items()} == {
        name: rows.tolist() for name, rows in again.tests.items()
    }


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_val_fraction_changes_nothing_but_validation(skew):
    federations = [build_federation(toy(), skew, 1, val_fraction=fraction) for fraction in (0, 0.1, 0.5)]
    assert held(federations[0]) == held(federations[1]) == held(federations[2])
    for small, large in zip(federations[1].clients, federations[2].clients, strict=True):
        assert small.test.tolist() == large.test.tolist()
        assert set(small.val) <= set(large.val)


@pytest.mark.parametrize("first", [LabelSkew(4, 0.1), DomainSkew(1)], ids=repr)
def test_held_out_rows_do_not_depend_on_the_skew(first):
    tests = [build_federation(toy(), skew, 1).tests for skew in (first, Iid(9))]
    assert all(np.array_equal(tests[0][name], tests[1][name]) for name in "uvw")


def test_validation_is_the_whole_part_of_the_fraction_at_random():
    federation = build_federation(toy(), QuantitySkew(8, 0.4), 0, val_fraction=0.29)
    for client in federation.clients:
        assert len(client.val) == int(0.29 * (len(client.train) + len(client.val)) + 1e-9)
    largest = max(federation.clients, key=lambda client: client.num_examples)
    assert largest.val.min() < largest.train.max()
    assert largest.val.max() > largest.train.min()
    assert all(not len(client.val) for client in build_federation(toy(), Iid(3), 0, val_fraction=0).clients)


def test_at_least_one_row_is_left_to_train_on():
    federation = build_federation(toy(rows=10, test=np.array([0])), Iid(9), 0, val_fraction=1 - 1e-12)
    assert [(len(client.train), len(client.val)) for client in federation.clients] == [(1, 0)] * 9


@pytest.mark.parametrize("skew", [LabelSkew(6, 0.3), QuantitySkew(6, 1.0), DomainSkew(2)], ids=repr)
def test_clients_are_tested_on_what_they_train_on(skew):
    data = toy()
    federation = build_federation(data, skew, 5)
    mine = np.stack([cell_counts(data, np.array(rows)) for rows in held(federation)])
    tested = np.stack([cell_counts(data, client.test) for client in federation.clients])
    every = cell_counts(data, np.concatenate(list(federation.tests.values())))
    assert (np.abs(tested - every * mine / mine.sum(axis=0)) < 1).all()
    assert (tested.sum(axis=0) == every).all()


def test_cells_that_nobody_holds_are_dealt_to_nobody():
    data = toy()
    federation = build_federation(data, LabelDomainSkew(0.05), 1)
    owned = sum(cell_counts(data, np.array(rows)) for rows in held(federation))
    tested = sum(cell_counts(data, client.test) for client in federation.clients)
    every = cell_counts(data, np.concatenate(list(federation.tests.values())))
    assert (owned == 0).sum() >= 3
    assert np.array_equal(tested, np.where(owned > 0, every, 0))


def test_test_rows_reach_all_of_many_equal_clients():
    # Each of 5 cells has 50 test rows for 100 clients: without lots the same half would get them all.
    data = toy(rows=5 * 250, domains=1)
    labels = np.arange(1250) % 5
    data = Dataset("toy", {"y": labels}, data.domain, ("u",), data.meta, np.arange(250))
    federation = build_federation(data, LabelSkew(100, 1e9), 0)
    sizes = np.array([len(client.test) for client in federation.clients])
    assert sizes.sum() == 250
    assert np.count_nonzero(sizes == 0) < 15
    assert sizes.max() < 6


def test_domains_of_the_clients():
    federation = build_federation(toy(), DomainSkew(2), 0)
    assert [federation.domain_of(client) for client in range(6)] == list("uuvvww")
    assert build_federation(toy(), Iid(2), 0).domain_of(1) == "mixed"
    assert build_federation(toy(domains=1), Iid(2), 0).domain_of(1) == "u"


@pytest.mark.parametrize("arrays", [{}, {"y": np.linspace(0, 1, 40)}])
def test_data_without_class_labels_are_one_class(arrays):
    data = Dataset("series", arrays, np.arange(40) % 2, ("u", "v"), Meta("forecasting", (1,)))
    federation = build_federation(data, Iid(4), 0, val_fraction=0.25, test_fraction=0.5)
    assert {name: len(rows) for name, rows in federation.tests.items()} == {"u": 10, "v": 10}
    assert [len(client.train) + len(client.val) for client in federation.clients] == [5] * 4
    assert sum(len(client.test) for client in federation.clients) == 20


@dataclass(frozen=True)
class Fixed:
    parts: tuple

    def split(self, _dataset, pool, _rng):
        return [ClientRows(pool[part], -1) for part in self.parts]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((slice(0, 3), slice(3, 3)), "client 1 of 2 gets no rows .*; use fewer clients"),
        ((), "no clients"),
        ((slice(0, 3), slice(2, 5)), "a row to two clients"),
    ],
)
def test_impossible_splits(parts, message):
    with pytest.raises(ScenarioError, match=message):
        build_federation(toy(), Fixed(parts), 0)


def test_a_skew_cannot_hand_out_test_rows():
    class Leak:
        def split(self, dataset, _pool, _rng):
            return [ClientRows(np.arange(len(dataset)), -1)]

    with pytest.raises(ScenarioError, match="not in its pool"):
        build_federation(toy(), Leak(), 0)


def test_more_clients_than_rows_and_no_rows():
    with pytest.raises(ScenarioError, match=r"14 rows .* at most 14 clients"):
        build_federation(toy(rows=20, domains=1), Iid(15), 0)
    with pytest.raises(ScenarioError, match="no rows are left"):
        build_federation(toy(rows=20, test=np.arange(20)), Iid(1), 0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"test_fraction": 1}, "test_fraction"),
        ({"test_fraction": "0.3"}, "test_fraction"),
        ({"test_fraction": True}, "test_fraction"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_arguments(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        build_federation(toy(), Iid(2), **({"seed": 0} | options))
