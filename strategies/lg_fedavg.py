"""LG-FedAvg: personal representations under a common head.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov and Morency, "Think Locally, Act Globally: Federated
Learning with Local and Global Representations", 2020, arXiv 2001.01523.
"""

from __future__ import annotations

from .local import Round
from .method import Method
from .partial import PartialRule


class LGFedAvgRule(PartialRule):
    """Client half: trains the whole model; all but the head stays, FedPer the other way round.

    Local and global part are trained on the task's loss together. The paper's further losses on the local
    representation (adversarial ones for fairness, say) are not here.
    """

    cuts_model = True

    def stays(self, round: Round) -> frozenset[str]:
        """The body."""
        return frozenset(round.received) - round.head


class LGFedAvg(Method):
    """Server half: FedAvg on the head.

    A client predicts with its own body and the common head; the paper's ensemble of all local models, for
    data of unknown origin, is not here. Rounds start from the common initial weights.

    Parameters
    ----------
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the head, both ways; the body only in the first message, down. Each client keeps its body.
    """

    client_half = LGFedAvgRule
    only_averages = True
    personal = True
