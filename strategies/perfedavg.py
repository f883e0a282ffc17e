"""Per-FedAvg: a global model from which one gradient step of a client leads far.

Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948, Algorithm 1 with its two approximations FO and HF.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from .functional import Batch, Params
from .local import FineTune, LocalRule, Round, setting, split
from .method import Method

Variant = Literal["fo", "hf"]
VARIANT = "perfedavg-variant"
"""Key of the approximation in the server's config."""
ALPHA = "perfedavg-alpha"
"""Key of the rate of a client's own step."""
DELTA = "perfedavg-delta"
"""Key of the width of the finite difference."""
TEST_STEPS = "perfedavg-test-steps"
"""Key of the number of steps before a client predicts."""


class PerFedAvgRule(LocalRule):
    r"""Client half: steps along the gradient of :math:`F_i(w - \alpha \nabla F_i(w))`.

    With :math:`\tilde{w} = w - \alpha \nabla F_i(w; B_1)` and :math:`g = \nabla F_i(\tilde{w}; B_2)`, that
    gradient is :math:`g - \alpha \nabla^2 F_i(w; B_3) g`. FO leaves the Hessian out; HF takes
    :math:`[\nabla F_i(w + \delta g; B_3) - \nabla F_i(w - \delta g; B_3)] / (2 \delta)` for its product with
    :math:`g`. The rate :math:`\beta` of the step is the round's.

    The paper draws two (three) batches a step. Here the one batch that every method gets is dealt out to
    :math:`B_1, B_2` (and :math:`B_3`), so that all methods see as many rows; the gradient of a part without
    rows is 0. The loss that is reported is that at :math:`\tilde{w}`. All passes update the same running
    statistics.
    """

    parts = 3

    def direction(
        self, params: Params, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, Tensor]:
        """FO's or HF's gradient, and the loss after a client's own step."""
        alpha = self._setting(round, ALPHA)
        second_order = self._setting(round, VARIANT) == "hf"
        gradient = super().direction

        def ahead(by: float, way: Params) -> Params:
            return params | {k: params[k] + by * d for k, d in way.items()}

        first, second, *third = split(batch, 3 if second_order else 2)
        own, _ = gradient(params, moving, first, round)
        g, loss = gradient(ahead(-alpha, own), moving, second, round)
        if not second_order:
            return g, loss
        delta = self._setting(round, DELTA)
        above, _ = gradient(ahead(delta, g), moving, third[0], round)
        below, _ = gradient(ahead(-delta, g), moving, third[0], round)
        return {k: g[k] - alpha * (above[k] - below[k]) / (2 * delta) for k in g}, loss

    def fine_tune(self, round: Round) -> FineTune:
        """A few of the client's own steps from the global model, each with a whole batch."""
        return FineTune(steps=self._setting(round, TEST_STEPS), lr=self._setting(round, ALPHA))

    def _setting(self, round: Round, key: str) -> Any:
        return setting(round, key, self, "strategies.PerFedAvg")


class PerFedAvg(Method):
    r"""Server half: FedAvg.

    Parameters
    ----------
    variant : {"fo", "hf"}
        First-order, at twice the gradients of FedAvg on half the rows each; or with products of Hessian and
        vector, at four on a third.
    alpha : float
        Rate of a client's own step, in training and before it predicts; 0.01 as in public re-implementations.
    delta : float
        HF: width of the finite difference.
    test_steps : int
        A client's own steps before it predicts; the paper's 1.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: what FedAvg sends. Clients keep nothing: each evaluation takes its own steps anew. The paper's
    :math:`\beta` of 0.001 is ``client.lr`` here. Clients count with the weights that they report, where the
    paper's count alike.
    """

    client_half = PerFedAvgRule
    only_averages = True
    personal = True

    def __init__(
        self,
        *,
        variant: Variant = "fo",
        alpha: float = 0.01,
        delta: float = 0.001,
        test_steps: int = 1,
        **flower: Any,
    ) -> None:
        super().__init__(**flower)
        if variant not in get_args(Variant):
            raise ValueError(f"variant: must be one of {', '.join(get_args(Variant))}, got {variant!r}")
        if not alpha >= 0:
            raise ValueError(f"alpha: must be 0 or more, got {alpha}")
        if not delta > 0:
            raise ValueError(f"delta: must be above 0, got {delta}")
        if test_steps < 1:
            raise ValueError(f"test_steps: must be 1 or more, got {test_steps}")
        self.settings = {VARIANT: variant, ALPHA: alpha, DELTA: delta, TEST_STEPS: test_steps}
