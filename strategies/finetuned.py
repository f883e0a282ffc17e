"""Fine-tuning before a client predicts, under any method."""

from __future__ import annotations

from .local import FineTune, LocalRule, Round
from .wrapped import WrappedRule


class FineTuned(WrappedRule):
    """Any client half, whose predictor takes some steps on the client's own rows, with the task's loss alone.

    Training and what is sent are the rule's. It takes the place of the rule's own fine-tuning, if it has any.

    Parameters
    ----------
    rule : LocalRule
        The method's client half.
    steps : int
        Optimiser steps; a client without rows takes none.
    lr : float or None
        Rate of plain SGD; ``None`` takes the round's own optimiser and rate.
    """

    def __init__(self, rule: LocalRule, *, steps: int = 20, lr: float | None = None) -> None:
        if steps < 0:
            raise ValueError(f"steps: must be 0 or more, got {steps}")
        if lr is not None and not lr > 0:
            raise ValueError(f"lr: must be above 0, got {lr}")
        super().__init__(rule)
        self.steps, self.lr = steps, lr

    @property
    def fine_tunes(self) -> bool:
        """Whether there are steps to take."""
        return self.steps > 0

    def fine_tune(self, round: Round) -> FineTune | None:  # noqa: ARG002
        """The steps."""
        return FineTune(steps=self.steps, lr=self.lr) if self.steps else None
