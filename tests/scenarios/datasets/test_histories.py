"""How events of users become histories and targets."""

import dataclasses

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.histories import EXAMPLES, Events, Histories
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_domain_skew import LabelDomainSkew
from scenarios.skews.label_skew import LabelSkew
from scenarios.skews.natural import Natural


def events(*users, categories=(0,) * 10, names=(), domain=(0,) * 99, domains=("d",), complete=True):
    """Events of users given as lists of (item, time)."""
    rows = [(u, item, time) for u, each in enumerate(users) for item, time in each]
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    return Events(
        user,
        item,
        time.astype(float),
        np.array(domain)[user],
        domains,
        np.array(categories),
        names,
        complete,
    )


def shown(data):
    """Users and bounds of training, validation and test rows."""
    columns = [data.arrays[name] for name in ("person", "start", "end", "until")]
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    held = len(data.val) + len(data.test)
    assert data.val.tolist() == list(range(len(data) - held, len(data) - len(data.test)))
    assert data.test.tolist() == list(range(len(data) - len(data.test), len(data)))
    return rows[:-held], [rows[row] for row in data.val], [rows[row] for row in data.test]


SEVEN = [(3, 10), (1, 4), (4, 16), (1, 7), (5, 19), (9, 22), (2, 13)]  # by time: 1 1 3 2 4 5 9
FIVE = [(6, 2), (7, 3), (6, 3), (8, 1), (6, 30)]  # by time: 8 6 7 6 6
KINDS = (0, 1, 2, 2, 1, 1, 0, 1, 1, 2)  # of 3, 2 and 4: 2, 2, 1


def test_leave_one_out_with_windows_from_the_newest_backwards():
    made = events(SEVEN, [(1, 0)] * 4, FIVE, categories=KINDS, names=("p", "q"))
    data = Histories(history=3, repeats=True, period=2.0).cut("toy", made)
    assert data.shared["item"].tolist() == [1, 1, 3, 2, 4, 5, 9, 8, 6, 7, 6, 6]
    assert data.shared["time"].tolist() == [1.5, 3, 4.5, 6, 7.5, 9, 10.5, 0, 0.5, 1, 1, 14.5]
    assert shown(data) == (
        [(0, 0, 3, 3), (0, 2, 5, 5), (1, 7, 10, 10)],
        [(0, 2, 5, 6), (1, 7, 10, 11)],
        [(0, 3, 6, 7), (1, 8, 11, 12)],
    )
    assert data.shared["popularity"].tolist() == [[0, 2, 1, 1, 1, 0, 1, 1, 1, 0]]
    assert data.shared["taken_from"].tolist() == [0, 4, 7]
    assert data.shared["taken"].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert data.meta.strata == ("p",)
    assert data.meta.shape == (3,)
    facts = data.facts
    assert (facts["items"], facts["users"], facts["history"], facts["repeats"]) == (9, 2, 3, True)
    assert facts["categories"] == KINDS
    assert facts["popularity"] is data.shared["popularity"]
    assert {data.arrays[name].dtype for name in data.arrays} == {np.dtype(np.int64)}


def test_a_window_of_one_event_is_left_out():
    made = events([(i, i) for i in range(1, 8)])
    assert shown(Histories(history=5, period=None).cut("toy", made))[0] == [(0, 0, 5, 5)]
    made = events([(i, i) for i in range(1, 9)])
    data = Histories(history=5, period=None).cut("toy", made)
    assert shown(data)[0] == [(0, 0, 2, 2), (0, 1, 6, 6)]
    assert data.shared["time"].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_positions_are_training_events_with_enough_before_them():
    made = events(SEVEN, FIVE)
    data = Histories(history=3, examples="positions", min_history=2, repeats=True).cut("toy", made)
    train, val, test = shown(data)
    assert train == [(0, 0, 2, 3), (0, 0, 3, 4), (0, 1, 4, 5), (1, 7, 9, 10)]
    assert val == [(0, 2, 5, 6), (1, 7, 10, 11)]
    assert test == [(0, 3, 6, 7), (1, 8, 11, 12)]


