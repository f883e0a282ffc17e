"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from strategies.functional import Batch

Arrays = Mapping[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.int64] | slice
Reliability = dict[str, list[float | None]]


class Task(ABC):
    """Loss and metrics of a kind of problem.

    A batch is a dict of tensors with one row per example; ``batch["weight"]`` is 1 for a real row and
    0 for padding, which must change neither loss nor metrics.
    """

    kind: ClassVar[str]
    """Name that a data set's ``meta.task`` must match."""
    sums: tuple[str, ...]
    """Keys of :meth:`metrics`; ``count`` is one of them."""
    headline: ClassVar[str]
    """Key of :meth:`scores` that decides a comparison and the best-validation round."""
    higher_is_better: ClassVar[bool]
    """Direction of the headline."""
    references: ClassVar[tuple[str, ...]] = ()
    """Predictors without training, whose headline :meth:`scores` may have as ``{name}_{headline}``."""
    ids: ClassVar[tuple[str, ...]] = ()
    """Parts of a batch that hold numbers of rows of a table, such as items."""
    rows_at_once: int = 1024
    """Rows of a forward pass of an evaluation."""

    @property
    def draws(self) -> bool:
        """Whether training examples have random parts, which :meth:`drawn` draws anew in each round."""
        return False

    def drawn(self, batch: Batch, arrays: Arrays) -> Batch:  # noqa: ARG002 - part of the contract
        """The batch with its random parts, from torch's global generator."""
        return batch

    @abstractmethod
    def gather(self, arrays: Arrays, rows: Rows) -> Batch:
        """Rows of the data set as tensors, without ``weight``; all of them for ``slice(None)``."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Positional arguments of the model's ``forward``."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Weighted mean loss, a scalar."""

    @abstractmethod
    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch that add up exactly over batches and clients."""

    @abstractmethod
    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Readable numbers (means, rates) from added-up metrics, ``loss`` among them."""

    def reliability(self, sums: Mapping[str, float]) -> Reliability | None:  # noqa: ARG002
        """What a reliability diagram shows, by bin of confidence; None where predictions have none."""
        return None
