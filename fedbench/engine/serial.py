"""The serial engine: every client in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from .grid import EngineGrid, Observer, Outcome, partition_of
from .worker import AppFactory, Manner, Worker


class SerialGrid(EngineGrid):
    """Runs clients in this process; a client's exception surfaces as it is.

    Parameters
    ----------
    app_factory : callable
        Makes the ClientApp.
    sizes, observer, cohort, partial_sums
        As in :class:`EngineGrid`.
    """

    def __init__(
        self,
        app_factory: AppFactory,
        sizes: Sequence[int] | npt.NDArray[np.integer[Any]],
        observer: Observer | None = None,
        cohort: int | None = None,
        partial_sums: bool = False,
    ) -> None:
        super().__init__(sizes, observer, cohort=cohort, partial_sums=partial_sums)
        self._worker = Worker(app_factory(), len(self.sizes), Manner(cohort, partial_sums, surface=True))
        self._states: dict[int, RecordDict] = {}

    def state_of(self, partition: int) -> RecordDict:
        """What a client keeps between messages."""
        return self._states.setdefault(partition, RecordDict())

    def client_states(self) -> dict[int, RecordDict]:
        """As in :class:`EngineGrid`."""
        return {k: v for k, v in sorted(self._states.items()) if v}

    def load_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """As in :class:`EngineGrid`."""
        self._states = dict(states)

    def execute(self, messages: list[Message]) -> list[Outcome]:
        """Run the messages: training messages together, where the app can, and the others in order."""
        order = sorted(range(len(messages)), key=lambda i: -self.sizes[partition_of(messages[i])])
        ordered = [messages[i] for i in order]
        outcomes = self._worker.run(ordered, [self.state_of(partition_of(m)) for m in ordered])
        self.said_alone(self._worker.alone)
        return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True), key=lambda pair: pair[0])]
