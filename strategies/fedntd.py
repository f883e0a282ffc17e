"""FedNTD: distillation of what the global model says about the classes that a row does not belong to.

Lee, Jeong, Shin, Bae and Yun, "Preservation of the Global Knowledge by Not-True Distillation in Federated
Learning", NeurIPS 2022, arXiv 2106.03097, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .functional import Batch, Params, weighted_mean
from .local import LocalRule, Round, setting
from .method import Method


class FedNTDRule(LocalRule):
    r"""Client half: local loss :math:`L_{CE} + \beta \tau^2 L_{NTD}`.

    :math:`L_{NTD} = \sum_{c \ne y} \tilde q_g(c) \log (\tilde q_g(c) / \tilde q_l(c))`, where
    :math:`\tilde q(c) = e^{f_c/\tau} / \sum_{c' \ne y} e^{f_{c'}/\tau}` is the softmax without the true class
    :math:`y`, of the received model (:math:`g`, in evaluation mode) and of the one in training (:math:`l`).
    The factor :math:`\tau^2`, usual in distillation, keeps the gradient's size; at the default
    :math:`\tau = 1` it is 1.
    """

    needs_classes = True

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus not-true distillation."""
        beta, tau = (setting(round, key, self, "strategies.FedNTD") for key in ("fedntd-beta", "fedntd-tau"))
        output = round.model(params, batch)
        local, taught = (
            functional.log_softmax(not_true(logits, batch["y"]) / tau, dim=1)
            for logits in (output, round.model.frozen(round.received, batch))
        )
        divergence = functional.kl_div(local, taught, reduction="none", log_target=True).sum(dim=1)
        return round.task_loss(output, batch) + beta * tau**2 * weighted_mean(divergence, batch)


def not_true(logits: Tensor, y: Tensor) -> Tensor:
    """Logits (rows, classes - 1) without the true class of each row."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= y[:, None]))


class FedNTD(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    beta : float
        Weight :math:`\beta` of the distillation; 1 in the paper, 0 is FedAvg.
    tau : float
        Temperature :math:`\tau`; 1 in the paper.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Clients keep nothing. A step has one more forward pass.
    """

    client_half = FedNTDRule
    only_averages = True

    def __init__(self, *, beta: float = 1.0, tau: float = 1.0, **flower: Any) -> None:
        super().__init__(**flower)
        if not beta >= 0:
            raise ValueError(f"beta: must be 0 or more, got {beta}")
        if not tau > 0:
            raise ValueError(f"tau: must be above 0, got {tau}")
        self.settings = {"fedntd-beta": beta, "fedntd-tau": tau}
