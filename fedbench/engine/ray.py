"""The Ray engine: resident workers that are each pushed one list of clients a round."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from flwr.app import Array, Message, RecordDict
from ray.exceptions import OutOfMemoryError, RayActorError

from strategies.timing import BROADCAST, UPLOAD, part, timed

from .costs import Costs
from .grid import FIRST_NODE_ID, EngineGrid, Observer, Outcome, identify_as_server, partition_of
from .profile import IDLE, OTHER, Span, active, recording
from .states import ClientState, pack_state, unpack_state
from .worker import AppFactory, Manner, Worker, settle_process

_ATTEMPTS = 3
"""Workers that may die on one list before the list is taken to be what kills them."""

_BUFFER_BYTES = 1 << 16
"""Arrays from this size on travel as buffers; for smaller ones that costs more than copying them."""

_IDLE: dict[tuple[float, float], list[Any]] = {}
"""Workers between runs, by their share of a CPU and of a GPU."""


class _Job(NamedTuple):
    """One message of a work list, without its content."""

    position: int
    node_id: int
    kind: str
    group: str
    ttl: float
    content: int
    state: ClientState | None


Columns = list[tuple[Any, ...]]
"""Many tuples of one kind as they travel: pickled one by one, objects take several times as long."""


@dataclass
class _WorkList:
    asked: int
    jobs: list[_Job] = field(default_factory=list)
    cost: float = 0.0


class _Actor:
    """A process with its own ClientApp; the data come from the object store without a copy."""

    def __init__(self) -> None:
        settle_process()
        identify_as_server()
        _send_arrays_as_buffers()
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._contents: dict[int, RecordDict] = {}

    def serve(self, app_factory: AppFactory, num_partitions: int, manner: Manner) -> str | None:
        self._worker = Worker(app_factory(), num_partitions, manner)
        self._contents = {}
        return self._worker.alone

    def run(
        self,
        _ready: object,
        columns: Columns,
        asked: int,
        keys: list[int],
        pinned: dict[int, Any],
        *contents: RecordDict,
    ) -> tuple[Columns, list[ClientState | None], str | None, list[Span]]:
        # Where serve failed, so does its result as an argument: no worker goes on with an app of before.
        spans: list[Span] = []
        with recording(spans if self._worker.manner.profile else None):
            jobs = [_Job(*row) for row in zip(*columns, strict=True)]
            messages, states = self._receive(jobs, dict(zip(keys, contents, strict=True)), pinned)
            outcomes = self._worker.run(messages, states, asked=asked)
            with part(UPLOAD):
                packed = [pack_state(state, self._contents) for state in states]
        return list(zip(*outcomes, strict=True)), packed, self._worker.alone, spans

    @timed(BROADCAST)
    def _receive(
        self, jobs: list[_Job], now: dict[int, RecordDict], pinned: dict[int, Any]
    ) -> tuple[list[Message], list[RecordDict]]:
        """Messages with their contents, and clients' states."""
        self._contents = {k: c for k, c in self._contents.items() if k in pinned} | now
        for key in pinned.keys() - self._contents.keys():
            self._contents[key] = ray.get(pinned[key])
        messages = [
            Message(self._contents[j.content], j.node_id, j.kind, ttl=j.ttl, group_id=j.group) for j in jobs
        ]
        return messages, [unpack_state(job.state, self._contents) for job in jobs]


