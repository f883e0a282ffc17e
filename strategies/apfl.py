"""APFL: a mixture of the global model and one of the client's own.

Deng, Kamani and Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv 2003.13461, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .functional import Batch, Params
from .local import Round, Upload, prefixed, setting
from .method import Method
from .optim import State
from .personal import PERSONAL, PersonalRule

ALPHA = "apfl-alpha"
"""Key of the share of the own model in the server's config."""
ADAPTIVE = "apfl-adaptive"
"""Key of whether clients learn that share."""
LEARNT = "apfl-alpha-learnt"
"""Name of the tensor in which a client keeps what it has added to the server's share."""


class APFLRule(PersonalRule):
    r"""Client half: steps on the global model :math:`w_i`, and on :math:`v_i` as part of the mixture.

    With :math:`\bar{v}_i = \alpha v_i + (1 - \alpha) w_i`:
    :math:`w_i \leftarrow w_i - \eta \nabla F_i(w_i)` and
    :math:`v_i \leftarrow v_i - \eta \alpha \nabla F_i(\bar{v}_i)`, from the same batch and with the round's
    optimiser. Where :math:`\alpha` is adaptive, each step, which sees the tensors before it, also takes
    :math:`\alpha \leftarrow \alpha - \eta \langle v_i - w_i, \nabla F_i(\bar{v}_i) \rangle`, clipped to
    :math:`[0, 1]`.

    A client predicts with the mixture of what it received last and its own :math:`v_i`. Buffers are not
    mixed: the mixture has running statistics of its own, which its forward passes update. The loss that is
    reported is that of the mixture.
    """

    server_half = "strategies.APFL"

    def keep(self, received: Params) -> Params:
        """The own model, and the share as the server gives it."""
        like = next(iter(received.values()))
        return super().keep(received) | {LEARNT: torch.zeros((), dtype=like.dtype, device=like.device)}

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """One step of both models, and of the share where it is adaptive."""
        w, v, alpha = self.shared(params, round), self.own(params), self._share(params, round)
        common, _ = self.direction(w, moving, batch, round)
        mixed, loss = self.direction(self._mixture(params, round), moving, batch, round)
        grads = common | prefixed(PERSONAL, {k: alpha * g for k, g in mixed.items()})
        moved, state = round.optimizer.step({k: params[k] for k in grads}, grads, state, round.lr)
        if setting(round, ADAPTIVE, self, self.server_half):
            slope = sum(((v[k] - w[k]) * g).sum() for k, g in mixed.items())
            learnt = (alpha - round.lr * slope).clamp(0, 1) - self._given(round)
            moved[LEARNT] = learnt.to(alpha.dtype)
        return params | moved, state, loss

    def end(self, params: Params, round: Round) -> Upload:
        """As the base, with the share as a metric."""
        return replace(super().end(params, round), metrics={"alpha": self._share(params, round)})

    def predictor(self, round: Round) -> Params:
        """The mixture."""
        return self._mixture(self.begin(round), round)

    def _mixture(self, params: Params, round: Round) -> Params:
        alpha = self._share(params, round)
        return {
            k: alpha * v + (1 - alpha) * params[k] if k in round.trainable else v
            for k, v in self.own(params).items()
        }

    def _share(self, params: Params, round: Round) -> Tensor:
        return self._given(round) + params[LEARNT]

    def _given(self, round: Round) -> float:
        return float(setting(round, ALPHA, self, self.server_half))


class APFL(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    alpha : float
        Share :math:`\alpha` of the own model in the mixture: 0 is FedAvg, 1 training alone. 0.5 as in public
        re-implementations.
    adaptive : bool
        Whether each client learns its share, starting at ``alpha``.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Each client keeps :math:`v_i` and its share, and each step computes two
    gradients. Clients count with the weights that they report, where the paper's count alike.
    """

    client_half = APFLRule
    only_averages = True
    personal = True

    def __init__(self, *, alpha: float = 0.5, adaptive: bool = False, **flower: Any) -> None:
        super().__init__(**flower)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: must be between 0 and 1, got {alpha}")
        self.settings = {ALPHA: alpha, ADAPTIVE: adaptive}
