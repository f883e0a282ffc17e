"""The ClientApp: a plain Flower ClientApp that trains, evaluates and answers a method's queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from strategies.arrays import record
from strategies.asynchronous import AGAIN
from strategies.attacks import Attack
from strategies.client import Answered, Job, RuleClient
from strategies.cohort import alone_because
from strategies.functional import Batch
from strategies.local import Action, DataRule, Examples, FineTune, LocalRule, Round, Upload
from strategies.seeding import generator, torch_seed
from strategies.timing import LOAD, timed

from .augment import augment
from .errors import ClientError
from .tasks.base import Arrays, Rows, Task
from .tasks.forecasting import FORECAST, Forecasting
from .training import Plan, Training, evaluate

_CPU_WIDTH, _CPU_BYTES = 32, 7 << 18
"""On a CPU, clients are slower again once the models of all of them leave the nearer caches."""

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""What Flower puts around a handler."""


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
    row_domain : ndarray of int64 or None
        Domain of each row, for methods whose clients have models of their own: they report their test rows
        by domain, since no global model can be tested.
    attack : Attack or None
        What malicious clients do in training; they evaluate as all others do.
    attackers : frozenset of int
        Partition ids of the malicious clients.
    classes : int
        Number of classes, for attacks on labels.
    new : frozenset of int
        Partition ids of clients that are shown the model without having trained.
    support : sequence of int
        Numbers of their own rows from which those clients personalise it.
    local : frozenset of str
        Parts of the model that the rule keeps with the client, whatever the method.
    mods : sequence of callable
        Flower's mods around training, such as the clipping of a privacy wrapper. Attackers have them too.
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
    row_domain: npt.NDArray[np.int64] | None = None
    attack: Attack | None = None
    attackers: frozenset[int] = frozenset()
    classes: int = 0
    new: frozenset[int] = frozenset()
    support: Sequence[int] = ()
    local: frozenset[str] = frozenset()
    mods: Sequence[Mod] = ()