class RayGrid(EngineGrid):
    """Runs clients on Ray actors.

    Messages with the same content share one copy in the object store. Each worker gets its whole list at
    once, longest clients first. Clients that train one at a time are placed by what they took before, those
    that train together by their numbers of examples: who trains with whom may change the last bits of a
    result, and must not depend on the clock. A worker that dies is replaced and its list run again; clients'
    states live with the server, so nothing is lost.

    Parameters
    ----------
    app_factory : callable
        Makes the ClientApp; large arrays in it are shared through the object store.
    sizes, observer, cohort, partial_sums, state_memory_mb
        As in :class:`EngineGrid`.
    workers : int or None
        Number of worker processes; ``None`` is one for each CPU core, or for each share of a GPU.
    gpus_per_worker : float
        Share of a GPU that a worker takes; 0 runs on CPUs.
    address : str or None
        Address of a Ray cluster to join; ``None`` starts Ray on this machine.
    """

    def __init__(
        self,
        app_factory: AppFactory,
        sizes: Sequence[int] | npt.NDArray[np.integer[Any]],
        observer: Observer | None = None,
        workers: int | None = None,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        cohort: int | None = None,
        partial_sums: bool = False,
        state_memory_mb: float = 1024.0,
    ) -> None:
        super().__init__(
            sizes, observer, cohort=cohort, partial_sums=partial_sums, state_memory_mb=state_memory_mb
        )
        self.check(workers=workers, gpus_per_worker=gpus_per_worker, address=address)
        start_ray(address, workers)
        count = workers or _default_workers(gpus_per_worker)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        if count * gpus_per_worker > gpus + 1e-6:
            raise ValueError(f"gpus_per_worker: {count} of {gpus_per_worker} are more than the {gpus:g} GPUs")
        # A worker is one thread; where more workers than cores are asked for, they share cores.
        share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / count)
        _dismiss_idle(except_for=(share, gpus_per_worker))
        self._idle = _IDLE.setdefault((share, gpus_per_worker), [])
        self._actor: Any = ray.remote(num_cpus=share, num_gpus=gpus_per_worker)(_Actor)
        self._app = ray.put(app_factory)
        profile = active()
        self._manner = Manner(cohort, partial_sums, profile=profile is not None)
        self._ready: dict[Any, Any] = {}
        self._submitted: dict[int, int] = {}
        self._workers = [self._hire() for _ in range(min(count, max(len(self.sizes), 1)))]
        if profile:
            profile.workers = len(self._workers)
        self._costs = Costs(self.sizes)
        self._contents = 0
        self._pinned: dict[int, Any] = {}

    @classmethod
    def check(
        cls,
        *,
        workers: int | None = None,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        **options: Any,
    ) -> None:
        """Raise ValueError for numbers that cannot be, and for a cluster that does not answer."""
        super().check(**options)
        if workers is not None and workers < 1:
            raise ValueError(f"workers: must be 1 or more, got {workers}")
        if gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker: must be 0 or more, got {gpus_per_worker}")
        host, _, port = (address or "").rpartition(":")
        if port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError as error:
                raise ValueError(
                    f"address: no Ray cluster answers at {address} ({error}); `ray start --head` tells one"
                ) from error

    def wait(self) -> None:
        """Wait until all workers are up; one that could not start says so when it is given work."""
        starting = [self._ready[worker] for worker in self._workers]
        ray.wait(starting, num_returns=len(starting))
        with contextlib.suppress(Exception):  # it comes up again with the first message
            self.said_alone(ray.get(starting[0]))

    def client_states(self) -> dict[int, RecordDict]:
        """As in :class:`EngineGrid`."""
        contents = {key: ray.get(ref) for key, ref in self._pinned.items()}
        return {node: unpack_state(state, contents) for node, state in self._states.items()}

    def load_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """As in :class:`EngineGrid`."""
        self._load(states)

    @timed(OTHER)
    def execute(self, messages: list[Message]) -> list[Outcome]:
        """Push one work list to each worker and gather the outcomes."""
        refs: dict[int, Any] = {}
        keys: dict[int, int] = {}
        outcomes: dict[int, Outcome] = {}
        with part(BROADCAST):
            for message in messages:
                if id(message.content) not in keys:
                    self._contents += 1
                    keys[id(message.content)] = self._contents
                    refs[self._contents] = ray.put(message.content)
            lists = self._place(messages, keys)
            running = {self._submit(i, work, refs): (i, work, 1) for i, work in enumerate(lists) if work.jobs}
        while running:
            with part(IDLE):
                done, _ = ray.wait(list(running))
            index, work, attempt = running.pop(done[0])
            try:
                with part(UPLOAD):
                    results = ray.get(done[0])
            except (RayActorError, OutOfMemoryError) as error:
                if attempt == _ATTEMPTS:
                    raise RuntimeError(
                        f"{_ATTEMPTS} workers died one after the other on the clients "
                        f"{[j.node_id - FIRST_NODE_ID for j in work.jobs]}; out of memory?"
                    ) from error
                self._workers[index] = self._hire()
                running[self._submit(index, work, refs)] = (index, work, attempt + 1)
                continue
            columns, states, alone, spans = results
            self.said_alone(alone)
            if profile := active():
                profile.take(index, spans, self._submitted[index])
            for job, row, state in zip(work.jobs, zip(*columns, strict=True), states, strict=True):
                node = job.node_id - FIRST_NODE_ID
                outcomes[job.position] = outcome = Outcome(*row)
                self._costs.learn(job.kind, node, outcome.seconds)
                if state:
                    self._states[node] = state
                else:
                    self._states.pop(node)
        self._pinned = {k: ref for k, ref in (self._pinned | refs).items() if k in self._states.tags}
        return [outcomes[i] for i in range(len(messages))]

    def _place(self, messages: list[Message], keys: dict[int, int]) -> list[_WorkList]:
        """Longest client first, each to the worker with the least to do."""
        jobs = []
        for position, message in enumerate(messages):
            about = message.metadata
            state = self._states.get(partition_of(message))
            jobs.append(
                _Job(
                    position,
                    about.dst_node_id,
                    about.message_type,
                    about.group_id,
                    about.ttl,
                    keys[id(message.content)],
                    state,
                )
            )
        lists = [_WorkList(len(messages)) for _ in self._workers]
        costs = [self._cost(job) for job in jobs]
        for i in sorted(range(len(jobs)), key=lambda i: -costs[i]):
            work = min(lists, key=lambda w: w.cost)
            work.jobs.append(jobs[i])
            work.cost += costs[i]
        return lists

    def _cost(self, job: _Job) -> float:
        kind, node = job.kind, job.node_id - FIRST_NODE_ID
        together = kind == "train" and self.cohort_width != 1 and self.alone is None
        return float(self.sizes[node] + 1) if together else self._costs.predict(kind, node)

    def _submit(self, index: int, work: _WorkList, refs: dict[int, Any]) -> Any:
        keys = sorted({job.content for job in work.jobs})
        contents = [refs[k] for k in keys]
        worker = self._workers[index]
        self._submitted[index] = time.time_ns()
        columns = list(zip(*work.jobs, strict=True))
        return worker.run.remote(self._ready[worker], columns, work.asked, keys, self._pinned, *contents)

    def _hire(self) -> Any:
        """A worker that an earlier run of this process left, or a new one."""
        worker = self._idle.pop() if self._idle else self._actor.remote()
        self._ready[worker] = worker.serve.remote(self._app, len(self.sizes), self._manner)
        return worker

    def close(self) -> None:
        """Leave the workers, which took seconds to start, to the next run of this process."""
        self._idle += self._workers
        self._workers = []
        self._states.close()


