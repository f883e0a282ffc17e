"""FedLC: local losses on logits that are calibrated by how often a client sees each class.

Zhang, Li, Li, Xu, Wu, Ding and Wu, "Federated Learning with Label Distribution Skew via Logits
Calibration", ICML 2022, arXiv 2209.00189.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import StrategyError
from .functional import Batch, Params
from .local import LocalRule, Round, setting
from .method import Method

ABSENT = 1e-8
"""What a class counts for of which a client has no row."""


class FedLCRule(LocalRule):
    r"""Client half: the task's loss on the logits :math:`f_y(x) - \tau n_y^{-1/4}`.

    :math:`n_y` counts the client's own training rows of class :math:`y`. A class without rows counts as
    1e-8, so its logit falls by :math:`100 \tau`: it leaves the softmax, and training moves nothing on its
    account, neither its own logit nor, to make up for it, those of the others. A client with rows of one
    class alone therefore has nothing to train on.

    The paper's calibrated cross-entropy leaves the true class out of the sum in the denominator. That
    difference of logits has no lower bound and its steps never tire, so here the sum is the ordinary
    softmax's, over all classes; :math:`\tau = 0` is then FedAvg.
    """

    needs_classes = True
    needs_all_rows = True

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """The task's loss on calibrated logits."""
        tau = setting(round, "fedlc-tau", self, "strategies.FedLC")
        logits = round.model(params, batch)
        return round.task_loss(logits - tau * class_counts(logits.shape[-1], round) ** -0.25, batch)


def class_counts(classes: int, round: Round) -> Tensor:
    """Number of the client's rows of each class, ``ABSENT`` where there are none.

    Raises
    ------
    StrategyError
        If the rows have no class labels.
    """
    labels, weight = round.data.get("y"), round.data["weight"]
    if labels is None or labels.is_floating_point() or labels.shape != weight.shape:
        raise StrategyError(
            "FedLC counts class labels 'y', but the task has none; choose a classification task"
        )
    return weight.new_zeros(classes).index_add(0, labels, weight).clamp(min=ABSENT)


class FedLC(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    tau : float
        Strength :math:`\tau` of the calibration; 0 is FedAvg.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Clients keep nothing.
    """

    client_half = FedLCRule
    only_averages = True

    def __init__(self, *, tau: float = 1.0, **flower: Any) -> None:
        super().__init__(**flower)
        if not tau >= 0:
            raise ValueError(f"tau: must be 0 or more, got {tau}")
        self.settings = {"fedlc-tau": tau}
