"""HCN: interests of a user that a short stack of levels refines, long-term and short-term ones together.

Yuan et al., "Hierarchical Multi-Interest Co-Network For Coarse-Grained Ranking", arXiv 2210.10547, of which
the abstract alone was read. It fixes that a user has several interest vectors, that they are updated
iteratively, layer by layer, so that they differ, and that a Co-Interest Network joins those of long-term and
of short-term behaviour. How is as specified here, so that this is a model in the spirit of that paper, and
nothing more: all formulas, sizes, starting values and losses are RECONSTRUCTED.

Sizes in docstrings: B users with histories of n events, the newest last and 0 where there is none; V items
1..V; K interests of each extractor; T levels; d features. Scores, losses and redundancy are functions of
what the model gives, in :mod:`clients.models.comirec`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from clients.errors import ClientError

from .comirec import Interests, ItemTable, SelfAttention, at_least, look_up, uncalibrated

Init = Literal["attention", "proto"]
Mode = Literal["union", "gate", "none"]


class HCN(nn.Module):
    """Two extractors, of older and of the newest events, whose interests then inform each other.

    No user has parameters of their own, and no item meets the user before the inner product.

    Parameters
    ----------
    items : int
        V.
    history : int
        Most events of a history.
    categories : sequence of int, optional
        Category of each item id, 0..V; 0 is none, and must be the category of id 0. An item's vector is then
        the sum of its own and its category's.
    short : int
        Newest events, that are short-term; those before are long-term.
    width : int
        d.
    interests : int
        K.
    levels : int
        T. Without any, extractors are those of :class:`clients.models.comirec.ComiRecSA`.
    init : {"attention", "proto"}
        Centers before the first level: weighted means of the events, or learned vectors, the same for all.
    mode : {"union", "gate", "none"}
        ``union``: K long-term and K short-term interests, each with its share of the other side. ``gate``:
        the K long-term ones alone, with their share of the other side. ``none``: 2K as they were extracted.
    rank : bool
        Learn a temperature ``tau`` and an offset ``bias`` for :func:`clients.models.comirec.ranking_loss`.

    Raises
    ------
    ClientError
        If a size is below 1 (``levels``: 0), ``short`` leaves no long-term events, ``categories`` are not
        those of the items, or an option has no such value.

    Notes
    -----
    Beyond the starting values that the specification gives, W1 and W2 start as linear layers of the framework
    do, and the table of categories as that of items. It is silent on ``gate`` for a user without long-term
    events: their K interests are then what the short-term ones say. Left out of it, all off by default:
    merging of twice as many first centers, a number of interests that depends on the user, profile vectors,
    and long-term events told by time stamps instead of by number.

    A federation may keep ``*.g`` and ``co.Wl``, ``co.Ws`` local.
    """

    def __init__(
        self,
        items: int,
        history: int = 50,
        categories: Sequence[int] | None = None,
        *,
        short: int = 10,
        width: int = 64,
        interests: int = 4,
        levels: int = 3,
        init: Init = "attention",
        mode: Mode = "union",
        rank: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"items": items, "history": history, "short": short, "width": width, "interests": interests}
        at_least(1, sizes)
        at_least(0, {"levels": levels})
        if short >= history:
            raise ClientError(f"short: must be less than the history of {history} events, got {short}")
        _one_of("init", init, get_args(Init))
        _one_of("mode", mode, get_args(Mode))
        self.n_short, self.mode = short, mode
        self.items = ItemTable(items, width, categories)
        self.long = Extractor(history - short, width, interests, levels, init)
        self.short = Extractor(short, width, interests, levels, init)
        self.co = None if mode == "none" else CoInterest(width, both=mode == "union")
        self.tau = nn.Parameter(torch.ones(1)) if rank else None
        self.bias = nn.Parameter(torch.zeros(1)) if rank else None

    def extract(self, hist: Tensor) -> tuple[Extraction, Extraction]:
        """All levels of the long-term and of the short-term extractor, for histories (B, n)."""
        return self._extract(hist, self.items())

    def forward(self, hist: Tensor) -> Interests:
        """Interests, from histories of shape (B, n) with n up to ``history``, padded on the left.

        There are 2K, the long-term ones first, or K in mode ``gate``.
        """
        table = self.items()
        lg, sh = (extraction.centers[-1] for extraction in self._extract(hist, table))
        has_long, has_short = (part.any(1)[:, None, None] for part in self._split(hist > 0))
        lf, sf = (lg, sh) if self.co is None else self.co(lg, sh, has_long, has_short)
        if self.mode == "gate":
            vectors, valid = lf, torch.ones_like(lf[..., 0], dtype=torch.bool)
        else:
            vectors = torch.cat([lf * has_long, sf * has_short], 1)
            valid = torch.cat([has_long.expand_as(lf), has_short.expand_as(sf)], 1)[..., 0]
            valid = valid | ~valid.any(1, keepdim=True)
        calibration = uncalibrated(table)
        if self.tau is not None and self.bias is not None:
            calibration = self.tau, self.bias
        return Interests(vectors, valid, table, lg, *calibration)

    def _extract(self, hist: Tensor, table: Tensor) -> tuple[Extraction, Extraction]:
        (x_long, x_short), (m_long, m_short) = self._split(look_up(hist, table)), self._split(hist > 0)
        return self.long(x_long, m_long), self.short(x_short, m_short)

    def _split(self, events: Tensor) -> tuple[Tensor, Tensor]:
        first = max(events.shape[1] - self.n_short, 0)
        return events[:, :first], events[:, first:]


class Extraction(NamedTuple):
    """What an extractor finds, level by level, from the coarsest.

    Attributes
    ----------
    centers : tuple of T + 1 Tensors, shape (B, K, d)
        The first are those before any refinement. All 0 without any event.
    assignments : tuple of T Tensors, shape (B, K, n)
        Weights of the events in the means that centers move to.
    """

    centers: tuple[Tensor, ...]
    assignments: tuple[Tensor, ...]


class Extractor(nn.Module):
    """Centers from one shot, then T levels, of which each one's centers are the queries of the next.

    As specified here for the "hierarchical multi-interest extraction layer" of the abstract, which updates
    centers iteratively; that this means a stack of levels with weights of their own is RECONSTRUCTED.
    """

    def __init__(self, history: int, width: int, interests: int, levels: int, init: Init) -> None:
        super().__init__()
        self.start = (
            SelfAttention(history, width, interests) if init == "attention" else Prototypes(width, interests)
        )
        self.levels = nn.ModuleList(Level(width) for _ in range(levels))

    def forward(self, x: Tensor, mask: Tensor) -> Extraction:
        """Of vectors x (B, n, d) of events, of which mask (B, n) tells the real ones."""
        centers, assignments = [self.start(x, mask)], []
        for level in self.levels:
            center, assignment = level(centers[-1], x, mask)
            centers.append(center)
            assignments.append(assignment)
        return Extraction(tuple(centers), tuple(assignments))


class Prototypes(nn.Module):
    """Learned centers, the same for all users that have an event; 0 for others."""

    def __init__(self, width: int, interests: int) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.randn(interests, width) / math.sqrt(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shape (B, K, d)."""
        return self.C * mask.any(1)[:, None, None].to(x.dtype)