def start_ray(address: str | None = None, workers: int | None = None) -> None:
    """Start or join Ray once a process, without dashboard, telemetry or chatter."""
    if ray.is_initialized():
        _send_arrays_as_buffers()
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers or 0)}
        address = "local"
    ray.init(address=address, **options)
    _send_arrays_as_buffers()


def _send_arrays_as_buffers() -> None:
    """Let this process copy the bytes of arrays once into the object store, and not through a pickle."""
    ray.util.register_serializer(Array, serializer=_pack, deserializer=_unpack)


def _pack(array: Array) -> tuple[str, tuple[int, ...], str, bytes | pickle.PickleBuffer]:
    data = array.data
    buffer = data if len(data) < _BUFFER_BYTES else pickle.PickleBuffer(data)
    return array.dtype, array.shape, array.stype, buffer


def _unpack(packed: tuple[str, tuple[int, ...], str, bytes | memoryview]) -> Array:
    dtype, shape, stype, data = packed
    array = Array.__new__(Array)  # as unpickling does; the constructor would check all arguments again
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=bytes(data))
    return array


def _dismiss_idle(except_for: tuple[float, float]) -> None:
    """End idle workers of other shares: the CPUs and GPUs that they hold would be missing."""
    for shares, idle in _IDLE.items():
        if shares != except_for:
            for worker in idle:
                ray.kill(worker)
            idle.clear()


def _default_workers(gpus_per_worker: float) -> int:
    resources = ray.cluster_resources()
    if gpus_per_worker > 0:
        return max(1, int(resources.get("GPU", 0) / gpus_per_worker))
    return max(1, int(resources.get("CPU", 1)))
