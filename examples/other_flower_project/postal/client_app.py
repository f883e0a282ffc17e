"""The client: one office, which trains and tests on its own images by the rule of the chosen method."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from strategies import Examples, GGEURClient, RuleClient, weighted_cross_entropy

from .data import Office, office
from .methods import client_half
from .model import Reader

app = ClientApp()
ggeur = GGEURClient()


@cache
def client(method: str) -> RuleClient:
    """One resident model for whichever office this process acts for."""
    return RuleClient(client_half(method), Reader(), weighted_cross_entropy)


def own(context: Context) -> Office:
    """Images of the office that this context is of."""
    return office(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


def examples(context: Context) -> Examples:
    """The same in the form in which GGEUR takes them."""
    images, node = own(context), int(context.node_config["partition-id"])
    return Examples(images.x, images.y, domain="post", node=node, seed=int(context.run_config["seed"]))


def batches(rows: int, context: Context, server_round: int) -> list[np.ndarray]:
    """Rows of each local step; the same for the same seed, round and office, wherever it runs."""
    config, node = context.run_config, int(context.node_config["partition-id"])
    rng = np.random.default_rng([int(config["seed"]), server_round, node])
    return [rng.integers(rows, size=int(config["batch-size"])) for _ in range(int(config["steps"]))]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the office's images, or on what GGEUR makes of them once the server has run it."""
    now = ggeur.training_set(context, examples(context))
    return client(str(context.run_config["method"])).train(
        message,
        context,
        {"x": torch.from_numpy(now.x), "y": torch.from_numpy(now.y)},
        batches(len(now.y), context, int(message.content["config"]["server-round"])),
        lr=float(context.run_config["lr"]),
        weight=now.weight,
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Accuracy on the images that the office keeps for testing."""
    images = own(context)
    predict = client(str(context.run_config["method"])).predictor(message, context)
    guessed = predict({"x": torch.from_numpy(images.x_test)}).argmax(dim=1).numpy()
    numbers = {"num-examples": len(images.y_test), "accuracy": float((guessed == images.y_test).mean())}
    return Message(RecordDict({"metrics": MetricRecord(numbers)}), reply_to=message)


def answering(action: Callable[..., Message]) -> Callable[[Message, Context], Message]:
    """A query handler that shows the office's images to an action of GGEUR's client half."""
    return lambda message, context: action(message, context, examples(context))


for name, action in ggeur.actions().items():
    app.query(name)(answering(action))
