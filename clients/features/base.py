"""The contract of an extractor, and its disk cache."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Normalise = Literal["none", "l2"]


class Extractor(ABC):
    """A frozen map from examples to feature vectors."""

    normalise: Normalise = "none"

    @abstractmethod
    def key(self) -> str:
        """Everything that the features depend on besides the examples."""

    @abstractmethod
    def extract(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Features of shape (rows, dimension) of examples ``x``."""


def cached_features(
    extractor: Extractor, x: npt.NDArray[Any], fingerprint: str, cache_dir: str | Path
) -> npt.NDArray[np.float32]:
    """Features, computed once for each (data, extractor) and memory-mapped from then on.

    Parameters
    ----------
    extractor : Extractor
        What to apply.
    x : ndarray
        Examples, one a row.
    fingerprint : str
        Content hash of the data set.
    cache_dir : path
        Where features are kept, as ``.npy`` files named after their content.

    Returns
    -------
    ndarray of float32, shape (rows, dimension)
        Read-only where it comes from the cache.
    """
    digest = hashlib.blake2b(f"{fingerprint}|{extractor.key()}".encode(), digest_size=16).hexdigest()
    path = Path(cache_dir).expanduser() / "features" / f"{digest}.npy"
    if not path.is_file():
        features = extractor.extract(x).astype(np.float32, copy=False)
        if extractor.normalise == "l2":
            features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under a name of its own and renamed, so that no other run ever sees half a file.
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with partial.open("wb") as file:
                np.save(file, features)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def file_hash(path: str | Path) -> str:
    """Content hash of a weights file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
