"""ComiRec-SA, and what every model shares that sees several interests in a user: scores, losses, redundancy.

Written as specified here, from a description; see :class:`ComiRecSA`. Sizes in docstrings: B users with
histories of n events, the newest last and 0 where there is none; V items 1..V; K interests; d features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError


class Interests(NamedTuple):
    """What a model knows of users and items, and all that scores, losses and metrics are made of.

    Attributes
    ----------
    vectors : Tensor, shape (B, K, d)
        A user's interests; 0 where not ``valid``.
    valid : Tensor of bool, shape (B, K)
        Whether an interest takes part in scores. At least one of a user's does: one without any history
        has zeros that all do, and scores every item 0.
    items : Tensor, shape (V + 1, d)
        Vectors of items, by id; row 0 means nothing.
    centers : Tensor, shape (B, K', d)
        Interests as extracted from the (long-term) history, whose redundancy is of interest; 0 without one.
    tau, bias : Tensor, shape (1,)
        Temperature and offset of :func:`ranking_logits`; 1 and 0 in a model that does not learn them.
    """

    vectors: Tensor
    valid: Tensor
    items: Tensor
    centers: Tensor
    tau: Tensor
    bias: Tensor


class ComiRecSA(nn.Module):
    """K interests of a user, each a weighted mean of the items in the history; the weights come at one shot.

    Self-attentive extraction of Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD
    2020, arXiv 2005.09347, as specified here for comparison with :class:`clients.models.hcn.HCN`, whose
    extractors without refinement are this.

    Parameters
    ----------
    items : int
        V.
    history : int
        Most events of a history.
    categories : sequence of int, optional
        Category of each item id, 0..V; 0 is none, and must be the category of id 0.
    width : int
        d.
    interests : int
        K.

    Raises
    ------
    ClientError
        If a size is below 1, or ``categories`` are not those of the items.

    Notes
    -----
    Deviations from the public code: losses weigh interests softly unless asked not to
    (:func:`next_item_loss`), and positions have standard deviation 0.02 at the start. RECONSTRUCTED: W1 and
    W2 start as linear layers of the framework do, and the table of categories as that of items.
    """

    def __init__(
        self,
        items: int,
        history: int = 50,
        categories: Sequence[int] | None = None,
        *,
        width: int = 64,
        interests: int = 4,
    ) -> None:
        super().__init__()
        at_least(1, {"items": items, "history": history, "width": width, "interests": interests})
        self.items = ItemTable(items, width, categories)
        self.extractor = SelfAttention(history, width, interests)

    def forward(self, hist: Tensor) -> Interests:
        """Interests, from histories of shape (B, n) with n up to ``history``, padded on the left."""
        table = self.items()
        mask = hist > 0
        vectors = self.extractor(look_up(hist, table), mask)
        return Interests(
            vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool), table, vectors, *uncalibrated(table)
        )


class ItemTable(nn.Module):
    """Vectors of items, N(0, 1/d) at the start, with those of their categories added where there are any.

    One table serves histories and candidates. Row 0 starts at 0 and has no gradient: it is nobody's.
    """

    category: Tensor

    def __init__(self, items: int, width: int, categories: Sequence[int] | None = None) -> None:
        super().__init__()
        self.E = _embeddings(items, width)
        self.E_cat = None
        if categories is not None:
            category = _categories(items, categories)
            self.register_buffer("category", category, persistent=False)
            self.E_cat = _embeddings(int(category.max()), width)

    def forward(self) -> Tensor:
        """Shape (V + 1, d)."""
        if self.E_cat is None:
            return self.E
        return self.E + look_up(self.category, self.E_cat)


class SelfAttention(nn.Module):
    """``C = A X``, ``A = softmax over events of W2 tanh(W1 (X + P)^T)``.

    Positions have a say in the weights alone, so that centers are convex combinations of items' vectors.
    They count from the newest event, the last row of P.
    """

    def __init__(self, history: int, width: int, interests: int) -> None:
        super().__init__()
        self.P = nn.Parameter(0.02 * torch.randn(history, width))
        self.W1 = nn.Linear(width, 4 * width, bias=False)
        self.W2 = nn.Linear(4 * width, interests, bias=False)

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """A, shape (B, K, n): rows that sum to 1; all 0 without any event."""
        history, n = len(self.P), x.shape[1]
        if n > history:
            raise ClientError(f"history: the model is made for {history} events, but is given {n}")
        logits = self.W2(self.W1(x + self.P[history - n :]).tanh()).mT
        return logits.masked_fill(~mask[:, None], -1e9).softmax(-1) * mask[:, None]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """C, shape (B, K, d), of vectors x (B, n, d) of events; mask (B, n) tells the real ones."""
        return self.weights(x, mask) @ x


# --- scores ----------------------------------------------------------------------------------------


def scores(out: Interests, candidates: Tensor | None = None) -> Tensor:
    """``s(u, v) = max_k <u_k, e_v>`` over valid interests; -inf for id 0.

    Parameters
    ----------
    out : Interests
        What the model gives.
    candidates : Tensor of int, shape (B, C), optional
        Ids to score for each user; all of them, id 0 included, by default.

    Returns
    -------
    Tensor, shape (B, C) or (B, V + 1)
    """
    best = _inner_products(out, candidates).amax(1)
    ids = torch.arange(len(out.items), device=best.device) if candidates is None else candidates
    return best.masked_fill(ids == 0, -math.inf)


def retrieve(out: Interests, n: int) -> tuple[Tensor, Tensor]:
    """The best ``n`` items of each user, or all V if there are fewer: ids and scores, from the best down.

    An item that is among the best n of all is among the best n of the interest that it owes its score to,
    so that this is what fetching n for every interest and merging them gives.
    """
    found = scores(out).topk(min(n, len(out.items) - 1), dim=-1)
    return found.indices, found.values


def readout(out: Interests, target: Tensor, power: float = 1.0) -> Tensor:
    """``sum_k a_k u_k`` with ``a = softmax_k(power <u_k, e_target>)``: the user as seen from one item.

    Parameters
    ----------
    out : Interests
        What the model gives.
    target : Tensor of int, shape (B,)
        Ids.
    power : float
        Sharpness; ``inf`` takes the best interest alone, as ComiRec does.

    Returns
    -------
    Tensor, shape (B, d)

    Raises
    ------
    ClientError
        If ``power`` is not positive.
    """
    if not power > 0:
        raise ClientError(f"power: must be positive, got {power}")
    fit = _inner_products(out, target[:, None]).squeeze(-1)
    if math.isinf(power):
        a = (torch.arange(fit.shape[1], device=fit.device) == fit.argmax(1, keepdim=True)).to(fit.dtype)
    else:
        a = (power * fit).softmax(1)
    return (a[:, None] @ out.vectors).squeeze(1)


def ranking_logits(out: Interests, candidates: Tensor) -> Tensor:
    """``s / tau + bias`` with the soft maximum ``s = logsumexp_k <u_k, e_v>``, for candidates (B, C)."""
    return _inner_products(out, candidates).logsumexp(1) / out.tau + out.bias


# --- losses and metrics ----------------------------------------------------------------------------


def next_item_loss(
    out: Interests, target: Tensor, power: float = 1.0, negatives: Tensor | None = None
) -> Tensor:
    """Cross-entropy of ``<u, e_v>`` over items, u being :func:`readout` of the target.

    Parameters
    ----------
    out : Interests
        What the model gives.
    target : Tensor of int, shape (B,)
        Ids of what came next. Those of padded rows may be 0, and their losses are to be left out.
    power : float
        See :func:`readout`.
    negatives : Tensor of int, any shape, optional
        Ids drawn uniformly from 1..V, that all users share; the softmax is over them and the target, and a
        user's own target among them counts once. It is over all V items by default.

    Returns
    -------
    Tensor, shape (B,)
    """
    user = readout(out, target, power)
    if negatives is None:
        logits = user @ out.items[1:].mT
        return functional.cross_entropy(logits, (target - 1).clamp(min=0), reduction="none")
    negatives = negatives.flatten()
    own = (user * look_up(target, out.items)).sum(1, keepdim=True)
    others = user @ look_up(negatives, out.items).mT
    others = others.masked_fill(negatives == target[:, None], -math.inf)
    return torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1)


def ranking_loss(out: Interests, candidates: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of :func:`ranking_logits`.

    Parameters
    ----------
    out : Interests
        What the model gives.
    candidates : Tensor of int, shape (B, C)
        Items shown, clicked or not, and random ones; 0 is padding.
    label : Tensor of float, shape (B, C)
        1 for clicks.

    Returns
    -------
    Tensor, shape (B,)
        Means over a user's candidates; 0 without any.
    """
    real = (candidates > 0).to(label.dtype)
    each = functional.binary_cross_entropy_with_logits(
        ranking_logits(out, candidates), label, reduction="none"
    )
    return (each * real).sum(1) / real.sum(1).clamp(min=1)


def redundancy(centers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine between two interests of a user, over pairs of different ones that are not 0.

    Parameters
    ----------
    centers : Tensor, shape (B, K, d)
        :attr:`Interests.centers`, or :attr:`Interests.vectors`.

    Returns
    -------
    red, count : Tensor, shape (B,)
        Where a user has no such pair both are 0, otherwise ``count`` is 1: the measure of many users is
        the sum of ``red`` over that of ``count``.
    """
    cosine, pair = _cosines(centers)
    pairs = pair.sum((1, 2))
    return (cosine * pair).sum((1, 2)) / pairs.clamp(min=1), (pairs > 0).to(centers.dtype)


def diversity(out: Interests) -> Tensor:
    """Mean squared cosine between two interests of a user: a term that losses may add, shape (B,).

    Nothing adds it by default: iteration is to make interests differ, not a penalty.
    """
    cosine, pair = _cosines(out.vectors)
    return (cosine**2 * pair).sum((1, 2)) / pair.sum((1, 2)).clamp(min=1)


def uncalibrated(like: Tensor) -> tuple[Tensor, Tensor]:
    """``tau`` and ``bias`` that change nothing."""
    return like.new_ones(1), like.new_zeros(1)


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table, and 0 for id 0, whatever its row is, through which no gradient goes back to it."""
    return functional.embedding(ids, table) * (ids > 0).unsqueeze(-1)


def at_least(minimum: int, sizes: Mapping[str, int]) -> None:
    """Check sizes, by name.

    Raises
    ------
    ClientError
        If one is below the minimum.
    """
    for name, size in sizes.items():
        if size < minimum:
            raise ClientError(f"{name}: must be {minimum} or more, got {size}")


def _inner_products(out: Interests, candidates: Tensor | None) -> Tensor:
    """Of each interest and candidate, (B, K, C); -inf where the interest is not valid."""
    items = out.items if candidates is None else look_up(candidates, out.items)
    return (out.vectors @ items.mT).masked_fill(~out.valid[..., None], -math.inf)


def _cosines(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each pair of vectors, (B, K, K), and whether they are two, and both have a direction."""
    unit = functional.normalize(vectors, dim=-1)
    nonzero = (vectors != 0).any(-1)
    two = ~torch.eye(vectors.shape[1], dtype=torch.bool, device=vectors.device)
    return unit @ unit.mT, nonzero[:, :, None] & nonzero[:, None] & two


def _embeddings(rows: int, width: int) -> nn.Parameter:
    table = torch.randn(rows + 1, width) / math.sqrt(width)
    table[0] = 0
    return nn.Parameter(table)


def _categories(items: int, categories: Sequence[int]) -> Tensor:
    category = torch.as_tensor(categories, dtype=torch.long)
    if category.shape != (items + 1,):
        raise ClientError(
            f"categories: must be one for each id 0..{items}, {items + 1} in all, got {len(categories)}"
        )
    if category[0] != 0 or category.min() < 0:
        raise ClientError(
            "categories: must be 0 for id 0, which is padding, and 0 or more for items; "
            f"got {int(category[0])} for id 0, and {int(category.min())} as the lowest"
        )
    return category
