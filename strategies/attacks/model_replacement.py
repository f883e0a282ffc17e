"""Model replacement: an update so long that the mean becomes the attacker's model.

Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020,
arXiv 1807.00459.
"""

from __future__ import annotations

import torch

from strategies.functional import Batch
from strategies.local import Round, Upload

from .base import Attack, steered
from .label_flip import relabelled


class ModelReplacement(Attack):
    r"""Uploads :math:`G + \gamma (X - G)` (eq. 3) for the received :math:`G` and its own :math:`X`.

    :math:`X` is trained from :math:`G` on the client's rows, all labelled as one class. In the paper only
    rows with a backdoor's trigger are, and a term in the loss hides the attack; both are left out.

    Parameters
    ----------
    boost : float
        The factor :math:`\gamma = n / \eta`, above 0, with :math:`\eta` the server's step size. In FedAvg
        over ``m`` clients of equal weight it is ``m``, and one attacker replaces the model.
    target : int
        Class that all inputs shall be taken for.
    """

    needs_labels = True

    def __init__(self, boost: float = 10.0, target: int = 0) -> None:
        if not boost > 0:
            raise ValueError(f"boost: must be above 0, got {boost}")
        self.boost, self.target = boost, target

    def poison(self, data: Batch, classes: int, generator: torch.Generator | None = None) -> Batch:  # noqa: ARG002
        """The rows, all of the target class; raises ValueError where there is no such class."""
        return relabelled(data, self.target, classes)

    def corrupt(self, upload: Upload, round: Round) -> Upload:
        """The boosted model."""
        return steered(upload, round, self.boost)
