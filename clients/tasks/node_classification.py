"""Classification of the nodes of a graph: logits in, cross-entropy and accuracy out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from clients.errors import ClientError
from clients.models.graph_encodings import degrees, return_probabilities, spectral
from clients.models.graphsage import direct_neighbours, neighbour_means
from clients.models.largegt_sampling import hop_features, neighbour_lists, token_sequence
from strategies.functional import Batch

from .base import Arrays, Rows
from .classification import Classification

Encoding = Literal["return", "degree", "spectral", "none"]
Table = npt.NDArray[Any]


class Graph(Protocol):
    """An undirected graph of n nodes with F features, in compressed sparse rows."""

    @property
    def indptr(self) -> npt.NDArray[np.integer[Any]]:
        """Where the neighbours of each node begin, (n + 1,)."""

    @property
    def indices(self) -> npt.NDArray[np.integer[Any]]:
        """Neighbours, node after node."""

    @property
    def x(self) -> npt.NDArray[np.float32]:
        """Features, (n, F)."""


class NodeClassification(Classification):
    """Classification of nodes, whose surroundings are prepared once for all of them.

    Rows of the data set are nodes. Clients' graphs are parts of one graph without edges between them, and
    what is prepared for a node depends on its own part alone: features of nodes that are reached over edges,
    draws whose key is the node's number, encodings by connected parts; but not with ``encoding=spectral``.

    Parameters
    ----------
    graph : Graph
        The graph of all clients.
    inputs : sequence of str
        What the model is given, in order, of B nodes:

        - ``x`` (B, F), their features;
        - ``seq`` (B, 3K, F), :mod:`LargeGT's tokens <clients.models.largegt_sampling>`;
        - ``pos_enc`` (B, g), their positional encodings;
        - ``node`` (B,), their numbers;
        - ``mean`` (B, F), means of their neighbours' features;
        - ``near`` and ``near_mean`` (B, K, F), features of K neighbours, and means of those neighbours'
          neighbours; ``near_mask`` (B, K), 0 where a node has fewer.
    neighbours : int
        K: nodes of ``seq``, itself included, and of ``near``, without it.
    encoding : {"return", "degree", "spectral", "none"}
        See :mod:`clients.models.graph_encodings`.
    encoding_dim : int
        g.
    seed : int
        Seed of draws, and of estimates of encodings.

    Raises
    ------
    ClientError
        If an option has no such value, or is of no use with the others.

    Notes
    -----
    In ``seq``, a node without edges attends to itself alone. LargeGT's authors have it draw from the whole
    graph, which here would show it other clients' nodes.

    As far as ``inputs`` ask for it, ``4 F + 2 K + g`` numbers of 4 bytes are kept of each node. Sequences are
    put together batch by batch.
    """

    kind = "node_classification"

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[str] = ("x",),
        *,
        neighbours: int = 16,
        encoding: Encoding = "return",
        encoding_dim: int = 8,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in inputs if name not in _INPUTS]
        if unknown or not inputs:
            what = f"got '{unknown[0]}'" if unknown else "got none"
            raise ClientError(f"inputs: each must be one of {', '.join(_INPUTS)}, {what}")
        for name, value in (("neighbours", neighbours), ("encoding_dim", encoding_dim)):
            if value < 1:
                raise ClientError(f"{name}: must be 1 or more, got {value}")
        if encoding not in get_args(Encoding):
            raise ClientError(f"encoding: must be one of {', '.join(get_args(Encoding))}, got '{encoding}'")
        if encoding == "none" and "pos_enc" in inputs:
            raise ClientError("encoding: is none, but inputs has pos_enc; choose return, degree or spectral")
        super().__init__()
        self.names = tuple(inputs)
        self.tables: dict[str, Table] = {}
        """Of all nodes, by name."""
        self._tensors: dict[torch.device, dict[str, Tensor]] = {}
        needed = {table for name in inputs for table in _INPUTS[name]}
        if needed:
            self._prepare(graph, needed, neighbours, encoding, encoding_dim, seed)

    def _prepare(
        self, graph: Graph, needed: set[str], neighbours: int, encoding: Encoding, dim: int, seed: int
    ) -> None:
        n = len(graph.x)
        edges = np.ones(len(graph.indices), dtype=bool)
        # A copy, as it is put in order, and the graph's own arrays are shared.
        adjacency = sparse.csr_array((edges, graph.indices, graph.indptr), shape=(n, n), copy=True)
        adjacency.sum_duplicates()
        x = np.asarray(graph.x, dtype=np.float32)
        tables = self.tables
        if "hops" in needed:
            tables["hops"] = hop_features(adjacency, x)
        elif "features" in needed:
            tables["features"] = x
        if "lists" in needed:
            lists = neighbour_lists(adjacency, neighbours, seed)
            alone = np.diff(adjacency.indptr) == 0
            lists[alone] = lists[alone, :1]
            tables["lists"] = lists.astype(np.int32)
        if "pos_enc" in needed:
            tables["pos_enc"] = _encodings(adjacency, encoding, dim, seed)
        if "means" in needed:
            tables["means"] = neighbour_means(adjacency, x)
        if "near" in needed:
            near, number = direct_neighbours(adjacency, neighbours, seed)
            tables["near"], tables["number"] = near.astype(np.int32), number.astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        """Without tensors, which a process makes for itself and which may be on a device of its own."""
        return {**self.__dict__, "_tensors": {}}

    def gather(self, arrays: Arrays, rows: Rows) -> Batch:
        """``x`` and ``y`` as in classification, and ``node``, by which inputs are looked up."""
        batch = super().gather(arrays, rows)
        if "node" in arrays:
            batch["node"] = torch.from_numpy(arrays["node"][rows]).long()
        elif self.names != ("x",):
            raise ClientError(
                f"inputs: {', '.join(self.names)} are of nodes of the graph, but the examples are none (an "
                "alignment makes such); use a client whose only input is x, e.g. client=node_mlp"
            )
        return batch

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the model is given, put together for this batch."""
        tables = self._on(batch["x"].device)
        return tuple(_MAKE[name](batch, tables) for name in self.names)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The tables as tensors on a device, which on a CPU share their memory."""
        if device not in self._tensors:
            with warnings.catch_warnings():
                # Arrays from shared memory; nobody writes to them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                made = {name: torch.from_numpy(table).to(device) for name, table in self.tables.items()}
            if "hops" in made:
                made["features"] = made["hops"][:, 0]
            self._tensors[device] = made
        return self._tensors[device]


def _encodings(adjacency: sparse.csr_array, encoding: Encoding, dim: int, seed: int) -> Table:
    if encoding == "return":
        return return_probabilities(adjacency, dim, seed)
    return degrees(adjacency, dim) if encoding == "degree" else spectral(adjacency, dim, seed)


Tables = Mapping[str, Tensor]


def _rows(name: str) -> Callable[[Batch, Tables], Tensor]:
    return lambda batch, tables: tables[name][batch["node"]]


def _of_near(name: str) -> Callable[[Batch, Tables], Tensor]:
    return lambda batch, tables: tables[name][tables["near"][batch["node"]].long()]


def _near_mask(batch: Batch, tables: Tables) -> Tensor:
    places = torch.arange(tables["near"].shape[1], device=tables["near"].device)
    return (places < tables["number"][batch["node"]].unsqueeze(-1)).to(batch["x"].dtype)


_MAKE: dict[str, Callable[[Batch, Tables], Tensor]] = {
    "x": lambda batch, _: batch["x"],
    "seq": lambda batch, tables: token_sequence(tables["hops"], tables["lists"][batch["node"]].long()),
    "pos_enc": _rows("pos_enc"),
    "node": lambda batch, _: batch["node"],
    "mean": _rows("means"),
    "near": _of_near("features"),
    "near_mean": _of_near("means"),
    "near_mask": _near_mask,
}
_INPUTS: dict[str, tuple[str, ...]] = {
    "x": (),
    "seq": ("hops", "lists"),
    "pos_enc": ("pos_enc",),
    "node": (),
    "mean": ("means",),
    "near": ("features", "near"),
    "near_mean": ("means", "near"),
    "near_mask": ("near",),
}
"""Tables that an input is made of."""
