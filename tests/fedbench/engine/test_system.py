"""Systems on a virtual clock: who is there, how long it takes and what is lost, all of it by hand."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.engine.serial import SerialGrid
from fedbench.engine.system import Fleet, System, SystemGrid, spread
from fedbench.engine.worker import CLIENT_FAILED, CLIENT_LOST
from fedbench.results.state import flatten, unflatten

DEVICES = {"one": {"share": 1.0, "examples_per_second": 100.0}}
NETWORKS = {"one": {"share": 1.0, "down_mbps": 8.0, "up_mbps": 4.0, "latency": 0.5}}


def counting_app():
    """Answers with its partition id and with how often it was asked."""
    app = ClientApp()

    def answer(message, context):
        asked = context.state.metric_records.get("asked", {"n": 0})["n"] + 1
        context.state["asked"] = MetricRecord({"n": asked})
        metrics = MetricRecord({"node": context.node_config["partition-id"], "asked": asked})
        arrays = ArrayRecord({"w": Array(np.zeros(500_000))})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    app.query("ask")(answer)
    return app


def grid_of(rows, seen=None, enough=None, seed=0, **options):
    """Clients that train on as many examples as they have rows, on devices alike unless told otherwise."""
    system = System(**{"devices": DEVICES, "networks": NETWORKS, **options})
    inner = SerialGrid(counting_app, sizes=rows)
    observer = None if seen is None else seen.append
    return SystemGrid(inner, system, lambda p: rows[p], seed, observer, enough)


def messages(partitions, kind="train", floats=250_000):
    """A model of 1 MB (250 000 floats of 4 bytes), which all share."""
    arrays = ArrayRecord({"w": Array(np.zeros(floats, np.float32))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    return [Message(content, FIRST_NODE_ID + p, kind) for p in partitions]


def told(replies):
    return {
        r.metadata.src_node_id - FIRST_NODE_ID: r.error.reason
        if r.has_error()
        else r.content["metrics"]["asked"]
        for r in replies
    }


DOWN, UP = (1e6 + 8) / 1e6, 1e6 / 0.5e6
"""Seconds of 1 MB and the number of the round at 8 Mbit/s down, and of 1 MB at 4 Mbit/s up."""
ALWAYS = 0.5 + DOWN + UP


# --- the clock ---------------------------------------------------------------------------------------


def test_a_round_takes_as_long_as_its_slowest_client():
    grid = grid_of([100, 300, 200])
    assert told(grid.send_and_receive(messages([2, 0]))) == {0: 1, 2: 1}
    assert grid.now == pytest.approx(ALWAYS + 2.0, abs=1e-12)
    grid.send_and_receive(messages([0, 1, 2]))
    assert grid.now == pytest.approx(2 * ALWAYS + 2.0 + 3.0, abs=1e-12)


def test_evaluation_takes_no_time_and_nobody_misses_it():
    grid = grid_of([100, 300], dropout=1.0, deadline=0.1)
    assert told(grid.send_and_receive(messages([0, 1], "evaluate"))) == {0: 1, 1: 1}
    assert grid.now == 0.0


def test_a_query_takes_a_pass_over_the_rows_and_the_true_bytes_up_and_nobody_drops_out_of_it():
    grid = grid_of([100, 300], dropout=1.0, deadline=0.1)
    assert told(grid.send_and_receive(messages([0, 1], "query.ask"))) == {0: 1, 1: 1}
    true_up = (8 * 500_000 + 2 * 8) / 0.5e6
    assert grid.now == pytest.approx(0.5 + DOWN + 3.0 + true_up, abs=1e-12)


def test_every_class_has_its_share_of_clients_and_its_numbers():
    devices = {
        "slow": {"share": 1, "examples_per_second": 10},
        "fast": {"share": 3, "examples_per_second": 1000},
    }
    fleet = Fleet(System(devices, NETWORKS), clients=40, seed=3)
    assert np.bincount(fleet.device).tolist() == [10, 30]
    assert set(fleet.rate[fleet.device == 0]) == {10.0}
    assert set(fleet.rate[fleet.device == 1]) == {1000.0}
    slow, fast = (int(np.flatnonzero(fleet.device == d)[0]) for d in (0, 1))
    assert fleet.seconds(slow, 2_000_000, 50, 500_000) == pytest.approx(0.5 + 2.0 + 5.0 + 1.0)
    assert fleet.seconds(fast, 2_000_000, 50, 500_000) == pytest.approx(0.5 + 2.0 + 0.05 + 1.0)
    assert (Fleet(System(devices, NETWORKS), 40, seed=4).device != fleet.device).any()


@pytest.mark.parametrize(("clients", "counts"), [(0, []), (1, [0, 1]), (4, [1, 3]), (9, [3, 6])])
def test_shares_are_kept_to_the_nearest_client(clients, counts):
    classes = spread([0.3, 0.7], clients, np.random.default_rng(0))
    assert np.bincount(classes).tolist() == counts


# --- what is lost ------------------------------------------------------------------------------------


def test_work_after_the_deadline_is_lost_and_was_never_done():
    seen = []
    grid = grid_of([100, 300, 200], seen, deadline=ALWAYS + 2.0)
    replies = grid.send_and_receive(messages([0, 1, 2]))
    assert told(replies) == {0: 1, 1: "deadline", 2: 1}
    assert replies[1].error.code == CLIENT_LOST != CLIENT_FAILED
    assert grid.now == pytest.approx(ALWAYS + 2.0)
    assert sorted(grid.client_states()) == [0, 2]
    assert [(e.node, e.down, e.up > 0, e.code) for e in seen] == [
        (0, 1_000_008, True, None),
        (1, 1_000_008, False, CLIENT_LOST),
        (2, 1_000_008, True, None),
    ]


def test_a_client_that_drops_out_is_given_up_when_it_would_have_answered_or_at_the_deadline():
    grid = grid_of([100, 300], dropout=1.0)
    assert told(grid.send_and_receive(messages([0, 1]))) == {0: "dropout", 1: "dropout"}
    assert grid.now == pytest.approx(ALWAYS + 3.0)
    grid = grid_of([100, 300], dropout=1.0, deadline=2.0)
    assert told(grid.send_and_receive(messages([0, 1]))) == {0: "dropout", 1: "dropout"}
    assert grid.now == 2.0


def test_a_share_drops_out_by_seed_exchange_and_node_alone():
    def lost(seed, *rounds):
        grid = grid_of([10] * 400, dropout=0.25, seed=seed)
        return [
            {p for p, what in told(grid.send_and_receive(messages(r, floats=1))).items() if what == "dropout"}
            for r in rounds
        ]

    everyone = range(400)
    first, second = lost(0, everyone, everyone)
    assert 60 < len(first) < 140
    assert first != second
    assert lost(0, everyone) == [first]
    assert lost(0, range(100), range(50))[0] == {p for p in first if p < 100}
    assert lost(1, everyone) != [first]


def test_a_round_goes_on_with_the_first_that_finish():
    seen = []
    grid = grid_of([100, 400, 200, 300], seen, enough=2)
    assert told(grid.send_and_receive(messages([0, 1, 2, 3]))) == {0: 1, 1: "surplus", 2: 1, 3: "surplus"}
    assert grid.now == pytest.approx(ALWAYS + 2.0)
    assert [(e.down, e.up > 0) for e in seen] == [
        (1_000_008, True), (1_000_008, False), (1_000_008, True), (1_000_008, False)
    ]  # fmt: skip
    assert sorted(grid.client_states()) == [0, 2]


def test_clients_of_the_same_speed_are_taken_in_partition_order():
    grid = grid_of([100] * 4, enough=2)
    assert told(grid.send_and_receive(messages([3, 1, 2]))) == {1: 1, 2: 1, 3: "surplus"}


def test_a_round_that_gets_too_few_waits_until_nobody_is_left():
    grid = grid_of([100, 400], enough=2, deadline=ALWAYS + 1.5)
    assert told(grid.send_and_receive(messages([0, 1]))) == {0: 1, 1: "deadline"}
    assert grid.now == pytest.approx(ALWAYS + 1.5)


@pytest.mark.parametrize(
    ("over", "count", "asked"), [(0.0, 3, 3), (0.1, 10, 11), (0.3, 3, 4), (0.5, 4, 6), (1, 5, 10)]
)
def test_over_sampling_asks_for_more_clients_and_no_more_than_there_are(over, count, asked):
    grid = grid_of([1] * 12, over_sampling=over)
    chosen = grid.chosen(count, np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen) == asked
    assert len(grid.chosen(12, np.random.default_rng(0))) == 12


def test_an_empty_round_takes_no_time():
    grid = grid_of([1])
    assert grid.send_and_receive([]) == []
    assert grid.now == 0.0


# --- who is there ------------------------------------------------------------------------------------


def test_only_clients_that_are_there_are_seen_unless_a_cohort_is_set():
    grid = grid_of([1] * 1000, availability=0.3)
    there = grid.available()
    assert 240 < len(there) < 360
    assert grid.get_node_ids() == [FIRST_NODE_ID + p for p in there]
    assert set(grid.chosen(50, np.random.default_rng(0))) <= set(there.tolist())
    with grid.cohort([5, 3]):
        assert grid.get_node_ids() == [FIRST_NODE_ID + 3, FIRST_NODE_ID + 5]
    grid.send_and_receive(messages([0], floats=1))
    assert grid.available().tolist() != there.tolist()


def test_the_time_that_a_round_takes_changes_nothing_about_who_is_there_without_a_daily_cycle():
    short, long = (grid_of([1] * 50, availability=0.5) for _ in range(2))
    short.send_and_receive(messages([0], floats=1))
    long.send_and_receive(messages([0]))
    assert short.now != long.now
    assert short.available().tolist() == long.available().tolist()


def test_where_all_are_there_clients_are_chosen_as_without_a_system():
    grid = grid_of([1] * 9)
    assert grid.chosen(None, np.random.default_rng(0)) == list(range(9))
    plain = np.random.default_rng(5).choice(9, 4, replace=False).tolist()
    assert grid.chosen(4, np.random.default_rng(5)) == plain


def test_a_day_has_hours_of_each_clients_own():
    grid = grid_of([1] * 2000, availability=0.5, daily_swing=0.5)
    at_its_best = np.cos(2 * np.pi * (grid.fleet.phase - 0.25)) > 0.9
    now = set(grid.available().tolist())
    assert np.mean([p in now for p in np.flatnonzero(at_its_best)]) > 0.9
    grid.now = 43_200.0
    later = set(grid.available().tolist())
    assert np.mean([p in later for p in np.flatnonzero(at_its_best)]) < 0.1
    grid.now = 86_400.0
    assert set(grid.available().tolist()) == now


def test_a_server_that_reaches_nobody_waits():
    grid = grid_of([1, 1], availability=0.01)
    assert len(grid.available()) > 0
    assert grid.now > 0
    assert grid.now % 60.0 == 0.0


def test_a_server_with_clients_under_way_waits_for_them_instead():
    grid = grid_of([100, 100], availability=0.01)
    grid.push_messages(messages([0]))
    nobody = [len(grid.available()) for _ in range(3)]
    assert nobody == [0, 0, 0]
    assert grid.now == 0.0


# --- one by one --------------------------------------------------------------------------------------


def test_replies_come_one_after_the_other_and_clients_that_wait_are_run_together(monkeypatch):
    grid = grid_of([300, 100, 200])
    ran = []
    execute = grid.inner.execute
    monkeypatch.setattr(
        grid.inner,
        "execute",
        lambda ms: ran.append([m.metadata.dst_node_id - FIRST_NODE_ID for m in ms]) or execute(ms),
    )
    ids = grid.push_messages(messages([0, 1]))
    assert (ran, grid.now) == ([], 0.0)
    assert told(grid.pull_messages(ids)) == {1: 1}
    assert grid.now == pytest.approx(ALWAYS + 1.0)
    assert ran == [[0, 1]]
    ids += grid.push_messages(messages([2]))
    assert told(grid.pull_messages(ids)) == {0: 1}
    assert grid.now == pytest.approx(ALWAYS + 3.0)
    assert ran == [[0, 1]]
    assert told(grid.pull_messages(ids)) == {2: 1}
    assert grid.now == pytest.approx(2 * ALWAYS + 1.0 + 2.0)
    assert ran == [[0, 1], [2]]
    assert grid.pull_messages(ids) == []


def test_replies_of_the_same_moment_come_together():
    grid = grid_of([100, 100, 200])
    ids = grid.push_messages(messages([2, 1, 0]))
    assert told(grid.pull_messages(ids)) == {0: 1, 1: 1}
    assert told(grid.pull_messages(ids)) == {2: 1}


def test_a_client_lost_under_way_is_heard_of_when_it_would_have_answered_and_never_run():
    seen = []
    grid = grid_of([100, 300], seen, dropout=1.0, deadline=ALWAYS + 2.0)
    ids = grid.push_messages(messages([0, 1]))
    assert told(grid.pull_messages(ids)) == {0: "dropout"}
    assert grid.now == pytest.approx(ALWAYS + 1.0)
    assert told(grid.pull_messages(ids)) == {1: "dropout"}
    assert grid.now == pytest.approx(ALWAYS + 2.0)
    assert grid.client_states() == {}
    assert [(e.node, e.down, e.up, e.code) for e in seen] == [
        (0, 1_000_008, 0, CLIENT_LOST),
        (1, 1_000_008, 0, CLIENT_LOST),
    ]


def test_what_is_under_way_lasts_and_messages_that_shared_their_content_share_it_again():
    def started():
        grid = grid_of([100, 200, 300, 400, 500], dropout=0.3, seed=1)
        ids = grid.push_messages(messages([0, 1, 2], floats=10))
        first = told(grid.pull_messages(ids))
        return grid, ids + grid.push_messages(messages([3, 4], floats=10)), first

    def rest(grid, ids):
        came = []
        while replies := grid.pull_messages(ids):
            came.append(
                (
                    grid.now,
                    told(replies),
                    [r.has_content() and r.content["arrays"]["w"].shape for r in replies],
                )
            )
        return came, grid.available().tolist()

    whole, ids, _ = started()
    broken, same, _ = started()
    assert ids == same
    again = grid_of([100, 200, 300, 400, 500], dropout=0.3, seed=1)
    again.load_client_states(broken.client_states())
    again.load_engine_state(unflatten(*flatten(broken.engine_state())))
    late = [again._flights[i].message.content for i in ids[-2:]]
    assert late[0] is late[1]
    assert again.push_messages([]) == []
    whole.push_messages([])
    assert rest(again, ids) == rest(whole, ids)


def test_what_is_asked_anew_after_an_interruption_takes_no_time():
    grid = grid_of([100, 300])
    grid.load_engine_state(unflatten(*flatten(grid.engine_state() | {"now": 7.0})))
    grid.send_and_receive(messages([0, 1], "query.ask"))
    assert grid.now == 7.0
    grid.send_and_receive(messages([0]))
    assert grid.now == pytest.approx(7.0 + ALWAYS + 1.0)
    grid.send_and_receive(messages([0], "query.ask"))
    assert grid.now > 7.0 + ALWAYS + 1.0 + 0.5


# --- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"availability": 0.0}, r"^availability: must be above 0 and at most 1, got 0.0"),
        ({"daily_swing": 1.5}, r"^daily_swing: must be between 0 and 1, got 1.5"),
        ({"dropout": -0.1}, r"^dropout: must be between 0 and 1, got -0.1"),
        ({"deadline": 0.0}, r"^deadline: must be above 0, got 0.0"),
        ({"over_sampling": -1.0}, r"^over_sampling: must be 0 or more, got -1.0"),
        ({"devices": {}}, r"^devices: needs at least one class"),
        ({"devices": {"x": {"share": 1.0}}}, r"^devices: x must have share, examples_per_second and no more"),
        ({"devices": {"x": {"share": 0, "examples_per_second": 1}}}, r"^devices: x.share must be a number a"),
        ({"networks": {"x": 3}}, r"^networks: x must have share, down_mbps, up_mbps, latency and no more"),
        (
            {"networks": {"x": {"share": 1, "down_mbps": 1, "up_mbps": "fast", "latency": 0}}},
            r"^networks: x.up_mbps must be a number above 0, got 'fast'",
        ),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        System(**{"devices": DEVICES, "networks": NETWORKS, **options})


def test_a_network_may_have_no_latency():
    System(DEVICES, {"x": {"share": 1, "down_mbps": 1, "up_mbps": 1, "latency": 0}})
