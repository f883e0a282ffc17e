"""FedAdam with a server rate that falls to zero: what sparse embeddings were found to need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam


class FedAdamCosine(FedAdam):
    r"""Flower's FedAdam, with rate :math:`\frac{\eta}{2}(1 + \cos(\pi (t - 1) / R))` in round :math:`t`.

    Parameters
    ----------
    rounds : int
        :math:`R`, after which the rate is 0.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAdam`; ``eta`` is the rate of the first round.
    """

    def __init__(self, *, rounds: int, **flower: Any) -> None:
        if rounds < 1:
            raise ValueError(f"rounds: must be 1 or more, got {rounds}")
        super().__init__(**flower)
        self.rounds, self.first_eta = rounds, self.eta

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAdam, with the round's rate."""
        done = min(server_round - 1, self.rounds) / self.rounds
        self.eta = self.first_eta / 2 * (1 + math.cos(math.pi * done))
        return super().aggregate_train(server_round, replies)
