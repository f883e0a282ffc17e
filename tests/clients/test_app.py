from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from clients.app import ClientSpec, make_client_app
from clients.errors import ClientError
from clients.models.mlp import MLP
from clients.tasks.classification import Classification
from clients.tasks.forecasting import Forecasting
from clients.training import Training, evaluate
from fedbench.engine.grid import identify_as_server
from strategies import (
    DataRule,
    FedAvgFTRule,
    FedBNRule,
    FedPerRule,
    LGFedAvgRule,
    LocalOnlyRule,
    LocalRule,
    Round,
    StrategyError,
    Upload,
)
from strategies.arrays import numpy_of
from strategies.client import record, train_client
from strategies.functional import Stateless
from strategies.seeding import generator

FEATURES, CLASSES = 6, 3
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Rows:
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


SPLITS = [
    Rows(np.arange(0, 13), np.arange(13, 16), np.arange(16, 20)),
    Rows(np.arange(20, 41), np.arange(41, 42), np.arange(42, 50)),
    Rows(np.arange(50, 57), np.arange(0), np.arange(0)),
]


class DropoutNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.body(x)


def mlp():
    torch.manual_seed(3)
    return MLP((FEATURES,), CLASSES, hidden=(8,))


def spec(**options):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(57, FEATURES)).astype(np.float32),
        "y": rng.integers(0, CLASSES, 57),
    }
    given = {
        "model": mlp,
        "training": Training(lr=0.1, lr_decay=0.5, batch_size=4, epochs=2),
        "rule": LocalRule(),
        "seed": 5,
        **options,
    }
    return ClientSpec(
        arrays=arrays, splits=SPLITS, domains=["art", "photo", "photo"], task=Classification(), **given
    )


class Clients:
    """The ClientApp of a spec, and the state of each of its clients."""

    def __init__(self, spec):
        identify_as_server()
        self.app, self.states = make_client_app(spec), {}
        self.initial = record(Stateless(spec.model()).initial())

    def ask(self, node, kind, content):
        config = {"partition-id": node, "num-partitions": len(SPLITS)}
        state = self.states.setdefault(node, RecordDict())
        context = Context(run_id=1, node_id=1000 + node, node_config=config, state=state, run_config={})
        return self.app(Message(content, 1000 + node, kind), context)

    def train(self, node=0, server_round=1, arrays=None, **records):
        config = ConfigRecord({"server-round": server_round})
        content = RecordDict({"arrays": arrays or self.initial, "config": config, **records})
        return self.ask(node, "train", content).content

    def evaluate(self, node=0, arrays=None, **config):
        arrays = self.initial if arrays is None else arrays
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
        return dict(self.ask(node, "evaluate", content).content["metrics"])


