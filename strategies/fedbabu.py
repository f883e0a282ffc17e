"""FedBABU: a body that is trained in the federation under a head that is not.

Oh, Kim and Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022,
arXiv 2106.06042.
"""

from __future__ import annotations

from .arrays import Arrays
from .fedavg_ft import FedAvgFT, FedAvgFTRule
from .functional import Params
from .local import Phase, Round, Upload
from .method import Answer


class FedBABURule(FedAvgFTRule):
    """Client half: moves the body only, and fine-tunes the full model before it predicts."""

    cuts_model = True
    server_half = "strategies.FedBABU"

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """All steps are the body's."""
        return (Phase(int(round.steps), round.trainable - round.head),)

    def end(self, params: Params, round: Round) -> Upload:
        """The body goes up."""
        return Upload(arrays={k: v for k, v in params.items() if k not in round.head})


class FedBABU(FedAvgFT):
    """Server half: FedAvg on the body, beside the initial head.

    Parameters
    ----------
    epochs : int
        Epochs of fine-tuning; 5 in the paper's main comparison, 0 gives the accuracy before it.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the body up, the whole model down. The head that goes with it is the same in all rounds: a client
    that joins late, in a process whose module was made with other weights, has the common one too, without
    which bodies could not be averaged. Clients keep nothing.
    """

    client_half = FedBABURule
    only_averages = True

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:  # noqa: ARG002
        """The averaged body with the head that was sent."""
        return self.sent | mean
