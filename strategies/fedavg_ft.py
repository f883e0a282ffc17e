"""FedAvg with local fine-tuning: the plain baseline of personalised methods.

Rounds are FedAvg's (McMahan, Moore, Ramage, Hampson and Agüera y Arcas, AISTATS 2017, arXiv 1602.05629).
Fine-tuning before use is from Wang, Mathews, Kiddon, Eichner, Beaufays and Ramage, "Federated Evaluation of
On-device Personalization", 2019, arXiv 1910.10252.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .local import FineTune, LocalRule, Round, setting
from .method import Method

EPOCHS = "fine-tune-epochs"
"""Key of the number of epochs in the server's config."""


class FedAvgFTRule(LocalRule):
    """Client half: trains as FedAvg does, and fine-tunes what it received before it predicts."""

    server_half: ClassVar[str] = "strategies.FedAvgFT"

    def fine_tune(self, round: Round) -> FineTune | None:
        """Epochs on the client's training rows, with the optimiser and the rate of the rounds."""
        epochs = int(setting(round, EPOCHS, self, self.server_half))
        return FineTune(epochs=epochs) if epochs else None


class FedAvgFT(Method):
    """Server half: FedAvg.

    Parameters
    ----------
    epochs : int
        Epochs of fine-tuning; 5 is what Oh, Kim and Yun (FedBABU, ICLR 2022) compare with, 0 is FedAvg.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Clients keep nothing: each evaluation fine-tunes the global model anew.
    """

    client_half = FedAvgFTRule
    only_averages = True
    personal = True

    def __init__(self, *, epochs: int = 5, **flower: Any) -> None:
        super().__init__(**flower)
        if epochs < 0:
            raise ValueError(f"epochs: must be 0 or more, got {epochs}")
        self.settings = {EPOCHS: epochs}