class Level(nn.Module):
    """A step of soft k-means with a learned metric: centers compete for events and move to what they won.

    ``S = softmax over centers of (C Wq)(X Wk)^T``, ``A = S`` with rows normalised, and
    ``C + gamma (A X - C)`` with ``gamma = sigmoid(g)``. Wq and Wk start as identity, g at 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Wq = nn.Parameter(torch.eye(width))
        self.Wk = nn.Parameter(torch.eye(width))
        self.g = nn.Parameter(torch.zeros(1))

    def compete(self, center: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """S, shape (B, K, n): of each event, the shares that centers have; 0 where there is no event."""
        query = center @ self.Wq @ self.Wk.mT  # in this order, as centers are fewer than events
        return (query @ x.mT).softmax(1) * mask[:, None]

    def forward(self, center: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Refined centers (B, K, d), and A (B, K, n)."""
        share = self.compete(center, x, mask)
        assignment = share / (share.sum(-1, keepdim=True) + 1e-6)
        return center + self.g.sigmoid() * (assignment @ x - center), assignment


class CoInterest(nn.Module):
    """Each interest asks those of the other side, and a gate for each feature mixes what they say in.

    As specified here for the "Co-Interest Network" of the abstract; its form is RECONSTRUCTED: attention
    ``R = 4 / sqrt(d) (L W) S^T`` in both directions, over the short-term side for long-term interests L and
    the reverse, and ``gate * own + (1 - gate) * other`` with ``gate = sigmoid(Linear [own; other])``. W
    starts as identity, gates at sigmoid(2) = 0.88.

    Parameters
    ----------
    width : int
        d.
    both : bool
        Whether short-term interests ask, too; there is no ``Ws`` otherwise.
    """

    def __init__(self, width: int, both: bool) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.eye(width))
        self.Wl = _gate(width)
        self.Ws = _gate(width) if both else None

    def forward(self, lg: Tensor, sh: Tensor, has_long: Tensor, has_short: Tensor) -> tuple[Tensor, Tensor]:
        """Interests of both sides, mixed.

        Parameters
        ----------
        lg, sh : Tensor, shape (B, K, d)
            Interests as extracted.
        has_long, has_short : Tensor of bool, shape (B, 1, 1)
            Whether the side has any event. One that has some keeps its interests where the other
            has none; one that has none takes over what the other says.
        """
        R = 4 / math.sqrt(lg.shape[-1]) * (lg @ self.W) @ sh.mT
        lf = _mix(self.Wl, lg, R.softmax(2) @ sh, has_long, has_short)
        if self.Ws is None:
            return lf, sh
        return lf, _mix(self.Ws, sh, R.softmax(1).mT @ lg, has_short, has_long)


def _mix(layer: nn.Linear, own: Tensor, other: Tensor, has_own: Tensor, has_other: Tensor) -> Tensor:
    gate = layer(torch.cat([own, other], -1)).sigmoid()
    gate = gate.masked_fill(~has_own, 0.0).masked_fill(~has_other, 1.0)
    return gate * own + (1 - gate) * other


def _gate(width: int) -> nn.Linear:
    layer = nn.Linear(2 * width, width)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 2.0)
    return layer


def _one_of(name: str, value: str, values: Sequence[str]) -> None:
    if value not in values:
        raise ClientError(f"{name}: must be one of {', '.join(values)}, got {value!r}")
