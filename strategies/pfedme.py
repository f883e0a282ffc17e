"""pFedMe: personal models by Moreau envelopes.

T Dinh, Tran and Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
arXiv 2006.08848, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .functional import Batch, Params
from .local import Phase, Round, Upload, prefixed, setting
from .method import Method
from .optim import State
from .personal import PERSONAL, PersonalRule

LAMBDA = "pfedme-lambda"
"""Key of the strength of the pull in the server's config."""
INNER_STEPS = "pfedme-inner-steps"
"""Key of the number of inner steps."""
PERSONAL_LR = "pfedme-personal-lr"
"""Key of the rate of inner steps."""
BETA = "pfedme-beta"
"""Key of the server's step size."""


class PFedMeRule(PersonalRule):
    r"""Client half: for each batch, find :math:`\theta_i` near :math:`w_i`, then move :math:`w_i` towards it.

    :math:`\theta_i` approximates the minimiser of
    :math:`F_i(\theta; B) + \frac{\lambda}{2} \lVert \theta - w_i \rVert^2` by :math:`K` gradient steps, which
    makes :math:`\lambda (w_i - \theta_i)` the gradient of the Moreau envelope of :math:`F_i` at :math:`w_i`.
    :math:`\eta` is the round's learning rate and :math:`R` the round's number of steps, as for all methods;
    with plain SGD the outer step is the paper's, :math:`w_i \leftarrow w_i - \eta \lambda (w_i - \theta_i)`.

    The inner steps start at the :math:`\theta_i` of the batch before, or of the client's last round; the
    paper leaves open where. The authors' code also decays weights in the inner steps, which is left out.

    No forward pass is made at :math:`w_i`, so the running statistics that are averaged are those of
    :math:`\theta_i`.
    """

    server_half = "strategies.PFedMe"

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """The optimiser moves the common model; the inner steps are plain gradient steps."""
        return (Phase(int(round.steps), round.trainable),)

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """The inner steps, then one of the common model; the loss is that before the last inner step."""
        lam = setting(round, LAMBDA, self, self.server_half)
        inner_steps = int(setting(round, INNER_STEPS, self, self.server_half))
        personal_lr = setting(round, PERSONAL_LR, self, self.server_half)
        w, theta = self.shared(params, round), self.own(params)
        loss = torch.zeros(())
        for _ in range(inner_steps):
            grads, loss = self.direction(theta, moving, batch, round)
            theta |= {k: theta[k] - personal_lr * (g + lam * (theta[k] - w[k])) for k, g in grads.items()}
        envelope = {k: lam * (w[k] - theta[k]) for k in w if k in moving}
        moved, state = round.optimizer.step({k: w[k] for k in envelope}, envelope, state, round.lr)
        return w | moved | prefixed(PERSONAL, theta), state, loss

    def end(self, params: Params, round: Round) -> Upload:
        r"""As the base, with the server's step taken here: :math:`(1 - \beta) w^t + \beta w_i`.

        The server's :math:`(1 - \beta) w^t + \beta \overline{w_i}` is the mean of these. Only clients know
        which arrays are parameters, and which are statistics that must not be extrapolated.
        """
        beta = setting(round, BETA, self, self.server_half)
        own = self.own(params)
        sent = {
            k: (1 - beta) * w + beta * params[k] if k in round.trainable else own[k]
            for k, w in round.received.items()
        }
        return Upload(arrays=sent, kept=super().end(params, round).kept)


class PFedMe(Method):
    r"""Server half: :math:`w \leftarrow (1 - \beta) w + \beta \overline{w_i}`; see :meth:`PFedMeRule.end`.

    Parameters
    ----------
    lam : float
        Strength :math:`\lambda` of the pull, the paper's 15. The larger, the nearer personal models are to
        the global one. ``client.lr * lam`` has to stay below 2 and is best at most 1.
    inner_steps : int
        Gradient steps :math:`K` for each batch, the paper's 5: pFedMe costs ``inner_steps`` times FedAvg.
    personal_lr : float
        Rate of the inner steps. The authors take 0.01 (their synthetic data) to 0.09 (MNIST); at 0.09 and
        ``lam`` 15, inner steps diverge where the loss has a curvature above 2 / 0.09 - 15 = 7.
    beta : float
        Step size of the server; 1 is the average of the clients' models, 2 what the authors tune to.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Each client keeps :math:`\theta_i`, with which it predicts. The authors' rate
    :math:`\eta` of 0.005 is ``client.lr`` here. Clients count with the weights that they report, where the
    paper's count alike.
    """

    client_half = PFedMeRule
    only_averages = True
    personal = True

    def __init__(
        self,
        *,
        lam: float = 15.0,
        inner_steps: int = 5,
        personal_lr: float = 0.01,
        beta: float = 1.0,
        **flower: Any,
    ) -> None:
        super().__init__(**flower)
        for name, value in (("lam", lam), ("personal_lr", personal_lr), ("beta", beta)):
            if not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        if inner_steps < 1:
            raise ValueError(f"inner_steps: must be 1 or more, got {inner_steps}")
        if not lam * personal_lr < 2:
            raise ValueError(f"personal_lr: must be below 2 / lam = {2 / lam:g}, got {personal_lr}")
        self.settings = {LAMBDA: lam, INNER_STEPS: inner_steps, PERSONAL_LR: personal_lr, BETA: beta}
