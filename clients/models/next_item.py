"""What every model gives that is asked, after each event of a history, which item comes next: scores, losses.

Sizes in docstrings: B histories of H events, of which m queries are asked, one after each event or fewer; V
items 1..V, 0 where there is none; d features; N negatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError

from .comirec import look_up


class NextItem(NamedTuple):
    """What a model says of each query, and all that scores and losses are made of.

    Attributes
    ----------
    output : Tensor, shape (B, m, d)
        Vectors that items are compared with.
    weight : Tensor, shape (V + 1, d)
        Vectors of items, by id; row 0 means nothing.
    bias : Tensor, shape (V + 1,)
        Of items, by id; -inf for id 0.
    penalty : Tensor, shape (B, m)
        What the model adds to the loss of each query.
    """

    output: Tensor
    weight: Tensor
    bias: Tensor
    penalty: Tensor


class ItemHead(nn.Module):
    """``o . E[v] + b_v`` with the items' own vectors E, and ``o = W_out x + b_out``, or x if widths agree."""

    def __init__(self, items: int, features: int, width: int) -> None:
        super().__init__()
        self.W_out = None if features == width else nn.Linear(features, width)
        self.b = nn.Parameter(torch.zeros(items + 1))

    def forward(self, x: Tensor, table: Tensor) -> NextItem:
        """Without a penalty, from features x (B, m, features) and E, shape (V + 1, d)."""
        output = x if self.W_out is None else self.W_out(x)
        return NextItem(output, table, without_none(self.b), output.new_zeros(output.shape[:-1]))


def without_none(bias: Tensor) -> Tensor:
    """A bias, shape (V + 1,), of -inf for id 0, to whose entry no gradient goes."""
    return torch.cat([bias.new_full((1,), -math.inf), bias[1:]])


def scores(out: NextItem) -> Tensor:
    """Logits of all items by id, of the last query: shape (B, V + 1); -inf for id 0."""
    logits = out.output[:, -1] @ out.weight[1:].mT + out.bias[1:]
    return functional.pad(logits, (1, 0), value=-math.inf)


def next_item_loss(out: NextItem, target: Tensor, negatives: Tensor | None = None) -> Tensor:
    """Cross-entropy over items 1..V, or over the target and some negatives.

    Parameters
    ----------
    out : NextItem
        What the model gives.
    target : Tensor of int, shape (B, m)
        Ids of what came next; 0 is padding.
    negatives : Tensor of int, shape (B, N), optional
        Ids drawn uniformly, that a row's queries share; 0 is padding. The softmax is over them and a query's
        own target, which counts once.

    Returns
    -------
    Tensor, shape (B, m)
        0 without a target.
    """
    if negatives is None:
        logits = out.output @ out.weight[1:].mT + out.bias[1:]
        each = functional.cross_entropy(
            logits.flatten(0, 1), target.flatten() - 1, ignore_index=-1, reduction="none"
        )
        return each.view_as(target)
    own = (look_up(target, out.weight) * out.output).sum(-1) + out.bias[target.clamp(min=1)]
    others = out.output @ look_up(negatives, out.weight).mT + out.bias[negatives.clamp(min=1)].unsqueeze(1)
    left_out = (negatives == 0).unsqueeze(1) | (negatives.unsqueeze(1) == target.unsqueeze(2))
    total = torch.cat([own.unsqueeze(-1), others.masked_fill(left_out, -math.inf)], -1).logsumexp(-1)
    return (total - own) * (target > 0)


def check_rates(**rates: float) -> None:
    """Check rates of dropout, by name.

    Raises
    ------
    ClientError
        If one is not in [0, 1).
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ClientError(f"{name}: must be 0 or more and below 1, got {rate}")
