"""Rows of a unit, a user say, stay with one client."""

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.federation import Dataset, Meta
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_skew import LabelSkew

USERS, EACH = 60, 7


def users(strangers=0):
    """Rows of users in two domains; the last of a user is a test row, the one before for validation.

    Of the first users, ``strangers``, there is nothing but the test row.
    """
    unit = np.repeat(np.arange(USERS), EACH)
    number = np.tile(np.arange(EACH), USERS)
    kept = (unit >= strangers) | (number == EACH - 1)
    unit, number = unit[kept], number[kept]
    mixed = np.random.default_rng(0).permutation(len(unit))  # rows of a unit need not be neighbours
    unit, number = unit[mixed], number[mixed]
    return Dataset(
        "users",
        {"y": unit % 3},
        domain=unit % 2,
        domains=("a", "b"),
        meta=Meta("recommendation", (1,), (), ("p", "q", "r")),
        test=np.flatnonzero(number == EACH - 1),
        val=np.flatnonzero(number == EACH - 2),
        unit=unit,
    )


@pytest.mark.parametrize("skew", [Iid(7), LabelSkew(5, 0.3), DomainSkew(3)])
def test_a_unit_goes_to_one_client_with_all_that_is_held_out_of_it(skew):
    data = users()
    federation = build_federation(data, skew, 0)
    held = [[set(data.unit[rows].tolist()) for rows in (c.train, c.val, c.test)] for c in federation.clients]
    for train, val, test in held:
        assert train == val == test
    everyone = [user for train, _, _ in held for user in train]
    assert sorted(everyone) == list(range(USERS))
    assert all(
        len(client.train) == (EACH - 2) * len(train)
        for client, (train, *_) in zip(federation.clients, held, strict=True)
    )


def test_skews_divide_units_by_their_number():
    federation = build_federation(users(), Iid(4), 0)
    assert federation.sizes.tolist() == [15 * (EACH - 2)] * 4


def test_units_without_training_rows_are_dealt_whole():
    data = users(strangers=20)
    federation = build_federation(data, Iid(4), 0)
    assert federation.sizes.sum() == 40 * (EACH - 2)
    tested = np.concatenate([client.test for client in federation.clients])
    assert sorted(data.unit[tested].tolist()) == list(range(USERS))
    for client in federation.clients:
        own = set(data.unit[client.train].tolist())
        assert own <= set(data.unit[client.test].tolist())
        assert set(data.unit[client.test].tolist()) - own <= set(range(20))


def test_a_unit_for_each_row_is_needed():
    with pytest.raises(ScenarioError, match="array 'unit' has 3 rows, domain has 2"):
        Dataset("odd", {}, np.zeros(2, int), ("a",), Meta("x", (1,)), unit=np.zeros(3, int))
