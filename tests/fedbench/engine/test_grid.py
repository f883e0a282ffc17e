"""What every engine shares, on the serial one."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedbench.engine.grid import FIRST_NODE_ID, payload_bytes
from fedbench.engine.serial import SerialGrid


def counting_app():
    """Answers with its partition id and with how often it was asked."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        if message.content.config_records.get("fail", {}).get("node") == node:
            raise ZeroDivisionError(f"client {node} divides by zero")
        asked = context.state.metric_records.get("asked", {"n": 0})["n"] + 1
        context.state["asked"] = MetricRecord({"n": asked})
        metrics = MetricRecord({"node": node, "asked": asked, "of": context.node_config["num-partitions"]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def messages(grid, partitions, content=None):
    content = RecordDict() if content is None else content
    return [Message(content, FIRST_NODE_ID + p, "train") for p in partitions]


def metrics(replies):
    return [dict(reply.content["metrics"]) for reply in replies]


def test_replies_come_in_partition_order_whatever_the_order_of_messages():
    grid = SerialGrid(counting_app, sizes=[1] * 5)
    replies = grid.send_and_receive(messages(grid, [3, 0, 4, 1]))
    assert [m["node"] for m in metrics(replies)] == [0, 1, 3, 4]
    assert [r.metadata.src_node_id - FIRST_NODE_ID for r in replies] == [0, 1, 3, 4]
    assert {m["of"] for m in metrics(replies)} == {5}


def test_a_clients_state_is_its_own_and_lasts():
    grid = SerialGrid(counting_app, sizes=[1] * 3)
    grid.send_and_receive(messages(grid, [0, 1]))
    grid.send_and_receive(messages(grid, [1]))
    assert [m["asked"] for m in metrics(grid.send_and_receive(messages(grid, [0, 1, 2])))] == [2, 3, 1]


def test_an_exception_surfaces_as_it_is():
    grid = SerialGrid(counting_app, sizes=[1] * 3)
    with pytest.raises(ZeroDivisionError, match="client 1 divides"):
        grid.send_and_receive(messages(grid, [0, 1, 2], RecordDict({"fail": ConfigRecord({"node": 1})})))


def test_the_observer_sees_every_message_in_partition_order():
    seen = []
    grid = SerialGrid(counting_app, sizes=[1] * 3, observer=seen.append)
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})})
    grid.send_and_receive(messages(grid, [2, 0], content))
    assert [(e.phase, e.node, e.down, e.up) for e in seen] == [("train", 0, 24, 24), ("train", 2, 24, 24)]
    assert seen[1].metrics == {"node": 2.0, "asked": 1.0, "of": 3.0}
    assert seen[0].seconds > 0
    assert seen[0].error is None


def test_payload_by_hand():
    arrays = ArrayRecord(
        {
            "w": Array(np.zeros((3, 4), np.float32)),  # 48
            "b": Array(np.zeros(5, np.float64)),  # 40
            "n": Array(np.array(7, np.int64)),  # 8
            "m": Array(np.zeros(3, bool)),  # 3
            "none": Array(np.zeros((0, 9), np.float32)),  # 0
        }
    )
    metrics = MetricRecord({"loss": 0.5, "count": 3, "each": [1.0, 2.0]})  # 8 + 8 + 16
    config = ConfigRecord(
        {"name": "abc", "flag": True, "raw": b"12345", "names": ["a", "bc"]}
    )  # 3 + 8 + 5 + 3
    assert payload_bytes(RecordDict({"arrays": arrays})) == 99
    assert payload_bytes(RecordDict({"metrics": metrics})) == 32
    assert payload_bytes(RecordDict({"config": config})) == 19
    assert payload_bytes(RecordDict({"a": arrays, "again": arrays, "m": metrics, "c": config})) == 249
    assert payload_bytes(RecordDict()) == 0


def test_a_cohort_is_all_that_a_strategy_sees_and_only_while_it_lasts():
    grid = SerialGrid(counting_app, sizes=[1] * 5)
    everyone = [FIRST_NODE_ID + p for p in range(5)]
    assert list(grid.get_node_ids()) == everyone
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    arrays = ArrayRecord({"w": Array(np.zeros(1))})
    with grid.cohort([3, 1]):
        assert list(grid.get_node_ids()) == [FIRST_NODE_ID + 1, FIRST_NODE_ID + 3]
        asked = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        assert {m.metadata.dst_node_id for m in asked} == {FIRST_NODE_ID + 1, FIRST_NODE_ID + 3}
    assert list(grid.get_node_ids()) == everyone
    with grid.cohort(None):
        assert list(grid.get_node_ids()) == everyone
    with pytest.raises(RuntimeError), grid.cohort([0]):
        raise RuntimeError
    assert list(grid.get_node_ids()) == everyone


def test_pushed_messages_are_pulled_once():
    grid = SerialGrid(counting_app, sizes=[1] * 3)
    ids = grid.push_messages(messages(grid, [0, 2]))
    assert len(set(ids)) == 2
    assert [m["node"] for m in metrics(grid.pull_messages(ids))] == [0, 2]
    assert list(grid.pull_messages(ids)) == []


def test_a_message_is_made_as_flower_makes_it():
    grid = SerialGrid(counting_app, sizes=[1])
    message = grid.create_message(RecordDict(), "train", FIRST_NODE_ID, "7")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (FIRST_NODE_ID, "7")
    assert grid.send_and_receive([message])[0].has_content()