class _Node:
    """One process's resident model and data, able to act as any client."""

    def __init__(self, spec: ClientSpec) -> None:
        self.spec = spec
        self.client = RuleClient(
            spec.rule,
            spec.model(),
            spec.task.loss,
            spec.task.inputs,
            spec.training.build_optimizer(),
            spec.device,
        )

    @timed(LOAD)
    def batch(self, arrays: Arrays, rows: Rows) -> Batch:
        data = self.spec.task.gather(arrays, rows)
        data["weight"] = torch.ones(len(next(iter(data.values()))))
        return self.on_device(data)

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the model computes."""
        return {k: v.to(self.client.model.device) for k, v in batch.items()}

    @timed(LOAD)
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

    @timed(LOAD)
    def planned(
        self, nodes: Sequence[int], training: Sequence[npt.NDArray[np.int64]], now: tuple[int, ...]
    ) -> list[tuple[Batch, int, Plan]]:
        """What clients with these training rows train on in a round, what they report, and their batches.

        Rows that are in no batch are left out, unless the rule looks at all of them.
        """
        spec, held, plans = self.spec, [], []
        for node, rows in zip(nodes, training, strict=True):
            plan = self.plan(spec.training, len(rows), "batches", *now, node)
            if sum(map(len, plan)) < len(rows) and not (spec.rule.needs_all_rows or spec.attack):
                used = np.unique(np.concatenate(plan))
                plan = [np.searchsorted(used, chosen) for chosen in plan]
                rows = rows[used]
            held.append(rows)
            plans.append(plan)
        reported = [self.reported(len(rows)) for rows in training]
        data = self.rows_of(held)
        if spec.task.draws:
            for i, node in enumerate(nodes):
                with self.seeded("examples", *now, node):
                    data[i] = self.on_device(spec.task.drawn(data[i], spec.arrays))
        if spec.training.augment != "none":
            for node, batch in zip(nodes, data, strict=True):
                with self.seeded("augment", *now, node):
                    batch["x"] = augment(batch["x"], spec.training.augment)
        return list(zip(data, reported, plans, strict=True))

    @timed(LOAD)
    def training_data(self, node: int, context: Context) -> tuple[Batch, int]:
        """Training rows with ``weight``, and the number of examples to report."""
        if self.spec.data_rule is None:
            rows = self.spec.splits[node].train
            return self.batch(self.spec.arrays, rows), self.reported(len(rows))
        changed = self.spec.data_rule.training_set(context, self.examples(node))
        weight = len(changed.y) if changed.weight is None else changed.weight
        return self.batch({"x": changed.x, "y": changed.y}, slice(None)), self.reported(weight)

    def rows_of(self, held: Sequence[npt.NDArray[np.int64]]) -> list[Batch]:
        """The rows of several clients, gathered at once."""
        together = self.batch(self.spec.arrays, np.concatenate(held))
        ends = np.cumsum([len(rows) for rows in held]).tolist()
        return [
            {k: v[end - len(rows) : end] for k, v in together.items()}
            for rows, end in zip(held, ends, strict=True)
        ]

    def reported(self, weight: int) -> int:
        """Number of examples that a client reports."""
        return 1 if self.spec.training.weighting == "uniform" else weight

    def plan(self, training: Training, rows: int, purpose: str, *keys: int) -> Plan:
        """Batches of one purpose, such as a round."""
        smallest = 2 * self.spec.rule.parts if self.client.model.has_batch_norm else 1
        return training.plan(rows, generator(self.spec.seed, purpose, *keys), smallest)

    def train(self, message: Message, context: Context) -> Message:
        """Answer a training message."""
        with self.seeded("dropout", *moment(message), partition_of(context)):
            reply, _ = self.client.train_together(self.jobs([message], [context]))[0]
        assert reply is not None
        return reply

    @timed(LOAD)
    def jobs(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Job]:
        """All that clients train with; the messages have the same content."""
        nodes, now = [partition_of(context) for context in contexts], moment(messages[0])
        if self.spec.data_rule is None:
            data = self.planned(nodes, [self.spec.splits[node].train for node in nodes], now)
        else:
            data = []
            for node, context in zip(nodes, contexts, strict=True):
                changed, weight = self.training_data(node, context)
                plan = self.plan(self.spec.training, len(changed["weight"]), "batches", *now, node)
                data.append((changed, weight, plan))
        given = zip(messages, contexts, nodes, data, strict=True)
        return [self.job(m, c, node, now, *mine) for m, c, node, mine in given]

    def job(
        self,
        message: Message,
        context: Context,
        node: int,
        now: tuple[int, ...],
        data: Batch,
        weight: int,
        plan: Plan,
    ) -> Job:
        """All that one client trains with."""
        attack = self.spec.attack if node in self.spec.attackers else None
        if attack is not None:
            data = attack.poison(data, self.spec.classes, self.generator("attack data", 0, node))
        return Job(
            message,
            context,
            data,
            plan,
            self.spec.training.learning_rate(now[0]),
            weight=weight,
            generator=partial(self.generator, "rule", *now, node),
            corrupt=self.corrupting(attack, *now, node) if attack else None,
        )

    def predictor(
        self, message: Message, context: Context, rows: Rows | None = None
    ) -> Callable[[Batch], Tensor]:
        """The function ``batch -> output`` with which a client predicts what an evaluation asks for.

        What trains before it predicts has all training rows for that, or those given.
        """
        spec, node, now = self.spec, partition_of(context), round_of(message)
        data: Batch = {}
        if spec.rule.fine_tunes:
            data = self.training_data(node, context)[0] if rows is None else self.batch(spec.arrays, rows)

        def plan(tune: FineTune) -> Plan:
            training = replace(spec.training, steps=tune.steps, epochs=tune.epochs or 1, replace=False)
            return self.plan(training, len(data["weight"]), "fine-tune", now, node)

        with self.seeded("fine-tune dropout", now, node):
            return self.client.predictor(
                message,
                context,
                data,
                plan,
                spec.training.learning_rate(now),
                self.generator("rule", now, node),
            )

    def evaluate(self, message: Message, context: Context) -> Message:
        """Answer an evaluation message: summed metrics on validation and test rows."""
        spec, node = self.spec, partition_of(context)
        if node in spec.new:
            return self.evaluate_new(message, context)
        split, predict = spec.splits[node], self.predictor(message, context)
        metrics: dict[str, Any] = {"num-examples": max(len(split.val) + len(split.test), 1)}
        for name, rows in (("val", split.val), ("test", split.test), *self.by_domain(split.test)):
            sums = evaluate(spec.task, predict, self.batch(spec.arrays, rows))
            metrics |= {f"{name}_{key}": value for key, value in sums.items()}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def evaluate_new(self, message: Message, context: Context) -> Message:
        """Answer an evaluation message as a client that has not trained: by how many rows it personalises."""
        spec, node = self.spec, partition_of(context)
        split = spec.splits[node]
        order = generator(spec.seed, "support", node).permutation(split.train)  # more rows hold fewer
        data = self.batch(spec.arrays, split.test)
        metrics: dict[str, Any] = {"num-examples": max(len(split.test), 1)}
        for shots in spec.support:
            rows = np.sort(order[:shots])
            predict = self.predictor(message, self.joined(message, context, rows), rows)
            sums = evaluate(spec.task, predict, data)
            metrics |= {f"support{shots}_{key}": value for key, value in sums.items()}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def joined(self, message: Message, context: Context, rows: npt.NDArray[np.int64]) -> Context:
        """A new client's context, after a round on these rows if it predicts with what it keeps of one."""
        context = replace(context, state=RecordDict())
        if self.spec.rule.keeps_model and len(rows):
            node, now = partition_of(context), moment(message)
            job = self.job(message, context, node, now, *self.planned([node], [rows], now)[0])
            with self.seeded("dropout", *now, node):
                self.client.train_together([job])
        return context

    def forecasting(self, task: Forecasting) -> Callable[[Message, Context], Message]:
        """A query handler that forecasts a window of the client's test rows, as it does in an evaluation.

        The message has an evaluation's content. The reply shows values as they are: it is for the pictures
        of an experiment, whose server has all data anyway.
        """

        def answer(message: Message, context: Context) -> Message:
            predict, rows = self.predictor(message, context), self.spec.splits[partition_of(context)].test
            window, repeated = task.typical(
                lambda batch: predict(self.on_device(batch)).cpu(), self.spec.arrays, rows
            )
            content = RecordDict({"window": record(window), "repeated": record(repeated)})
            return Message(content, reply_to=message)

        return answer

    def by_domain(self, rows: npt.NDArray[np.int64]) -> list[tuple[str, npt.NDArray[np.int64]]]:
        """Rows of each domain, where clients predict with models of their own."""
        domain = self.spec.row_domain
        if domain is None:
            return []
        return [(f"test@{d}", rows[domain[rows] == d]) for d in np.unique(domain[rows]).tolist()]

    def answering(self, action: Action) -> Callable[[Message, Context], Message]:
        """A query handler that hands the client's examples to a data rule's action."""
        return lambda message, context: action(message, context, self.examples(partition_of(context)))

    def querying(self, action: str) -> Callable[[Message, Context], Message]:
        """A query handler of the rule's own."""

        def answer(message: Message, context: Context) -> Message:
            node = partition_of(context)
            data, _ = self.training_data(node, context)
            draws = self.generator("rule", round_of(message), node)
            return self.client.answer(action, message, context, data, draws)

        return answer

    def corrupting(self, attack: Attack, *keys: int) -> Callable[[Upload, Round], Upload]:
        """What an attack does to uploads, with draws of its own: the same against every method."""
        draws = self.generator("attack upload", *keys)
        return lambda upload, round: attack.corrupt(upload, replace(round, generator=draws))

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """Source of a rule's, or an attack's, own draws."""
        return torch.Generator().manual_seed(torch_seed(self.spec.seed, purpose, *keys))

    @contextmanager
    def seeded(self, purpose: str, *keys: int) -> Iterator[None]:
        """A block whose draws from torch's global generator, dropout's say, have a stream of their own."""
        with torch.random.fork_rng(devices=[]):
            seed = torch_seed(self.spec.seed, purpose, *keys)
            torch.default_generator.manual_seed(seed)  # without the stack that torch.manual_seed formats
            if self.spec.device != "cpu":
                torch.cuda.manual_seed_all(seed)
            yield