def raw(arrays):
    return {k: v.data for k, v in arrays.items()}


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1, 2])
@pytest.mark.parametrize("server_round", [1, 3])
def test_a_training_message_is_answered_with_trained_arrays(node, server_round):
    wanted = spec()
    reply = Clients(wanted).train(node, server_round)

    model, rows = Stateless(mlp()), SPLITS[node].train
    data = wanted.task.gather(wanted.arrays, rows) | {"weight": torch.ones(len(rows))}
    plan = wanted.training.plan(len(rows), generator(5, "batches", server_round, node))
    now = Round(
        model=model,
        task_loss=wanted.task.loss,
        received=model.initial(),
        trainable=model.trainable,
        data=data,
        steps=len(plan),
        optimizer=wanted.training.build_optimizer(),
        lr=0.1 * 0.5 ** (server_round - 1),
    )
    params, loss = train_client(LocalRule(), now, plan)
    assert raw(reply["arrays"]) == raw(record(params))
    assert dict(reply["metrics"]) == {
        "num-examples": len(rows),
        "train_loss": loss,
        "local_steps": 2 * -(-len(rows) // 4),
    }


def test_a_client_that_gets_a_model_again_draws_other_batches():
    clients = Clients(spec())

    def trained(**again):
        config = ConfigRecord({"server-round": 1, **again})
        content = RecordDict({"arrays": clients.initial, "config": config})
        return raw(clients.ask(0, "train", content).content["arrays"])

    assert trained(again=1) == trained(again=1)
    assert trained() != trained(again=1) != trained(again=2)


def test_training_starts_from_the_arrays_of_the_message():
    clients = Clients(spec())
    other = ArrayRecord({k: Array(v.numpy() + 1) for k, v in clients.initial.items()})
    assert raw(clients.train()["arrays"]) != raw(clients.train(arrays=other)["arrays"])


def test_arrays_of_another_width_are_taken_in_the_models_own():
    """As some of Flower's strategies make them."""
    clients = Clients(spec())
    wide = ArrayRecord({k: Array(v.numpy().astype(np.float64)) for k, v in clients.initial.items()})
    assert raw(clients.train(arrays=wide)["arrays"]) == raw(clients.train()["arrays"])
    assert clients.evaluate(arrays=wide) == clients.evaluate()


@pytest.mark.parametrize("model", [mlp, DropoutNet])
def test_same_seed_same_bytes(model):
    """In any process, after any other client, and whatever the global generators are at."""
    first, second = Clients(spec(model=model)), Clients(spec(model=model))
    replies = [raw(first.train(node)["arrays"]) for node in (0, 1, 2)]
    torch.manual_seed(99)
    for node in (2, 0, 1, 2):
        assert raw(second.train(node)["arrays"]) == replies[node]


def test_dropout_leaves_the_global_generator_alone():
    clients = Clients(spec(model=DropoutNet))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    clients.train()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("drawn", ["batches", "dropout"])
def test_seeds_rounds_and_clients_have_draws_of_their_own(drawn):
    """The clients hold the same rows; a lone row makes the same batch in any order."""
    rows = np.arange(13 if drawn == "batches" else 1)
    wanted = replace(
        spec(model=mlp if drawn == "batches" else DropoutNet, training=Training(batch_size=4, steps=5)),
        splits=[Rows(rows, rows[:0], rows[:0])] * 3,
    )
    replies = [
        Clients(replace(wanted, seed=seed)).train(node, server_round)
        for seed in (5, 6)
        for node in (0, 1)
        for server_round in (1, 2)
    ]
    assert len({b"".join(raw(r["arrays"]).values()) for r in replies}) == 8


@pytest.mark.parametrize(("weighting", "weights"), [("examples", [13, 21, 7]), ("uniform", [1, 1, 1])])
def test_number_of_examples_follows_the_weighting(weighting, weights):
    clients = Clients(spec(training=Training(weighting=weighting)))
    assert [clients.train(node)["metrics"]["num-examples"] for node in range(3)] == weights


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))

    def forward(self, x):
        return self.net(x)


def test_batch_norm_is_spared_lone_rows_and_its_statistics_are_sent():
    clients = Clients(spec(model=Normed, training=Training(batch_size=4)))
    reply = clients.train(0)  # 13 rows: 4, 4, 4 and a lone one
    assert reply["metrics"]["local_steps"] == 3
    assert set(reply["arrays"]) == {
        "net.0.weight",
        "net.0.bias",
        "net.0.running_mean",
        "net.0.running_var",
        "net.1.weight",
        "net.1.bias",
    }
    assert (reply["arrays"]["net.0.running_mean"].numpy() != 0).all()


# --- rules ---------------------------------------------------------------------------------------


class KeepingRule(LocalRule):
    """Counts its rounds, starts above what it received by that count, and sends a second record."""

    def keep(self, received):
        return {"rounds": torch.zeros_like(next(iter(received.values())).sum())}

    def begin(self, round):
        return {k: v + round.kept["rounds"] for k, v in round.received.items()}

    def end(self, params, round):
        rounds = round.kept["rounds"] + 1
        return Upload(params, {"rounds": rounds}, {"control": {"c": rounds * 10}}, {"rounds": rounds})


