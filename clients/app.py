"""The ClientApp: a plain Flower ClientApp that trains, evaluates and answers a method's queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from strategies.local import Action, Batch, DataRule, Examples, LocalRule, Params, Round
from strategies.seeding import generator, torch_seed

from .errors import ClientError
from .tasks.base import Arrays, Rows, Task
from .training import Stateless, Training, evaluate, train_client

_KEPT = "fedbench-kept"


class Split(Protocol):
    """The rows of one client."""

    @property
    def train(self) -> npt.NDArray[np.int64]: ...  # noqa: D102
    @property
    def val(self) -> npt.NDArray[np.int64]: ...  # noqa: D102
    @property
    def test(self) -> npt.NDArray[np.int64]: ...  # noqa: D102


@dataclass(frozen=True)
class ClientSpec:
    """All that a node needs to be any client of a federation.

    Parameters
    ----------
    arrays : mapping of ndarray
        The data set, shared by all clients of a machine and never written to.
    splits : sequence of Split
        Rows of each client; the position is the partition id.
    domains : sequence of str
        Domain name of each client.
    model : callable
        Makes the module; called once a process.
    task : Task
        Loss and metrics.
    training : Training
        How to train locally.
    rule : LocalRule
        Client half of the strategy.
    data_rule : DataRule or None
        Client half of an alignment, which changes what is trained on.
    seed : int
        Seed of the run.
    device : str
        Torch device.
    """

    arrays: Arrays
    splits: Sequence[Split]
    domains: Sequence[str]
    model: Callable[[], nn.Module]
    task: Task
    training: Training
    rule: LocalRule
    data_rule: DataRule | None = None
    seed: int = 0
    device: str = "cpu"


class _Node:
    """One process's resident model and data, able to act as any client."""

    def __init__(self, spec: ClientSpec) -> None:
        self.spec = spec
        self.model = Stateless(spec.model(), spec.task, spec.device)
        self.optimizer = spec.training.build_optimizer()

    def batch(self, arrays: Arrays, rows: Rows) -> Batch:
        data = self.spec.task.gather(arrays, rows)
        data["weight"] = torch.ones(len(next(iter(data.values()))))
        return {k: v.to(self.model.device) for k, v in data.items()}

    def examples(self, node: int) -> Examples:
        """Training rows as feature vectors, for a data rule."""
        spec = self.spec
        batch = spec.task.gather(spec.arrays, spec.splits[node].train)
        if batch["x"].ndim != 2 or "y" not in batch:
            raise ClientError(
                f"an alignment works on labelled feature vectors, but the data give examples of shape "
                f"{tuple(batch['x'].shape[1:])}; choose a frozen extractor, e.g. features=pixels"
            )
        return Examples(batch["x"].numpy(), batch["y"].numpy(), spec.domains[node], node, spec.seed)

    def training_data(self, node: int, context: Context) -> tuple[Batch, int]:
        """Training rows with ``weight``, and the number of examples to report."""
        spec = self.spec
        rows: Rows = spec.splits[node].train
        arrays, weight = spec.arrays, len(spec.splits[node].train)
        if spec.data_rule is not None:
            changed = spec.data_rule.training_set(context, self.examples(node))
            arrays, rows = {"x": changed.x, "y": changed.y}, slice(None)
            weight = len(changed.y) if changed.weight is None else changed.weight
        return self.batch(arrays, rows), 1 if spec.training.weighting == "uniform" else weight

    def round(self, message: Message, context: Context, node: int, steps: int) -> Round:
        """What the rule may look at."""
        records = {k: self.tensors(r) for k, r in message.content.array_records.items()}
        config = config_of(message)
        server_round = round_of(message)
        if "arrays" not in records:
            raise ClientError(
                "the message has no record 'arrays'; the strategy's arrayrecord_key must be 'arrays'"
            )
        received = self.model.to_device(records.pop("arrays"))
        kept = context.state.array_records.get(_KEPT)
        seed = torch_seed(self.spec.seed, "rule", server_round, node)
        return Round(
            model=self.model,
            task_loss=self.spec.task.loss,
            received=received,
            trainable=self.model.trainable,
            kept=self.spec.rule.keep(received) if kept is None else self.tensors(kept),
            sent=records,
            config=config,
            steps=steps,
            lr=self.spec.training.learning_rate(server_round),
            generator=torch.Generator().manual_seed(seed),
        )

    def tensors(self, record: ArrayRecord) -> Params:
        """An array record on the model's device."""
        return {k: torch.from_numpy(v.numpy()).to(self.model.device) for k, v in record.items()}

    def train(self, message: Message, context: Context) -> Message:
        """Answer a training message."""
        spec, node = self.spec, partition_of(context)
        data, weight = self.training_data(node, context)
        server_round = round_of(message)
        plan = spec.training.plan(
            len(data["weight"]),
            generator(spec.seed, "batches", server_round, node),
            smallest=2 if self.model.has_batch_norm else 1,
        )
        now = self.round(message, context, node, len(plan))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(spec.seed, "dropout", server_round, node))
            params, loss = train_client(spec.rule, self.optimizer, now, data, plan)
        upload = spec.rule.end(params, now)
        if upload.kept:
            context.state[_KEPT] = record(upload.kept)
        metrics: dict[str, Any] = {"num-examples": weight, "train_loss": loss, "local_steps": len(plan)}
        metrics |= {k: float(v) for k, v in upload.metrics.items()}
        content = RecordDict({"arrays": record(upload.arrays), "metrics": MetricRecord(metrics)})
        for key, extra in upload.extra.items():
            content[key] = record(extra)
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Answer an evaluation message: summed metrics on validation and test rows."""
        spec, node = self.spec, partition_of(context)
        split = spec.splits[node]
        params = spec.rule.begin(self.round(message, context, node, 0))
        metrics: dict[str, Any] = {"num-examples": max(len(split.val) + len(split.test), 1)}
        for name, rows in (("val", split.val), ("test", split.test)):
            sums = evaluate(self.model, params, self.batch(spec.arrays, rows))
            metrics |= {f"{name}_{key}": value for key, value in sums.items()}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def answering(self, action: Action) -> Callable[[Message, Context], Message]:
        """A query handler that hands the client's examples to a data rule's action."""
        return lambda message, context: action(message, context, self.examples(partition_of(context)))


def record(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An array record of tensors, in their order."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in params.items()})


def partition_of(context: Context) -> int:
    """Partition id of the node that a handler acts for."""
    return int(context.node_config["partition-id"])


def config_of(message: Message) -> dict[str, Any]:
    """The config record of a message, empty if it has none."""
    return dict(message.content.config_records.get("config", {}))


def round_of(message: Message) -> int:
    """The server round of a message, counted from 1."""
    return int(config_of(message).get("server-round", 1))


def make_client_app(spec: ClientSpec) -> ClientApp:
    """A ClientApp with train, evaluate and the data rule's query actions.

    It runs in fedbench's engines and under ``flwr run`` alike: all it asks of a context is
    ``node_config["partition-id"]`` and a ``state`` that lasts between rounds.
    """
    node = _Node(spec)
    app = ClientApp()
    app.train()(node.train)
    app.evaluate()(node.evaluate)
    for name, action in (spec.data_rule.actions() if spec.data_rule else {}).items():
        app.query(name)(node.answering(action))
    return app
