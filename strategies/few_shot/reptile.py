"""Reptile: move the initialisation towards what training on each task ends at.

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv 1803.02999.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import StrategyError
from ..functional import Batch, Params
from ..niw.estimators import Descent, Loss


def reptile_step(
    loss: Loss, params: Params, tasks: Sequence[Batch], inner: Descent, lr: float = 1.0
) -> Params:
    """``params + lr * mean(adapted - params)`` over tasks (algorithm 2, batched).

    With a single inner step of plain gradient descent this is joint training of all tasks; what makes it
    meta-learning are two steps or more.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)``, a scalar.
    tasks : sequence of dict of Tensor
        All rows of each task: there is no query set. Every inner step sees them all, where the paper takes
        mini-batches.
    inner : Descent
        Inner steps. The paper's optimiser is ``Adam(betas=(0, 0.999))``, without momentum, anew in each task.
    lr : float
        Outer step, which the paper lowers linearly to 0.

    Raises
    ------
    StrategyError
        Where there are no tasks.
    """
    if not tasks:
        raise StrategyError("tasks: there are none; a step needs one or more")
    ends = [inner.minimise(lambda p, data=data: loss(p, data), params) for data in tasks]  # type: ignore[misc]
    return {k: p + lr * (torch.stack([end[k] for end in ends]).mean(0) - p) for k, p in params.items()}
