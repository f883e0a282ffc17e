"""A worker: one process's ClientApp, run over lists of messages, of many clients at once where it can."""

from __future__ import annotations

import contextlib
import ctypes
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from threadpoolctl import threadpool_limits
from torch import Tensor

from strategies.arrays import record, tensors_of
from strategies.timing import TRAIN, UPLOAD, part, timed

from .grid import FIRST_NODE_ID, RUN_ID, Outcome, metrics_of, partition_of, payload_bytes
from .profile import EVALUATE, OTHER

CLIENT_FAILED = 1
"""Error code of a reply whose client raised."""
CLIENT_LOST = 2
"""Error code of a reply that a simulated system lost: the client dropped out, or came too late."""

_FEWEST = 8
"""Clients of a round from which they train together: ``vmap`` takes 2 seconds to be imported."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's ``malloc.h``."""

AppFactory = Callable[[], ClientApp]


class CohortApp(Protocol):
    """A ClientApp that can train several clients at once."""

    @property
    def width(self) -> int:
        """Most clients that it trains together."""

    def alone_because(self, *, forced: bool) -> str | None:
        """Why clients train one at a time, if they do; ``forced`` where the user set a width."""

    def train_together(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, merge: bool
    ) -> list[tuple[Message | None, dict[str, float]]]:
        """Reply and metrics of each client; see :meth:`strategies.RuleClient.train_together`."""


@dataclass(frozen=True)
class Manner:
    """How a worker runs its lists.

    Parameters
    ----------
    cohort : int or None
        Most clients trained together; ``None`` leaves it to the app, 1 is one at a time.
    merge : bool
        Average what the clients of a list trained, and send one reply.
    surface : bool
        Let a client's exception pass; otherwise it becomes an error reply.
    profile : bool
        Record what worker processes do when.
    """

    cohort: int | None = None
    merge: bool = False
    surface: bool = False
    profile: bool = False


