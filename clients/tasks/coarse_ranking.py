"""Coarse ranking: several interests of a user, each of which fetches items, and how well all are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clients.errors import ClientError
from clients.models.comirec import (
    Interests,
    diversity,
    next_item_loss,
    ranking_loss,
    redundancy,
    scores,
)
from strategies.functional import Batch, weighted_mean

from .recommendation import Recommendation

Profile = Literal["next", "rank"]


class CoarseRanking(Recommendation):
    """Models with several interest vectors a user; see :class:`Recommendation` for data and further metrics.

    ``auc`` is what ``gauc`` is, but as a mean over all targets instead of users. ``redundancy`` is the mean
    cosine between two interests of a user.

    Parameters
    ----------
    items, history, popularity, repeats, cutoffs, negatives
        As in :class:`Recommendation`. In the profile ``next``, negatives of all users of a batch are shared.
    examples : {"positions"}
        What training rows of the data are; those of another kind have no target.
    profile : {"next", "rank"}
        ``next``: softmax over items, of the interest that the target asks for. ``rank``: the target and
        negatives as items shown, of which the target was clicked; the model needs ``rank: true``.
    power : float
        Sharpness with which a target asks for an interest; see :func:`clients.models.comirec.readout`.
    diversity : float
        Weight of a penalty on interests that point the same way.
    """

    headline = "recall@20"

    def __init__(
        self,
        items: int,
        history: int,
        popularity: npt.NDArray[np.float32],
        examples: str = "positions",
        repeats: bool = True,
        cutoffs: Sequence[int] = (10, 20, 50),
        negatives: int = 0,
        profile: Profile = "next",
        power: float = 1.0,
        diversity: float = 0.0,
    ) -> None:
        super().__init__(items, history, popularity, repeats, cutoffs, negatives)
        if examples != "positions":
            raise ClientError(
                f"learns from targets, of which data.examples={examples} have none in training; set "
                "data.examples=positions"
            )
        if profile not in get_args(Profile):
            raise ClientError(f"profile: must be one of {', '.join(get_args(Profile))}, got {profile!r}")
        if profile == "rank" and not negatives:
            raise ClientError("profile: 'rank' needs items that were not clicked; set negatives, e.g. to 4")
        if not power > 0:
            raise ClientError(f"power: must be above 0, got {power}")
        if not diversity >= 0:
            raise ClientError(f"diversity: must be 0 or more, got {diversity}")
        self.profile, self.power, self.diversity = profile, power, diversity
        self.sums = (*self.sums, "auc", "targets", "redundancy", "redundancy_count")

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The history."""
        return (batch["hist"],)

    def loss(self, output: Interests, batch: Batch) -> Tensor:
        """Mean over examples with a target; those without have a loss of 0."""
        target, negatives = batch["target"][:, 0], batch.get("negatives")
        if self.profile == "next":
            each = next_item_loss(output, target, self.power, negatives)
        else:
            assert negatives is not None
            shown = torch.cat([target[:, None], negatives], 1)
            clicked = torch.zeros_like(shown, dtype=output.vectors.dtype)
            clicked[:, 0] = 1
            each = ranking_loss(output, shown, clicked)
        if self.diversity:
            each = each + self.diversity * diversity(output)
        return weighted_mean(each * (target > 0), batch)

    def ranking(self, output: Interests) -> Tensor:
        """By the interest that likes an item most."""
        return scores(output)

    def metrics(self, output: Interests, batch: Batch) -> dict[str, Tensor]:
        """Also the sum of ``auc`` over targets, and of the redundancy over users."""
        sums, weight = super().metrics(output, batch), batch["weight"]
        red, some = redundancy(output.centers)
        sums["redundancy"], sums["redundancy_count"] = (red * weight).sum(), (some * weight).sum()
        return sums

    def standing(self, scores: Tensor, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """Also the number of a user's ``targets``, and the sum of ``auc`` over them."""
        standing = super().standing(scores, batch, target)
        targets = (target > 0).sum(1).to(scores.dtype)
        return {**standing, "targets": targets, "auc": standing["gauc"] * targets}

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over users, over targets (``auc``), and over users with two interests (``redundancy``)."""
        means = super().scores(sums)
        for name, count in (("auc", means.pop("targets")), ("redundancy", means.pop("redundancy_count"))):
            means[name] = means[name] / count if count else 0.0
        return means
