"""Whether the synthetic users are those of the models' specifications."""

import numpy as np
import pytest

from scenarios import ScenarioError
from scenarios.datasets.interests import Interests


@pytest.fixture(scope="module")
def rotating():
    return Interests(markets=4, users=1000, history=24).load()


@pytest.fixture(scope="module")
def several():
    return Interests(kind="several", examples="positions", min_history=20, users=1500, markets=1).load()


def table(data, each, market=0):
    """Items and times of a marketplace's users, both (users, events)."""
    item, time = (data.shared[name].reshape(-1, each) for name in ("item", "time"))
    users = len(item) // len(data.domains)
    part = slice(market * users, (market + 1) * users)
    return item[part], time[part]


def hits(scores, target, k):
    """Whether targets are among the first k, ties half above."""
    own = np.take_along_axis(scores, target[:, None], 1)
    return (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2 < k


def test_rotating_rows_are_of_the_protocol(rotating):
    first = np.arange(4000) * 25
    for rows, end, until in ((np.arange(4000), 20, 20), (rotating.val, 20, 21), (rotating.test, 24, 25)):
        for name, offset in (("start", 0), ("end", end), ("until", until)):
            np.testing.assert_array_equal(rotating.arrays[name][rows], first + offset)
    assert rotating.facts["items"] == 240
    assert rotating.facts["repeats"]
    assert rotating.domains == ("market_0", "market_1", "market_2", "market_3")
    assert rotating.shared["popularity"].sum() == 80_000
    assert rotating.meta.strata == tuple(f"category_{i}" for i in range(8))
    assert rotating.shared["category"][[1, 30, 31, 240]].tolist() == [1, 1, 2, 8]
    _, time = table(rotating, 25)
    gaps = np.diff(time, axis=1)
    between = (np.arange(1, 25) % 4) == 0
    assert gaps[:, between].min() >= 0.15
    assert gaps[:, between].max() <= 0.75
    assert gaps[:, between].mean() == pytest.approx(0.45, abs=0.01)
    assert gaps[:, ~between].max() <= 0.01


def test_rankings_without_a_model_score_as_in_the_specification_of_idnp():
    """HR@10 of own frequency .331, a mean of three seeds; that of popularity is given for each."""
    popular, own = [], []
    for seed in range(3):
        item, _ = table(Interests(markets=1, users=1000, seed=seed).load(), 25)
        popularity = np.bincount(item[:, :20].ravel(), minlength=241).astype(float)
        popularity[0] = -1
        counts = np.zeros((1000, 241))
        np.add.at(counts, (np.arange(1000)[:, None], item[:, :24]), 1)
        popular.append(hits(np.tile(popularity, (1000, 1)), item[:, 24], 10).mean())
        own.append(hits(counts + popularity / 1e6, item[:, 24], 10).mean())
    assert popular == pytest.approx([0.145, 0.107, 0.124], abs=6e-4)
    assert np.mean(own) == pytest.approx(0.331, abs=0.01)


def same_interest(data, market, low, high):
    """Share of pairs of a user's events so far apart in time that are of one category and style."""
    item, time = table(data, 25, market)
    style, apart = (item - 1) // 10, time[:, None] - time[:, :, None]
    pairs = (apart >= low) & (apart < high)
    return (style[:, None] == style[:, :, None])[pairs].mean()


@pytest.mark.parametrize(("market", "period"), [(0, 1.0), (1, 1.0), (2, 0.5), (3, 2.0)])
def test_interests_come_back_after_a_period(rotating, market, period):
    near = period / 20
    back = same_interest(rotating, market, period - near, period + near)
    away = same_interest(rotating, market, period / 2 - near, period / 2 + near)
    at_once = same_interest(rotating, market, 1e-9, 0.03)
    assert back == pytest.approx(at_once, abs=0.05)
    assert at_once > 0.55
    assert away < 0.27


def test_a_tenth_of_the_events_is_noise(rotating):
    """An interest is one of 24 styles; noise falls on a user's three as often as on any three."""
    for market in range(4):
        item, _ = table(rotating, 25, market)
        counts = np.zeros((1000, 24), dtype=int)
        np.add.at(counts, (np.arange(1000)[:, None], (item - 1) // 10), 1)
        outside = 25 - np.sort(counts)[:, -3:].sum(axis=1)
        assert outside.mean() / 25 == pytest.approx(0.1 * 21 / 24, abs=0.012)


def test_marketplaces_have_other_tastes_in_the_same_items(rotating):
    popularity = rotating.shared["popularity"][:, 1:]
    assert (popularity.sum(axis=1) == 20_000).all()
    assert (np.corrcoef(popularity)[np.triu_indices(4, 1)] < 0.7).all()
    of_category = popularity.reshape(4, 8, 30).sum(axis=2)
    assert len({tuple(np.argsort(each)) for each in of_category}) == 4
    # As popular as each other but for the order: categories, and places in a style.
    np.testing.assert_allclose(np.sort(of_category), np.sort(of_category)[[0] * 4], rtol=0.25)


def test_the_first_marketplace_and_users_do_not_change_with_their_number(rotating):
    few = Interests(markets=1, users=30).load()
    np.testing.assert_array_equal(few.shared["item"], rotating.shared["item"][: 30 * 25])
    for kind in ("rotating", "several"):
        one, two = (Interests(kind=kind, markets=1, users=50, seed=seed).load() for seed in (0, 1))
        assert (one.shared["item"] != two.shared["item"]).any()


def test_rows_of_several_interests_are_of_the_protocol(several):
    train = len(several) - 300
    assert train == 1200 * 38
    assert several.unit[several.val].tolist() == list(range(1200, 1350))
    assert several.unit[several.test].tolist() == list(range(1350, 1500))
    arrays, first = several.arrays, several.unit * 58
    position = (arrays["end"] - first)[:train].reshape(1200, 38)
    assert (position == np.arange(20, 58)).all()
    np.testing.assert_array_equal(arrays["until"][:train], arrays["end"][:train] + 1)
    np.testing.assert_array_equal(arrays["start"], np.maximum(arrays["end"] - 50, first))
    held = slice(train, None)
    np.testing.assert_array_equal(arrays["end"][held], first[held] + 50)
    np.testing.assert_array_equal(arrays["until"][held], first[held] + 58)
    assert several.shared["time"][:59].tolist() == [*(np.arange(58) / 4), 0]
    assert several.facts["items"] == 720
    two = Interests(kind="several", markets=2, users=19).load()
    assert two.unit[two.val].tolist() == [17, 36]
    assert two.unit[two.test].tolist() == [18, 37]
    with pytest.raises(ScenarioError, match=r"^data 'interests': 9 users are too few"):
        Interests(kind="several", users=9).load()
    with pytest.raises(ScenarioError, match=r"^data 'interests': has no times to split by"):
        Interests(kind="several", split="time", users=3).load()


def test_short_term_events_are_of_two_categories_one_of_them_often_new(several):
    item, _ = table(several, 58)
    category = (item - 1) // 12
    counts = [np.zeros((1500, 60), dtype=int) for _ in range(3)]
    for count, part in zip(counts, (category[:, :40], category[:, 40:50], category[:, 50:]), strict=True):
        np.add.at(count, (np.arange(1500)[:, None], part), 1)
    long, short, target = counts
    in_long = np.sort(long)[:, -4:].sum(axis=1).mean() / 40
    assert in_long == pytest.approx(0.9 + 0.1 * 4 / 60, abs=0.02)
    assert np.sort(short)[:, -2:].sum(axis=1).mean() / 10 == pytest.approx(0.9, abs=0.03)
    # A new category has three events or more with probability 0.9, and noise is in it before with about 0.06;
    # one of the four has none in 40 events with about 0.025.
    new = ((short >= 3) & (long == 0)).any(axis=1).mean()
    assert new == pytest.approx(0.9 * (0.3 * 0.94 + 1.7 * 0.025), abs=0.035)
    # Half of what is no noise is of the active pair, and half of the rest falls on it when none is new.
    both = np.argsort(-short)[:, :2]
    share = np.take_along_axis(target, both, 1).sum(axis=1).mean() / 8
    assert share == pytest.approx(0.9 * (0.5 + 0.5 * (0.7 * 0.5 + 0.3 * 0.25)), abs=0.04)


def test_popularity_scores_as_in_the_specification_of_hcn():
    """Recall@20 .142, .139 and .121 with seeds 0, 1 and 2, on 150 users each."""
    recall = []
    for seed in range(3):
        data = Interests(kind="several", markets=1, users=1500, seed=seed).load()
        popular = np.argsort(-data.shared["popularity"][0])[:20]
        for row in data.test:
            targets = np.unique(data.shared["item"][data.arrays["end"][row] : data.arrays["until"][row]])
            recall.append(np.isin(targets, popular).mean())
    assert np.mean(recall) == pytest.approx(0.134, abs=0.025)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"^kind: unknown, got 'few'; use rotating or several"):
        Interests(kind="few")
    with pytest.raises(ValueError, match=r"^users: not a possible number, got 0"):
        Interests(users=0)
    assert len(Interests(split="time", users=20).load().test)
