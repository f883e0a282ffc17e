"""FedProx: a proximal term that keeps local models near the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv 1812.06127. The server half is Flower's :class:`flwr.serverapp.strategy.FedProx`,
which sends ``proximal-mu`` with every training message; the client half is :class:`FedProxRule`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import Batch, Params
from .local import LocalRule, Round, setting


class FedProxRule(LocalRule):
    r"""Local loss :math:`h_k(w) = F_k(w) + \frac{\mu}{2} \lVert w - w^t \rVert^2` (eq. 2 of the paper).

    The norm is squared, over trainable parameters only; ``mu = 0`` is FedAvg. Nothing is sent beyond
    what FedAvg sends.
    """

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus the proximal term."""
        mu = setting(round, "proximal-mu", self, "flwr.serverapp.strategy.FedProx")
        return super().loss(params, batch, round) + proximal_term(params, round, mu)


def proximal_term(params: Params, round: Round, weight: float) -> Tensor:
    r""":math:`\frac{w}{2} \lVert x - x^t \rVert^2` over trainable parameters; :math:`x^t` as received."""
    moved = [((params[k] - round.received[k]) ** 2).sum() for k in sorted(round.trainable)]
    return 0.5 * weight * torch.stack(moved).sum()
