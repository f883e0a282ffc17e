"""SASRec: self-attention over a history; with times as inputs, a fair control for models that see them.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, arXiv 1808.09781. Sizes in
docstrings: B histories of H events; V items 1..V; d features; F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError

from .comirec import ItemTable, at_least, look_up
from .idnp import OCTAVES
from .next_item import ItemHead, NextItem, check_rates


class SASRec(nn.Module):
    """Blocks of causal self-attention over items' vectors, with which the last one's output is compared.

    Users are not looked at, and times only if asked to.

    Parameters
    ----------
    items : int
        V.
    history : int
        Most events of a history.
    width : int
        d.
    layers, heads : int
        Blocks, and attention heads of each.
    dropout : float
        Rate in training: of inputs, and of what blocks add to them.
    time : bool
        Tell the model when each event was, and when the one is that it is asked about, on circles of the
        given frequencies.
    frequencies : sequence of float
        Cycles per period that time is told by.

    Raises
    ------
    ClientError
        If a size is below 1, ``width`` is no multiple of ``heads``, the rate is not in [0, 1), or there are
        no frequencies or one is not finite.

    Notes
    -----
    Blocks are pre-norm, as the paper has it in section III-C: ``x + Dropout(g(LayerNorm(x)))``, g being
    attention without biases or a map behind it (equation 3), then two linear layers as wide as the input
    (equation 4). From the authors' code, not the paper: a LayerNorm behind the last block, and dropout
    between the two linear layers. Deviations: cross-entropy in place of binary cross-entropy with one
    negative (:func:`clients.models.next_item.next_item_loss`); items have biases, as in the other models
    here; positions count from the newest event, and start at N(0, 0.02^2), items' vectors at N(0, 1/d).
    Times are no part of the paper.
    """

    def __init__(
        self,
        items: int,
        history: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        time: bool = False,
        frequencies: Sequence[float] = OCTAVES,
    ) -> None:
        super().__init__()
        at_least(1, {"items": items, "history": history, "width": width, "layers": layers, "heads": heads})
        check_rates(dropout=dropout)
        if width % heads:
            raise ClientError(f"width: must be a multiple of heads={heads}, got {width}")
        self.items = ItemTable(items, width)
        self.P = nn.Parameter(0.02 * torch.randn(history, width))
        self.time = EventTimes(frequencies, width) if time else None
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = ItemHead(items, width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hist: Tensor, times: Tensor, query_time: Tensor, user: Tensor) -> NextItem:  # noqa: ARG002
        """What comes after each event.

        Parameters
        ----------
        hist : Tensor of int, shape (B, H)
            Ids, oldest first, padded with 0 on the left.
        times : Tensor of float, shape (B, H)
            Times of events, in natural periods.
        query_time : Tensor of float, shape (B,)
            When the event is that follows the last.
        user : Tensor
            Not looked at.

        Raises
        ------
        ClientError
            If histories are longer than ``history``.
        """
        n = hist.shape[1]
        if n > len(self.P):
            raise ClientError(f"history: the model is made for {len(self.P)} events, but is given {n}")
        table = self.items()
        x = look_up(hist, table) + self.P[len(self.P) - n :]
        if self.time is not None:
            x = x + self.time(times, torch.cat([times[:, 1:], query_time.unsqueeze(1)], 1))
        x, seen = self.dropout(x), causal(hist > 0).unsqueeze(1)
        for block in self.blocks:
            x = block(x, seen)
        return self.head(self.norm(x), table)


class Block(nn.Module):
    """Attention, then two linear layers, each added to what went in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.W_q, self.W_k, self.W_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(B, H, d) to the same shape; ``seen`` (B, 1, H, H) tells what each position attends to."""
        y = self.norm_1(x)
        q, k, v = (
            W(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for W in (self.W_q, self.W_k, self.W_v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.dropout(mixed.transpose(1, 2).flatten(2))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class EventTimes(nn.Module):
    """``W_event phi(t) + W_next phi(t_next) + b``, phi being sine and cosine of ``2 pi f t`` for each f."""

    f: Tensor

    def __init__(self, frequencies: Sequence[float], width: int) -> None:
        super().__init__()
        if not frequencies or not all(math.isfinite(f) for f in frequencies):
            raise ClientError(f"frequencies: must be one or more finite numbers, got {list(frequencies)}")
        self.W_event = nn.Linear(2 * len(frequencies), width)
        self.W_next = nn.Linear(2 * len(frequencies), width, bias=False)
        self.register_buffer("f", torch.tensor(frequencies, dtype=torch.float32), persistent=False)

    def forward(self, t: Tensor, following: Tensor) -> Tensor:
        """Two of (B, H) to (B, H, d). Times may be float64, as the seconds of years need them."""
        return self.W_event(self._phi(t)) + self.W_next(self._phi(following))

    def _phi(self, t: Tensor) -> Tensor:
        # Whole cycles are left out before anything is rounded to the weights' type.
        angle = 2 * math.pi * torch.remainder(t.unsqueeze(-1) * self.f, 1)
        return torch.cat([angle.sin(), angle.cos()], -1).to(self.W_event.weight.dtype)


def causal(real: Tensor) -> Tensor:
    """What each position attends to: events up to it, and itself.

    Parameters
    ----------
    real : Tensor of bool, shape (B, H)
        Which positions are events. Padding sees itself alone, which nobody else does.

    Returns
    -------
    Tensor of bool, shape (B, H, H)
    """
    n = real.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=real.device).tril(-1)
    return earlier & real.unsqueeze(1) | torch.eye(n, dtype=torch.bool, device=real.device)