def test_what_a_rule_keeps_lasts_and_is_each_clients_own():
    clients = Clients(spec(rule=KeepingRule()))
    seen = [
        (node, clients.train(node, server_round=t)["metrics"]["rounds"]) for t in (1, 2, 3) for node in (0, 1)
    ]
    assert seen == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    assert clients.train(2)["metrics"]["rounds"] == 1


def test_what_a_rule_keeps_is_never_sent():
    reply = Clients(spec(rule=KeepingRule())).train()
    assert set(reply) == {"arrays", "metrics", "control", "local-rule"}
    assert dict(reply["local-rule"]) == {"name": "KeepingRule"}
    assert set(reply["arrays"]) == set(Clients(spec()).initial)


def test_further_records_of_a_rule_are_sent():
    clients = Clients(spec(rule=KeepingRule()))
    assert [float(clients.train()["control"]["c"].numpy()) for _ in range(2)] == [10, 20]


def test_evaluation_starts_where_the_rule_does_and_keeps_nothing():
    clients, plain = Clients(spec(rule=KeepingRule())), Clients(spec())
    assert clients.evaluate() == plain.evaluate()
    clients.train()
    moved = ArrayRecord({k: Array(v.numpy() + 1) for k, v in clients.initial.items()})
    assert clients.evaluate() == clients.evaluate() == plain.evaluate(arrays=moved)
    assert clients.train()["metrics"]["rounds"] == 2


class SpyRule(LocalRule):
    def __init__(self):
        self.rounds = []

    def end(self, params, round):
        self.rounds.append(round)
        return Upload(params)


def test_a_rule_sees_its_round():
    rule = SpyRule()
    clients = Clients(spec(rule=rule))
    control = ArrayRecord({"c": Array(np.arange(3.0))})
    for _ in range(2):
        clients.train(1, server_round=2, control=control)
    clients.train(0, server_round=2)
    first, again, other = rule.rounds
    assert first.config == {"server-round": 2}
    assert first.sent["control"]["c"].tolist() == [0, 1, 2]
    assert set(first.sent) == {"control"}
    assert (first.steps, first.lr, first.kept) == (12, 0.05, {})
    assert first.trainable == set(first.received) == set(clients.initial)
    draws = [torch.rand(2, generator=r.generator).tolist() for r in rule.rounds]
    assert draws[0] == draws[1] != draws[2]
    assert other.steps == 8
    assert again.sent.keys() == first.sent.keys()


def test_a_message_without_arrays_is_refused():
    content = RecordDict({"weights": Clients(spec()).initial})
    with pytest.raises(StrategyError, match=r"no record 'arrays'.*arrayrecord_key"):
        Clients(spec()).ask(0, "train", content)


# --- evaluation ----------------------------------------------------------------------------------


def test_an_evaluation_message_is_answered_with_sums():
    wanted = spec()
    clients = Clients(wanted)
    model = Stateless(mlp())
    predict = partial(model.frozen, model.initial())
    for node, split in enumerate(SPLITS):
        got = clients.evaluate(node)
        want = {"num-examples": max(len(split.val) + len(split.test), 1)}
        for name, rows in (("val", split.val), ("test", split.test)):
            data = wanted.task.gather(wanted.arrays, rows) | {"weight": torch.ones(len(rows))}
            want |= {f"{name}_{k}": v for k, v in evaluate(wanted.task, predict, data).items()}
            assert got[f"{name}_count"] == len(rows)
        assert got == want


def test_evaluation_is_without_dropout():
    clients = Clients(spec(model=DropoutNet))
    assert clients.evaluate() == clients.evaluate()