def partition_of(context: Context) -> int:
    """Partition id of the node that a handler acts for."""
    return int(context.node_config["partition-id"])


def round_of(message: Message) -> int:
    """The server round of a message, counted from 1."""
    config: Any = message.content.get("config")
    return int(config.get("server-round", 1)) if config else 1


def moment(message: Message) -> tuple[int, ...]:
    """What tells a client's trainings apart: the server round, and how often it got the same model before."""
    config: Any = message.content.get("config")
    again = int(config.get(AGAIN, 0)) if config else 0
    return (round_of(message), again) if again else (round_of(message),)


class NodeApp(ClientApp):
    """A ClientApp that can train several of its clients together.

    Parameters
    ----------
    node : _Node
        Resident model and data.
    """

    def __init__(self, node: _Node) -> None:
        super().__init__()
        self._node = node

    @property
    def width(self) -> int:
        """Most clients that train together here, by what their models take."""
        model = self._node.client.model
        if model.device.type == "cuda":
            return 128
        size = sum(v.numel() * v.element_size() for v in model.module.state_dict().values())
        return max(1, min(_CPU_WIDTH, _CPU_BYTES // max(size, 1)))

    def alone_because(self, *, forced: bool = False) -> str | None:
        """Why clients train one at a time, if they do; ``forced`` passes over what is a matter of speed."""
        if self._node.spec.mods:
            return "the mods of privacy= act on single messages"
        return alone_because(self._node.client.model, forced=forced)

    def train_together(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, merge: bool = False
    ) -> list[Answered]:
        """Answer training messages of one content; see :meth:`strategies.RuleClient.train_together`."""
        return self._node.client.train_together(self._node.jobs(messages, contexts), merge=merge)


def make_client_app(spec: ClientSpec) -> NodeApp:
    """A ClientApp with train, evaluate and the query actions of the data rule, the rule and the task.

    It runs in fedbench's engines and under ``flwr run`` alike: all it asks of a context is
    ``node_config["partition-id"]`` and a ``state`` that lasts between rounds.
    """
    node = _Node(spec)
    app = NodeApp(node)
    app.train(mods=list(spec.mods))(node.train)
    app.evaluate()(node.evaluate)
    for name, action in (spec.data_rule.actions() if spec.data_rule else {}).items():
        app.query(name)(node.answering(action))
    for name in spec.rule.queries():
        app.query(name)(node.querying(name))
    if isinstance(spec.task, Forecasting):
        app.query(FORECAST)(node.forecasting(spec.task))
    return app
