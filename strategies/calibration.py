"""How far the probabilities of a classifier can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15
"""Of confidence, as is usual."""


def calibration_gaps(probabilities: Tensor, y: Tensor, weight: Tensor, bins: int = BINS) -> Tensor:
    """Accuracy minus confidence, the largest probability, summed over the rows of each bin of confidence.

    Sums over all rows of several clients are the sums of theirs, and the expected calibration error (Guo,
    Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599,
    equation 3) is the sum of their absolute values, divided by the number of rows. Bins are open below.

    Parameters
    ----------
    probabilities : Tensor, shape (rows, classes)
        Of each class.
    y : Tensor of int64, shape (rows,)
        Classes.
    weight : Tensor, shape (rows,)
        1 for a row that counts, 0 for padding.
    bins : int
        Number of equal bins of [0, 1].

    Returns
    -------
    Tensor, shape (bins,)
        In the type of ``weight``.

    Raises
    ------
    ValueError
        For fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins: must be 1 or more, got {bins}")
    confidence, guess = probabilities.max(dim=-1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = ((guess == y).to(weight.dtype) - confidence.to(weight.dtype)) * weight
    return torch.zeros(bins, dtype=weight.dtype, device=weight.device).index_add(0, place, gap)
