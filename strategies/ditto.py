"""Ditto: a personal model that is pulled towards the global one.

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv 2012.04221, Algorithm 1 with FedAvg as the method that trains the global model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .functional import Batch, Params
from .local import Round, prefixed, setting
from .method import Method
from .personal import PERSONAL, PersonalRule

LAMBDA = "ditto-lambda"
"""Key of the strength of the pull in the server's config."""


class DittoRule(PersonalRule):
    r"""Client half: local steps on the global model, and on a model of its own.

    :math:`v_i` minimises :math:`F_i(v_i) + \frac{\lambda}{2} \lVert v_i - w^t \rVert^2`, where :math:`w^t` is
    the global model as received; the distance is over trainable parameters.

    The paper gives :math:`v_i` its own number of steps; here it takes one for each step of the global model,
    with the same batch, optimiser and rate. The loss that is reported is that of :math:`v_i`, without the
    pull.
    """

    server_half = "strategies.Ditto"

    def direction(
        self, params: Params, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, Tensor]:
        r""":math:`\nabla F_i(w)`, and :math:`\nabla F_i(v_i) + \lambda (v_i - w^t)`."""
        lam = setting(round, LAMBDA, self, self.server_half)
        v = self.own(params)
        common, _ = super().direction(self.shared(params, round), moving, batch, round)
        grads, loss = super().direction(v, moving, batch, round)
        pulled = {k: g + lam * (v[k] - round.received[k]) for k, g in grads.items()}
        return common | prefixed(PERSONAL, pulled), loss


class Ditto(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    lam : float
        Strength :math:`\lambda` of the pull. 0 is training alone; the larger, the nearer to the global model
        (and the smaller ``client.lr`` has to be: below ``2 / lam``). 1 is from the authors' example; they
        also choose it for each client among 0.1, 1 and 2 on validation rows, which is not done here.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Each client keeps :math:`v_i`, and each step computes two gradients. Clients
    count with the weights that they report, where the paper's count alike.
    """

    client_half = DittoRule
    only_averages = True
    personal = True

    def __init__(self, *, lam: float = 1.0, **flower: Any) -> None:
        super().__init__(**flower)
        if not lam >= 0:
            raise ValueError(f"lam: must be 0 or more, got {lam}")
        self.settings = {LAMBDA: lam}
