"""MOON: a contrastive term that pulls representations to the global model's, away from the last local one's.

Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv 2103.16257, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from .functional import Batch, Params, weighted_mean
from .local import LocalRule, Round, Upload, setting
from .method import Method


class MoonRule(LocalRule):
    r"""Client half: task loss plus :math:`\mu\, \ell_{con}`, and the trained model is kept.

    .. math::
        \ell_{con} = -\log \frac{e^{\mathrm{sim}(z, z_{glob})/\tau}}
        {e^{\mathrm{sim}(z, z_{glob})/\tau} + e^{\mathrm{sim}(z, z_{prev})/\tau}}

    with cosine similarity, and :math:`z, z_{glob}, z_{prev}` the representations of a row by the model in
    training, by the received model and by the one that this client trained when it last took part. It is
    computed as :math:`\log(1 + e^{(\mathrm{sim}(z, z_{prev}) - \mathrm{sim}(z, z_{glob}))/\tau})`.

    A representation is what goes into the last layer, as in the paper, whose models have a projection head
    of two layers below that; here the model is the same for all methods and has none. The two fixed models
    are in evaluation mode.
    """

    cuts_model = True

    def keep(self, received: Params) -> Params:
        """The received model stands for a last local one: the term is then constant."""
        return dict(received)

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus the contrastive term."""
        mu, tau = (setting(round, key, self, "strategies.Moon") for key in ("moon-mu", "moon-tau"))
        z, output = round.model.embed(params, batch)
        to_global, to_previous = (
            functional.cosine_similarity(
                z.flatten(1), round.model.frozen.embed(fixed, batch)[0].flatten(1), dim=1
            )
            for fixed in (round.received, round.kept)
        )
        contrast = functional.softplus((to_previous - to_global) / tau)
        return round.task_loss(output, batch) + mu * weighted_mean(contrast, batch)

    def end(self, params: Params, round: Round) -> Upload:  # noqa: ARG002
        """The model, which is kept too."""
        return Upload(arrays=params, kept=params)


class Moon(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    mu : float
        Weight :math:`\mu` of the contrastive term; the paper's best of {0.1, 1, 5, 10} is 1 on two of its
        three data sets and 5 on CIFAR-10. 0 is FedAvg.
    tau : float
        Temperature :math:`\tau`; 0.5 in the paper.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Each client keeps its last local model. A step has two more forward passes.
    """

    client_half = MoonRule
    only_averages = True

    def __init__(self, *, mu: float = 1.0, tau: float = 0.5, **flower: Any) -> None:
        super().__init__(**flower)
        if not mu >= 0:
            raise ValueError(f"mu: must be 0 or more, got {mu}")
        if not tau > 0:
            raise ValueError(f"tau: must be above 0, got {tau}")
        self.settings = {"moon-mu": mu, "moon-tau": tau}
