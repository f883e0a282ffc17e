"""What a scenario is made of: a data set, and the federation that a skew makes of it."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Item = TypeVar("Item", covariant=True)


class ScenarioError(ValueError):
    """A mistake in the choice of data or split, worded for the person who made it."""


@dataclass(frozen=True)
class Meta:
    """What a model has to know of the data.

    Parameters
    ----------
    task : str
        Kind of problem, e.g. ``"classification"``.
    shape : tuple of int
        Shape of one example's input: ``(channels, height, width)`` for images, ``(features,)`` for vectors,
        ``(steps, series)`` for time series.
    classes : tuple of str
        Class names in label order; empty where the task has none.
    strata : tuple of str
        Where there are no classes: the kinds of examples that a skew of labels divides in their place, in
        the order of ``arrays["y"]``.
    horizon : int
        Steps that a forecast looks ahead.
    """

    task: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    horizon: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, or else of the strata."""
        return self.classes or self.strata


@dataclass(frozen=True)
class Dataset:
    """Examples of one or more domains, held once and never copied.

    Parameters
    ----------
    name : str
        Name that errors and reports use.
    arrays : dict of ndarray
        Arrays with one row per example. Classification has ``x`` (float32, or uint8 for images of
        0 to 255) and ``y`` (int64 labels).
    domain : ndarray of int64, shape (rows,)
        Index into ``domains`` of every row.
    domains : tuple of str
        Domain names; one entry where the data have a single domain.
    meta : Meta
        What a model has to know.
    test : ndarray of int64 or None
        Rows of the official test split; ``None`` where there is none and the scenario holds rows out.
    val : ndarray of int64 or None
        Rows of the official validation split; ``None`` where clients set some of their rows aside.
    shared : dict of ndarray
        What rows of ``arrays`` refer to, such as the series that windows lie in; of any length.
    unit : ndarray of int64, shape (rows,), or None
        What every row belongs to, such as a user. The rows of a unit are of one domain and class, and are
        never divided: who trains on some of them is tested on the others. ``None`` where rows are their own.
    notes : dict of float
        What a summary says of the data as clients hold them, such as the edges that no client has.
    train : ndarray of int64 or None
        Rows that may be trained on, and held out where there is no official test split; ``None`` where all
        may that are not held out. Rows in none of the three splits are there for others to refer to.
    """

    name: str
    arrays: dict[str, npt.NDArray[Any]]
    domain: Rows
    domains: tuple[str, ...]
    meta: Meta
    test: Rows | None = None
    val: Rows | None = None
    shared: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    unit: Rows | None = None
    notes: dict[str, float] = field(default_factory=dict)
    train: Rows | None = None

    def __post_init__(self) -> None:
        units = {} if self.unit is None else {"unit": self.unit}
        for key, array in (self.arrays | units).items():
            if len(array) != len(self.domain):
                raise ScenarioError(
                    f"data '{self.name}': array '{key}' has {len(array)} rows, domain has {len(self.domain)}"
                )

    @property
    def facts(self) -> dict[str, Any]:
        """What models and tasks are told of the data, by the names of their constructors' parameters."""
        meta = self.meta
        return {"shape": tuple(meta.shape), "classes": len(meta.classes), "horizon": meta.horizon}

    def __len__(self) -> int:
        return len(self.domain)

    def localised(self, clients: ClientSplits) -> Dataset:  # noqa: ARG002 - part of the contract
        """The data set as prepared by those who hold it, where that depends on who holds what."""
        return self

    def fingerprint(self) -> str:
        """Hash of the names, shapes and bytes of all arrays: the content key of cached features."""
        digest = hashlib.blake2b(digest_size=16)
        for key, held in sorted({**self.arrays, **self.shared}.items()):
            array = np.ascontiguousarray(held)
            digest.update(f"{key}{array.dtype}{array.shape}".encode())
            digest.update(array.data if array.size else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class ClientSplit:
    """The rows that one client holds; the three sets never overlap.

    Parameters
    ----------
    train, val, test : ndarray of int64
        Row numbers into the arrays of the data set.
    domain : int
        Index of the client's domain, or -1 for a client that mixes domains.
    """

    train: Rows
    val: Rows
    test: Rows
    domain: int

    @property
    def num_examples(self) -> int:
        """Number of training rows."""
        return len(self.train)


class View(Sequence[Item]):
    """A sequence whose entries are made when they are asked for; a slice is a list of them."""

    @abstractmethod
    def entry(self, index: int) -> Item:
        """The entry at ``index``, from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))[index]
        return self.entry(places) if isinstance(places, int) else [self.entry(each) for each in places]

    def __iter__(self) -> Iterator[Item]:
        return map(self.entry, range(len(self)))


@dataclass(frozen=True, eq=False)
class Parts(View[Rows]):
    """Row numbers of many parts, one after the other in a single array.

    Parameters
    ----------
    rows : ndarray of int64
        Those of all parts.
    starts : ndarray of int64, shape (parts + 1,)
        Part ``i`` is ``rows[starts[i] : starts[i + 1]]``.
    """

    rows: Rows
    starts: Rows

    @classmethod
    def of(cls, parts: Iterable[Rows]) -> Parts:
        """Put arrays one after the other."""
        parts = [np.empty(0, dtype=np.int64), *parts]
        return cls.cut(np.concatenate(parts), np.array([len(part) for part in parts[1:]], dtype=np.int64))

    @classmethod
    def cut(cls, rows: Rows, sizes: Rows) -> Parts:
        """Cut rows into parts of these sizes."""
        return cls(rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @classmethod
    def gather(cls, rows: Rows, owner: Rows, parts: int) -> Parts:
        """Give every row to the part that ``owner`` names; each part is sorted."""
        width = int(rows.max(initial=0)) + 1
        key = owner * width + rows  # sorting this is several times faster than sorting by two keys
        key.sort()
        return cls.cut(key % width, np.bincount(owner, minlength=parts))

    @property
    def sizes(self) -> Rows:
        """Number of rows of every part."""
        return np.diff(self.starts)

    @property
    def owner(self) -> Rows:
        """Part of every entry of ``rows``."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)

    def sort(self) -> Parts:
        """Parts with their rows in order."""
        return Parts.gather(self.rows, self.owner, len(self))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def entry(self, index: int) -> Rows:
        """Rows of a part, as a view."""
        return self.rows[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True, eq=False)
class ClientSplits(View[ClientSplit]):
    """The rows of all clients in seven flat arrays, however many the clients: a split is made when asked for.

    Parameters
    ----------
    train, val, test : Parts
        Rows of each client.
    domain : ndarray of int64, shape (clients,)
        Index of each client's domain, or -1 for a client that mixes domains.
    """

    train: Parts
    val: Parts
    test: Parts
    domain: Rows

    @classmethod
    def of(cls, splits: Iterable[ClientSplit]) -> ClientSplits:
        """Lay out single splits."""
        splits = list(splits)
        return cls(
            Parts.of(split.train for split in splits),
            Parts.of(split.val for split in splits),
            Parts.of(split.test for split in splits),
            np.array([split.domain for split in splits], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.domain)

    def entry(self, index: int) -> ClientSplit:
        """Rows of a client, as views."""
        return ClientSplit(self.train[index], self.val[index], self.test[index], int(self.domain[index]))


@dataclass(frozen=True, eq=False)
class Names(View[str]):
    """A name for each client, held as a number.

    Parameters
    ----------
    names : tuple of str
        What can be named.
    places : ndarray of int64, shape (clients,)
        Where in ``names`` the name of each client is; negative numbers count from the end.
    """

    names: tuple[str, ...]
    places: Rows

    def __len__(self) -> int:
        return len(self.places)

    def entry(self, index: int) -> str:
        """Name of a client."""
        return self.names[self.places[index]]


@dataclass(frozen=True)
class Federation:
    """Who holds what: the data set, its clients, and the test rows of every domain.

    Parameters
    ----------
    dataset : Dataset
        Arrays, held once.
    clients : ClientSplits
        One entry a client; the position is the partition id.
    tests : dict of ndarray
        Domain name to its held-out rows, independent of how clients were split.
    """

    dataset: Dataset
    clients: ClientSplits
    tests: dict[str, Rows]

    @property
    def meta(self) -> Meta:
        """What a model has to know of the data."""
        return self.dataset.meta

    @property
    def sizes(self) -> Rows:
        """Number of training rows of every client."""
        return self.clients.train.sizes

    @property
    def domains(self) -> Names:
        """Name of every client's domain, or ``"mixed"``."""
        return Names((*self.dataset.domains, "mixed"), self.clients.domain)

    def domain_of(self, client: int) -> str:
        """Name of a client's domain, or ``"mixed"``."""
        return self.domains[client]
