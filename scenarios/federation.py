"""What a scenario is made of: a data set, and the federation that a skew makes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


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
        Shape of one example of ``arrays["x"]``: ``(channels, height, width)`` for images,
        ``(features,)`` for vectors.
    classes : tuple of str
        Class names in label order; empty where the task has none.
    """

    task: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()


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
    """

    name: str
    arrays: dict[str, npt.NDArray[Any]]
    domain: Rows
    domains: tuple[str, ...]
    meta: Meta
    test: Rows | None = None

    def __post_init__(self) -> None:
        for key, array in self.arrays.items():
            if len(array) != len(self.domain):
                raise ScenarioError(
                    f"data '{self.name}': array '{key}' has {len(array)} rows, domain has {len(self.domain)}"
                )

    def __len__(self) -> int:
        return len(self.domain)

    def fingerprint(self) -> str:
        """Hash of the names, shapes and bytes of all arrays: the content key of cached features."""
        digest = hashlib.blake2b(digest_size=16)
        for key in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[key])
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


@dataclass(frozen=True)
class Federation:
    """Who holds what: the data set, its clients, and the test rows of every domain.

    Parameters
    ----------
    dataset : Dataset
        Arrays, held once.
    clients : tuple of ClientSplit
        One entry a client; the position is the partition id.
    tests : dict of ndarray
        Domain name to its held-out rows, independent of how clients were split.
    """

    dataset: Dataset
    clients: tuple[ClientSplit, ...]
    tests: dict[str, Rows]

    @property
    def meta(self) -> Meta:
        """What a model has to know of the data."""
        return self.dataset.meta

    def domain_of(self, client: int) -> str:
        """Name of a client's domain, or ``"mixed"``."""
        index = self.clients[client].domain
        return "mixed" if index < 0 else self.dataset.domains[index]
