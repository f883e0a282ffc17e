"""What all recommendation has in common: histories in, a ranking of all items out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clients.errors import ClientError
from strategies.functional import Batch

from .base import Arrays, Rows, Task

_SCORES = 1 << 24
"""Scores that an evaluation holds at once."""
_DRAWS = 100
"""Attempts at items that a user does not have, before the place of a negative stays empty."""


class Recommendation(Task):
    """Full rankings of all items, scored by where the items stand that a user went on to consume.

    An example is a stretch of a user's history, and what came after it. Its events are those from ``start``
    to before ``end`` in ``item`` and ``time`` (all users' events, one after the other), its targets those
    from ``end`` to before ``until``. Rankings are over items 1..V. Two that need no training are scored
    beside the model's: by popularity among the training events of the user's domain, and, where items may
    come again, by how often the user had them (popularity deciding between equals).

    Parameters
    ----------
    items : int
        V.
    history : int
        H, the newest events of a history that a model sees.
    popularity : ndarray, shape (domains, V + 1)
        How often each item is in training events of each domain.
    repeats : bool
        Whether items that a user had already are recommended; otherwise those in the history, and those in
        any training event of the user, rank behind all others.
    cutoffs : sequence of int
        Lengths of the lists that ``hit``, ``recall`` and ``ndcg`` look at.
    negatives : int
        Items drawn for each example of a batch, to take the place of all others in the loss; 0 for all. They
        are items that the user has nowhere in training.

    Notes
    -----
    The rank of a target is the number of items with a higher score, plus half of those with the same.
    ``hit@k``: whether a target is among the first k. ``recall@k``: share of a user's targets that are.
    ``ndcg@k``: ``sum 1 / log2(rank + 2)`` over targets among the first k, divided by that of the best
    possible list, which has min(targets, k) of them. ``mrr``: ``1 / (rank + 1)`` of the best target.
    ``gauc``: share of the items in play that stand below a target, those on a level, itself among them,
    counting half. All are means over users, of each one's distinct targets.
    """

    kind = "recommendation"
    higher_is_better = True
    references: ClassVar[tuple[str, ...]] = ("popularity", "own_frequency")
    ids: ClassVar[tuple[str, ...]] = ("hist", "target")

    def __init__(
        self,
        items: int,
        history: int,
        popularity: npt.NDArray[np.float32],
        repeats: bool = True,
        cutoffs: Sequence[int] = (5, 10, 20),
        negatives: int = 0,
    ) -> None:
        if not cutoffs or min(cutoffs) < 1:
            raise ClientError(f"cutoffs: must be lengths of lists, 1 or more, got {list(cutoffs)}")
        if negatives < 0:
            raise ClientError(f"negatives: must be 0 or more, got {negatives}")
        if (compared := int(self.headline.partition("@")[2])) not in cutoffs:
            raise ClientError(f"cutoffs: must have {compared}, as methods are compared by {self.headline}")
        self.items, self.history, self.repeats, self.negatives = items, history, repeats, negatives
        self.cutoffs = tuple(sorted(cutoffs))
        self.popularity = popularity
        self.rows_at_once = max(1, min(1024, _SCORES // (items + 1)))
        self.means = (
            "loss",
            "mrr",
            "gauc",
            *(f"{m}@{k}" for k in self.cutoffs for m in ("hit", "recall", "ndcg")),
        )
        self.shown = self.references if repeats else self.references[:1]
        self.sums = ("count", *self.means, *(f"{name}_{self.headline}" for name in self.shown))

    # --- examples --------------------------------------------------------------------------------

    @property
    def draws(self) -> bool:
        """Whether there are negatives to draw."""
        return self.negatives > 0

    def gather(self, arrays: Arrays, rows: Rows) -> Batch:
        """Histories and targets as tensors.

        Returns
        -------
        dict of Tensor
            ``hist`` (rows, H), ids, oldest first, padded with 0 on the left; ``times`` (rows, H), float64;
            ``target`` (rows, T), ids, padded with 0 on the right, T at least 1; ``query_time`` (rows,), when
            the first target came; ``user``, ``person``, ``market`` (rows,): the user's number among the
            client's users and among all, and the domain. Where items are not recommended again, ``had``
            (rows, any), ids of the user's training events, each once, padded with 0.
        """
        start, end, until = (arrays[name][rows] for name in ("start", "end", "until"))
        item, time = arrays["item"], arrays["time"]
        past = end[:, None] - self.history + np.arange(self.history)
        real = past >= start[:, None]
        past = np.where(real, past, 0)
        ahead = end[:, None] + np.arange(max(1, int((until - end).max(initial=0))))
        known = ahead < until[:, None]
        ahead = np.where(known, ahead, 0)
        batch = {
            "hist": np.where(real, item[past], 0).astype(np.int64),
            "times": np.where(real, time[past], 0.0),
            "target": np.where(known, item[ahead], 0).astype(np.int64),
            "query_time": time[np.where(until > end, end, end - 1)],
            **{name: arrays[name][rows] for name in ("user", "person", "market")},
        }
        if not self.repeats:
            first, beyond = arrays["taken_from"][batch["person"]], arrays["taken_from"][batch["person"] + 1]
            places = first[:, None] + np.arange(max(1, int((beyond - first).max(initial=0))))
            held = places < beyond[:, None]
            batch["had"] = np.where(held, arrays["taken"][np.where(held, places, 0)], 0)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def drawn(self, batch: Batch, arrays: Arrays) -> Batch:
        """The batch with ``negatives`` (rows, negatives): items 1..V that the user has nowhere in training.

        A place stays 0 where a hundred draws were all items that the user has.
        """
        person = batch["person"].cpu().numpy()[:, None]
        ids = np.zeros((len(person), self.negatives), dtype=np.int64)
        empty = np.ones(ids.shape, dtype=bool)
        for _ in range(_DRAWS):
            tried = torch.randint(1, self.items + 1, (int(empty.sum()),)).numpy()
            ids[empty] = np.where(
                self._has(np.broadcast_to(person, ids.shape)[empty], tried, arrays), 0, tried
            )
            empty = ids == 0
            if not empty.any():
                break
        return {**batch, "negatives": torch.from_numpy(ids)}

    def _has(self, person: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], arrays: Arrays) -> Any:
        """Whether each of these users has the item in training: a search in their sorted items."""
        first, taken = arrays["taken_from"], arrays["taken"]
        low, high = first[person], first[person + 1]
        last = high
        while (open_ := low < high).any():
            middle = (low + high) // 2
            before = taken[np.minimum(middle, len(taken) - 1)] < ids
            low = np.where(open_ & before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        return (low < last) & (taken[np.minimum(low, len(taken) - 1)] == ids)

    # --- metrics ---------------------------------------------------------------------------------

    @abstractmethod
    def ranking(self, output: Any) -> Tensor:
        """Scores of all items for what comes after the history, shape (rows, V + 1); -inf for id 0."""

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums over users; see :class:`Recommendation`. The loss is the cross-entropy of scores of items."""
        weight, target = batch["weight"], _distinct(batch["target"])
        scores = self.ranking(output)
        sums = {"count": weight.sum()}
        losses = (scores.logsumexp(-1, keepdim=True) - scores.gather(1, target)).masked_fill(target == 0, 0)
        sums["loss"] = (losses.sum(1) / (target > 0).sum(1).clamp(min=1) * weight).sum()
        for name, values in self.standing(scores, batch, target).items():
            sums[name] = (values * weight).sum()
        for name in self.shown:
            standing = self.standing(self._reference(name, batch).to(scores.dtype), batch, target)
            sums[f"{name}_{self.headline}"] = (standing[self.headline] * weight).sum()
        return sums

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over users."""
        return {name: sums[name] / sums["count"] for name in self.sums if name != "count"}

    def standing(self, scores: Tensor, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """Every user's metrics but the loss, each (rows,).

        Parameters
        ----------
        scores : Tensor, shape (rows, V + 1)
            Of all items, by id.
        batch : dict of Tensor
            What :meth:`gather` gives.
        target : Tensor of int, shape (rows, T)
            Distinct ids; 0 is padding.
        """
        own = scores.gather(1, target)
        if not self.repeats:
            for past in (batch["hist"], batch["had"]):
                scores = scores.scatter(1, past, -math.inf)
            scores = scores.scatter(1, target, own)
        scores = scores[:, 1:]
        # A pass for each target: sorting a hundred thousand scores takes far longer than comparing them.
        above, level = (
            torch.stack([compare(scores, one).sum(1) for one in own.split(1, 1)], 1)
            for compare in (torch.gt, torch.eq)
        )
        ranks = above + (level - 1).to(scores.dtype) / 2
        real = target > 0
        number = real.sum(1).clamp(min=1)
        best = ranks.masked_fill(~real, math.inf).amin(1)
        candidates = scores.isfinite().sum(1, keepdim=True)
        passed = (1 - (ranks + 0.5) / candidates).masked_fill(~real, 0)
        standing = {"mrr": 1 / (best + 1), "gauc": passed.sum(1) / number}
        gain = 1 / (ranks + 2).log2()
        places = torch.arange(2, max(self.cutoffs) + 2, device=ranks.device)
        ideal = (1 / places.to(ranks.dtype).log2()).cumsum(0)
        for k in self.cutoffs:
            found = (ranks < k) & real
            standing[f"hit@{k}"] = (best < k).to(ranks.dtype)
            standing[f"recall@{k}"] = found.sum(1) / number
            standing[f"ndcg@{k}"] = (gain * found).sum(1) / ideal[number.clamp(max=k) - 1]
        return standing

    def _reference(self, name: str, batch: Batch) -> Tensor:
        """Scores (rows, V + 1) of a ranking that needs no training."""
        popular = torch.from_numpy(self.popularity).to(batch["hist"].device)[batch["market"]]
        if name == "popularity":
            return popular
        hist = batch["hist"]
        counts = torch.zeros_like(popular).scatter_add(1, hist, torch.ones_like(hist, dtype=popular.dtype))
        return counts + popular / (popular.amax(1, keepdim=True) + 1)


def _distinct(target: Tensor) -> Tensor:
    """Ids in each row once, others 0; shape (rows, T)."""
    ordered = target.sort(-1, descending=True).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(again, 0)
