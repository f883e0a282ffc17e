"""The Ray engine on toy clients: order, failures, dying workers, and what clients keep."""

import os
import signal
import sys

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.engine.ray import RayGrid
from fedbench.engine.serial import SerialGrid

# Workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.xdist_group("ray")

BIG = 300_000


def toy_app():
    """Moves the weights by what a client kept, and does to itself what the message says."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        order = message.content.config_records.get("config", {})
        if order.get("raises") == node:
            raise ValueError(f"client {node} has no data")
        if order.get("dies") == node and not os.path.exists(order["marker"]):
            if order["marker"]:
                open(order["marker"], "x").close()
            os._exit(1)
        if order.get("forgets") == node:
            context.state.clear()
        asked = context.state.metric_records.get("asked", {"n": 0})["n"] + 1
        if order.get("forgets") != node:
            context.state["asked"] = MetricRecord({"n": asked})
        kept = context.state.array_records.get("kept")
        shift = 0.0 if kept is None else float(kept["big"].numpy()[node])
        weights = message.content["arrays"]["w"].numpy() + node + asked / 8 + shift
        metrics = MetricRecord({"node": node, "asked": asked, "shift": shift, "process": os.getpid()})
        reply = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics}
        return Message(RecordDict(reply), reply_to=message)

    @app.query("keep")
    def keep(message, context):
        context.state["kept"] = message.content["big"]
        return Message(RecordDict(), reply_to=message)

    @app.query("drop")
    def drop(message, context):
        del context.state["kept"]
        return Message(RecordDict(), reply_to=message)

    return app


def content(value=0.0, **order):
    record = {"arrays": ArrayRecord({"w": Array(np.full(3, value, np.float32))})}
    return RecordDict(record | ({"config": ConfigRecord(order)} if order else {}))


def big(start):
    return RecordDict({"big": ArrayRecord({"big": Array(np.arange(BIG, dtype=np.float64) + start)})})


def ask(grid, what, kind="train", partitions=None):
    nodes = range(len(grid.sizes)) if partitions is None else partitions
    return list(grid.send_and_receive([Message(what, FIRST_NODE_ID + p, kind) for p in nodes]))


def weights(replies):
    return [r.content["arrays"]["w"].numpy().tolist() for r in replies]


def metric(replies, name):
    return [r.content["metrics"][name] for r in replies]


@pytest.fixture
def start():
    grids = []

    def make(clients=6, workers=2, observer=None, app=toy_app):
        grids.append(RayGrid(app, [1] * clients, observer, workers=workers))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


def test_replies_come_in_partition_order_from_several_processes(start):
    grid = start(clients=7)
    replies = ask(grid, content(), partitions=[5, 2, 6, 0, 1])
    assert metric(replies, "node") == [0, 1, 2, 5, 6]
    assert len(set(metric(replies, "process"))) == 2
    assert os.getpid() not in metric(replies, "process")


def test_state_lasts_when_clients_move_between_workers(start):
    grid, serial = start(), SerialGrid(toy_app, [1] * 6)
    where = []
    for value, partitions in ((0.0, range(6)), (1.0, [4, 1]), (2.0, [1, 3, 5]), (3.0, range(6))):
        # The costs that placement goes by say that another client takes longest in every round.
        grid._costs._seconds = {("train", p): float(p == round(value)) for p in range(6)}
        replies = ask(grid, content(value), partitions=partitions)
        where.append(dict(zip(metric(replies, "node"), metric(replies, "process"), strict=True)))
        assert weights(replies) == weights(ask(serial, content(value), partitions=partitions))
    assert metric(replies, "asked") == [2, 4, 2, 3, 3, 3]
    assert any(where[0][node] != where[-1][node] for node in range(6))


def test_state_that_a_client_clears_stays_cleared(start):
    grid = start(clients=2)
    assert metric(ask(grid, content()), "asked") == [1, 1]
    assert metric(ask(grid, content(forgets=1)), "asked") == [2, 1]
    assert metric(ask(grid, content()), "asked") == [3, 1]


def test_a_client_that_raises_is_an_error_reply_with_traceback_and_node(start):
    seen = []
    grid = start(observer=seen.append)
    replies = ask(grid, content(raises=2))
    assert [r.has_error() for r in replies] == [p == 2 for p in range(6)]
    assert "client 2 has no data" in replies[2].error.reason
    assert "Traceback (most recent call last)" in replies[2].error.reason
    assert replies[2].metadata.src_node_id == FIRST_NODE_ID + 2
    failed = [e for e in seen if e.error]
    assert [(e.node, e.up, e.metrics) for e in failed] == [(2, 0, {})]
    assert metric(ask(grid, content()), "asked") == [2, 2, 1, 2, 2, 2]


def test_a_worker_that_was_killed_changes_nothing(start):
    grid, serial = start(), SerialGrid(toy_app, [1] * 6)
    for value in (0.0, 1.0, 2.0):
        assert weights(ask(grid, content(value))) == weights(ask(serial, content(value)))
        ray.kill(grid._workers[int(value) % 2])


def test_a_worker_that_dies_in_the_middle_of_its_list_changes_nothing(start, tmp_path):
    grid, serial = start(), SerialGrid(toy_app, [1] * 6)
    ask(grid, content())
    ask(serial, content())
    before = list(grid._workers)
    marker = tmp_path / "died"
    replies = ask(grid, content(1.0, dies=3, marker=str(marker)))
    assert marker.exists()
    assert sum(a is not b for a, b in zip(before, grid._workers, strict=True)) == 1
    # Clients that had run before the worker died have run twice, but from the same state.
    assert weights(replies) == weights(ask(serial, content(1.0)))
    assert metric(replies, "asked") == [2] * 6


def test_a_list_that_kills_every_worker_ends_in_a_clear_error(start):
    grid = start(clients=2, workers=1)
    with pytest.raises(RuntimeError, match=r"^3 workers died one after .* on the clients \[(0, 1|1, 0)\]"):
        ask(grid, content(dies=1, marker=""))


def test_what_came_with_a_message_is_stored_once(start):
    grid = start()
    ask(grid, big(1.0), "query.keep")
    assert metric(ask(grid, content()), "shift") == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sum(len(state.packed) for _, state in grid._states.items()) < 8 * BIG / 100
    assert len(grid._pinned) == 1

    # Another record for half of them: both are needed, and each is there once.
    ask(grid, big(101.0), "query.keep", partitions=[0, 1, 2])
    assert len(grid._pinned) == 2
    ray.kill(grid._workers[0])  # its successor has seen neither
    assert metric(ask(grid, content()), "shift") == [101.0, 102.0, 103.0, 4.0, 5.0, 6.0]

    ask(grid, content(), "query.drop", partitions=[3, 4, 5])
    assert len(grid._pinned) == 1
    ask(grid, content(), "query.drop", partitions=[0, 1, 2])
    assert not grid._pinned
    assert metric(ask(grid, content()), "shift") == [0.0] * 6


def test_equal_contents_are_put_into_the_store_once(start, monkeypatch):
    grid = start()
    put, stored = ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    ask(grid, content())
    assert len(stored) == 1


def test_the_longest_client_starts_first_and_alone(start):
    grid = start(clients=4, workers=2)
    ask(grid, content())
    grid._costs._seconds = {("train", p): seconds for p, seconds in enumerate((1.0, 1.0, 5.0, 1.0))}
    processes = metric(ask(grid, content()), "process")
    assert processes[0] == processes[1] == processes[3] != processes[2]


def test_an_app_that_cannot_be_made_says_so_and_no_worker_goes_on_with_another(start):
    ask(start(clients=2, workers=1), content())

    def broken():
        raise KeyError("no such model")

    again = start(clients=2, workers=1, app=broken)
    with pytest.raises(KeyError, match="no such model"):
        ask(again, content())


def test_workers_are_kept_between_runs_and_make_way_for_workers_of_another_size(start):
    first = start(workers=2)
    processes = set(metric(ask(first, content()), "process"))
    first.close()
    again = start(workers=2)
    assert set(metric(ask(again, content()), "process")) == processes
    again.close()
    cores = int(ray.cluster_resources()["CPU"])
    many = start(clients=2 * cores + 2, workers=2 * cores)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the others kept their cores"))
    signal.alarm(60)
    try:
        assert len(set(metric(ask(many, content()), "process"))) == 2 * cores
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: must be 1 or more, got 0"),
        ({"gpus_per_worker": -1}, "gpus_per_worker: must be 0 or more, got -1"),
        ({"address": "127.0.0.1:1"}, "address: no Ray cluster answers at 127.0.0.1:1"),
        ({"workers": 2, "gpus_per_worker": 9.0}, "gpus_per_worker: 2 of 9.0 are more than the"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RayGrid(toy_app, [1], **options)
