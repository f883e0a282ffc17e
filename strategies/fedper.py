"""FedPer: personal last layers on a common body.

Arivazhagan, Aggarwal, Singh and Choudhary, "Federated Learning with Personalization Layers", 2019,
arXiv 1912.00818.
"""

from __future__ import annotations

from .local import Round
from .method import Method
from .partial import PartialRule


class FedPerRule(PartialRule):
    """Client half: trains the whole model; its head stays.

    The paper keeps the last few layers (``K_P`` of them), here it is the model's ``head`` alone.
    """

    cuts_model = True

    def stays(self, round: Round) -> frozenset[str]:
        """The head."""
        return round.head


class FedPer(Method):
    """Server half: FedAvg on the body.

    Heads start equal, from the common initial weights, where the paper lets each client draw its own.
    There is nothing to set: the paper's rates and batches are the client's.

    Parameters
    ----------
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the body, both ways; the head only in the first message, down. Each client keeps its head.
    """

    client_half = FedPerRule
    only_averages = True
    personal = True
