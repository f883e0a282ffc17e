"""GraphSAGE with the mean aggregator, for batches of nodes whose neighbours were drawn before training.

Hamilton, Ying and Leskovec, "Inductive Representation Learning on Large Graphs", NIPS 2017, arXiv 1706.02216.

Sizes in docstrings: B seeds, which are the nodes to classify; S neighbours drawn for each; F features; C
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError
from strategies.seeding import generator

from .comirec import at_least

Normalisation = Literal["none", "l2", "layer"]
Integers = npt.NDArray[np.int64]

_ROWS = 1 << 17
"""Nodes that draw at once."""


class GraphSAGE(nn.Module):
    """Two layers ``h_v = relu(W [h_v ; mean of h_u over neighbours u])``, then a linear layer.

    That is Algorithm 1 with K = 2 and the mean of section 3.3, concatenated with the node's own vector as the
    algorithm's line 5 has it.

    Parameters
    ----------
    shape : sequence of int
        ``(F,)``.
    classes : int
        C.
    width : int
        Width of both layers.
    dropout : float
        Rate after each layer.
    norm : {"none", "l2", "layer"}
        After each layer: vectors of length 1 (line 7), LayerNorm, or nothing.

    Raises
    ------
    ClientError
        If the data are no feature vectors, or an option has no such value.

    Notes
    -----
    The paper draws neighbours anew in each batch, for both layers. Here a seed's neighbours are drawn once,
    as LargeGT's are, and the first layer has means over all neighbours, which are known before training. The
    mean over no neighbours is 0. Dropout, which the paper does not have, is our choice, as is ``layer``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int = 64,
        dropout: float = 0.5,
        norm: Normalisation = "none",
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ClientError(
                "client 'graphsage' needs nodes with feature vectors (features,), but the data give examples "
                f"of shape {tuple(shape)}; choose data of a graph"
            )
        at_least(1, {"shape": shape[0], "classes": classes, "width": width})
        if not 0 <= dropout < 1:
            raise ClientError(f"dropout: must be at least 0 and below 1, got {dropout}")
        if norm not in get_args(Normalisation):
            raise ClientError(f"norm: must be one of {', '.join(get_args(Normalisation))}, got {norm!r}")
        self.layers = nn.ModuleList([Layer(inner, width, dropout, norm) for inner in (shape[0], width)])
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mean: Tensor, near: Tensor, near_mean: Tensor, near_mask: Tensor) -> Tensor:
        """Logits of shape (B, C).

        Parameters
        ----------
        x, mean : Tensor, shape (B, F)
            Features of the seeds, and their means over the seeds' neighbours.
        near, near_mean : Tensor, shape (B, S, F)
            The same of neighbours of each seed.
        near_mask : Tensor, shape (B, S)
            1 for a neighbour, 0 for padding.
        """
        first, second = self.layers
        hidden = first(near, near_mean) * near_mask.unsqueeze(-1)
        of_neighbours = hidden.sum(-2) / near_mask.sum(-1, keepdim=True).clamp(min=1)
        return self.head(second(first(x, mean), of_neighbours))


class Layer(nn.Module):
    """Lines 4, 5 and 7 of Algorithm 1, from vectors and the means of their neighbours."""

    def __init__(self, inner: int, width: int, dropout: float, norm: Normalisation) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * inner, width)
        self.norm = (
            nn.LayerNorm(width) if norm == "layer" else UnitLength() if norm == "l2" else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, own: Tensor, neighbours: Tensor) -> Tensor:
        """(..., inner) twice to (..., width)."""
        return self.dropout(self.norm(self.linear(torch.cat([own, neighbours], -1)).relu()))


class UnitLength(nn.Module):
    """``h / |h|``, and 0 for 0."""

    def forward(self, h: Tensor) -> Tensor:
        """(..., width) to the same."""
        return functional.normalize(h, dim=-1)


def neighbour_means(adjacency: sparse.csr_array, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
    """Mean of the neighbours' features: (n, F) to (n, F), in its type; 0 for a node without neighbours."""
    degree = np.diff(adjacency.indptr)
    total = adjacency.astype(x.dtype) @ x
    return total / np.maximum(degree, 1).astype(x.dtype)[:, None]


def direct_neighbours(adjacency: sparse.csr_array, count: int, seed: int) -> tuple[Integers, Integers]:
    """Neighbours of each node, ``count`` of those that have more.

    Parameters
    ----------
    adjacency : scipy.sparse.csr_array, shape (n, n)
        The graph; an entry is an edge, and no edge is twice in it.
    count : int
        S, at least 1.
    seed : int
        Seed of the draws.

    Returns
    -------
    near : ndarray of int64, shape (n, S)
        Numbers of nodes; where there are fewer, the node's own number fills the row.
    number : ndarray of int64, shape (n,)
        How many of each row are neighbours.

    Raises
    ------
    ClientError
        If ``count`` is too small.

    Notes
    -----
    Each edge has a random number, which is a hash of the seed and its two ends, and a node takes neighbours
    with the lowest: a uniform draw without replacement that no other part of the graph has a say in.
    """
    if count < 1:
        raise ClientError(f"count: must be 1 or more neighbours, got {count}")
    n, indptr = adjacency.shape[0], adjacency.indptr.astype(np.int64)
    key = generator(seed, "graphsage neighbours").integers(2**64, dtype=np.uint64)
    number = np.minimum(np.diff(indptr), count)
    near = np.tile(np.arange(n)[:, None], count)
    for first in range(0, n, _ROWS):
        rows = np.arange(first, min(first + _ROWS, n))
        start = indptr[rows[0]]
        ends = adjacency.indices[start : indptr[rows[-1] + 1]].astype(np.int64)
        row = np.repeat(rows, np.diff(indptr)[rows])
        order = np.lexsort((_hashed(key, row, ends), row))
        place = np.arange(len(row)) - (indptr[row] - start)
        taken = place < count
        near[row[taken], place[taken]] = ends[order][taken]
    return near, number


def _hashed(key: np.uint64, source: Integers, target: Integers) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser, twice (Steele, Lea and Flood, OOPSLA 2014): of the source, then of both."""

    def scrambled(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    return scrambled(scrambled(key ^ source.astype(np.uint64)) ^ target.astype(np.uint64))
