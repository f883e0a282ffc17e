"""The serial engine: every client in this process, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict

from .grid import EngineGrid, Observer, Outcome, partition_of
from .worker import AppFactory, run_client


class SerialGrid(EngineGrid):
    """Runs clients in this process; a client's exception surfaces as it is.

    Parameters
    ----------
    app_factory : callable
        Makes the ClientApp.
    sizes, observer
        As in :class:`EngineGrid`.
    """

    def __init__(
        self, app_factory: AppFactory, sizes: Sequence[int], observer: Observer | None = None
    ) -> None:
        super().__init__(sizes, observer)
        self._app = app_factory()
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
        """Run the messages in order."""
        return [run_client(self._app, m, self.state_of(partition_of(m)), len(self.sizes)) for m in messages]
