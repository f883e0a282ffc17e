"""Systems: who is reachable, how long things take, and what gets lost, on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Error, Message, RecordDict

from fedbench.results.state import from_records, to_records
from strategies.seeding import generator

from .grid import FIRST_NODE_ID, EngineGrid, Observer, Outcome, partition_of, payload_bytes
from .worker import CLIENT_LOST

DROPOUT, DEADLINE, SURPLUS = LOSSES = ("dropout", "deadline", "surplus")
"""Why a client's work is lost: it stopped, took too long, or was not among the first of its round."""

_DAY = 86_400.0
_WAIT = 60.0
"""Seconds after which a server that reaches nobody tries again."""

_DEVICE = ("share", "examples_per_second")
_NETWORK = ("share", "down_mbps", "up_mbps", "latency")

Classes = dict[str, dict[str, float]]


@dataclass(frozen=True)
class System:
    """Devices, networks, and the habits of the people who own them.

    Parameters
    ----------
    devices : dict
        Classes of devices by name, each with ``share`` (of the clients, relative to the sum of all) and
        ``examples_per_second``: the rows that it trains on in a second.
    networks : dict
        Classes of connections, each with ``share``, ``down_mbps`` and ``up_mbps`` (10^6 bits a second) and
        ``latency`` (seconds an exchange, whatever its size). A client's two classes are independent.
    availability : float
        Probability that a client is reachable, averaged over the day.
    daily_swing : float
        What a daily cycle adds to and takes from it: ``availability + daily_swing * sin(2 pi (t / 24 h +
        phase))``, cut to [0, 1], with a phase of each client's own.
    dropout : float
        Probability that a client that started does not finish.
    deadline : float or None
        Seconds after which the server waits no longer for a client; ``None`` waits.
    over_sampling : float
        Share of further clients that are asked in a round, which goes on with the first
        ``clients_per_round`` that finish.

    Raises
    ------
    ValueError
        For a number that cannot be; starts with the name of the option.
    """

    devices: Classes
    networks: Classes
    availability: float = 1.0
    daily_swing: float = 0.0
    dropout: float = 0.0
    deadline: float | None = None
    over_sampling: float = 0.0

    def __post_init__(self) -> None:
        _check_classes("devices", self.devices, _DEVICE)
        _check_classes("networks", self.networks, _NETWORK)
        if not 0 < self.availability <= 1:
            raise ValueError(f"availability: must be above 0 and at most 1, got {self.availability}")
        for name in ("daily_swing", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be between 0 and 1, got {getattr(self, name)}")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline: must be above 0, got {self.deadline}")
        if not (self.over_sampling >= 0 and math.isfinite(self.over_sampling)):
            raise ValueError(f"over_sampling: must be 0 or more, got {self.over_sampling}")

    def asked(self, count: int) -> int:
        """Clients to ask where the work of ``count`` is wanted."""
        return math.ceil(count * (1 + self.over_sampling) - 1e-9)


def _check_classes(option: str, classes: Classes, numbers: tuple[str, ...]) -> None:
    if not classes:
        raise ValueError(f"{option}: needs at least one class, got none")
    for name, of in classes.items():
        if not isinstance(of, Mapping) or set(of) != set(numbers):
            raise ValueError(f"{option}: {name} must have {', '.join(numbers)} and no more, got {of}")
        for key, value in of.items():
            must = "a number, 0 or more" if key == "latency" else "a number above 0"
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
            if not fits or (value == 0 and key != "latency"):
                raise ValueError(f"{option}: {name}.{key} must be {must}, got {value!r}")


