"""A federation of tiny classifiers, and plain FedAvg with ``torch.optim.SGD`` to compare methods with.

Clients have rows of some classes each, unequal numbers of them, and unequal steps. Everything is in float64;
strategies run through Flower's messages on the serial engine.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER
from torch import nn
from torch.nn import functional

from fedbench.engine.serial import SerialGrid
from fedbench.engine.worker import Outcome, failure
from strategies import LocalRule, Round, RuleClient, StrategyError, weighted_cross_entropy
from strategies.client import KEPT, record
from strategies.functional import Stateless

CLASSES = 3


class Net(nn.Module):
    """A body of one layer, so that all is smooth, and a head."""

    def __init__(self, features, width=4, classes=CLASSES):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x))


class ReplyingGrid(SerialGrid):
    """A client's exception becomes an error reply, as on Ray and under ``flwr run``."""

    def execute(self, messages):
        outcomes = []
        for message in messages:
            try:
                outcomes += super().execute([message])
            except ValueError as error:
                outcomes.append(Outcome(failure(message, error), 0.0))
        return outcomes


class Step(NamedTuple):
    """One step by hand: the module in training, the one that the round began with, and the batch."""

    client: int
    now: Net
    start: Net
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Labelled:
    """Clients' rows and labels, and how they train.

    ``batches``: for each client the row positions of every step of a round. Clients count for their rows.
    """

    x: list
    y: list
    batches: list
    lr: float = 0.3
    seen: list = field(default_factory=list)

    def module(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Net(self.x[0].shape[1]).double()

    def initial(self):
        return record(self.module().state_dict())

    def rows(self, client):
        return {"x": torch.from_numpy(self.x[client]), "y": torch.from_numpy(self.y[client])}

    def app(self, rule, queries=True):
        client = RuleClient(rule, self.module(), weighted_cross_entropy)
        app = ClientApp()

        def mine(context):
            node = int(context.node_config["partition-id"])
            rows = self.rows(node)
            return node, rows | {"weight": torch.ones(len(rows["y"])).double()}

        @app.train()
        def train(message, context):
            node, rows = mine(context)
            return client.train(message, context, rows, self.batches[node], self.lr)

        @app.evaluate()
        def evaluate(message, context):
            _, rows = mine(context)
            predict = client.predictor(message, context, rows, None, self.lr)
            content = {
                "output": record({"output": predict(rows)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
            return Message(RecordDict(content), reply_to=message)

        for name in rule.queries() if queries else ():

            @app.query(name)
            def answer(message, context, name=name):
                return client.answer(name, message, context, mine(context)[1])

        return app

    def grid(self, rule, queries=True):
        app = self.app(rule, queries)
        return ReplyingGrid(lambda: app, [len(y) for y in self.y], self.seen.append)

    def run(self, strategy, rule=None, rounds=3, chosen=None, grid=None, arrays=None, first=1):
        """Arrays after each round as vectors, the engine, and the last arrays.

        ``chosen``: for each round, the partitions that take part; all by default. With ``grid`` and
        ``arrays`` of another run, it goes on with that from round ``first``.
        """
        grid = grid or self.grid(rule or type(strategy).client_half())
        trace = []
        if arrays is None:
            arrays = self.initial()
            arrays = strategy.prepare(grid, arrays) if hasattr(strategy, "prepare") else arrays
        for t in range(first, first + rounds):
            with grid.cohort(chosen[t - 1] if chosen else None):
                messages = strategy.configure_train(t, arrays, ConfigRecord(), grid)
                replies = grid.send_and_receive(messages)
            for reply in replies:
                if reply.has_error():
                    raise StrategyError(reply.error.reason)
            arrays = strategy.aggregate_train(t, replies)[0]
            trace.append(flat(arrays))
        return np.array(trace), grid, arrays

    def outputs(self, strategy, grid, arrays):
        """What each client predicts for its own rows."""
        messages = strategy.configure_evaluate(9, arrays, ConfigRecord(), grid)
        replies = sorted(grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id)
        return [r.content["output"]["output"].numpy() for r in replies]

    def round(self, client, **given):
        """A round as a rule sees it at the initial model."""
        model = Stateless(self.module())
        data = self.rows(client) | {"weight": torch.ones(len(self.y[client])).double()}
        made = Round(model, weighted_cross_entropy, model.initial(), model.trainable, data=data)
        return replace(made, **given)

    # --- by hand -------------------------------------------------------------------------------------

    def trained(self, client, start, term=None):
        """A copy of a module after one round of ``torch.optim.SGD``.

        ``term(step)``: what is added to the cross-entropy.
        """
        now = copy.deepcopy(start)
        optimizer = torch.optim.SGD(now.parameters(), lr=self.lr)
        for rows in self.batches[client]:
            x, y = torch.from_numpy(self.x[client][rows]), torch.from_numpy(self.y[client][rows])
            loss = functional.cross_entropy(now(x), y)
            if term is not None:
                loss = loss + term(Step(client, now, start, x, y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return now

    def mean(self, modules):
        """Mean of the modules of clients (a dict), weighted by rows."""
        total = sum(len(self.y[c]) for c in modules)
        states = {c: m.state_dict() for c, m in modules.items()}
        mean = self.module()
        mean.load_state_dict(
            {k: sum(len(self.y[c]) / total * s[k] for c, s in states.items()) for k in mean.state_dict()}
        )
        return mean

    def by_hand(self, rounds, term=None, after=None, chosen=None):
        """FedAvg's model after each round; ``after(trained)`` is called with the round's modules."""
        model, trace = self.module(), []
        for t in range(rounds):
            clients = chosen[t] if chosen else range(len(self.y))
            modules = {c: self.trained(c, model, term) for c in clients}
            if after is not None:
                after(modules)
            model = self.mean(modules)
            trace.append(flat(record(model.state_dict())))
        return np.array(trace)

    def class_mean(self, module, client, label):
        """Mean representation of a client's rows of a class."""
        with torch.no_grad():
            return module.body(torch.from_numpy(self.x[client][self.y[client] == label])).mean(dim=0)


def flat(arrays):
    """Arrays as one vector, in the order of their names."""
    return np.concatenate([np.zeros(0), *(arrays[k].numpy().ravel() for k in sorted(arrays))])


def kept_by(grid, client):
    """What a client keeps, as one vector."""
    return flat(grid.state_of(client).array_records[KEPT])


def skewed(clients=2, features=3, seed=0):
    """Clients that lack classes: client ``i`` has ``i`` and ``i + 1`` modulo 3, in unequal numbers."""
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(CLASSES, features))
    x, y, batches = [], [], []
    for client in range(clients):
        rows = 6 + 3 * client
        labels = (client + np.arange(rows) % 2) % CLASSES
        y.append(labels)
        x.append(centres[labels] + rng.normal(size=(rows, features)) + rng.normal(size=features))
        batches.append([rng.choice(rows, 3 + step % 2, replace=False) for step in range(2 + client)])
    return Labelled(x, y, batches)


def assert_halves_are_named(server, name=None):
    """A method with one half missing says which."""
    name, half = name or type(server).__name__, type(server).client_half
    case = skewed()
    said = rf"{name}: node 1000 trained with LocalRule.*strategies\.{half.__name__}"
    with pytest.raises(StrategyError, match=said):
        case.run(server, LocalRule(), rounds=1)
    if server.settings:
        with pytest.raises(StrategyError, match=rf"{half.__name__} got no .* use strategies\.{name}"):
            case.run(FedAvg(**SERVER), half(), rounds=1)


def assert_padding_counts_for_nothing(case, rule, client=0, **given):
    """Rows of weight 0 change neither a rule's loss nor its gradient."""
    now = case.round(client, **given)
    padded = {k: torch.cat([v, v[:2] * 0 + 1]) for k, v in now.data.items()}
    padded["weight"][-2:] = 0

    def at(batch):
        params = {k: v.clone().requires_grad_() for k, v in now.received.items()}
        loss = rule.loss(params, batch, now)
        return loss, *torch.autograd.grad(loss, list(params.values()))

    for plain, with_padding in zip(at(now.data), at(padded), strict=True):
        torch.testing.assert_close(with_padding, plain, rtol=0, atol=1e-14)


def assert_lowered_by_training(case, term, start):
    """A round with a term in the loss leaves it smaller, on all of a client's rows, than one without."""
    for client in range(len(case.y)):
        with_term, without = case.trained(client, start, term), case.trained(client, start)
        with torch.no_grad():
            after = [
                float(term(Step(client, m, start, *case.rows(client).values()))) for m in (with_term, without)
            ]
        assert after[0] < after[1]


def assert_resumes(case, make):
    """Two rounds, the state in a new object, and one more round equal three rounds."""
    whole, _, _ = case.run(make(), rounds=3)
    first, again = make(), make()
    _, grid, arrays = case.run(first, rounds=2)
    again.load_state_dict(first.state_dict())
    assert again.population == len(case.y)
    rest, _, _ = case.run(again, rounds=1, grid=grid, arrays=arrays, first=3)
    np.testing.assert_array_equal(rest[-1], whole[-1])
