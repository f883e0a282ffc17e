"""Between Flower's array records and arrays or tensors, without serialising what never leaves the process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

Arrays = dict[str, npt.NDArray[Any]]


class LazyArray(Array):
    """A Flower Array that is serialised only where somebody reads its bytes, as Flower's transport does.

    Parameters
    ----------
    ndarray : ndarray
        Must not be written to any more.
    """

    def __init__(self, ndarray: npt.NDArray[Any]) -> None:
        view = ndarray.view()
        view.flags.writeable = False
        self.__dict__.update(
            dtype=str(view.dtype), shape=tuple(view.shape), stype="numpy.ndarray", _ndarray=view
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised array."""
        if "_data" not in self.__dict__:
            buffer = BytesIO()
            np.save(buffer, self.__dict__["_ndarray"], allow_pickle=False)
            self.__dict__["_data"] = buffer.getvalue()
        serialised: bytes = self.__dict__["_data"]
        return serialised

    def view(self) -> npt.NDArray[Any]:
        """The array itself, read-only."""
        view: npt.NDArray[Any] = self.__dict__["_ndarray"]
        return view

    def numpy(self) -> npt.NDArray[Any]:
        """A copy, as of any Array: some of Flower's strategies write to it."""
        return self.view().copy()

    def __reduce__(self) -> tuple[Callable[..., LazyArray], tuple[npt.NDArray[Any]]]:
        return _lazy, (self.view(),)


LazyArray.__qualname__ = Array.__qualname__  # which Flower's transport writes down, and rebuilds objects by


def _lazy(ndarray: npt.NDArray[Any]) -> LazyArray:
    return LazyArray(ndarray)


def record(arrays: Mapping[str, Tensor | npt.NDArray[Any]]) -> ArrayRecord:
    """An array record of tensors or ndarrays, in their order."""
    filled = ArrayRecord()  # whose constructor would read, and so serialise, what it is given
    for k, v in arrays.items():
        filled[k] = LazyArray(v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v))
    return filled


def numpy_of(arrays: ArrayRecord) -> Arrays:
    """An array record as ndarrays, in its order; they may be read-only."""
    return {k: _view(v) for k, v in arrays.items()}


def tensors_of(arrays: ArrayRecord) -> dict[str, Tensor]:
    """An array record as tensors, which share memory with it and must not be changed in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {k: torch.from_numpy(_view(v)) for k, v in arrays.items()}


def _view(array: Array) -> npt.NDArray[Any]:
    return array.view() if isinstance(array, LazyArray) else array.numpy()
