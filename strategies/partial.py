"""Methods in which part of the model stays with the client while the rest is averaged."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .functional import Params
from .local import LocalRule, Round, Upload


class PartialRule(LocalRule, ABC):
    """Client half of a method with models ``(u, v_i)``: ``u`` is averaged, ``v_i`` never leaves client ``i``.

    A subclass names what stays. The first message brings the whole initial model; later ones, and all
    uploads, hold what is averaged and nothing else. A client that joins late starts with its own part as
    its module was made.
    """

    keeps_model = True

    @abstractmethod
    def stays(self, round: Round) -> frozenset[str]:
        """Names of the tensors that stay with the client."""

    def keep(self, received: Params) -> Params:
        """All tensors as they are at first; which of them stay is known only in a round."""
        return dict(received)

    def begin(self, round: Round) -> Params:
        """What is averaged as received, what stays as this client left it."""
        return round.received | {k: round.kept[k] for k in self.stays(round)}

    def end(self, params: Params, round: Round) -> Upload:
        """What is averaged goes up, what stays is kept."""
        stays = self.stays(round)
        return Upload(
            arrays={k: v for k, v in params.items() if k not in stays},
            kept={k: v for k, v in params.items() if k in stays},
        )