# --- clients with models of their own ------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_rule_may_have_its_model_tuned_on_the_training_rows_before_it_predicts(epochs):
    """With batches of their own, and the optimiser and the rate of the round."""
    wanted = spec(rule=FedAvgFTRule(), training=Training(lr=0.1, lr_decay=0.5, batch_size=4, momentum=0.9))
    clients, model, rows = Clients(wanted), Stateless(mlp()), SPLITS[1].train
    got = clients.evaluate(1, **{"fine-tune-epochs": epochs, "server-round": 3})
    plan = replace(wanted.training, epochs=epochs).plan(len(rows), generator(5, "fine-tune", 3, 1))
    now = Round(
        model=model,
        task_loss=wanted.task.loss,
        received=model.initial(),
        trainable=model.trainable,
        data=wanted.task.gather(wanted.arrays, rows) | {"weight": torch.ones(len(rows))},
        steps=len(plan),
        optimizer=wanted.training.build_optimizer(),
        lr=0.1 * 0.5**2,
    )
    tuned = record(train_client(LocalRule(), now, plan)[0])
    assert len(plan) == 6 * epochs
    assert got == Clients(spec()).evaluate(1, tuned) != Clients(spec()).evaluate(1)
    assert clients.states[1] == RecordDict()
    assert clients.evaluate(1, **{"fine-tune-epochs": 0}) == Clients(spec()).evaluate(1)


def normed():
    torch.manual_seed(3)
    return MLP((FEATURES,), CLASSES, hidden=(8,), norm="batch")


OWN = {
    FedPerRule: {"head.weight", "head.bias"},
    LGFedAvgRule: {f"body.0.{k}" for k in ("weight", "bias")} | {f"body.1.{k}" for k in NORM},
    FedBNRule: {f"body.1.{k}" for k in NORM},
    LocalOnlyRule: set(Stateless(normed()).shared),
}


@pytest.mark.parametrize("rule", OWN)
def test_a_client_predicts_with_its_own_part_of_the_model_and_the_averaged_rest(rule):
    wanted = spec(rule=rule(), model=normed)
    clients, plain = Clients(wanted), Clients(spec(model=normed))
    sent = clients.train(1)["arrays"]
    trained = plain.train(1)["arrays"]
    kept = clients.states[1].array_records["local-rule-kept"]
    assert set(kept) == OWN[rule] == set(trained) - set(sent)
    assert raw(sent) | raw(kept) == raw(trained)
    averaged = {k: Array(v.numpy() + 0.1) for k, v in sent.items()}
    merged = ArrayRecord({k: averaged.get(k, v) for k, v in trained.items()})
    assert clients.evaluate(1, ArrayRecord(averaged)) == plain.evaluate(1, merged)
    # A client that joins late has its own part as its module was made.
    initial = ArrayRecord({k: averaged.get(k, v) for k, v in clients.initial.items()})
    assert clients.evaluate(0, ArrayRecord(averaged)) == plain.evaluate(0, initial)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(6, 2)

    def forward(self, past, marks):
        return self.head(past[..., -1]).unsqueeze(-1) + 0 * marks[:, :2]


