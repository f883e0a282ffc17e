"""What clients keep between messages, in memory up to a budget and on disk beyond it."""

from __future__ import annotations

import heapq
import pickle
import sqlite3
import tempfile
import weakref
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flwr.app import RecordDict

_ENTRY_BYTES = 256
"""What an entry takes in memory besides its bytes, roughly."""

_TABLE = "CREATE TABLE states (partition INTEGER PRIMARY KEY, packed BLOB NOT NULL, tags BLOB NOT NULL)"
_PRAGMAS = ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "page_size = 16384")
"""The file dies with its process: nothing in it needs to survive a crash."""


class ClientState(NamedTuple):
    """What one client keeps.

    Parameters
    ----------
    packed : bytes
        The state, packed by whoever keeps it.
    tags : frozenset of int
        Numbers of whatever the state refers to and cannot do without.
    """

    packed: bytes
    tags: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Bytes that the state counts in memory."""
        return len(self.packed) + 8 * len(self.tags) + _ENTRY_BYTES


@dataclass(frozen=True)
class _Pointer:
    """Stands in a client's state for a record that came with a message, so that it is stored once."""

    content: int
    record: str


def pack_state(state: RecordDict, contents: Mapping[int, RecordDict]) -> ClientState | None:
    """A client's state as bytes, and the contents that it cannot do without; ``None`` where it is empty.

    Parameters
    ----------
    state : RecordDict
        What the client keeps.
    contents : mapping of int to RecordDict
        Contents of messages, of which the state may hold records.
    """
    if not state:
        return None
    known = {id(r): _Pointer(key, name) for key, content in contents.items() for name, r in content.items()}
    entries = {k: known.get(id(v), v) for k, v in state.items()}
    tags = frozenset(v.content for v in entries.values() if isinstance(v, _Pointer))
    return ClientState(pickle.dumps(entries, protocol=5), tags)


def unpack_state(state: ClientState | None, contents: Mapping[int, RecordDict]) -> RecordDict:
    """What :func:`pack_state` packed."""
    if state is None:
        return RecordDict()
    entries = pickle.loads(state.packed)
    return RecordDict(
        {k: contents[v.content][v.record] if isinstance(v, _Pointer) else v for k, v in entries.items()}
    )


class ClientStates:
    """States by partition; those that were not used for longest go to a file while memory is short.

    A state is either in memory or in the file, and comes back when it is asked for. The file lies in a
    temporary directory of its own, which is made when it is first needed and removed by :meth:`close`, by
    the garbage collector or at the end of the process.

    Parameters
    ----------
    budget : int
        Bytes that the states in memory may take together; a single one that is larger goes to the file.
    directory : path or None
        Where the temporary directory is made; ``None`` leaves it to the system. A file system in memory
        would not save any.

    Raises
    ------
    ValueError
        For a budget below 0.
    """

    def __init__(self, budget: int = 1 << 30, directory: str | Path | None = None) -> None:
        if budget < 0:
            raise ValueError(f"budget: must be 0 or more, got {budget}")
        self.budget = budget
        self.memory_bytes = 0
        """Bytes that the states in memory take."""
        self._directory = directory
        self._resident: OrderedDict[int, ClientState] = OrderedDict()
        self._spilled = 0
        self._tags: Counter[int] = Counter()
        self._file: sqlite3.Connection | None = None
        self._removal: weakref.finalize[..., ClientStates] | None = None

    def __len__(self) -> int:
        return len(self._resident) + self._spilled

    def __contains__(self, partition: object) -> bool:
        return partition in self._resident or self._read(partition) is not None

    def __getitem__(self, partition: int) -> ClientState:
        state = self.get(partition)
        if state is None:
            raise KeyError(partition)
        return state

    def get(self, partition: int) -> ClientState | None:
        """State of a client, which counts as used now, or ``None``."""
        state = self._resident.get(partition)
        if state is not None:
            self._resident.move_to_end(partition)
            return state
        state = self._read(partition)
        if state is not None and state.size <= self.budget:
            self._delete(partition)
            self._keep(partition, state)
        return state

    def __setitem__(self, partition: int, state: ClientState) -> None:
        self.pop(partition)
        self._tags.update(state.tags)
        self._keep(partition, state)

    def pop(self, partition: int) -> ClientState | None:
        """Take out a client's state; ``None`` where it has none."""
        state = self._resident.pop(partition, None)
        if state is not None:
            self.memory_bytes -= state.size
        elif (state := self._read(partition)) is not None:
            self._delete(partition)
        if state is not None:
            for tag in state.tags:
                self._tags[tag] -= 1
                if not self._tags[tag]:
                    del self._tags[tag]
        return state

    @property
    def tags(self) -> frozenset[int]:
        """Tags of all states; kept up to date, so that asking costs no pass over the states."""
        return frozenset(self._tags)

    def __iter__(self) -> Iterator[int]:
        """Partitions that have a state now, in order."""
        spilled = self._file.execute("SELECT partition FROM states ORDER BY partition") if self._file else ()
        return iter(array("q", heapq.merge(sorted(self._resident), (row[0] for row in spilled))))

    def items(self) -> Iterator[tuple[int, ClientState]]:
        """Partitions and states in order, one at a time; those in the file stay there."""
        for partition in self:
            state = self._resident.get(partition) or self._read(partition)
            if state is not None:
                yield partition, state

    def clear(self) -> None:
        """Forget all states, and remove the file."""
        self._resident.clear()
        self._tags.clear()
        self.memory_bytes = self._spilled = 0
        if self._removal is not None:
            self._removal()
        self._file = self._removal = None

    close = clear

    # --- the file ------------------------------------------------------------------------------------

    def _keep(self, partition: int, state: ClientState) -> None:
        """Put a state in memory, and what is over budget in the file."""
        self._resident[partition] = state
        self.memory_bytes += state.size
        over = []
        if state.size > self.budget:
            over.append((partition, self._resident.pop(partition)))
            self.memory_bytes -= state.size
        while self.memory_bytes > self.budget:
            over.append(self._resident.popitem(last=False))
            self.memory_bytes -= over[-1][1].size
        if over:
            self._write(over)

    def _write(self, states: list[tuple[int, ClientState]]) -> None:
        file = self._open()
        rows = [(p, s.packed, array("q", sorted(s.tags)).tobytes()) for p, s in states]
        file.executemany("INSERT INTO states VALUES (?, ?, ?)", rows)
        self._spilled += len(rows)

    def _read(self, partition: object) -> ClientState | None:
        if not self._spilled or self._file is None:
            return None
        row = self._file.execute(
            "SELECT packed, tags FROM states WHERE partition = ?", (partition,)
        ).fetchone()
        return ClientState(row[0], frozenset(array("q", row[1]))) if row else None

    def _delete(self, partition: int) -> None:
        self._open().execute("DELETE FROM states WHERE partition = ?", (partition,))
        self._spilled -= 1

    def _open(self) -> sqlite3.Connection:
        if self._file is None:
            directory = tempfile.TemporaryDirectory(prefix="fedbench-states-", dir=self._directory)
            # Autocommit; the garbage collector may close it from any thread.
            self._file = sqlite3.connect(
                Path(directory.name) / "states.sqlite", isolation_level=None, check_same_thread=False
            )
            for pragma in _PRAGMAS:
                self._file.execute(f"PRAGMA {pragma}")
            self._file.execute(_TABLE)
            self._removal = weakref.finalize(self, _remove, self._file, directory)
        return self._file


def _remove(file: sqlite3.Connection, directory: tempfile.TemporaryDirectory[str]) -> None:
    file.close()
    directory.cleanup()
