"""Parts of a model that no method may see: they train with the rest, and stay with the client.

What a method averages is its own affair. That a table of users stays where the users are is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor

from .errors import StrategyError
from .functional import Batch, Forward, Model, Params
from .local import LocalRule, Phase, Round, Upload, part, prefixed
from .optim import State
from .personal import PersonalRule
from .wrapped import WrappedRule

LOCAL = "local/"
"""Prefix of what a client keeps of the model."""


def local_names(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Names that match one of the patterns, in which ``*`` stands for anything.

    Raises
    ------
    StrategyError
        If a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StrategyError(f"no part of the model is called '{pattern}'; it has {', '.join(names)}")
    return frozenset(name for name in names if any(fnmatchcase(name, p) for p in patterns))


class KeepLocal(WrappedRule):
    """Any client half, without a part of the model, which takes plain steps beside it.

    The rule sees a model without that part: it neither pulls nor corrects, sends nor keeps it. The part
    starts as the module was made, moves with every step, by the gradient of the rule's loss, and is kept.

    Parameters
    ----------
    rule : LocalRule
        The method's client half.
    names : frozenset of str
        Names of what stays, in the model's ``state_dict``.

    Raises
    ------
    StrategyError
        For a method whose clients train several models, in steps of its own.
    """

    def __init__(self, rule: LocalRule, names: frozenset[str]) -> None:
        if isinstance(rule, PersonalRule) or type(rule).step is not LocalRule.step:
            raise StrategyError(f"{rule.name} trains several models in a client, so no part can stay local")
        super().__init__(rule)
        self.names, self.keeps_model = names, True

    def inner(self, round: Round) -> Round:
        """The round of a model without the local part."""
        return replace(
            round,
            model=_Completed(round.model, part(LOCAL, round.kept)),
            received=self._shared(round.received),
            trainable=round.trainable - self.names,
            head=round.head - self.names,
            norms=round.norms - self.names,
            kept={k: v for k, v in round.kept.items() if not k.startswith(LOCAL)},
        )

    def keep(self, received: Params) -> Params:
        """What the rule keeps, and the local part as it was made."""
        local = {k: received[k] for k in self.names}
        return self.rule.keep(self._shared(received)) | prefixed(LOCAL, local)

    def begin(self, round: Round) -> Params:
        """What the rule begins with, and the local part as the client left it."""
        return super().begin(round) | part(LOCAL, round.kept)

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """The rule's, in all of which the local part moves too."""
        moving = self.names & round.trainable
        return tuple(replace(p, moving=p.moving | moving) for p in super().phases(round))

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """A step of all parts."""
        return LocalRule.step(self, params, state, moving, batch, round)

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:
        """The rule's for what it knows; the local part's own."""
        local = {k: v for k, v in grads.items() if k in self.names}
        return super().gradient(self._shared(grads), self._shared(params), round) | local

    def end(self, params: Params, round: Round) -> Upload:
        """What the rule sends; the local part is kept."""
        upload = super().end(self._shared(params), round)
        local = {k: params[k] for k in self.names}
        return replace(upload, kept={**upload.kept, **prefixed(LOCAL, local)})

    def predictor(self, round: Round) -> Params:
        """The rule's model with the local part."""
        return super().predictor(round) | part(LOCAL, round.kept)

    def _shared(self, params: Params) -> Params:
        return {k: v for k, v in params.items() if k not in self.names}


@dataclass(frozen=True)
class _Completed:
    """A model that fills in, for a rule that knows of no local part, the one that the client kept."""

    model: Model | Forward
    local: Params

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.model(self.local | params, batch)

    def embed(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.model.embed(self.local | params, batch)

    @property
    def frozen(self) -> _Completed:
        return _Completed(self.model.frozen, self.local)  # type: ignore[union-attr]
