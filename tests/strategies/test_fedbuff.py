import numpy as np
import pytest
from clocked import by_hand, clocked, rounds_of
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, Quadratics, four_clients, two_clients, vector

from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.results.state import flatten, unflatten
from strategies import FedBuff, LocalRule, StrategyError
from strategies.method import Answer

TENTHS = (10, 26, 33, 47)
"""What each of four clients takes, such that no two answer at the same moment."""


def same(got, want):
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], rtol=0, atol=1e-12)
    np.testing.assert_allclose([t for _, t in got], [t for _, t in want], rtol=0, atol=1e-6)


def step(case, server_lr=1.0, scale=True):
    """The server's step of Algorithm 1, with the weights that clients report."""

    def update(x, answers):
        shares = np.array([case.rows[c] for c, *_ in answers]) / sum(case.rows[c] for c, *_ in answers)
        trust = [1 / np.sqrt(1 + age) if scale else 1.0 for *_, age in answers]
        deltas = [start - y for _, start, y, _ in answers]
        return x - server_lr * sum(p * s * d for p, s, d in zip(shares, trust, deltas, strict=True))

    return update


def test_four_rounds_of_two_clients_by_hand():
    """Client 0 answers at 1, 2, 3, ... s and client 1, which is slower, at 2.6 and 5.2 s."""
    case = two_clients()
    strategy = FedBuff(buffer=2, concurrency=2, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, (10, 26)), 4)
    moved = [lambda x, i=i: x - case.sgd(i, x) for i in (0, 1)]
    x0 = case.start
    x1 = x0 - moved[0](x0)  # 1 and 2 s: twice client 0
    x2 = x1 - (moved[1](x0) / np.sqrt(2) + moved[0](x1)) / 2  # 2.6 and 3 s: client 1, one update old
    x3 = x2 - moved[0](x2)  # 4 and 5 s
    x4 = x3 - (moved[1](x1) / np.sqrt(3) + moved[0](x3)) / 2  # 5.2 and 6 s: client 1 started at 2.6 s
    same(got, [(x1, 2.0), (x2, 3.0), (x3, 5.0), (x4, 6.0)])


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options", [{}, {"server_lr": 0.4}, {"scale": False}], ids=["plain", "server_lr", "unscaled"]
)
def test_rounds_equal_the_algorithm_by_hand(options, buffer):
    case = four_clients()
    strategy = FedBuff(buffer=buffer, concurrency=4, **options, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, TENTHS), 9)
    same(got, by_hand(case, TENTHS, 9, buffer, case.sgd, step(case, **options)))


def test_with_all_clients_alike_in_speed_a_round_is_fedavgs():
    case = four_clients()
    strategy = FedBuff(buffer=4, concurrency=4, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, (10,) * 4), 3)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=3)
    same(got, list(zip(plain, (1.0, 2.0, 3.0), strict=True)))


def test_a_lone_client_is_plain_training():
    case = two_clients()
    alone = Quadratics(case.a[:1], case.b[:1], case.start, rows=(1,))
    strategy = FedBuff(buffer=1, concurrency=3, **SERVER)
    got = rounds_of(alone, strategy, clocked(alone, strategy, (10,)), 4)
    plain, _ = alone.run(FedAvg(**SERVER), LocalRule(), rounds=4)
    np.testing.assert_allclose([x for x, _ in got], plain, rtol=0, atol=1e-12)


def test_clients_are_drawn_among_the_idle_ones_and_never_more_than_asked_for():
    case = four_clients()
    strategy = FedBuff(buffer=3, concurrency=2, seed=1, **SERVER)
    seen, started = [], []
    grid = clocked(case, strategy, TENTHS, seen)
    push = grid.push_messages

    def watched(messages):
        nodes = [m.metadata.dst_node_id for m in messages]
        assert not {node for node, _ in strategy.under_way.values()} & set(nodes)
        assert len(nodes) + len(strategy.under_way) == 2
        started.extend(nodes)
        return push(messages)

    grid.push_messages = watched
    rounds_of(case, strategy, grid, 12)
    assert {e.node for e in seen} == {0, 1, 2, 3}
    assert len(seen) == 36

    def again(seed):
        other, nodes = FedBuff(buffer=3, concurrency=2, seed=seed, **SERVER), []
        rounds_of(case, other, clocked(case, other, TENTHS, nodes), 12)
        return [e.node for e in nodes]

    assert again(1) == [e.node for e in seen]
    assert again(2) != again(1)


