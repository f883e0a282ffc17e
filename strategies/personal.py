"""Methods whose clients train a whole model of their own beside the one that is averaged."""

from __future__ import annotations

from typing import ClassVar

from .functional import Params
from .local import LocalRule, Phase, Round, Upload, part, prefixed

PERSONAL = "personal/"
"""Prefix of the tensors of a client's own model."""


class PersonalRule(LocalRule):
    """Client half of a method with two models: ``w`` is averaged, and ``v_i`` never leaves client ``i``.

    Both move in the same steps, on the same batches. Each has buffers of its own, such as running statistics.
    A client's own model starts at the first model that it receives, and does not change in rounds in which
    the client takes no part.
    """

    keeps_model = True
    server_half: ClassVar[str]
    """Full name of the server half, for messages."""

    def keep(self, received: Params) -> Params:
        """The own model before the first round."""
        return prefixed(PERSONAL, received)

    def begin(self, round: Round) -> Params:
        """The received model, and what this client kept."""
        return round.received | round.kept

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """All steps move the trainable parameters of both models."""
        own = frozenset(PERSONAL + k for k in round.trainable)
        return (Phase(int(round.steps), round.trainable | own),)

    def end(self, params: Params, round: Round) -> Upload:
        """The common model goes up, all else stays."""
        shared = self.shared(params, round)
        return Upload(arrays=shared, kept={k: v for k, v in params.items() if k not in shared})

    def predictor(self, round: Round) -> Params:
        """The own model."""
        return self.own(self.begin(round))

    def shared(self, params: Params, round: Round) -> Params:
        """The common model's tensors in ``params``."""
        return {k: params[k] for k in round.received}

    def own(self, params: Params) -> Params:
        """The own model's tensors in ``params``, under the model's names."""
        return part(PERSONAL, params)
