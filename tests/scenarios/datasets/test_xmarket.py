import numpy as np
import pytest

from scenarios import build_federation
from scenarios.datasets.xmarket import MARKETS, Xmarket
from scenarios.skews.domain_skew import DomainSkew

RATINGS = (44_779, 17_300, 17_624, 2_015, 4_485, 17_095, 31_547)
USERS = (4_668, 1_851, 1_838, 239, 487, 1_878, 3_352)
ITEMS = (5_735, 2_179, 1_879, 470, 955, 1_645, 3_251)


def test_counts_are_those_of_the_files(data_root):
    data = Xmarket(root=data_root, repeats=True, split="users").load()
    first, last = data.shared["taken_from"][:-1], data.shared["taken_from"][1:]
    assert len(data.shared["item"]) == sum(RATINGS) == 134_845
    assert data.domains == MARKETS
    assert data.facts["users"] == sum(USERS) == 14_313  # 14,311 names, two of which are in two marketplaces
    assert data.facts["items"] == 8_304
    assert data.facts["categories"] is None
    assert data.meta.strata == ("all",)
    held_out = 2 * (14_313 // 10)
    assert np.count_nonzero(first == last) == held_out
    assert len(data.val) == len(data.test) == held_out // 2


def test_marketplaces_share_items(data_root):
    data = Xmarket(root=data_root, repeats=True).load()
    # Every user has a test row, whose last target ends the user's events.
    ends = data.arrays["until"][data.test]
    market = np.repeat(data.arrays["market"][data.test], np.diff(ends, prepend=0))
    has = np.zeros((7, 8_305), dtype=bool)
    has[market, data.shared["item"]] = True
    assert has.sum(axis=1).tolist() == list(ITEMS)
    assert np.count_nonzero(has.sum(axis=0) > 1) == 3_708
    days = np.datetime64("2020-11-18") - np.datetime64("2004-05-09")
    assert data.shared["time"].max() == pytest.approx(days.astype(int) / 30)


def test_a_marketplace_is_a_client_whose_items_came_once(data_root):
    data = Xmarket(root=data_root).load()
    assert len(data.shared["item"]) < 134_845 - 3_018  # those that came again, and users with fewer than 5
    federation = build_federation(data, DomainSkew(), 0)
    users = [len(np.unique(federation.dataset.unit[client.train])) for client in federation.clients]
    assert max(users) == federation.dataset.facts["users"] <= USERS[0]
    assert all(np.array(users) > 0.95 * np.array(USERS))


def test_some_marketplaces_can_be_chosen(data_root):
    data = Xmarket(root=data_root, markets=["jp", "in"]).load()
    assert data.domains == ("jp", "in")
    with pytest.raises(ValueError, match=r"^markets: unknown, got 'us'; use ca or de"):
        Xmarket(markets=["us"])
    with pytest.raises(ValueError, match=r"^markets: one is named twice in jp, jp; use each once"):
        Xmarket(markets=["jp", "jp"])