@pytest.mark.parametrize("rule", [LocalRule, LocalOnlyRule, FedAvgFTRule])
def test_a_forecast_to_show_is_of_the_model_that_is_tested(rule):
    rng, steps = np.random.default_rng(0), 70
    arrays = {
        "start": np.arange(57),
        "scaler": np.zeros(57, dtype=int),
        "series": rng.normal(5, 2, (steps, 2)).astype(np.float32),
        "marks": np.zeros((steps, 1), dtype=np.float32),
        "mean": np.array([[1.0, 5.0]], dtype=np.float32),
        "std": np.array([[1.0, 2.0]], dtype=np.float32),
    }
    given = spec(model=Forecaster, rule=rule())
    wanted = replace(given, arrays=arrays, task=Forecasting((6, 2), 2, day=4, week=6))
    one_window = replace(wanted, splits=[Rows(s.train, s.val, s.test[:1]) for s in SPLITS])
    clients = Clients(one_window)
    clients.train(1)
    kept = {key: raw(held) for key, held in clients.states[1].array_records.items()}
    content = RecordDict({"arrays": clients.initial, "config": ConfigRecord({"fine-tune-epochs": 2})})
    reply = clients.ask(1, "query.forecast", content).content
    window, repeated = (numpy_of(reply.array_records[key]) for key in ("window", "repeated"))
    target, start = arrays["series"][:, 1], SPLITS[1].test[0]
    np.testing.assert_allclose(window["past"], target[start : start + 6], rtol=1e-5)
    np.testing.assert_allclose(window["truth"], target[start + 6 : start + 8], rtol=1e-5)
    assert set(repeated) == {"last_day", "last_week"}
    # The window is the only one that is tested, so its error is the client's.
    scores = clients.evaluate(1, **{"fine-tune-epochs": 2})
    assert scores["test_mse_units"] == pytest.approx(np.mean((window["forecast"] - window["truth"]) ** 2))
    model = Stateless(Forecaster(), wanted.task.inputs)
    with torch.no_grad():
        plain = model.frozen(model.initial(), wanted.task.gather(arrays, SPLITS[1].test[:1]))[0, :, -1]
    assert np.allclose(window["forecast"], plain * 2 + 5, rtol=1e-4) == (rule is LocalRule)
    assert kept == {key: raw(held) for key, held in clients.states[1].array_records.items()}


# --- data rules ----------------------------------------------------------------------------------


class Doubling(DataRule):
    """Answers ``hello``, and trains on every row twice."""

    def __init__(self, weight=None):
        self.weight = weight

    def actions(self):
        return {"hello": self.hello, "bye": partial(self.hello)}

    def hello(self, message, context, examples):
        word = message.content["config"]["word"]
        numbers = {"rows": len(examples.y), "node": examples.node, "seed": examples.seed}
        context.state["greeted"] = ConfigRecord({"word": word})
        config = ConfigRecord({"domain": examples.domain, "word": word})
        return Message(RecordDict({"metrics": MetricRecord(numbers), "config": config}), reply_to=message)

    def training_set(self, context, examples):
        assert context.node_config["partition-id"] == examples.node
        x, y = np.concatenate([examples.x] * 2), np.concatenate([examples.y] * 2)
        return replace(examples, x=x, y=y, weight=self.weight)


@pytest.mark.parametrize("action", ["hello", "bye"])
def test_queries_reach_the_data_rule_with_the_clients_examples(action):
    clients = Clients(spec(data_rule=Doubling()))
    content = RecordDict({"config": ConfigRecord({"word": "hi"})})
    reply = clients.ask(1, f"query.{action}", content).content
    assert dict(reply["metrics"]) == {"rows": 21, "node": 1, "seed": 5}
    assert dict(reply["config"]) == {"domain": "photo", "word": "hi"}
    assert clients.states[1]["greeted"]["word"] == "hi"
    assert 0 not in clients.states


@pytest.mark.parametrize(
    ("weight", "weighting", "reported"),
    [(None, "examples", 26), (5, "examples", 5), (None, "uniform", 1), (5, "uniform", 1)],
)
def test_a_data_rule_changes_what_is_trained_on_and_may_set_the_weight(weight, weighting, reported):
    training = Training(batch_size=4, weighting=weighting)
    clients = Clients(spec(data_rule=Doubling(weight), training=training))
    metrics = clients.train(0)["metrics"]
    assert metrics["local_steps"] == 7
    assert metrics["num-examples"] == reported


def test_a_data_rule_leaves_evaluation_alone():
    assert Clients(spec(data_rule=Doubling())).evaluate() == Clients(spec()).evaluate()


def test_a_data_rule_on_images_is_refused():
    wanted = spec(data_rule=Doubling(), model=lambda: MLP((1, 2, 3), CLASSES))
    images = replace(wanted, arrays=wanted.arrays | {"x": wanted.arrays["x"].reshape(-1, 1, 2, 3)})
    with pytest.raises(ClientError, match=r"labelled feature vectors.*\(1, 2, 3\).*features=pixels$"):
        Clients(images).train()