def test_a_client_that_gets_a_model_again_is_told_how_often_it_did():
    """Client 0 is so quick that it answers several times before the three others make a buffer full."""
    case = four_clients()
    strategy = FedBuff(buffer=6, concurrency=4, **SERVER)
    grid = clocked(case, strategy, (2, 26, 33, 47))
    push, told = grid.push_messages, []

    def watched(messages):
        told.extend((m.metadata.dst_node_id - FIRST_NODE_ID, dict(m.content["config"])) for m in messages)
        return push(messages)

    grid.push_messages = watched
    rounds_of(case, strategy, grid, 2)
    for server_round in (1, 2):
        mine = [
            config.get("again", 0) for i, config in told if (i, config["server-round"]) == (0, server_round)
        ]
        assert len(mine) > 2
        assert mine == list(range(len(mine)))


def test_answers_of_one_moment_that_are_too_many_wait_and_grow_no_older_than_they_are():
    case = four_clients()
    strategy = FedBuff(buffer=3, concurrency=4, **SERVER)
    grid = clocked(case, strategy, (10,) * 4)
    (x1, at), (x2, later) = rounds_of(case, strategy, grid, 2)
    assert (at, later) == (pytest.approx(1.0), pytest.approx(2.0))
    update = step(case)
    ends = [case.sgd(i, case.start) for i in range(4)]
    want1 = update(case.start, [(i, case.start, ends[i], 0) for i in range(3)])
    # Client 3's answer waited, so that it is one update old; the other three started again with x1.
    want2 = update(x1, [(3, case.start, ends[3], 1), *((i, x1, case.sgd(i, x1), 0) for i in (0, 1))])
    np.testing.assert_allclose([x1, x2], [want1, want2], rtol=0, atol=1e-12)


def test_it_goes_on_from_its_state_with_answers_that_wait():
    case, speeds = four_clients(), (10, 10, 10, 23)
    whole, half = (FedBuff(buffer=2, concurrency=4, **SERVER) for _ in range(2))
    want = rounds_of(case, whole, clocked(case, whole, speeds), 7)
    grid = clocked(case, half, speeds)
    got = rounds_of(case, half, grid, 2)
    assert half.waiting
    assert half.under_way
    told = unflatten(*flatten({"strategy": half.state_dict(), "engine": grid.engine_state()}))
    rest, anew = FedBuff(buffer=2, concurrency=4, **SERVER), clocked(case, half, speeds)
    rest.load_state_dict(told["strategy"])
    anew.load_engine_state(told["engine"])
    got += rounds_of(case, rest, anew, 5, case.arrays, first=3)
    for (x, at), (y, then) in zip(got, want, strict=True):
        assert (x == y).all()
        assert at == then
    assert rest.state.keys() == whole.state.keys()


def test_only_models_that_somebody_started_from_are_kept():
    case = four_clients()
    strategy = FedBuff(buffer=1, concurrency=4, **SERVER)
    rounds_of(case, strategy, clocked(case, strategy, TENTHS), 20)
    assert len(strategy.state) == len({t for _, t in strategy.under_way.values()}) <= 3


