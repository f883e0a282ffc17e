"""What every engine shares: nodes, cohorts, order of replies, and the books on bytes, time and failures."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.app import Array, Message, RecordDict
from flwr.serverapp import Grid

from strategies.timing import BROADCAST, part

from .profile import OTHER
from .states import ClientStates, pack_state

log = logging.getLogger("fedbench")

RUN_ID = 1
FIRST_NODE_ID = 1_000
"""Node id of partition 0; Flower reserves small ids for its own parts."""


@dataclass(frozen=True)
class Exchange:
    """One message to a node and its reply, as the engine saw it.

    Parameters
    ----------
    phase : str
        Message type, e.g. ``"train"`` or ``"query.ggeur_statistics"``.
    node : int
        Partition id.
    down, up : int
        Bytes of payload sent and returned: array elements at their own width, 8 for each number of a
        config or metric record, and the length of strings. Serialisation headers are not counted.
    seconds : float
        Time that the client took.
    metrics : dict
        Scalar metrics of the reply.
    error : str or None
        Reason, with traceback, if the client failed.
    code : int or None
        Code of the error; see :mod:`fedbench.engine.worker`.
    """

    phase: str
    node: int
    down: int
    up: int
    seconds: float
    metrics: dict[str, float]
    error: str | None = None
    code: int | None = None


class Outcome(NamedTuple):
    """What came of a message.

    Parameters
    ----------
    reply : Message or None
        ``None`` where another outcome's reply stands for this one too, as a mean.
    seconds : float
        Time that the client took; a cohort's is divided evenly.
    metrics, up : dict, int
        As in :class:`Exchange`; ``None`` where the reply tells.
    """

    reply: Message | None
    seconds: float
    metrics: dict[str, float] | None = None
    up: int | None = None


Observer = Callable[[Exchange], None]


class EngineGrid(Grid):
    """A Flower Grid whose nodes are the partitions of one federation.

    Parameters
    ----------
    sizes : sequence of int
        Number of examples of each partition: the first guess at what a client costs.
    observer : callable, optional
        Called with an :class:`Exchange` for every message, in partition order.
    cohort : int or None
        Most clients that a worker trains together; ``None``: by model and device, 1: one at a time.
    partial_sums : bool
        Let workers average what they trained, and send one reply for all of it. For strategies that look
        at nothing but the mean.
    state_memory_mb : float
        Memory for what clients keep between messages; what is more goes to a temporary file.
    """

    def __init__(
        self,
        sizes: Sequence[int] | npt.NDArray[np.integer[Any]],
        observer: Observer | None = None,
        *,
        cohort: int | None = None,
        partial_sums: bool = False,
        state_memory_mb: float = 1024.0,
    ) -> None:
        identify_as_server()
        self.check(cohort=cohort, state_memory_mb=state_memory_mb)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.observer = observer
        self.cohort_width = cohort
        self.partial_sums = partial_sums
        self.alone: str | None = None
        """Why clients train one at a time, once a worker has said so."""
        self._states = ClientStates(int(state_memory_mb * 2**20))
        self.busy_seconds = 0.0
        self._visible: list[int] | None = None
        self._pulled: dict[str, Message] = {}

    @classmethod
    def check(cls, *, cohort: int | None = None, state_memory_mb: float = 0.0, **options: Any) -> None:  # noqa: ARG003
        """Raise ValueError, starting with the name of the option, for a value that cannot be."""
        if state_memory_mb < 0:
            raise ValueError(f"state_memory_mb: must be 0 or more, got {state_memory_mb}")
        if cohort is not None and cohort < 1:
            raise ValueError(f"cohort: must be 1 or more, got {cohort}")

    @abstractmethod
    def execute(self, messages: list[Message]) -> list[Outcome]:
        """Run the messages, in partition order, and return their outcomes in the same order."""

    @abstractmethod
    def client_states(self) -> dict[int, RecordDict]:
        """What each client keeps between messages, by partition; those that keep nothing are left out."""

    @abstractmethod
    def load_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Give clients back what :meth:`client_states` told."""

    def engine_state(self) -> dict[str, Any]:
        """What the next round depends on besides clients' states, as nested dicts; most engines have none."""
        return {}

    def load_engine_state(self, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Take up what :meth:`engine_state` gave."""
        return

    def _load(self, states: Mapping[int, RecordDict]) -> None:
        self._states.clear()
        for node, state in states.items():
            if (packed := pack_state(state, {})) is not None:
                self._states[node] = packed

    def wait(self) -> None:
        """Wait until the engine is up, so that its start is no part of the first round."""
        return

    def close(self) -> None:
        """Free what the engine holds."""
        return

    def __enter__(self) -> EngineGrid:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def cohort(self, partitions: Iterable[int] | None) -> Iterator[None]:
        """Show a strategy these partitions only, so that clients are chosen by us and not by chance."""
        self._visible = None if partitions is None else sorted(partitions)
        try:
            yield
        finally:
            self._visible = None

    def get_node_ids(self) -> list[int]:
        """Ids of the visible nodes, in partition order."""
        visible = range(len(self.sizes)) if self._visible is None else self._visible
        return [FIRST_NODE_ID + p for p in visible]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - nothing is lost
    ) -> list[Message]:
        """Run the messages and return their replies in partition order."""
        started = time.perf_counter()
        with part(BROADCAST):
            ordered = sorted(messages, key=lambda m: m.metadata.dst_node_id)
            sizes: dict[int, int] = {}
            for message in ordered:
                if id(message.content) not in sizes:
                    sizes[id(message.content)] = payload_bytes(message.content)
        outcomes = self.execute(ordered)
        self.busy_seconds += time.perf_counter() - started
        with part(OTHER):
            for message, outcome in zip(ordered, outcomes, strict=True):
                if self.observer:
                    self.observer(_exchange(message, outcome, sizes[id(message.content)]))
            return [o.reply for o in outcomes if o.reply is not None]

    def said_alone(self, reason: str | None) -> None:
        """Take down, and tell once, why clients train one at a time."""
        if reason and not self.alone and self.cohort_width != 1:
            log.info("clients train one at a time: %s", reason)
        self.alone = self.alone or reason

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the messages now; their replies wait for :meth:`pull_messages`."""
        ids = []
        for reply in self.send_and_receive(messages):
            ids.append(f"m{len(self._pulled)}-{reply.metadata.src_node_id}")
            self._pulled[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to pushed messages; each can be pulled once."""
        return [self._pulled.pop(i) for i in message_ids if i in self._pulled]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Message as ``Message(...)`` makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Any) -> None:
        """Keep Flower's run object; the engine itself needs none."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's run object, if one was set."""
        return getattr(self, "_run", None)


def partition_of(message: Message) -> int:
    """Partition that a message is addressed to."""
    return message.metadata.dst_node_id - FIRST_NODE_ID


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the numbers and strings in a message; see :class:`Exchange`."""
    total = 0
    for record in content.values():
        for value in record.values():
            if isinstance(value, Array):
                total += math.prod(value.shape) * np.dtype(value.dtype).itemsize
                continue
            items = value if isinstance(value, list) else [value]
            total += sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in items)
    return total


def metrics_of(reply: Message) -> dict[str, float]:
    """Scalar metrics of a reply."""
    metrics: dict[str, float] = {}
    for record in reply.content.metric_records.values():
        metrics |= {k: float(v) for k, v in record.items() if not isinstance(v, list)}
    return metrics


def _exchange(message: Message, outcome: Outcome, down: int) -> Exchange:
    reply, metrics, up, error = outcome.reply, outcome.metrics, outcome.up, None
    if reply is not None and reply.has_error():
        metrics, up, error = {}, 0, reply.error.reason
    elif reply is not None:
        metrics = metrics_of(reply) if metrics is None else metrics
        up = payload_bytes(reply.content) if up is None else up
    return Exchange(
        phase=message.metadata.message_type,
        node=partition_of(message),
        down=down,
        up=up or 0,
        seconds=outcome.seconds,
        metrics={k: float(v) for k, v in (metrics or {}).items()},
        error=error,
        code=reply.error.code if error is not None and reply is not None else None,
    )


def identify_as_server() -> None:
    """Let ``Message(...)`` be made outside Flower's own runtime.

    Flower 1.41 fills a message's origin from a process-wide identity that only its runtime sets. This is
    the one internal name that fedbench uses.
    """
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError as error:
        raise RuntimeError(
            "this version of flwr keeps its task identity elsewhere; fedbench needs flwr>=1.41,<1.42"
        ) from error
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