def spread(shares: Iterable[float], clients: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Class of each client: as many of each as the shares say, to the nearest, at random places."""
    edges = np.cumsum(list(shares))
    places = (rng.permutation(clients) + 0.5) / max(clients, 1)
    return np.searchsorted(edges[:-1] / edges[-1], places, side="right")


class Fleet:
    """What every client of a federation has for good: its device, its connection and its time of day.

    Parameters
    ----------
    system : System
        The classes.
    clients : int
        Number of clients.
    seed : int
        Seed of the run.
    """

    def __init__(self, system: System, clients: int, seed: int) -> None:
        def column(classes: Classes, which: npt.NDArray[np.int64], key: str) -> npt.NDArray[np.float64]:
            return np.array([of[key] for of in classes.values()], dtype=np.float64)[which]

        def drawn(classes: Classes, purpose: str) -> npt.NDArray[np.int64]:
            return spread((of["share"] for of in classes.values()), clients, generator(seed, purpose))

        self.device = drawn(system.devices, "system devices")
        self.network = drawn(system.networks, "system networks")
        self.rate = column(system.devices, self.device, "examples_per_second")
        self.down = column(system.networks, self.network, "down_mbps") * 1e6 / 8
        self.up = column(system.networks, self.network, "up_mbps") * 1e6 / 8
        self.latency = column(system.networks, self.network, "latency")
        self.phase = generator(seed, "system phases").random(clients)

    def seconds(self, client: int, down: int, examples: int, up: int) -> float:
        """Seconds that an exchange takes.

        ``latency + down / down rate + examples / examples a second + up / up rate``, sizes in bytes.
        """
        return float(
            self.latency[client]
            + down / self.down[client]
            + examples / self.rate[client]
            + up / self.up[client]
        )


@dataclass(frozen=True)
class _Fate:
    """When the server hears of an exchange, counted from its start, and why it is lost, if it is."""

    seconds: float
    lost: str | None = None


@dataclass
class _Flight:
    """A message under way: when its reply arrives, and the outcome, once its client was run."""

    message: Message
    arrives: float
    lost: str | None
    outcome: Outcome | None = None


class SystemGrid(EngineGrid):
    """Runs clients on another engine, on the clock of a system.

    All that happens is known before a client runs: bytes down, examples, and as bytes up those of the
    record ``arrays`` that went down. Clients that are lost are therefore never run, keep the state that
    they had, and answer with an error of code ``CLIENT_LOST``. Where several reasons apply, the first of
    dropout, deadline and surplus counts.

    A round of ``train`` messages ends with the first ``enough`` replies; where fewer come, once nobody is
    left to wait for, a client that drops out being given up when it would have answered, or at the
    deadline. Queries take the time of the slowest client, with one pass over its rows as their work and the
    true bytes up; nobody drops out of them. Evaluation is measurement, which takes no time.

    Who is reachable is drawn anew after each exchange of training messages, from (seed, number of the
    exchange) alone, so that methods compared meet the same clients. A strategy that is started on this grid
    itself must be content with one (``min_available_nodes=1``): it would wait for others in vain.

    Messages can be pushed and pulled too, which is what asynchronous strategies do. What an observer is told
    of is what was pulled: the last messages, still under way when a run ends, are in no book.

    Parameters
    ----------
    inner : EngineGrid
        Runs the clients.
    system : System
        Devices, networks and habits.
    work : callable
        ``work(partition)``: examples that a client trains on in a round.
    seed : int
        Seed of the run.
    observer : callable, optional
        As in :class:`EngineGrid`; the inner engine needs none.
    enough : int or None
        Replies with which a round goes on; ``None`` waits for all.
    """

    def __init__(
        self,
        inner: EngineGrid,
        system: System,
        work: Callable[[int], int],
        seed: int,
        observer: Observer | None = None,
        enough: int | None = None,
    ) -> None:
        super().__init__(inner.sizes, observer, cohort=inner.cohort_width, partial_sums=inner.partial_sums)
        self.inner, self.system, self.work = inner, system, work
        self.seed, self.enough = seed, enough
        self.fleet = Fleet(system, len(self.sizes), seed)
        self.now = 0.0
        """The clock, in seconds since the run began."""
        self._turn = 0
        self._pushed = 0
        self._flights: dict[str, _Flight] = {}
        self._landed: dict[int, Outcome] = {}
        self._resumed = False

    # --- who is there ----------------------------------------------------------------------------

    def available(self) -> npt.NDArray[np.int64]:
        """Partitions that are reachable now.

        Where none is, and nobody under way to wait for, the clock moves on until one is.
        """
        while True:
            swing = np.sin(2 * np.pi * (self.now / _DAY + self.fleet.phase))
            chance = self.system.availability + self.system.daily_swing * swing
            draws = generator(self.seed, "system availability", self._turn).random(len(self.sizes))
            there = np.flatnonzero(draws < chance)
            if len(there) or self._flights or not len(draws):
                return there
            self.now += _WAIT
            self._turn += 1

    def chosen(self, count: int | None, rng: np.random.Generator) -> list[int]:
        """Clients to ask in a round that wants the work of ``count``, or of all that are reachable."""
        there = self.available()
        if count is not None:
            there = rng.choice(there, min(self.system.asked(count), len(there)), replace=False)
        chosen: list[int] = there.tolist()
        return chosen

    def get_node_ids(self) -> list[int]:
        """Ids of the visible nodes; where no cohort is set, of those that are reachable."""
        if self._visible is not None:
            return super().get_node_ids()
        ids: list[int] = (self.available() + FIRST_NODE_ID).tolist()
        return ids

    # --- all at once -----------------------------------------------------------------------------

    def execute(self, messages: list[Message]) -> list[Outcome]:
        """Run the messages that are not lost, and move the clock to when the last reply is in."""
        if self._landed:
            return [self._landed.pop(id(m)) for m in messages]
        if not messages:
            return []
        kind = messages[0].metadata.message_type
        if kind == "train":
            return self._round(messages)
        outcomes = self._run(messages)
        if kind != "evaluate" and not self._resumed:
            down = {id(m.content): m.content for m in messages}
            sizes = {k: payload_bytes(content) for k, content in down.items()}
            self.now += max(
                self.fleet.seconds(
                    node := partition_of(m), sizes[id(m.content)], int(self.sizes[node]), _bytes_up(o)
                )
                for m, o in zip(messages, outcomes, strict=True)
            )
        return outcomes

    def _round(self, messages: list[Message]) -> list[Outcome]:
        fates = self._fates(messages)
        order = sorted((f.seconds, i) for i, f in enumerate(fates) if f.lost is None)
        enough = len(messages) if self.enough is None else self.enough
        if len(order) >= enough:
            self.now += order[enough - 1][0]
        else:
            self.now += max(f.seconds for f in fates)
        in_time = {i for _, i in order[:enough]}
        outcomes = iter(self._run([messages[i] for i in sorted(in_time)]))
        return [
            next(outcomes) if i in in_time else _lost(m, fates[i].lost or SURPLUS)
            for i, m in enumerate(messages)
        ]

    def _run(self, messages: list[Message]) -> list[Outcome]:
        """Let the inner engine run messages, which are in partition order."""
        outcomes = self.inner.execute(messages) if messages else []
        self.alone = self.inner.alone
        return outcomes

    def _fates(self, messages: list[Message]) -> list[_Fate]:
        """What becomes of messages, from (seed, number of the exchange, node) and sizes alone."""
        sizes: dict[int, tuple[int, int]] = {}
        for content in (m.content for m in messages):
            if id(content) not in sizes:
                model = RecordDict({k: r for k, r in content.items() if k == "arrays"})
                sizes[id(content)] = payload_bytes(content), payload_bytes(model)
        fates = [self._fate(m, *sizes[id(m.content)]) for m in messages]
        self._turn += 1
        self._resumed = False
        return fates

    def _fate(self, message: Message, down: int, up: int) -> _Fate:
        kind, node = message.metadata.message_type, partition_of(message)
        if kind == "evaluate":
            return _Fate(0.0)
        if kind != "train":
            return _Fate(self.fleet.seconds(node, down, int(self.sizes[node]), up))
        seconds = self.fleet.seconds(node, down, self.work(node), up)
        deadline = math.inf if self.system.deadline is None else self.system.deadline
        lost = DEADLINE if seconds > deadline else None
        if self.system.dropout:
            draw = generator(self.seed, "system dropout", self._turn, node).random()
            lost = DROPOUT if draw < self.system.dropout else lost
        return _Fate(min(seconds, deadline), lost)

    # --- one by one ------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Start the messages at this moment; their clients are run when the first reply is needed."""
        messages, ids = list(messages), []
        for message, fate in zip(messages, self._fates(messages), strict=True):
            self._pushed += 1
            ids.append(f"flight-{self._pushed}")
            self._flights[ids[-1]] = _Flight(message, self.now + fate.seconds, fate.lost)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Move the clock to the first reply, and give all replies that are there by then.

        A lost client's error reply is there at the time at which the server hears of it.
        """
        asked = {i: self._flights[i] for i in message_ids if i in self._flights}
        if not asked:
            return []
        self.now = max(self.now, min(f.arrives for f in asked.values()))
        here = [self._flights.pop(i) for i, f in asked.items() if f.arrives <= self.now]
        self._land(here)
        self._turn += 1
        return self.send_and_receive([f.message for f in here])

    def _land(self, here: list[_Flight]) -> None:
        """Outcomes of the replies that are here; all clients that wait are run together with theirs."""
        if any(f.lost is None and f.outcome is None for f in here):
            waiting = [f for f in (*here, *self._flights.values()) if f.lost is None and f.outcome is None]
            waiting.sort(key=lambda f: f.message.metadata.dst_node_id)
            for flight, outcome in zip(waiting, self._run([f.message for f in waiting]), strict=True):
                flight.outcome = outcome
        self._landed = {id(f.message): f.outcome or _lost(f.message, str(f.lost)) for f in here}

    # --- state -----------------------------------------------------------------------------------

    def engine_state(self) -> dict[str, Any]:
        """The clock, the counters, and the messages under way with what came of those that were run."""
        contents = {id(f.message.content): f.message.content for f in self._flights.values()}
        place = {key: i for i, key in enumerate(contents)}
        flights = {}
        for key, flight in self._flights.items():
            message, reply = flight.message, flight.outcome.reply if flight.outcome else None
            flights[key] = {
                "node": message.metadata.dst_node_id,
                "kind": message.metadata.message_type,
                "content": place[id(message.content)],
                "arrives": flight.arrives,
                "lost": flight.lost,
                "reply": None if reply is None else _packed(reply),
            }
        return {
            "now": self.now,
            "turn": self._turn,
            "pushed": self._pushed,
            "contents": [from_records(c) for c in contents.values()],
            "flights": flights,
        }

    def load_engine_state(self, state: Mapping[str, Any]) -> None:
        """As in :class:`EngineGrid`; messages that shared their content share it again.

        What a strategy asks anew before clients train again takes no time: it took it before.
        """
        self._resumed = True
        self.now, self._turn, self._pushed = float(state["now"]), int(state["turn"]), int(state["pushed"])
        contents = [to_records(c) for c in state["contents"]]
        self._flights = {}
        for key, told in state["flights"].items():
            message = Message(contents[told["content"]], int(told["node"]), told["kind"])
            reply = told["reply"]
            outcome = None if reply is None else Outcome(_unpacked(reply, message), 0.0)
            self._flights[key] = _Flight(message, float(told["arrives"]), told["lost"], outcome)

    # --- the inner engine's ----------------------------------------------------------------------

    def client_states(self) -> dict[int, RecordDict]:
        """As the inner engine."""
        return self.inner.client_states()

    def load_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """As the inner engine."""
        self.inner.load_client_states(states)

    def wait(self) -> None:
        """As the inner engine."""
        self.inner.wait()

    def close(self) -> None:
        """As the inner engine."""
        self.inner.close()


def _lost(message: Message, reason: str) -> Outcome:
    return Outcome(Message(Error(code=CLIENT_LOST, reason=reason), reply_to=message), 0.0)


def _bytes_up(outcome: Outcome) -> int:
    if outcome.up is not None:
        return outcome.up
    reply = outcome.reply
    return 0 if reply is None or reply.has_error() else payload_bytes(reply.content)


def _packed(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"error": {"code": reply.error.code, "reason": reply.error.reason}}
    return {"content": from_records(reply.content)}


def _unpacked(packed: Mapping[str, Any], message: Message) -> Message:
    if "error" in packed:
        return Message(Error(**packed["error"]), reply_to=message)
    return Message(to_records(packed["content"]), reply_to=message)
