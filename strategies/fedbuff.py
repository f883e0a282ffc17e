"""FedBuff: clients answer when they are done, and the server moves whenever its buffer is full.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, arXiv 2106.06639, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from .arrays import Arrays
from .asynchronous import Asynchronous
from .method import Answer

_STATISTICS = ("running_mean", "running_var")
"""Ends of the names under which PyTorch's BatchNorm keeps what it has seen."""


class FedBuff(Asynchronous):
    r"""Server half: :math:`x \leftarrow x - \eta_g \overline{s(\tau_i) \Delta_i}`, a mean over the buffer.

    :math:`\Delta_i` is the model that client :math:`i` started from less the one that it came to
    (Algorithm 1), and :math:`s(\tau) = 1 / \sqrt{1 + \tau}` (the paper's section on staleness), :math:`\tau`
    counting the updates in between. Clients train as FedAvg's do.

    Parameters
    ----------
    buffer : int
        Updates :math:`K` that the server waits for.
    server_lr : float
        Global step size :math:`\eta_g`.
    scale : bool
        Whether stale updates count less; otherwise :math:`s = 1`.
    concurrency, seed
        As in :class:`strategies.asynchronous.Asynchronous`.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Three deviations. The mean has the weights that clients report, equal in the paper. Clients send models
    instead of :math:`\Delta_i`, and the server keeps those that they started from, so that any FedAvg client
    will do. BatchNorm's running statistics are averaged and not moved: a difference from a variance of long
    ago could leave less than none.
    """

    keeps_models = True

    def __init__(
        self,
        *,
        buffer: int = 10,
        server_lr: float = 1.0,
        scale: bool = True,
        concurrency: int = 10,
        seed: int = 0,
        **flower: Any,
    ) -> None:
        super().__init__(concurrency=concurrency, buffer=buffer, seed=seed, **flower)
        if not server_lr > 0:
            raise ValueError(f"server_lr: must be above 0, got {server_lr}")
        self.server_lr, self.scale = server_lr, scale

    def trust(self, tau: int) -> float:
        r"""The function :math:`s(\tau)`."""
        return float((1 + tau) ** -0.5) if self.scale else 1.0

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Move the model by the mean of what the clients moved it."""
        shares = [a.weight * self.trust(tau) for a, tau in zip(answers, self.ages, strict=True)]
        moved = dict(self.sent)
        for k in moved:
            if k.endswith(_STATISTICS):
                moved[k] = mean[k]
                continue
            delta = sum(
                share * (start[k] - a.arrays[k])
                for share, start, a in zip(shares, self.starts, answers, strict=True)
            )
            moved[k] = (moved[k] - self.server_lr * delta).astype(moved[k].dtype)
        return moved
