"""FedRep: a common representation, and heads that are fitted to it before it moves.

Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, arXiv 2102.07078, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from .fedper import FedPerRule
from .local import Phase, Round, setting
from .method import Method


class FedRepRule(FedPerRule):
    """Client half: head steps with the body fixed, then body steps with the head fixed; the head stays.

    Running statistics of the body are no parameters and follow the data in both phases.
    """

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """The round's steps in the proportion of the epochs: at least one each, a lone one for the head."""
        head, body = (
            setting(round, f"fedrep-{k}-epochs", self, "strategies.FedRep") for k in ("head", "body")
        )
        steps = int(round.steps)
        first = int(steps * head / (head + body) + 0.5)
        first = max(min(first, steps - 1), min(steps, 1))
        return Phase(first, round.trainable & round.head), Phase(steps - first, round.trainable - round.head)


class FedRep(Method):
    """Server half: FedAvg on the body.

    The epochs are a proportion: all compared methods take the same number of steps a round, and FedRep
    divides them. To count as the paper does, let clients train for ``head_epochs + body_epochs`` epochs.
    The averages are weighted by what clients report; the paper's are equal.

    Parameters
    ----------
    head_epochs, body_epochs : int
        Epochs of each part. 10 and 1 are the authors' choice for CIFAR-10 with two classes a client; they
        take 10 and 5 elsewhere.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the body, both ways; the head only in the first message, down. Each client keeps its head.
    """

    client_half = FedRepRule
    only_averages = True
    personal = True

    def __init__(self, *, head_epochs: int = 10, body_epochs: int = 1, **flower: Any) -> None:
        super().__init__(**flower)
        for name, epochs in (("head_epochs", head_epochs), ("body_epochs", body_epochs)):
            if epochs < 1:
                raise ValueError(f"{name}: must be 1 or more, got {epochs}")
        self.settings = {"fedrep-head-epochs": head_epochs, "fedrep-body-epochs": body_epochs}
