"""What asynchronous methods share: clients always under way, and an update whenever enough have answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from .arrays import Arrays, numpy_of, record
from .errors import StrategyError
from .method import Method
from .seeding import generator

AGAIN = "again"
"""Key of the config that tells a client how often it has been sent this model before, if it has."""
_POLL = 0.05
"""Seconds between two looks at an engine that has no reply yet."""
_PATIENCE = 100
"""Errors in a row, without a single answer, after which nobody is taken to be left."""


class Asynchronous(Method):
    """Base of server halves that never wait for a round of clients.

    ``concurrency`` clients are under way at any time. One that has answered is replaced, by a client drawn
    among those that are reachable and idle, with the model as it is then. A server round is one update of
    the model: it takes the next ``buffer`` answers, and answers that came at the same moment as the last
    of them wait for the next round. Lost and failed clients are replaced like the others.

    All of this happens in :meth:`exchange`, which :meth:`configure_train` calls: whoever drives the strategy
    then finds no messages left to send. It works on any Grid; on one with a clock of its own
    (:class:`fedbench.engine.system.SystemGrid`), a run can be repeated.

    Parameters
    ----------
    concurrency : int
        Clients that are under way at a time, or all that are reachable if these are fewer.
    buffer : int
        Answers that an update takes.
    seed : int
        Key of the draws of clients.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    keeps_models: ClassVar[bool] = False
    """Whether :meth:`combine` needs the models that clients under way started from."""

    def __init__(self, *, concurrency: int = 10, buffer: int = 1, seed: int = 0, **flower: Any) -> None:
        super().__init__(**flower)
        for name, value, low in (("concurrency", concurrency, 1), ("buffer", buffer, 1), ("seed", seed, 0)):
            if value < low:
                raise ValueError(f"{name}: must be {low} or more, got {value}")
        self.concurrency, self.buffer, self.seed = concurrency, buffer, seed
        self.under_way: dict[str, tuple[int, int]] = {}
        """Node, and the round whose model it trains, by message id."""
        self.waiting: list[tuple[int, Message]] = []
        """Answers for later rounds, each with the round that it started in."""
        self.ages: list[int] = []
        """For each answer that :meth:`combine` is given: updates of the model since its client started."""
        self.starts: list[Arrays] = []
        """And the model that it started from, where ``keeps_models``."""
        self._started = 0
        self._asked: Counter[int] = Counter()
        self._replies: list[Message] = []

    # --- the doorway -----------------------------------------------------------------------------

    def exchange(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Keep clients under way until enough have answered; their replies, errors included.

        Raises
        ------
        StrategyError
            If a hundred clients in a row answered with an error.
        """
        self.sent = numpy_of(arrays)
        if self.keeps_models:
            self.state[_model(server_round)] = self.sent
        content = self._content(server_round, arrays, config)
        self._asked.clear()
        errors: list[Message] = []
        in_a_row = 0
        while len(self.waiting) < self.buffer:
            self._start_clients(server_round, content, grid)
            replies = sorted(grid.pull_messages(list(self.under_way)), key=lambda r: r.metadata.src_node_id)
            if not replies:
                time.sleep(_POLL)
            for reply in replies:
                started = self._landed(reply)
                if reply.has_error():
                    errors.append(reply)
                    in_a_row += 1
                else:
                    self.waiting.append((started, reply))
                    in_a_row = 0
            if in_a_row >= _PATIENCE:
                last = str(errors[-1].error.reason).strip().splitlines()[-1]
                raise StrategyError(
                    f"{type(self).__name__}: the last {in_a_row} clients answered with an error, the last of "
                    f"them: {last}"
                )
        taken, self.waiting = self.waiting[: self.buffer], self.waiting[self.buffer :]
        self.ages = [server_round - started for started, _ in taken]
        if self.keeps_models:
            self.starts = [self.state[_model(started)] for started, _ in taken]
        return [*(reply for _, reply in taken), *errors]

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        """What all clients that start with this model are sent."""
        told = ConfigRecord({**self._with_settings(config), "server-round": server_round})
        return RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: told})

    def _start_clients(self, server_round: int, content: RecordDict, grid: Grid) -> None:
        wanted = self.concurrency - len(self.under_way)
        if wanted <= 0:
            return
        busy = {node for node, _ in self.under_way.values()}
        nodes = sorted(grid.get_node_ids())
        # Among so many draws there are enough idle ones, and they are as if drawn from the idle alone.
        draws = generator(self.seed, "asynchronous clients", self._started).choice(
            len(nodes), min(len(nodes), wanted + len(busy)), replace=False
        )
        idle = [node for node in (nodes[i] for i in draws) if node not in busy][:wanted]
        if not idle:
            return
        contents = {0: content} | {n: _again(content, n) for n in {self._asked[i] for i in idle} - {0}}
        messages = [Message(contents[self._asked[node]], node, "train") for node in idle]
        ids = list(grid.push_messages(messages))
        self._asked.update(idle)
        self._started += len(idle)
        self.under_way |= {i: (node, server_round) for i, node in zip(ids, idle, strict=True)}

    def _landed(self, reply: Message) -> int:
        """Take a client off the list, and give the round in which it started."""
        # A node is under way once, and not every engine names the message that a reply is to.
        node = reply.metadata.src_node_id
        key = next(i for i, (under_way, _) in self.under_way.items() if under_way == node)
        return self.under_way.pop(key)[1]

    # --- Flower's hooks --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Exchange messages until enough clients have answered; none are left to send."""
        self._replies = self.exchange(server_round, arrays, config, grid)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As :class:`Method`, on the replies given, or on those that :meth:`configure_train` left."""
        result = super().aggregate_train(server_round, list(replies) or self._replies)
        self._replies, self.starts = [], []
        if self.keeps_models:
            needed = [started for _, started in self.under_way.values()] + [t for t, _ in self.waiting]
            self.state = {key: self.state[key] for key in map(_model, sorted(set(needed)))}
        return result

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :class:`Method`, with clients under way and answers that wait."""
        return super().state_dict() | {
            "started": self._started,
            "under_way": {key: list(value) for key, value in self.under_way.items()},
            "waiting": [{"round": started, **_packed(reply)} for started, reply in self.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._started = int(state["started"])
        self.under_way = {key: (int(node), int(t)) for key, (node, t) in state["under_way"].items()}
        self.waiting = [(int(told["round"]), _unpacked(told)) for told in state["waiting"]]


def _again(content: RecordDict, times: int) -> RecordDict:
    """The same, for a client that got it before, which is to draw other batches now."""
    return RecordDict(
        {
            key: ConfigRecord({**record, AGAIN: times}) if isinstance(record, ConfigRecord) else record
            for key, record in content.items()
        }
    )


def _model(server_round: int) -> str:
    return f"model {server_round}"


def _packed(reply: Message) -> dict[str, Any]:
    content = reply.content
    return {
        "node": reply.metadata.src_node_id,
        "arrays": {k: numpy_of(r) for k, r in content.array_records.items()},
        "metrics": {k: dict(r) for k, r in content.metric_records.items()},
        "configs": {k: dict(r) for k, r in content.config_records.items()},
    }


def _unpacked(packed: dict[str, Any]) -> Message:
    records: dict[str, Any] = {k: record(v) for k, v in packed["arrays"].items()}
    records |= {k: MetricRecord(v) for k, v in packed["metrics"].items()}
    records |= {k: ConfigRecord(v) for k, v in packed["configs"].items()}
    asked = Message(RecordDict(), int(packed["node"]), "train")
    return Message(RecordDict(records), reply_to=asked)
