"""FedSAM: local steps that look for flat minima, by sharpness-aware minimisation.

Qu, Li, Duan, Liu, Tang and Lu, "Generalized Federated Learning via Sharpness Aware Minimization",
ICML 2022, arXiv 2206.02618.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .functional import Batch, Params
from .local import LocalRule, Round, setting
from .method import Method


class FedSAMRule(LocalRule):
    r"""Client half: steps along the gradient at :math:`w + \rho\, g / \lVert g \rVert`.

    :math:`g` is the gradient of the same batch at :math:`w`, and its norm is that of all tensors that move,
    as one vector. A step costs two gradients. Running statistics of BatchNorm see the batch once, at
    :math:`w`.
    """

    def direction(
        self, params: Params, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, Tensor]:
        """Gradient where the loss is about the highest nearby, and the loss at ``params``."""
        rho = setting(round, "fedsam-rho", self, "strategies.FedSAM")
        grads, loss = super().direction(params, moving, batch, round)
        norm = sum(((grads[k] ** 2).sum() for k in sorted(grads)), start=loss.new_zeros(())).sqrt()
        # Where the gradient is 0 there is nowhere to climb.
        scale = rho / torch.where(norm > 0, norm, torch.ones_like(norm))
        climbed = {k: params[k] + scale * g for k, g in grads.items()}
        buffers = {k: v.clone() for k, v in params.items() if k not in round.trainable}
        grads, _ = super().direction({**params, **buffers, **climbed}, moving, batch, round)
        return grads, loss


class FedSAM(Method):
    r"""Server half: FedAvg, which is the paper's with a global step size of 1.

    Parameters
    ----------
    rho : float
        Radius :math:`\rho` of the neighbourhood; 0 is FedAvg. The default 0.05 is that of SAM itself (Foret
        et al., ICLR 2021), since the right one depends on model and data.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Clients keep nothing.
    """

    client_half = FedSAMRule
    only_averages = True

    def __init__(self, *, rho: float = 0.05, **flower: Any) -> None:
        super().__init__(**flower)
        if not rho >= 0:
            raise ValueError(f"rho: must be 0 or more, got {rho}")
        self.settings = {"fedsam-rho": rho}
