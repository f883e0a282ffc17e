"""FPL: cluster prototypes and unbiased prototypes of each class, which domains of any size shape alike.

Huang, Ye, Shi, Li and Du, "Rethinking Federated Learning with Domain Shift: A Prototype View", CVPR 2023.
Clusters are those of FINCH: Sarfraz, Sharma and Stiefelhagen, "Efficient Parameter-free Clustering Using
First Neighbor Relations", CVPR 2019, arXiv 1902.11266.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .arrays import Arrays
from .functional import Batch, Params, weighted_mean
from .local import LocalRule, Round, Upload, sent, setting
from .method import Answer, Method
from .prototypes import PROTOTYPES, class_means, distance_to_class, of_clients

CLUSTERS = "fpl-clusters"
"""Key of the record with cluster prototypes: ``means`` (clusters, d) and ``labels`` (clusters,)."""
_SERVER = "strategies.FPL"
_NONE_YET: Arrays = {"means": np.zeros((0, 0)), "labels": np.zeros(0, np.int64)}


class FPLRule(LocalRule):
    r"""Client half: task loss plus CPCL plus UPCR, and prototypes of the trained model go up.

    CPCL, the contrast with cluster prototypes :math:`P`, for a row with representation :math:`z` and class
    :math:`k`, with cosine similarity:

    .. math::
        -\log \frac{\sum_{c \in P^k} e^{\cos(z, c)/\tau}}{\sum_{c \in P} e^{\cos(z, c)/\tau}}

    UPCR is the squared distance of :math:`z` from the unbiased prototype, the mean of the class's cluster
    prototypes; the mean over dimensions, as in the published code. Rows of a class without prototypes have
    neither term. Uploaded prototypes are those of the trained model in evaluation mode, over all rows.
    """

    cuts_model = True
    needs_classes = True
    needs_all_rows = True

    def loss(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """Task loss plus both terms."""
        tau, clusters = setting(round, "fpl-tau", self, _SERVER), sent(round, CLUSTERS, self, _SERVER)
        means, labels = clusters["means"], clusters["labels"]
        z, output = round.model.embed(params, batch)
        loss = round.task_loss(output, batch)
        if not len(means):
            return loss
        contrast = cluster_contrast(z, batch["y"], means, labels, tau)
        member = labels == torch.arange(output.shape[1], device=z.device)[:, None]
        count = member.sum(dim=1)
        unbiased = member.to(z.dtype) @ means / count.clamp(min=1)[:, None]
        consistency = distance_to_class(z, batch["y"], unbiased, count > 0)
        return loss + weighted_mean(contrast + consistency, batch)

    def end(self, params: Params, round: Round) -> Upload:
        """The model and the prototypes."""
        return Upload(arrays=params, extra={PROTOTYPES: class_means(params, round)})


def cluster_contrast(z: Tensor, y: Tensor, means: Tensor, labels: Tensor, tau: float) -> Tensor:
    """CPCL of each row; 0 for rows whose class has no cluster."""
    similarity = functional.normalize(z, dim=1) @ functional.normalize(means, dim=1).T / tau
    own = labels == y[:, None]
    own = own | ~own.any(dim=1, keepdim=True)  # the two sums are then equal
    return similarity.logsumexp(dim=1) - similarity.masked_fill(~own, -torch.inf).logsumexp(dim=1)


class FPL(Method):
    r"""Server half: clusters the clients' prototypes of each class; models are averaged as in FedAvg.

    Clusters are FINCH's first partition; the published code takes the last one above a single cluster, which
    differs where a class has many clients. A class that no sampled client has keeps its clusters.

    Parameters
    ----------
    tau : float
        Temperature :math:`\tau` of CPCL; 0.02 in the paper.
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.

    Notes
    -----
    Sent: models as FedAvg; up prototypes (classes, d) and their counts, down the cluster prototypes and their
    labels, of which clients make the unbiased ones. Clients keep nothing, the server the clusters.
    """

    client_half = FPLRule

    def __init__(self, *, tau: float = 0.02, **flower: Any) -> None:
        super().__init__(**flower)
        if not tau > 0:
            raise ValueError(f"tau: must be above 0, got {tau}")
        self.settings = {"fpl-tau": tau}

    def extra(self) -> dict[str, Arrays]:
        """The cluster prototypes, none before round 1."""
        return {CLUSTERS: self.state.get(CLUSTERS, _NONE_YET)}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:
        """Cluster the prototypes of each class."""
        means, counts = of_clients(answers)
        old = self.state.get(CLUSTERS)
        found, labels = [], []
        for label in range(counts.shape[1]):
            held = means[counts[:, label] > 0, label]
            if len(held):
                of_class = cluster_means(held)
            else:
                of_class = old["means"][old["labels"] == label] if old else held
            found.append(of_class)
            labels += [label] * len(of_class)
        self.state[CLUSTERS] = {"means": np.concatenate(found), "labels": np.array(labels, np.int64)}
        return mean


def cluster_means(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Means (clusters, d) of the clusters of vectors (n, d)."""
    cluster = first_neighbours(x)
    return np.stack([x[cluster == c].mean(axis=0) for c in np.unique(cluster)])


def first_neighbours(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """FINCH's first partition of vectors (n, d): the first vector of the cluster of each.

    Each vector is linked with its nearest by cosine similarity; clusters are what hangs together. A lone
    vector is a cluster, and so are two.
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(x.dtype).tiny)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(axis=1)
    cluster, before = np.arange(len(x)), None
    while before is None or (cluster != before).any():
        before = cluster.copy()
        np.minimum.at(cluster, nearest, before)
        cluster = np.minimum(cluster, cluster[nearest])
    return cluster
