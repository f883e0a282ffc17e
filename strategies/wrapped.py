"""A client half around another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .functional import Batch, Params
from .local import FineTune, LocalRule, Phase, Round, Upload
from .optim import State

_TRAITS = ("sgd_only", "cuts_model", "needs_norms", "needs_classes", "needs_all_rows", "keeps_model", "parts")
"""Class variables of a rule that tell others what it needs."""


class WrappedRule(LocalRule):
    """A rule that does what another does, and to the server is the other; a subclass changes some of it.

    Parameters
    ----------
    rule : LocalRule
        The method's client half.
    """

    def __init__(self, rule: LocalRule) -> None:
        self.rule = rule
        for name in _TRAITS:
            setattr(self, name, getattr(rule, name))

    def inner(self, round: Round) -> Round:
        """The round as the other rule sees it."""
        return round

    @property
    def name(self) -> str:
        """The method's."""
        return self.rule.name

    @property
    def fine_tunes(self) -> bool:
        """Whether the method does."""
        return self.rule.fine_tunes

    def keep(self, received: Params) -> Params:
        """As the rule."""
        return self.rule.keep(received)

    def begin(self, round: Round) -> Params:
        """As the rule."""
        return self.rule.begin(self.inner(round))

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """As the rule."""
        return self.rule.phases(self.inner(round))

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """As the rule."""
        return self.rule.loss(params, batch, self.inner(round))

    def direction(
        self, params: Params, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, Tensor]:
        """As the rule."""
        return self.rule.direction(params, moving, batch, self.inner(round))

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:
        """As the rule."""
        return self.rule.gradient(grads, params, self.inner(round))

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """As the rule."""
        return self.rule.step(params, state, moving, batch, self.inner(round))

    def end(self, params: Params, round: Round) -> Upload:
        """As the rule."""
        return self.rule.end(params, self.inner(round))

    def predictor(self, round: Round) -> Params:
        """As the rule."""
        return self.rule.predictor(self.inner(round))

    def fine_tune(self, round: Round) -> FineTune | None:
        """As the rule."""
        return self.rule.fine_tune(self.inner(round))

    def output(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """As the rule."""
        return self.rule.output(params, batch, self.inner(round))

    def queries(self) -> Mapping[str, Callable[[Round], Upload]]:
        """As the rule."""

        def within(answer: Callable[[Round], Upload]) -> Callable[[Round], Upload]:
            return lambda round: answer(self.inner(round))

        return {action: within(answer) for action, answer in self.rule.queries().items()}
