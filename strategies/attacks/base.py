"""The contract of an attack, and who attacks.

Any ClientApp can have malicious clients: those in ``attackers(seed, clients, share)`` answer with ::

    data = attack.poison(data, classes, generator)
    return client.train(message, context, data, plan, lr, corrupt=attack.corrupt)

where ``client`` is a :class:`strategies.RuleClient`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch

from strategies.functional import Batch
from strategies.local import Round, Upload
from strategies.seeding import generator


class Attack:
    """A client that does all as it should: the base of those that do not.

    An attack acts on the training rows and on the record that the server averages. Both are pure functions
    on tensors. Further records of a method (SCAFFOLD's control variate, say), what a client keeps, and what
    an alignment collects before the rounds are left as they are.
    """

    needs_labels: ClassVar[bool] = False
    """Whether the attack is one on class labels."""

    def poison(self, data: Batch, classes: int, generator: torch.Generator | None = None) -> Batch:  # noqa: ARG002
        """Training rows in place of ``data``.

        Parameters
        ----------
        data : dict of Tensor
            All training rows, ``x``, ``y`` and ``weight`` say; not changed.
        classes : int
            Number of classes.
        generator : torch.Generator, optional
            For the attack's own draws, the same in every round.
        """
        return data

    def corrupt(self, upload: Upload, round: Round) -> Upload:  # noqa: ARG002
        """What goes up in place of ``upload``; ``round.generator`` is for the attack's own draws."""
        return upload


def attackers(seed: int, clients: int, share: float) -> frozenset[int]:
    """Partitions that attack: a function of seed and number of clients, larger shares hold smaller ones.

    Parameters
    ----------
    seed : int
        Seed of the run.
    clients : int
        Number of all clients.
    share : float
        Share that attacks, rounded to the nearest whole number of clients, a half up; above 0, at least one.

    Raises
    ------
    ValueError
        If the share is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: must be between 0 and 1, got {share}")
    count = max(math.floor(share * clients + 0.5), 1) if share else 0
    order = generator(seed, "attack").permutation(clients)
    return frozenset(order[:count].tolist())


def steered(upload: Upload, round: Round, factor: float) -> Upload:
    """An upload whose way from the received model is multiplied, in the parameters that training moves.

    BatchNorm's running statistics go up as they are: a negative variance would show at once.
    """
    arrays = {
        k: round.received[k] + factor * (v - round.received[k]) if k in round.trainable else v
        for k, v in upload.arrays.items()
    }
    return replace(upload, arrays=arrays)
