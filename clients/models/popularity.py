"""Popularity: a bias for every item, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .comirec import at_least
from .next_item import NextItem, without_none


class Popularity(nn.Module):
    """The same scores for everyone; by cross-entropy, they become the logs of items' frequencies.

    The least that a recommender must beat, learned by the same method as the recommender.

    Parameters
    ----------
    items : int
        V.

    Raises
    ------
    ClientError
        If there are no items.
    """

    def __init__(self, items: int) -> None:
        super().__init__()
        at_least(1, {"items": items})
        self.b = nn.Parameter(torch.zeros(items + 1))

    def forward(self, hist: Tensor, times: Tensor, query_time: Tensor, user: Tensor) -> NextItem:  # noqa: ARG002
        """After each event of histories (B, H); the same every time."""
        nothing = self.b.new_zeros(hist.shape)
        weight = self.b.new_zeros(len(self.b), 1)
        return NextItem(nothing.unsqueeze(-1), weight, without_none(self.b), nothing)
