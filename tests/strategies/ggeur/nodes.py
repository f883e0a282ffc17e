"""GGEUR's nodes without a model: all that its phase before the rounds needs, and quick."""

from functools import partial

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedbench.engine.serial import SerialGrid
from strategies import GGEUR, GGEURClient
from strategies.local import Examples

DIM, CLASSES = 6, 4
DOMAINS = ("art", "art", "photo", "photo", "photo")
COUNTS = np.array([[20, 12, 9, 0], [15, 30, 8, 0], [10, 0, 25, 0], [4, 40, 16, 0], [11, 2, 7, 0]])
"""Rows of every (client, class): one client has none of class 1, nobody has any of class 3."""


def examples(domains=DOMAINS, counts=COUNTS, seed=0, offset=3.0, scale=1.0):
    rng = np.random.default_rng(seed)
    made = []
    for node, (domain, sizes) in enumerate(zip(domains, counts, strict=False)):
        y = np.repeat(np.arange(len(sizes)), sizes)
        x = rng.normal(size=(len(y), DIM)) * (1 + np.arange(DIM)) + offset * y[:, None] + node
        made.append(Examples((scale * x).astype(np.float32), y, domain, node, seed=5))
    return made


def _answer(action, examples, message, context):
    return action(message, context, examples[context.node_config["partition-id"]])


def client_app(client, examples):
    app = ClientApp()
    for name, action in client.actions().items():
        app.query(name)(partial(_answer, action, examples))
    return app


class Nodes(SerialGrid):
    """Notes every reply, by message type and node."""

    def __init__(self, examples, observer=None):
        self.client, self.replies = GGEURClient(), {}
        super().__init__(partial(client_app, self.client, examples), [len(e.y) for e in examples], observer)

    def execute(self, messages):
        outcomes = super().execute(messages)
        for message, outcome in zip(messages, outcomes, strict=True):
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            self.replies.setdefault(kind.removeprefix("query.ggeur_"), {})[node] = outcome.reply
        return outcomes


def prepared(grid, **options):
    """GGEUR around FedAvg once its phase before the rounds is over."""
    inner = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy = GGEUR(inner, wire_dtype="float64", **options)
    strategy.prepare(grid, ArrayRecord())
    return strategy


def uploads(grid):
    """Arrays of every client's statistics, by name."""
    return [
        {k: v.numpy() for k, v in reply.content.array_records["moments"].items()}
        for _, reply in sorted(grid.replies["statistics"].items())
    ]


def delivered(strategy):
    """Pooled covariances by class, and prototypes by key, as the clients get them."""
    arrays = {k: v.numpy() for k, v in strategy.delivery["ggeur-pack"].items()}
    covariances = {}
    for label in strategy.delivery["ggeur-options"]["classes"]:
        vectors = arrays[f"vectors/{label}"]
        covariances[label] = (vectors * arrays[f"values/{label}"]) @ vectors.T
    return covariances, {k: v for k, v in arrays.items() if k.startswith("prototype/")}


def error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