class Worker:
    """Runs messages on a ClientApp.

    Parameters
    ----------
    app : ClientApp
        Clients train together where it is a :class:`CohortApp`.
    num_partitions : int
        Number of clients of the federation.
    manner : Manner
        How.
    """

    def __init__(self, app: ClientApp, num_partitions: int, manner: Manner) -> None:
        self.app: Any = app
        self.num_partitions = num_partitions
        self.manner = manner
        self.alone: str | None = None
        """Why clients train one at a time."""
        if manner.cohort == 1:
            self.alone = "engine.cohort=1"
        elif because := getattr(app, "alone_because", None):
            self.alone = because(forced=manner.cohort is not None)
        else:
            self.alone = "the ClientApp has no train_together"
        self._most: int | None = manner.cohort

    @timed(OTHER)
    def run(self, messages: Sequence[Message], states: Sequence[RecordDict], *, asked: int) -> list[Outcome]:
        """Run the messages, each with its client's state, and give their outcomes in the same order.

        ``asked`` is the number of messages of all workers: it does not depend on how many workers there are.
        """
        done: dict[int, Outcome] = {}
        merged = _Merged() if self.manner.merge else None
        for unit in self._units(messages, asked):
            outcomes = self._unit([messages[i] for i in unit], [states[i] for i in unit])
            for i, outcome in zip(unit, outcomes, strict=True):
                done[i] = merged.take(i, outcome) if merged and _trained(messages[i], outcome) else outcome
        if merged and merged.replies:
            done |= merged.outcome(done)
        return [done[i] for i in range(len(messages))]

    def _units(self, messages: Sequence[Message], asked: int) -> list[list[int]]:
        """Positions of messages whose clients train together: neighbours with the same content."""
        together: dict[int, list[int]] = {}
        units: list[list[int]] = []
        for i, message in enumerate(messages):
            worthwhile = self.alone is None and (asked >= _FEWEST or self.manner.cohort is not None)
            if worthwhile and message.metadata.message_type == "train":
                together.setdefault(id(message.content), []).append(i)
            else:
                units.append([i])
        for same in together.values():
            most = self._most or self.app.width
            parts = -(-len(same) // most)
            units += [same[len(same) * p // parts : len(same) * (p + 1) // parts] for p in range(parts)]
        return units

    def _unit(self, messages: list[Message], states: list[RecordDict]) -> list[Outcome]:
        if len(messages) == 1:
            return [self._one(messages[0], states[0])]
        contexts = [self._context(m, s) for m, s in zip(messages, states, strict=True)]
        started = time.perf_counter()
        kept = [dict(state) for state in states]
        try:
            with part(TRAIN):
                answers = self.app.train_together(messages, contexts, merge=self.manner.merge)
        except torch.OutOfMemoryError:
            _restore(states, kept)
            self._most = half = len(messages) // 2
            torch.cuda.empty_cache()
            return self._unit(messages[:half], states[:half]) + self._unit(messages[half:], states[half:])
        except Exception as error:
            _restore(states, kept)
            # Whose fault it is shows when they train one at a time: a client's own, or the rule's or model's.
            outcomes = [self._one(m, s) for m, s in zip(messages, states, strict=True)]
            if not any(o.reply is not None and o.reply.has_error() for o in outcomes):
                last = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.alone = f"the model or method cannot be vectorised ({type(error).__name__}: {last})"
            return outcomes
        seconds = (time.perf_counter() - started) / len(messages)
        outcomes, up = [], 0
        for reply, metrics in answers:
            up = up if reply is None else payload_bytes(reply.content)  # as much for all that it stands for
            outcomes.append(Outcome(reply, seconds, metrics, up))
        return outcomes

    def _one(self, message: Message, state: RecordDict) -> Outcome:
        started = time.perf_counter()
        try:
            with part(EVALUATE if message.metadata.message_type == "evaluate" else TRAIN):
                reply = self.app(message, self._context(message, state))
        except Exception as error:
            if self.manner.surface:
                raise
            return Outcome(failure(message, error), 0.0)
        return Outcome(reply, time.perf_counter() - started)

    def _context(self, message: Message, state: RecordDict) -> Context:
        partition = partition_of(message)
        return Context(
            run_id=RUN_ID,
            node_id=FIRST_NODE_ID + partition,
            node_config={"partition-id": partition, "num-partitions": self.num_partitions},
            state=state,
            run_config={},
        )


@dataclass
class _Merged:
    """The running sum of what the clients of a list trained."""

    replies: dict[int, Message] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0

    @timed(UPLOAD)
    def take(self, position: int, outcome: Outcome) -> Outcome:
        """Add a reply, and leave an outcome without it."""
        reply = outcome.reply
        if reply is None:
            return outcome
        told = metrics_of(reply)
        weight = told["num-examples"]
        for key, value in tensors_of(reply.content.array_records["arrays"]).items():
            if not value.is_floating_point():
                value = value.double()
            if key in self.arrays:
                self.arrays[key].add_(value, alpha=weight)
            else:
                self.arrays[key] = value * weight
        for key, number in told.items():
            self.metrics[key] = self.metrics.get(key, 0.0) + weight * number
        self.weight += weight
        self.replies[position] = reply
        own = told if outcome.metrics is None else outcome.metrics
        up = payload_bytes(reply.content) if outcome.up is None else outcome.up
        return Outcome(None, outcome.seconds, own, up)

    @timed(UPLOAD)
    def outcome(self, done: Mapping[int, Outcome]) -> dict[int, Outcome]:
        """The first client's outcome, with the reply that stands for all."""
        first = min(self.replies)
        content = self.replies[first].content
        metrics: dict[str, Any] = {k: v / self.weight for k, v in self.metrics.items()}
        metrics["num-examples"] = self.weight
        records: dict[str, Any] = {
            "arrays": record({k: v / self.weight for k, v in self.arrays.items()}),
            "metrics": MetricRecord(metrics),
            **content.config_records,
        }
        reply = self.replies[first]
        reply.content = RecordDict(records)
        own = done[first]
        return {first: Outcome(reply, own.seconds, own.metrics, own.up)}


def _restore(states: Sequence[RecordDict], kept: Sequence[Mapping[str, Any]]) -> None:
    for state, before in zip(states, kept, strict=True):
        state.clear()
        state.update(before)


def _trained(message: Message, outcome: Outcome) -> bool:
    failed = outcome.reply is not None and outcome.reply.has_error()
    return message.metadata.message_type == "train" and not failed


def settle_process() -> None:
    """Let this process compute with one thread, in torch and in NumPy's BLAS, and keep its memory.

    Threads inside an operation wait for each other on shared virtual CPUs, and their number changes the last
    bits of a sum: the same run would differ from machine to machine. And glibc hands every tensor above 128
    KiB back to the system when it is freed, and gets it anew, page by page, in the next step: of a CNN's step
    that was a tenth.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    with contextlib.suppress(AttributeError, OSError):  # other C libraries do otherwise
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def failure(message: Message, error: Exception) -> Message:
    """Reply that carries a client's exception with its traceback."""
    reason = "".join(traceback.format_exception(error))
    return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=message)