def test_lost_clients_are_replaced_and_told_of():
    case = four_clients()
    strategy = FedBuff(buffer=2, concurrency=2, seed=3, **SERVER)
    grid = clocked(case, strategy, TENTHS, dropout=0.4)
    arrays, lost = case.initial(), 0
    for t in range(1, 11):
        replies = strategy.exchange(t, arrays, ConfigRecord(), grid)
        assert sum(r.has_content() for r in replies) == 2
        lost += sum(r.has_error() for r in replies)
        arrays = strategy.aggregate_train(t, replies)[0]
    assert 2 < lost < 40


def test_where_nobody_answers_it_says_so():
    case = two_clients()
    strategy = FedBuff(buffer=1, concurrency=2, **SERVER)
    with pytest.raises(StrategyError, match=r"FedBuff: the last \d+ clients answered with an error.*dropout"):
        rounds_of(case, strategy, clocked(case, strategy, (10, 20), dropout=1.0), 1)


# --- in a Flower project -----------------------------------------------------------------------------


def test_start_does_what_the_doorway_does():
    case = four_clients()
    options = {"buffer": 2, "concurrency": 4, "fraction_evaluate": 0.0, **SERVER}
    strategy, started = FedBuff(**options), FedBuff(**options)
    want = rounds_of(case, strategy, clocked(case, strategy, TENTHS), 5)
    result = started.start(clocked(case, started, TENTHS), case.initial(), num_rounds=5)
    np.testing.assert_array_equal(vector(result.arrays), want[-1][0])


def test_start_works_on_an_engine_without_a_clock_that_has_no_answer_at_first(monkeypatch):
    monkeypatch.setattr("strategies.asynchronous._POLL", 0.0)
    case = four_clients()
    grid, looks = case.grid(LocalRule()), []
    pull = grid.pull_messages

    def seldom(ids):
        looks.append(len(list(ids)))
        return pull(ids) if len(looks) % 3 == 0 else []

    grid.pull_messages = seldom
    strategy = FedBuff(buffer=4, concurrency=4, fraction_evaluate=0.0, **SERVER)
    result = strategy.start(grid, case.initial(), num_rounds=3)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=3)
    np.testing.assert_allclose(vector(result.arrays), plain[-1], rtol=0, atol=1e-12)
    assert looks == [4] * 9


def test_a_client_that_joins_later_is_started():
    case = four_clients()
    strategy = FedBuff(buffer=1, concurrency=4, **SERVER)
    grid = clocked(case, strategy, TENTHS)
    with grid.cohort([0, 1]):
        rounds_of(case, strategy, grid, 2)
    assert {node for node, _ in strategy.under_way.values()} <= {FIRST_NODE_ID, FIRST_NODE_ID + 1}
    strategy.exchange(3, case.arrays, ConfigRecord(), grid)
    assert {FIRST_NODE_ID + 2, FIRST_NODE_ID + 3} <= {node for node, _ in strategy.under_way.values()}


# --- the step ----------------------------------------------------------------------------------------


def test_running_statistics_are_averaged_and_types_are_kept():
    strategy = FedBuff(buffer=2, server_lr=2.0, **SERVER)
    names = ("w", "norm.running_var")
    strategy.sent = {k: np.array([1.0], np.float32) for k in names}
    strategy.ages, strategy.starts = [0, 3], [strategy.sent, {k: np.array([8.0], np.float32) for k in names}]
    values = (np.array([0.5], np.float32), np.array([0.25], np.float32))
    answers = [Answer(0, 0.5, dict.fromkeys(names, v), {}, {}) for v in values]
    got = strategy.combine(dict.fromkeys(names, np.array([0.375], np.float32)), answers)
    assert got["norm.running_var"] == pytest.approx(0.375)
    assert got["w"] == pytest.approx(1 - 2.0 * 0.5 * (0.5 + 7.75 / 2))
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffer": 0}, r"^buffer: must be 1 or more, got 0"),
        ({"concurrency": 0}, r"^concurrency: must be 1 or more, got 0"),
        ({"seed": -1}, r"^seed: must be 0 or more, got -1"),
        ({"server_lr": 0.0}, r"^server_lr: must be above 0, got 0.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FedBuff(**options)
