"""FedBN: personal normalisation layers against shift between clients' features.

Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, arXiv 2102.07623.
"""

from __future__ import annotations

from .errors import StrategyError
from .local import Round
from .method import Method
from .partial import PartialRule


class FedBNRule(PartialRule):
    """Client half: trains the whole model; its normalisation layers stay, running statistics included.

    The paper's layers are BatchNorm; GroupNorm and LayerNorm are kept in the same way.
    """

    needs_norms = True

    def stays(self, round: Round) -> frozenset[str]:
        """Parameters and statistics of normalisation layers.

        Raises
        ------
        StrategyError
            If the model has no such layer.
        """
        if not round.norms:
            raise StrategyError(
                "FedBN keeps normalisation layers with the clients, but the model has none; choose one that "
                "has, e.g. client.model.norm=batch"
            )
        return round.norms


class FedBN(Method):
    """Server half: FedAvg on all other layers.

    Parameters
    ----------
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the model without its normalisation layers, both ways; those only in the first message, down. Each
    client keeps its own.
    """

    client_half = FedBNRule
    only_averages = True
    personal = True
