"""q-FedAvg: clients with a higher loss count for more, which makes accuracies more equal.

Li, Sanjabi, Beirami and Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
arXiv 1905.10497, Algorithm 2. The server half is Flower's :class:`flwr.serverapp.strategy.QFedAvg`, which
has to be told ``train_loss_key="qfedavg-loss"``; the client half is :class:`QFedAvgRule`.
"""

from __future__ import annotations

from torch import Tensor

from .functional import Params
from .local import LocalRule, Round, Upload

LOSS = "qfedavg-loss"
"""Key of the metric that carries a client's loss up."""
ROWS = 1024
"""Rows a forward pass."""


class QFedAvgRule(LocalRule):
    r"""Client half: plain local steps, and :math:`F_k(w^t)`, the loss of the model as it was received.

    The loss is the mean over all of the client's training rows, in evaluation mode. Flower's server half
    takes :math:`L = 1 / \eta` from its ``client_learning_rate``, sets :math:`\Delta w_k = L (w^t - w_k)` and
    moves by :math:`\sum_k F_k^q \Delta w_k \big/ \sum_k (q F_k^{q-1} \lVert \Delta w_k \rVert^2 + L F_k^q)`.
    Clients count alike there, so ``q = 0`` is FedAvg with equal weights. It moves buffers in the same way.

    Sent: what FedAvg sends, and a number up. Clients keep nothing.
    """

    needs_all_rows = True

    def end(self, params: Params, round: Round) -> Upload:
        """The model, and the loss before training."""
        return Upload(params, round.kept, metrics={LOSS: loss_over_rows(round.received, round)})


def loss_over_rows(params: Params, round: Round) -> Tensor:
    """Mean task loss of a model over all rows of a client."""
    weight = round.data["weight"]
    total = weight.new_zeros(())
    for start in range(0, len(weight), ROWS):
        batch = {k: v[start : start + ROWS] for k, v in round.data.items()}
        total = total + batch["weight"].sum() * round.task_loss(round.model.frozen(params, batch), batch)
    return total / weight.sum().clamp(min=1)
