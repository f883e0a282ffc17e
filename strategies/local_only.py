"""Local training without a federation: what a client reaches alone, the floor of personalised methods.

No paper's method, but the baseline that comparisons of personalised methods need.
"""

from __future__ import annotations

from .local import Round
from .method import Method
from .partial import PartialRule


class LocalOnlyRule(PartialRule):
    """Client half: the whole model stays."""

    def stays(self, round: Round) -> frozenset[str]:
        """All tensors."""
        return frozenset(round.received)


class LocalOnly(Method):
    """Server half: sends the initial model in round 1, and from then on nothing is left to average.

    Parameters
    ----------
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: the model down once, nothing up. Each client keeps its model; one that joins after round 1 starts
    from its module as it was made.
    """

    client_half = LocalOnlyRule
    only_averages = True
    personal = True
