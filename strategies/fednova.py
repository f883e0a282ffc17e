"""FedNova: averages directions instead of models, so that clients with more steps do not count for more.

Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv 2007.07481.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays
from .errors import StrategyError
from .functional import Params
from .local import LocalRule, Round, Upload, setting
from .method import Answer, Method
from .optim import SGD

NORM = "fednova-norm"
r"""Key of the record that carries :math:`\lVert a_i \rVert_1` up, once for each trained tensor's name."""
TINY = 1e-12
"""Divides the way of a client that took no steps, which is 0."""


class FedNovaRule(LocalRule):
    r"""Client half: plain local steps, and the length :math:`\lVert a_i \rVert_1` of their accumulation.

    The way of a client is :math:`x - y_i = \eta \sum_k a_{ik} g_i^{(k)}`, so the norm of :math:`a_i` is the
    number of steps for plain SGD, and more with momentum. With the proximal term
    :math:`\frac{\mu}{2} \lVert y - x \rVert^2` in the local loss, earlier gradients decay:
    :math:`a_{ik} = (1 - \eta\mu)^{K-k}`.
    """

    sgd_only = True

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:
        """The gradient, and the proximal term's."""
        mu = setting(round, "fednova-mu", self, "strategies.FedNova")
        return {k: g + mu * (params[k] - round.received[k]) for k, g in grads.items()}

    def end(self, params: Params, round: Round) -> Upload:
        """The model, and the norm under the names that were trained: buffers have none."""
        return Upload(params, extra={NORM: dict.fromkeys(sorted(round.trainable), self.norm(round))})

    def norm(self, round: Round) -> Tensor:
        r"""The norm :math:`\lVert a_i \rVert_1` of this client's steps."""
        mu = setting(round, "fednova-mu", self, "strategies.FedNova")
        if not mu:
            return round.mass
        if not isinstance(round.optimizer, SGD) or round.optimizer.momentum:
            raise StrategyError("FedNova: mu above 0 needs SGD without momentum; set one of the two to 0")
        decay = mu * torch.as_tensor(round.lr, dtype=torch.float64)
        norm = (1 - (1 - decay) ** torch.as_tensor(round.steps)) / decay
        return norm.to(round.mass)


class FedNova(Method):
    r"""Server half: :math:`x \leftarrow x - \tau_\mathrm{eff} \sum_i p_i \eta d_i`, normalised averaging.

    :math:`d_i = (x - y_i) / (\eta \lVert a_i \rVert_1)` is a client's average direction, and
    :math:`\tau_\mathrm{eff} = \sum_i p_i \lVert a_i \rVert_1` the length of the common step. :math:`p_i` are
    the weights that clients report, divided by their sum over the clients of the round. Buffers are
    averaged. With equal steps it is FedAvg.

    Parameters
    ----------
    mu : float
        Proximal term of the local loss; 0, the default, is plain SGD.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the model both ways, and a number for each tensor up. Clients keep nothing. The paper's server
    momentum is left out.
    """

    client_half = FedNovaRule

    def __init__(self, *, mu: float = 0.0, **flower: Any) -> None:
        super().__init__(**flower)
        if not mu >= 0:
            raise ValueError(f"mu: must be 0 or more, got {mu}")
        self.settings = {"fednova-mu": mu}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Go the effective length along the mean direction."""
        moved: Arrays = {}
        for k in answers[0].extra[NORM]:
            norms = [float(a.extra[NORM][k]) for a in answers]
            effective = sum(a.weight * n for a, n in zip(answers, norms, strict=True))
            direction = sum(
                a.weight / max(n, TINY) * (a.arrays[k] - self.sent[k])
                for a, n in zip(answers, norms, strict=True)
            )
            moved[k] = np.asarray(self.sent[k] + effective * direction, self.sent[k].dtype)
        return mean | moved