def test_time_cuts_all_users_at_two_moments():
    """A user whose first event is after the first moment is dropped."""
    made = events([(1, 0), (2, 2), (3, 8), (4, 9)], [(5, 9.5)], [(i, i) for i in (1, 3, 4, 5, 6)])
    data = Histories(split="time", history=2).cut("toy", made)  # moments 8.2 and 9.05
    windows = [(0, 0, 2, 2), (0, 1, 3, 3), *((1, i, i + 2, i + 2) for i in range(4, 8))]
    assert shown(data) == (windows, [(0, 1, 3, 4)], [])
    data = Histories(split="time", history=9, val_from=0.5, test_from=0.6).cut("toy", made)  # 4.5 and 5.4
    assert shown(data) == ([(0, 0, 2, 2), (1, 4, 7, 7)], [(1, 4, 7, 8)], [(0, 0, 2, 4), (1, 4, 8, 9)])
    assert data.users == 2
    assert data.shared["taken"].tolist() == [1, 2, 1, 3, 4]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_held_out_users_have_a_history_of_four_fifths(examples):
    """The first users have 2 to 9 events, the others 2."""
    sizes = [*range(2, 10), *[2] * 12]
    made = events(*([(i + 1, i) for i in range(size)] for size in sizes))
    many = 0
    for seed in range(10):
        data = Histories(split="users", history=99, examples=examples, seed=seed).cut("toy", made)
        train, val, test = shown(data)
        held = {row[0] for row in val + test}
        assert (len(val), len(test), len(held)) == (2, 2, 4)
        first = np.cumsum([0, *sizes])
        for person, start, end, until in val + test:
            assert (start, until) == (first[person], first[person + 1])
            assert end - start == max(1, int(0.8 * (until - start) + 1e-9))
            assert data.shared["taken_from"][person] == data.shared["taken_from"][person + 1]
            many += until - end > 1
        assert {row[0] for row in train} == set(range(20)) - held
    assert many


def test_events_at_one_time_stay_in_order_and_repeated_ones_count_once():
    made = events([(5, 1), (3, 1), (5, 0), (9, 1), (3, 0), (1, 2), (2, 2), (5, 3)], complete=False)
    data = Histories().cut("toy", made)
    ids = {1: 1, 2: 2, 3: 3, 5: 4, 9: 5}  # given anew without gaps
    assert data.shared["item"].tolist() == [ids[item] for item in (5, 3, 9, 1, 2)]
    assert not data.repeats
    kept = Histories(repeats=True).cut("toy", made).shared["item"]
    assert kept.tolist() == [ids[item] for item in (5, 3, 5, 3, 9, 1, 2, 5)]


def test_a_core_is_filtered_until_it_stands():
    """Item 9 is rare; without it the last user is, and with that one item 8."""
    full = [[(i, i) for i in range(1, 7)]] * 2
    made = events(*full, [(1, 0), (9, 1), (8, 2)], [(8, 3), *full[0]], complete=False)
    with pytest.raises(ScenarioError, match=r"^data 'toy': 3 users are too few to hold a tenth out twice; "):
        Histories(core=3, split="users").cut("toy", made)
    data = Histories(core=3).cut("toy", made)
    assert data.facts["items"] == 6
    assert data.shared["item"].tolist() == [*range(1, 7)] * 3


def test_the_dominant_category_is_of_training_events_and_ties_go_to_the_first():
    names, kinds = ("p", "q", "r"), (0, 3, 3, 2, 2, 1, 1, 0, 0, 0)
    tie, late = [3, 4, 1, 2, 5, 6], [1, 2, 3, 5, 6]  # q and r twice each; r twice before two of p
    none, mixed = [7, 8, 1, 9, 9], [5, 7, 5, 1, 1]
    made = events(
        *([(item, i) for i, item in enumerate(items)] for items in (tie, late, none, mixed)),
        categories=kinds,
        names=names,
    )
    data = Histories(repeats=True).cut("toy", made)
    assert data.meta.strata == ("none", "p", "q", "r")
    assert data.arrays["y"][data.test].tolist() == [2, 3, 0, 1]


def several(users=40, **options):
    """Data of random users in two domains, and each user's events by time."""
    rng = np.random.default_rng(0)
    rows = [
        [(int(rng.integers(1, 30)), int(rng.integers(50))) for _ in range(rng.integers(3, 25))]
        for _ in range(users)
    ]
    made = events(
        *rows,
        categories=(0, *rng.integers(1, 4, 29)),
        names=("p", "q", "r"),
        domain=np.arange(users) % 2,
        domains=("a", "b"),
    )
    data = Histories(**{"history": 4, **options}).cut("toy", made)
    ordered = [sorted(each, key=lambda event: event[1]) for each in rows]
    if not data.repeats:
        ordered = [
            [e for i, e in enumerate(each) if e[0] not in {b[0] for b in each[:i]}] for each in ordered
        ]
    return data, ordered


def spans(split, ordered, val, test):
    """Numbers of each user's events before validation, test and the end; loops instead of arrays."""
    times = [time for each in ordered for _, time in each]
    for user, each in enumerate(ordered):
        n = len(each)
        if split == "time":
            early, late = np.quantile(times, [0.8, 0.9])
            yield sum(t < early for _, t in each), sum(t < late for _, t in each), n
        elif split == "leave_one_out":
            yield n - 2, n - 1, n
        else:
            part = 8 * n // 10
            yield (0, n, part) if user in val else (0, part, n) if user in test else (n, n, n)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("split", Histories.splits)
