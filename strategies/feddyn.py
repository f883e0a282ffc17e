"""FedDyn: a regulariser that changes from round to round until local and global optima agree.

Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, arXiv 2111.04263, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .arrays import Arrays
from .functional import Params
from .local import LocalRule, Round, Upload, setting
from .method import Answer, Method

TRAINED = "feddyn-trained"
"""Key of a record of empty tensors, which tells the server the names of those that were trained."""


class FedDynRule(LocalRule):
    r"""Client half: steps on a regularised loss, then a new linear term.

    The loss is :math:`L_k(\theta) - \langle g_k, \theta \rangle + \frac{\alpha}{2} \lVert \theta -
    \theta^{t-1} \rVert^2`; after the steps, :math:`g_k \leftarrow g_k - \alpha (\theta_k^t -
    \theta^{t-1})`. The paper writes :math:`\nabla L_k(\theta_k^{t-1})` for :math:`g_k`, which it is where
    the loss was minimised exactly; here, as in the paper's experiments, the minimum is approached by the
    client's own optimiser and number of steps.
    """

    def keep(self, received: Params) -> Params:
        """Linear term of 0, as the paper starts; buffers have one too, which stays 0."""
        return {k: torch.zeros_like(v) for k, v in received.items()}

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:
        """The gradient of the regularised loss."""
        alpha = self.alpha(round)
        return {k: g - round.kept[k] + alpha * (params[k] - round.received[k]) for k, g in grads.items()}

    def end(self, params: Params, round: Round) -> Upload:
        """The model; the linear term moves against the way gone."""
        alpha = self.alpha(round)
        trained = sorted(round.trainable)
        moved = {k: round.kept[k] - alpha * (params[k] - round.received[k]) for k in trained}
        return Upload(params, round.kept | moved, extra={TRAINED: {k: torch.empty(0) for k in trained}})

    def alpha(self, round: Round) -> float:
        """Strength of the regulariser."""
        return float(setting(round, "feddyn-alpha", self, "strategies.FedDyn"))


class FedDyn(Method):
    r"""Server half: the mean of the models, moved on by what clients moved so far.

    :math:`h \leftarrow h - \frac{\alpha}{m} \sum_{k \in P} (\theta_k - \theta)`, then :math:`\theta
    \leftarrow \frac{1}{|P|} \sum_{k \in P} \theta_k - h / \alpha`. :math:`P` are the clients of the round and
    :math:`m` counts all. The paper's clients count alike; here means over :math:`P` have the weights that
    clients report, and the first sum is :math:`|P|` times such a mean, so that with all clients in every
    round the optimum is the weighted one. Buffers are averaged.

    Parameters
    ----------
    alpha : float
        Strength of the regulariser, above 0 (the server divides by it); 0.01 as in the authors' CIFAR-10
        example (github.com/alpemreacar/FedDyn).
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the model both ways, as FedAvg, and the names of its trained tensors up. Each client keeps
    :math:`g_k`, the server :math:`h`: a model each.
    """

    client_half = FedDynRule

    def __init__(self, *, alpha: float = 0.01, **flower: Any) -> None:
        super().__init__(**flower)
        if not alpha > 0:
            raise ValueError(f"alpha: must be above 0, got {alpha}")
        self.alpha = alpha
        self.settings = {"feddyn-alpha": alpha}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Move ``h``, and the model off the mean by it."""
        share = len(answers) / self.population
        h, moved = self.state.setdefault("h", {}), {}
        for k in answers[0].extra[TRAINED]:
            way = mean[k] - self.sent[k]
            h[k] = h.get(k, np.zeros_like(way)) - self.alpha * share * way
            moved[k] = mean[k] - h[k] / self.alpha
        return mean | moved
