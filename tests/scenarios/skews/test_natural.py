from dataclasses import replace

import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError, build_federation
from scenarios.skews.natural import Natural


def users(unit=(3, 3, 0, 5, 0, 3, 7, 7)):
    unit = np.array(unit)
    meta = Meta("recommendation", (1,), (), ("all",))
    return Dataset("users", {"y": np.zeros_like(unit)}, unit % 2, ("even", "odd"), meta, unit=unit)


def test_every_unit_is_a_client_of_its_domain():
    parts = Natural().split(users(), np.arange(8), np.random.default_rng(0))
    assert [part.rows.tolist() for part in parts] == [[2, 4], [0, 1, 5], [3], [6, 7]]
    assert [part.domain for part in parts] == [0, 1, 1, 1]


def test_some_units_can_be_drawn():
    drawn = []
    for seed in range(20):
        parts = Natural(clients=2).split(users(), np.arange(8), np.random.default_rng(seed))
        units = [np.unique(users().unit[part.rows]).tolist() for part in parts]
        assert sorted(units) == units
        assert [len(each) for each in units] == [1, 1]
        drawn.append((units[0][0], units[1][0]))
    assert len(set(drawn)) > 3
    assert {unit for pair in drawn for unit in pair} == {0, 3, 5, 7}


def test_what_is_held_out_of_a_user_stays_with_the_user():
    unit = np.repeat(np.arange(30), 4)
    data = users(unit)
    held = Dataset(
        "users",
        data.arrays,
        data.domain,
        data.domains,
        data.meta,
        np.arange(3, 120, 4),
        np.arange(2, 120, 4),
        unit=unit,
    )
    federation = build_federation(held, Natural(), 0)
    assert len(federation.clients) == 30
    for client in federation.clients:
        rows = np.concatenate([client.train, client.val, client.test])
        assert rows.tolist() == np.flatnonzero(unit == unit[rows[0]]).tolist()


def test_users_that_are_no_clients_are_tested_by_nobody():
    unit = np.repeat(np.arange(30), 4)
    data = replace(users(unit), test=np.arange(3, 120, 4), val=np.arange(2, 120, 4))
    federation = build_federation(data, Natural(5), 0)
    held = np.unique(unit[federation.clients.train.rows])
    assert len(held) == 5
    assert np.unique(unit[federation.clients.test.rows]).tolist() == held.tolist()
    assert np.unique(unit[federation.clients.val.rows]).tolist() == held.tolist()


def test_data_without_units_or_with_too_few_are_refused():
    data = Dataset("plain", {"y": np.zeros(3, int)}, np.zeros(3, int), ("d",), Meta("classification", (1,)))
    with pytest.raises(
        ScenarioError, match=r"^natural: data 'plain' do not say who has which rows; use .*iid$"
    ):
        build_federation(data, Natural(), 0)
    with pytest.raises(
        ScenarioError, match=r"^data 'users': 4 units .* cannot make 5 clients; use at most 4,"
    ):
        Natural(5).split(users(), np.arange(8), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^clients: not a possible number, got 0"):
        Natural(0)
