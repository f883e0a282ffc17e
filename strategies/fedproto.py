"""FedProto: clients share class prototypes in place of, or beside, models.

Tan, Long, Liu, Zhou, Lu, Jiang and Zhang, "FedProto: Federated Prototype Learning across Heterogeneous
Clients", AAAI 2022, arXiv 2105.00243, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays
from .functional import Batch, Params, weighted_mean
from .local import Round, Upload, sent, setting
from .method import Answer, Method
from .partial import PartialRule
from .prototypes import PROTOTYPES, class_means, distance_to_class, of_clients

_SERVER = "strategies.FedProto"
_NONE_YET: Arrays = {"means": np.zeros((0, 0)), "counts": np.zeros(0)}


class FedProtoRule(PartialRule):
    r"""Client half: task loss plus :math:`\lambda L_R`, and prototypes of the trained model go up.

    :math:`L_R` is the mean over a batch's rows of the squared distance (mean over dimensions) between a row's
    representation and the global prototype of its class; classes without one have no term. That is the
    published code's; the paper's text sums the distances between a client's prototypes and the global ones.
    Prototypes are those of the trained model in evaluation mode, over all rows.

    The client's model stays with it, and predicts the class of the nearest global prototype (L2); classes
    without one are never chosen, and before round 1 the last layer predicts. If the server averages models,
    the model goes up and the last layer always predicts.
    """

    cuts_model = True
    needs_classes = True
    needs_all_rows = True

    def stays(self, round: Round) -> frozenset[str]:
        """All tensors, unless models are averaged."""
        return frozenset() if self._averages(round) else frozenset(round.received)

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus the distance to the prototypes."""
        lam, prototypes = setting(round, "fedproto-lam", self, _SERVER), self._prototypes(round)
        z, output = round.model.embed(params, batch)
        loss = round.task_loss(output, batch)
        if not len(prototypes["means"]):
            return loss
        known = prototypes["counts"] > 0
        distance = distance_to_class(z, batch["y"], prototypes["means"], known)
        return loss + lam * weighted_mean(distance, batch)

    def end(self, params: Params, round: Round) -> Upload:
        """Prototypes go up, and the model where it is averaged."""
        return replace(super().end(params, round), extra={PROTOTYPES: class_means(params, round)})

    def output(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Distances to the prototypes with a minus, as logits; the last layer's where models are averaged."""
        z, output = round.model.frozen.embed(params, batch)
        prototypes = self._prototypes(round)
        if self._averages(round) or not len(prototypes["means"]):
            return output
        distance = torch.cdist(z, prototypes["means"])
        farthest = distance.amax(dim=1, keepdim=True)
        return -torch.where(prototypes["counts"] > 0, distance, farthest + 1)

    def _averages(self, round: Round) -> bool:
        return bool(setting(round, "fedproto-average", self, _SERVER))

    def _prototypes(self, round: Round) -> Params:
        return sent(round, PROTOTYPES, self, _SERVER)


class FedProto(Method):
    r"""Server half: the mean of the clients' prototypes of each class, weighted by their numbers of rows.

    The paper's formula divides this mean once more by the number of clients that have the class, which would
    shrink prototypes towards 0 and is taken for a slip (the published code takes the unweighted mean). A
    class that no sampled client has keeps its prototype; in the paper all clients take part in all rounds.

    Parameters
    ----------
    lam : float
        Weight :math:`\lambda` of the distance to the prototypes; 1 in the paper but for CIFAR-10 (0.1). 0 is
        local training, or FedAvg with ``average_model``.
    average_model : bool
        Average models as FedAvg does, beside the prototypes, as comparisons on domain skew have it. In the
        paper, clients have models of their own.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: prototypes (classes, d) and their counts, up and down; the initial model down in round 1, and with
    ``average_model`` what FedAvg sends. Without it each client keeps its model, and one that joins after
    round 1 starts from its module as it was made. The server keeps the prototypes.
    """

    client_half = FedProtoRule

    def __init__(self, *, lam: float = 1.0, average_model: bool = False, **flower: Any) -> None:
        super().__init__(**flower)
        if not lam >= 0:
            raise ValueError(f"lam: must be 0 or more, got {lam}")
        self.personal = not average_model
        self.settings = {"fedproto-lam": lam, "fedproto-average": average_model}

    def extra(self) -> dict[str, Arrays]:
        """The global prototypes, none before round 1."""
        return {PROTOTYPES: self.state.get(PROTOTYPES, _NONE_YET)}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Average the prototypes; the models are averaged, or there are none."""
        means, counts = of_clients(answers)
        total = counts.sum(axis=0)
        new = (means * (counts / np.maximum(total, 1))[:, :, None]).sum(axis=0)
        old = self.state.get(PROTOTYPES, {"means": new, "counts": total})
        seen = total > 0
        self.state[PROTOTYPES] = {
            "means": np.where(seen[:, None], new, old["means"]),
            "counts": np.where(seen, total, old["counts"]),
        }
        return mean
