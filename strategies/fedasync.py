"""FedAsync: every client's model is mixed in as it comes, the less the older it is.

Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", OPT 2020, arXiv 1903.03934, Algorithm 1.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from .arrays import Arrays
from .asynchronous import Asynchronous
from .fedprox import proximal_term
from .functional import Batch, Params
from .local import LocalRule, Round, setting
from .method import Answer

Staleness = Literal["constant", "polynomial", "hinge"]


class FedAsyncRule(LocalRule):
    r"""Client half: the local loss :math:`f(x) + \frac{\rho}{2} \lVert x - x_t \rVert^2` (Algorithm 1).

    The norm is over trainable parameters; :math:`x_t` is the model that this client started from.
    """

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus the proximal term."""
        rho = setting(round, "fedasync-rho", self, "strategies.FedAsync")
        return super().loss(params, batch, round) + proximal_term(params, round, rho)


class FedAsync(Asynchronous):
    r"""Server half: :math:`x_t = (1 - \alpha_t) x_{t-1} + \alpha_t x_{new}`.

    :math:`\alpha_t = \alpha s(\tau)`; :math:`\tau` counts the updates since the client got its model: the
    paper's :math:`t - \tau`, counted so that it is 0, and :math:`s = 1`, for the model as it is. The paper's
    three kinds of :math:`s` (its section on adaptive mixing): constant :math:`1`; polynomial
    :math:`(1 + \tau)^{-a}`; hinge :math:`1` up to :math:`\tau = b` and :math:`1 / (a (\tau - b) + 1)` beyond.

    Parameters
    ----------
    alpha : float
        Mixing rate :math:`\alpha`, above 0 and at most 1; 1 with one client under way is training in turns.
    staleness : {"constant", "polynomial", "hinge"}
        Kind of :math:`s`.
    a, b : float
        Exponent of polynomial; slope and threshold of hinge.
    rho : float
        Weight :math:`\rho` of the clients' proximal term.
    concurrency, seed
        As in :class:`strategies.asynchronous.Asynchronous`.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Floating buffers are mixed as parameters are. Numbers of examples have no influence, as in the paper.
    """

    client_half = FedAsyncRule

    def __init__(
        self,
        *,
        alpha: float = 0.6,
        staleness: Staleness = "polynomial",
        a: float = 0.5,
        b: float = 4.0,
        rho: float = 0.005,
        concurrency: int = 10,
        seed: int = 0,
        **flower: Any,
    ) -> None:
        super().__init__(concurrency=concurrency, seed=seed, **flower)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha: must be above 0 and at most 1, got {alpha}")
        if staleness not in get_args(Staleness):
            raise ValueError(f"staleness: must be one of {', '.join(get_args(Staleness))}, got {staleness!r}")
        for name, value in (("a", a), ("b", b), ("rho", rho)):
            if not value >= 0:
                raise ValueError(f"{name}: must be 0 or more, got {value}")
        self.alpha, self.kind, self.a, self.b = alpha, staleness, a, b
        self.settings = {"fedasync-rho": float(rho)}

    def trust(self, tau: int) -> float:
        r"""The function :math:`s(\tau)`."""
        if self.kind == "polynomial":
            return float((1 + tau) ** -self.a)
        if self.kind == "hinge" and tau > self.b:
            return 1 / (self.a * (tau - self.b) + 1)
        return 1.0

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:  # noqa: ARG002
        """Mix the one answer in."""
        (answer,), (tau,) = answers, self.ages
        alpha = self.alpha * self.trust(tau)
        return {k: (1 - alpha) * self.sent[k] + alpha * new for k, new in answer.arrays.items()}