def test_training_knows_training_events_only(split, examples, repeats):
    data, ordered = several(split=split, examples=examples, repeats=repeats)
    train, val, test = shown(data)
    held = [{row[0] for row in rows} for rows in (val, test)]
    cuts = list(spans(split, ordered, *held))
    if split != "users":
        used = [user for user, cut in enumerate(cuts) if cut[0] >= (3 if split == "leave_one_out" else 1)]
        ordered, cuts = [ordered[user] for user in used], [cuts[user] for user in used]
        domains = np.array(used) % 2
    else:
        domains = np.arange(len(ordered)) % 2
    first = np.cumsum([0, *map(len, ordered)])
    assert data.shared["item"].tolist() == [item for each in ordered for item, _ in each]
    popularity, steps = np.zeros((2, 30)), np.zeros(len(data.shared["item"]))
    for person, (trained, *_) in enumerate(cuts):
        items = [item for item, _ in ordered[person][:trained]]
        np.add.at(popularity[domains[person]], items, 1)
        bounds = data.shared["taken_from"][person : person + 2]
        assert data.shared["taken"][slice(*bounds)].tolist() == sorted(set(items))
    np.testing.assert_array_equal(data.shared["popularity"], popularity)
    for person, start, end, until in train:
        assert first[person] <= start < end <= until <= first[person] + cuts[person][0]
        if examples == "sequences":
            steps[start + 1 : end] += 1
        else:
            steps[end:until] += 1
    for person, (trained, *_) in enumerate(cuts):  # every step to the next event is learnt once
        assert (steps[first[person] + 1 : first[person] + trained] == 1).all()
    for rows, (begin, stop) in ((val, (0, 1)), (test, (1, 2))):
        wanted = []
        for person, cut in enumerate(cuts):
            bounds = (cut[2], cut[1]) if split == "users" and rows is val else (cut[begin], cut[stop])
            if bounds[1] > bounds[0] and (split != "users" or person in held[begin]):
                end, until = (first[person] + bound for bound in bounds)
                wanted.append((person, max(first[person], end - 4), end, until))
        assert rows == wanted
    assert np.array_equal(data.domain, domains[data.unit])
    assert np.array_equal(data.arrays["market"], data.domain)


@pytest.mark.parametrize(
    "skew", [Iid(3), LabelSkew(3, 0.5), DomainSkew(2), LabelDomainSkew(0.5), Natural(), Natural(5)], ids=repr
)
def test_users_stay_whole_and_are_numbered_within_their_client(skew):
    federation = build_federation(several(examples="positions")[0], skew, 0)
    data, most = federation.dataset, 0
    for client in federation.clients:
        rows = np.concatenate([client.train, client.val, client.test])
        persons, numbers = np.unique(data.unit[rows]), np.unique(data.arrays["user"][rows])
        assert numbers.tolist() == list(range(len(persons)))
        assert np.array_equal(persons[data.arrays["user"][rows]], data.unit[rows])
        own = np.isin(data.unit, data.unit[client.train])  # others are only dealt what is held out
        assert np.array_equal(np.sort(rows[own[rows]]), np.flatnonzero(own))
        most = max(most, len(persons))
    held = np.concatenate([np.concatenate([c.train, c.val, c.test]) for c in federation.clients])
    others = np.setdiff1d(np.arange(len(data)), held)
    assert (data.arrays["user"][others] == -1).all()
    assert data.facts["users"] == most
    assert np.array_equal(data.arrays["person"], data.unit)


def test_data_that_are_divided_anew_are_numbered_anew():
    data = several()[0]
    once = build_federation(data, Iid(4), 1).dataset
    again = build_federation(build_federation(data, DomainSkew(), 0).dataset, Iid(4), 1).dataset
    np.testing.assert_array_equal(again.arrays["user"], once.arrays["user"])
    assert again.users == once.users < data.users


def test_what_cannot_be_divided_is_said_in_a_line():
    made = events([(1, 0), (2, 1)])
    with pytest.raises(
        ScenarioError,
        match=r"^data 'toy': no user is left with events enough for split=leave_one_out and core=0; .*data$",
    ):
        Histories().cut("toy", made)
    with pytest.raises(ScenarioError, match=r"^data 'toy': no user is left .* core=9; lower core"):
        Histories(core=9, split="users").cut("toy", made)
    with pytest.raises(ScenarioError, match=r"^data 'toy': has no times to split by; use split=leave_one"):
        Histories(split="time").cut("toy", dataclasses.replace(made, time=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "user"}, "split: unknown, got 'user'; use .* did you mean 'users'"),
        ({"examples": "all"}, "examples: unknown"),
        ({"history": 1}, "history: not a possible number, got 1; use a whole number of at least 2"),
        ({"min_history": 0}, "min_history: not"),
        ({"core": -1}, "core: not"),
        ({"repeats": 1}, "repeats: neither"),
        ({"period": 0}, "period: 0 days"),
        ({"val_from": 0.9}, "val_from: 0.9 and test_from=0.9 leave a span empty; use 0 <"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Histories(**options)
    assert Histories(history=1, examples="positions").history == 1
