"""A federation whose every step can be computed by hand: clients with quadratic losses of their own.

Client ``i`` minimises ``1/2 sum_j a_ij (w_j - b_ij)^2``. The model has one parameter ``body.w`` and one
``head.w`` (:class:`Two`), each a vector; what the body gives is its ``w``. Strategies run through Flower's
messages on the serial engine, in float64.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ConfigRecord, Context
from flwr.clientapp import ClientApp
from torch import nn

from fedbench.engine.serial import SerialGrid
from strategies import SGD, RuleClient
from strategies.client import record


class Vector(nn.Module):
    """Puts its own vector behind each row."""

    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([x, self.w.expand(len(x), -1)], dim=1)


class Two(nn.Module):
    """``[body.w, head.w]`` for each row."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = Vector(body), Vector(head)

    def forward(self, x):
        return self.head(self.body(x[:, :0]))


def loss(output, batch):
    rows = 0.5 * (batch["a"] * (output - batch["b"]) ** 2).sum(dim=1)
    return (rows * batch["weight"]).sum() / batch["weight"].sum().clamp(min=1)


@dataclass
class Quadratics:
    """Clients ``1/2 a (w - b)^2``, their start, and how they train.

    ``a`` and ``b`` have shape (clients, dim), the first half of ``dim`` being the body's. ``rows`` is what
    each client counts for; it sees its one row in each of ``steps`` (a number, or one a client), in as many
    ``copies`` as asked for.
    """

    a: np.ndarray
    b: np.ndarray
    start: np.ndarray
    rows: tuple = (1, 1)
    steps: tuple | int = 3
    lr: float = 0.1
    optimizer: SGD = field(default_factory=SGD)
    copies: int = 1

    @property
    def taken(self):
        return (self.steps,) * len(self.a) if isinstance(self.steps, int) else self.steps

    def module(self):
        half = len(self.start) // 2
        return Two(self.start[:half].tolist(), self.start[half:].tolist())

    def initial(self):
        return record({k: p.detach() for k, p in self.module().named_parameters()})

    def data(self, node):
        rows = {"a": torch.tensor(self.a[[node]]), "b": torch.tensor(self.b[[node]])}
        rows |= {"x": torch.zeros(1, 1).double(), "weight": torch.ones(1).double()}
        return {k: v.repeat_interleave(self.copies, dim=0) for k, v in rows.items()}

    def plan(self, steps):
        return [np.arange(self.copies)] * steps

    def app(self, rule):
        client = RuleClient(rule, self.module(), loss, optimizer=self.optimizer)
        app = ClientApp()

        @app.train()
        def train(message, context):
            node = int(context.node_config["partition-id"])
            plan = self.plan(self.taken[node])
            return client.train(message, context, self.data(node), plan, self.lr, weight=self.rows[node])

        self.clients = client
        return app

    def grid(self, rule):
        """An engine; ``grid.state_of`` has what each client keeps."""
        app = self.app(rule)
        return SerialGrid(lambda: app, [1] * len(self.a))

    def run(self, strategy, rule=None, rounds=3, chosen=None):
        """Arrays after each round as vectors, and the engine.

        ``chosen``: for each round, the partitions that take part; all by default.
        """
        grid = self.grid(rule or type(strategy).client_half())
        arrays, trace = self.initial(), []
        if hasattr(strategy, "prepare"):
            arrays = strategy.prepare(grid, arrays)
        for t in range(1, rounds + 1):
            with grid.cohort(chosen[t - 1] if chosen else None):
                messages = strategy.configure_train(t, arrays, ConfigRecord(), grid)
                replies = grid.send_and_receive(messages)
            arrays = strategy.aggregate_train(t, replies)[0]
            trace.append(vector(arrays))
        self.arrays = arrays
        return np.array(trace), grid

    def predicted(self, strategy, grid, node):
        """Parameters with which a client predicts after :meth:`run`, fine-tuned where the rule says."""
        messages = strategy.configure_evaluate(1, self.arrays, ConfigRecord(), grid)
        (message,) = [m for m in messages if m.metadata.dst_node_id == 1000 + node]
        context = Context(1, 1000 + node, {"partition-id": node}, grid.state_of(node), {})
        predict = self.clients.predictor(
            message, context, self.data(node), lambda tune: self.plan(tune.epochs or tune.steps), self.lr
        )
        return predict({"x": torch.zeros(1, 1).double()})[0].numpy()

    # --- by hand -------------------------------------------------------------------------------------

    def gradient(self, client, w):
        return self.a[client] * (w - self.b[client])

    def sgd(self, client, w, correction=0.0):
        """Plain local SGD, with something added to every gradient."""
        for _ in range(self.taken[client]):
            w = w - self.lr * (self.gradient(client, w) + correction)
        return w

    def mean(self, values, clients=None):
        """Weighted mean over clients."""
        weights = np.array(
            [self.rows[c] for c in (range(len(values)) if clients is None else clients)], float
        )
        return np.tensordot(weights / weights.sum(), np.asarray(values), 1)


def vector(arrays):
    """Arrays ``body.w`` and ``head.w`` (those that are there) as one vector."""
    return np.concatenate([arrays[k].numpy() for k in sorted(arrays)] or [np.zeros(0)])


def two_clients(**options):
    """Two clients that disagree in curvature and in target."""
    given = {
        "a": np.array([[1.0, 0.5, 2.0, 1.5], [0.3, 1.2, 0.7, 0.9]]),
        "b": np.array([[1.0, -2.0, 0.5, 3.0], [-1.0, 4.0, 2.0, -0.5]]),
        "start": np.array([0.2, 0.4, -0.3, 0.1]),
    }
    return Quadratics(**{**given, **options})


def four_clients(**options):
    """Four that differ, for rounds in which some are left out."""
    rng = np.random.default_rng(0)
    given = {"a": rng.uniform(0.5, 1.5, (4, 4)), "b": rng.normal(size=(4, 4)), "start": rng.normal(size=4)}
    return Quadratics(**{**given, "rows": (1, 2, 1, 3), **options})


SOME = [[0, 2], [1], [0, 1, 3]]
"""Clients of three rounds."""

SERVER = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
"""Options of Flower's strategies that let the engine choose the clients."""
