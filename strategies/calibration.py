"""How far the probabilities of a classifier can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15
"""Of confidence, as is usual."""


def by_confidence(probabilities: Tensor, y: Tensor, weight: Tensor, bins: int = BINS) -> Tensor:
    """Rows, their confidence (the largest probability) and their hits, summed over each bin of confidence.

    Sums over the rows of several clients are the sums of theirs. They make the reliability diagram, and
    :func:`calibration_error`. Bins are open below.

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
    Tensor, shape (3, bins)
        In the type of ``weight``: numbers of rows, confidence, hits.

    Raises
    ------
    ValueError
        For fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins: must be 1 or more, got {bins}")
    confidence, guess = probabilities.max(dim=-1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    hits = (guess == y).to(weight.dtype)
    told = torch.stack([torch.ones_like(weight), confidence.to(weight.dtype), hits]) * weight
    return torch.zeros(3, bins, dtype=weight.dtype, device=weight.device).index_add(1, place, told)


def calibration_error(binned: Tensor) -> Tensor:
    """Expected calibration error: the mean over rows of how far accuracy and confidence of their bin differ.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599,
    equation 3.

    Parameters
    ----------
    binned : Tensor, shape (3, bins)
        From :func:`by_confidence`.
    """
    rows, confidence, hits = binned
    return (hits - confidence).abs().sum() / rows.sum()
