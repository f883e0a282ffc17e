"""The serial engine: every client in this process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from strategies.timing import BROADCAST, UPLOAD, part, timed

from .grid import EngineGrid, Observer, Outcome, partition_of
from .profile import OTHER
from .states import pack_state, unpack_state
from .worker import AppFactory, Manner, Worker


class SerialGrid(EngineGrid):
    """Runs clients in this process; a client's exception surfaces as it is.

    Parameters
    ----------
    app_factory : callable
        Makes the ClientApp.
    sizes, observer, cohort, partial_sums, state_memory_mb
        As in :class:`EngineGrid`.
    """

    def __init__(
        self,
        app_factory: AppFactory,
        sizes: Sequence[int] | npt.NDArray[np.integer[Any]],
        observer: Observer | None = None,
        cohort: int | None = None,
        partial_sums: bool = False,
        state_memory_mb: float = 1024.0,
    ) -> None:
        super().__init__(
            sizes, observer, cohort=cohort, partial_sums=partial_sums, state_memory_mb=state_memory_mb
        )
        self._worker = Worker(app_factory(), len(self.sizes), Manner(cohort, partial_sums, surface=True))
        self._contents = itertools.count()
        self._pinned: dict[int, RecordDict] = {}

    def state_of(self, partition: int) -> RecordDict:
        """What a client keeps between messages."""
        return unpack_state(self._states.get(partition), self._pinned)

    def client_states(self) -> dict[int, RecordDict]:
        """As in :class:`EngineGrid`."""
        return {node: unpack_state(state, self._pinned) for node, state in self._states.items()}

    def load_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """As in :class:`EngineGrid`."""
        self._load(states)

    @timed(OTHER)
    def execute(self, messages: list[Message]) -> list[Outcome]:
        """Run the messages: training messages together, where the app can, and the others in order."""
        order = sorted(range(len(messages)), key=lambda i: -self.sizes[partition_of(messages[i])])
        ordered = [messages[i] for i in order]
        with part(BROADCAST):
            states = [self.state_of(partition_of(m)) for m in ordered]
        outcomes = self._worker.run(ordered, states, asked=len(ordered))
        self._store(ordered, states)
        self.said_alone(self._worker.alone)
        return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True), key=lambda pair: pair[0])]

    @timed(UPLOAD)
    def _store(self, messages: Sequence[Message], states: Sequence[RecordDict]) -> None:
        """Take down what clients keep, and hold on to the contents that they still need."""
        new = {id(m.content): m.content for m in messages}
        contents = self._pinned | {next(self._contents): content for content in new.values()}
        for message, state in zip(messages, states, strict=True):
            packed = pack_state(state, contents)
            if packed is None:
                self._states.pop(partition_of(message))
            else:
                self._states[partition_of(message)] = packed
        self._pinned = {k: c for k, c in contents.items() if k in self._states.tags}
