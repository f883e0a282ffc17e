"""The base of server halves: what is averaged, how, and what becomes of the rest of a reply."""

import copy

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbench.bench import build
from fedbench.config.compose import choices, plan
from fedbench.engine.grid import identify_as_server
from strategies import LocalRule, Method, StrategyError
from strategies.arrays import tensors_of
from strategies.client import RULE, record
from strategies.functional import Stateless

ROBUST = {"krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg"}
SMALL = [
    "data=gaussian_domains", "data.domains=4", "data.dim=8", "data.classes=4", "data.train_per_class=10",
    "data.test_per_class=4", "client.steps=3", "client.batch_size=4", "engine=serial",
]  # fmt: skip
ASYNCHRONOUS = {"fedasync", "fedbuff"}  # for which the order of answers is part of what happened
NEEDS = {"fedbn": ["client.model.norm=batch"]}


class Echo(Method):
    """Keeps what :meth:`combine` was given."""

    def combine(self, mean, answers):
        self.seen = mean, answers
        return mean


def replies(arrays, weights, extra=None):
    identify_as_server()
    made = []
    for i, (each, weight) in enumerate(zip(arrays, weights, strict=True)):
        content = RecordDict(
            {
                "arrays": ArrayRecord({k: Array(v) for k, v in each.items()}),
                "metrics": MetricRecord({"num-examples": weight}),
            }
        )
        if extra:
            content["more"] = ArrayRecord({k: Array(v) for k, v in extra[i].items()})
        question = Message(RecordDict(), 1000 + i, "train")
        made.append(Message(content, reply_to=question))
    return made


@pytest.mark.parametrize("seed", range(20))
def test_the_average_is_weighted_and_does_not_depend_on_the_order(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        f"p{i}": tuple(rng.integers(1, 6, size=rng.integers(0, 4)).tolist())
        for i in range(rng.integers(1, 6))
    }
    clients = int(rng.integers(1, 8))
    arrays = [{k: rng.normal(size=s) for k, s in shapes.items()} for _ in range(clients)]
    weights = rng.integers(1, 1000, size=clients).tolist()
    extra = [{"z": rng.normal(size=3)} for _ in range(clients)]
    results = []
    for order in (np.arange(clients), rng.permutation(clients)):
        server = Echo()
        pick = [replies(arrays, weights, extra)[i] for i in order]
        mean, _ = server.aggregate_train(1, pick)
        results.append({k: v.numpy() for k, v in mean.items()})
        answers = server.seen[1]
        assert [a.node for a in answers] == [1000 + i for i in order]
        np.testing.assert_allclose([a.weight for a in answers], np.array(weights)[order] / sum(weights))
        np.testing.assert_array_equal([a.extra["more"]["z"] for a in answers], [extra[i]["z"] for i in order])
    for k in shapes:
        want = np.average([each[k] for each in arrays], axis=0, weights=weights)
        assert results[0][k].shape == shapes[k]
        np.testing.assert_allclose(results[0][k], want, rtol=0, atol=1e-12)
        np.testing.assert_allclose(results[1][k], results[0][k], rtol=0, atol=1e-12)


def test_a_reply_is_left_as_it_came():
    given = replies([{"w": np.ones(2)}] * 2, [1, 1], [{"z": np.ones(1)}] * 2)
    Echo().aggregate_train(1, given)
    assert [set(r.content) for r in given] == [{"arrays", "metrics", "more"}] * 2


def test_without_replies_there_is_nothing_to_combine():
    assert Echo().aggregate_train(1, []) == (None, None)


class HalfRule(LocalRule):
    pass


class Half(Method):
    client_half = HalfRule


def test_a_reply_of_another_rule_is_refused():
    (reply,) = replies([{"w": np.ones(2)}], [1])
    with pytest.raises(StrategyError, match=r"Half: node 1000 trained with LocalRule.*strategies\.HalfRule"):
        Half().aggregate_train(1, [reply])
    reply.content[RULE] = ConfigRecord({"name": "HalfRule"})
    assert Half().aggregate_train(1, [reply])[0] is not None


def test_the_callers_config_is_left_alone():
    class Talkative(Method):
        def __init__(self):
            super().__init__(min_train_nodes=1, min_available_nodes=1)
            self.settings = {"loud": 1}

    config = ConfigRecord({"mine": 2})
    (message,) = Talkative().configure_train(1, ArrayRecord(), config, OneNode())
    assert dict(message.content["config"]) == {"mine": 2, "loud": 1, "server-round": 1}
    assert dict(config) == {"mine": 2}


def test_clients_may_differ_in_the_domains_that_they_report():
    identify_as_server()
    given = []
    for node, told in enumerate(({"val_correct": 2.0, "test@0_correct": 1.0}, {"val_correct": 5.0})):
        metrics = MetricRecord({"num-examples": 1 + node, **told})
        question = Message(RecordDict(), 1000 + node, "evaluate")
        given.append(Message(RecordDict({"metrics": metrics}), reply_to=question))
    assert dict(Method().aggregate_evaluate(1, given)) == pytest.approx({"val_correct": 4.0})
    assert "test@0_correct" in given[0].content["metrics"]
    assert Method().aggregate_evaluate(1, []) is None


class OneNode:
    def get_node_ids(self):
        identify_as_server()
        return [1000]


@pytest.mark.parametrize("name", sorted(set(choices("strategy")) - ROBUST - ASYNCHRONOUS))
def test_no_method_depends_on_the_order_of_replies(name):
    (config,) = plan([*SMALL, f"strategy={name}", *NEEDS.get(name, [])])
    bench = build(config)
    arrays = record(Stateless(bench.spec.model()).initial())
    with bench.make_grid(lambda _: None) as grid:
        prepare = getattr(bench.strategy, "prepare", None)
        arrays = prepare(grid, arrays) if prepare else arrays
        for t in (1, 2):
            messages = bench.strategy.configure_train(t, arrays, ConfigRecord(), grid)
            answered = list(grid.send_and_receive(messages))
            # Flower's q-FedAvg empties the replies that it reads.
            backwards, _ = copy.deepcopy(bench.strategy).aggregate_train(t, copy.deepcopy(answered[::-1]))
            forwards, _ = bench.strategy.aggregate_train(t, answered)
            for k, v in tensors_of(forwards).items():
                np.testing.assert_allclose(backwards[k].numpy(), v, rtol=1e-5, atol=1e-6)
            arrays = forwards
