"""Label flipping: honest training on rows whose labels are wrong.

Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020, arXiv 1911.11815, compare with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strategies.functional import Batch

from .base import Attack


class LabelFlip(Attack):
    r"""Trains on labels :math:`C - 1 - y` for :math:`C` classes, as the paper does, or on others of choice.

    Parameters
    ----------
    target : int or None
        Class that every row is labelled with.
    permutation : sequence of int or None
        New label of each class.
    """

    needs_labels = True

    def __init__(self, target: int | None = None, permutation: Sequence[int] | None = None) -> None:
        if target is not None and permutation is not None:
            raise ValueError(
                f"target: the permutation names the labels already, got {target}; give one of two"
            )
        self.target, self.permutation = target, permutation

    def poison(self, data: Batch, classes: int, generator: torch.Generator | None = None) -> Batch:  # noqa: ARG002
        """The rows with other labels.

        Raises
        ------
        ValueError
            If the target or the permutation does not fit the number of classes.
        """
        if self.target is not None:
            return relabelled(data, self.target, classes)
        y = data["y"]
        if self.permutation is None:
            return {**data, "y": classes - 1 - y}
        if sorted(self.permutation) != list(range(classes)):
            raise ValueError(
                f"permutation: must hold the classes 0 to {classes - 1} once each, got {[*self.permutation]}"
            )
        return {**data, "y": torch.tensor(list(self.permutation), dtype=y.dtype, device=y.device)[y]}


def relabelled(data: Batch, target: int, classes: int) -> Batch:
    """The rows, all labelled with one class; raises ValueError where there is no such class."""
    if not 0 <= target < classes:
        raise ValueError(f"target: must be a class from 0 to {classes - 1}, got {target}")
    return {**data, "y": torch.full_like(data["y"], target)}
