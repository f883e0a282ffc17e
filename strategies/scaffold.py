"""SCAFFOLD: control variates that correct the drift of local steps.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, arXiv 1910.06378, Algorithm 1 with option II.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .arrays import Arrays
from .functional import Params
from .local import LocalRule, Round, Upload, sent
from .method import Answer, Method

CONTROL = "scaffold-control"
"""Key of the record that carries ``c`` down and a client's change of ``c_i`` up."""


class ScaffoldRule(LocalRule):
    r"""Client half: steps along :math:`g_i(y) - c_i + c` (line 10), then a new :math:`c_i` (line 12).

    Option II: :math:`c_i^+ = c_i - c + (x - y_i) / (K \eta_l)` with :math:`K` the number of this client's
    steps, which in the paper are plain SGD. With momentum, :math:`K` is the sum of the weights that the steps
    give to gradients (as in FedNova), so that :math:`c_i^+` stays an average of gradients.
    """

    sgd_only = True

    def keep(self, received: Params) -> Params:
        """Control variate of 0, as the paper starts; buffers have one too, which stays 0."""
        return {k: torch.zeros_like(v) for k, v in received.items()}

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:  # noqa: ARG002
        """The gradient, corrected."""
        control = sent(round, CONTROL, self, "strategies.Scaffold")
        return {k: g - round.kept[k] + control[k] for k, g in grads.items()}

    def end(self, params: Params, round: Round) -> Upload:
        """The model, and the change of the control variate."""
        scale = round.mass * round.lr
        change = {
            k: (round.received[k] - params[k]) / scale - round.sent[CONTROL][k]
            for k in sorted(round.trainable)
        }
        kept = {k: v + change[k] if k in change else v for k, v in round.kept.items()}
        return Upload(arrays=params, kept=kept, extra={CONTROL: change})


class Scaffold(Method):
    r"""Server half: move the model and the control variate by what clients report (lines 16 and 17).

    :math:`x \leftarrow x + \eta_g \overline{y_i - x}` and
    :math:`c \leftarrow c + \frac{|S|}{N} \overline{\Delta c_i}`. The bars are means over the sampled clients
    :math:`S`, with the weights that clients report; the paper's are equal. :math:`N` counts all clients, so
    that the control variates of clients that were not sampled still count.

    Parameters
    ----------
    server_lr : float
        Global step size :math:`\eta_g`; 1, the paper's choice in its experiments, is FedAvg's average.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: model and ``c`` down, model and change of ``c_i`` up: twice FedAvg. Each client keeps ``c_i``.
    """

    client_half = ScaffoldRule

    def __init__(self, *, server_lr: float = 1.0, **flower: Any) -> None:
        super().__init__(**flower)
        if not server_lr > 0:
            raise ValueError(f"server_lr: must be above 0, got {server_lr}")
        self.server_lr = server_lr

    def extra(self) -> dict[str, Arrays]:
        """The server's control variate."""
        control = self.state.setdefault("control", {k: np.zeros_like(v) for k, v in self.sent.items()})
        return {CONTROL: control}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Move the model and the control variate."""
        share = len(answers) / self.population
        control, trained = self.state["control"], answers[0].extra[CONTROL]
        for k in trained:
            change = sum(a.weight * a.extra[CONTROL][k] for a in answers)
            control[k] = (control[k] + share * change).astype(control[k].dtype)
        return mean | {k: self.sent[k] + self.server_lr * (mean[k] - self.sent[k]) for k in trained}
