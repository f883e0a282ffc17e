"""One few-shot task as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import StrategyError
from ..functional import Batch, Params


@dataclass(frozen=True)
class Trial:
    """What is learned from, and what is judged.

    Parameters
    ----------
    support, query : dict of Tensor
        Batches with one row an example, such as ``x`` and the labels ``y``, which number the classes of this
        trial from 0.
    """

    support: Batch
    query: Batch

    @property
    def all(self) -> Batch:
        """Rows of both, those of the support set first."""
        return {k: torch.cat([v, self.query[k]]) for k, v in self.support.items()}


def mean_of(parts: Sequence[tuple[Params, Tensor]]) -> tuple[Params, Tensor]:
    """Mean gradient and mean value of several trials.

    Raises
    ------
    StrategyError
        Where there are none.
    """
    if not parts:
        raise StrategyError("trials: there are none; a step needs one or more")
    gradients = [gradient for gradient, _ in parts]
    mean = {k: torch.stack([g[k] for g in gradients]).mean(0) for k in gradients[0]}
    return mean, torch.stack([value for _, value in parts]).mean()
