"""Sequential recommendation: what a user consumes next, at every step of the history."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.models.next_item import NextItem, next_item_loss, scores
from strategies.functional import Batch

from .recommendation import Recommendation


class SequentialRecommendation(Recommendation):
    """Models that say after every event what comes next; see :class:`Recommendation` for data and metrics.

    A model is asked after each event of the history, and learns from the event that followed; what followed
    the last is the example's target, if it has one. Evaluation looks at the last answer alone.
    """

    headline = "ndcg@10"

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """History, its times, the time of what comes next, and whose they are."""
        return batch["hist"], batch["times"], batch["query_time"], batch["user"]

    def loss(self, output: NextItem, batch: Batch) -> Tensor:
        """Mean cross-entropy over all events that follow another, with what the model adds to each."""
        hist = batch["hist"]
        target = torch.cat([hist[:, 1:], batch["target"][:, :1]], 1)
        each = next_item_loss(output, target, batch.get("negatives")) + output.penalty
        real = (target > 0) & (hist > 0) & (batch["weight"] > 0)[:, None]
        return (each * real).sum() / real.sum().clamp(min=1)

    def ranking(self, output: NextItem) -> Tensor:
        """Scores of the last query."""
        return scores(output)
