"""Graphs whose nodes are classified: what all data sets of nodes share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import ARCHIVE_ERRORS, broken
from scenarios.federation import ClientSplits, Dataset, Meta, Rows, ScenarioError

Integers = npt.NDArray[np.integer[Any]]
Features = npt.NDArray[np.float32]


class Graph(NamedTuple):
    """An undirected graph of n nodes with F features, in compressed sparse rows."""

    indptr: Rows
    """Where the neighbours of each node begin, shape (n + 1,)."""
    indices: Integers
    """Neighbours in ascending order, node after node."""
    x: Features
    """Features, shape (n, F)."""


@dataclass(frozen=True)
class GraphDataset(Dataset):
    """A data set whose rows are the nodes of an undirected graph without loops.

    ``arrays`` has ``x`` (float32), ``y`` (int64) and ``node``, a row's own number. ``shared`` has the graph
    in compressed sparse rows, every edge in both directions: ``indptr``, int64, shape (nodes + 1,), and
    ``indices``, int32 unless numbers of nodes need more, in ascending order for each node.

    All nodes are rows. Those that ``train``, ``val`` and ``test`` leave out, because they have no label
    (their ``y`` is 0) or a public split does not use them, are neither trained nor tested on, but have
    features and edges like any other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        indptr, indices = self.shared["indptr"], self.shared["indices"]
        if indptr.shape != (len(self) + 1,) or indices.shape != (indptr[-1],):
            raise ScenarioError(
                f"data '{self.name}': a graph of {len(self)} nodes has an indptr of {len(self) + 1} entries "
                f"and as many indices as its last one says, got shapes {indptr.shape} and {indices.shape}"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """As of any data set; also ``graph``."""
        graph = Graph(self.shared["indptr"], self.shared["indices"], self.arrays["x"])
        return {**super().facts, "graph": graph}

    def localised(self, clients: ClientSplits) -> GraphDataset:
        """Without the edges that no client sees whole: those between two clients, or to a node of nobody.

        Who trains, validates or tests on a node holds it. A node in none of the data's own splits goes to the
        client that holds most of its neighbours, the first of several; next, in turn, come such nodes whose
        neighbours had no holder before. Nobody holds those that this never reaches, nor nodes of the splits
        that a skew leaves out or that are of a (domain, class) cell which no client trains on. So a single
        client that is given all rows keeps all edges, but for those of connected parts without any.

        Nodes keep their numbers. ``notes`` counts undirected edges: ``edges``, and ``edges_dropped`` of them.
        """
        indptr, indices = self.shared["indptr"], self.shared["indices"]
        holder = np.full(len(self), -1, dtype=np.int32)
        for parts in (clients.train, clients.val, clients.test):
            holder[parts.rows] = parts.owner
        self._take_in(holder, len(clients))
        own = np.repeat(holder, np.diff(indptr))
        kept = (own >= 0) & (own == holder[indices])
        before = np.concatenate([[0], np.cumsum(kept)])
        shared = {"indptr": before[indptr], "indices": indices[kept]}
        notes = {"edges": float(len(kept) // 2), "edges_dropped": float((len(kept) - before[-1]) // 2)}
        return replace(self, shared={**self.shared, **shared}, notes={**self.notes, **notes})

    def _take_in(self, holder: npt.NDArray[np.int32], clients: int) -> None:
        """Enter who holds the nodes that are in no split."""
        if self.train is None:
            return
        free = np.ones(len(self), dtype=bool)
        for rows in (self.train, self.val, self.test):
            if rows is not None:
                free[rows] = False
        indptr = self.shared["indptr"]
        source = np.repeat(np.flatnonzero(free), np.diff(indptr)[free])
        target = self.shared["indices"][np.repeat(free, np.diff(indptr))]
        while len(source):
            near = holder[target] >= 0
            if not near.any():
                return
            pair, count = np.unique(source[near] * clients + holder[target[near]], return_counts=True)
            node, client = pair // clients, pair % clients
            order = np.lexsort((-count, node))  # stable, so the first client of several stays before them
            node, first = np.unique(node[order], return_index=True)
            holder[node] = client[order][first]
            waiting = holder[source] < 0
            source, target = source[waiting], target[waiting]


def node_dataset(
    name: str,
    x: Features,
    y: Rows,
    edges: tuple[Integers, Integers],
    classes: tuple[str, ...],
    *,
    splits: Mapping[str, Rows] | None = None,
    domain: Rows | None = None,
    domains: tuple[str, ...] = (),
) -> GraphDataset:
    """Make a data set of nodes and edges.

    Parameters
    ----------
    name : str
        Of the data set.
    x : ndarray of float32, shape (nodes, F)
        Features.
    y : ndarray of int64, shape (nodes,)
        Labels; -1 for a node without one, which is taken out of all splits.
    edges : tuple of two ndarrays of int, shape (edges,)
        As :func:`undirected` takes them.
    classes : tuple of str
        Names in label order.
    splits : mapping of str to ndarray of int, optional
        Rows of ``train``, ``val`` and ``test``, where the data have official ones.
    domain, domains
        As in :class:`scenarios.federation.Dataset`; by default a single domain of the data's name.
    """
    labelled = y >= 0
    official = {part: rows[labelled[rows]].astype(np.int64) for part, rows in (splits or {}).items()}
    if not labelled.all():
        official.setdefault("train", np.flatnonzero(labelled))
    indptr, indices = undirected(*edges, len(y))
    return GraphDataset(
        name=name,
        arrays={"x": x, "y": np.where(labelled, y, 0), "node": np.arange(len(y), dtype=np.int64)},
        domain=np.zeros(len(y), dtype=np.int64) if domain is None else domain,
        domains=domains or (name,),
        meta=Meta("node_classification", x.shape[1:], classes),
        shared={"indptr": indptr, "indices": indices},
        train=official.get("train"),
        val=official.get("val"),
        test=official.get("test"),
    )


def undirected(source: Integers, target: Integers, nodes: int) -> tuple[Rows, Integers]:
    """Compressed sparse rows of the simple undirected graph with these edges.

    Parameters
    ----------
    source, target : ndarray of int, shape (edges,)
        Ends, in any direction; an edge may be there twice or in both directions, and loops are left out.
    nodes : int
        Number of nodes; ends are below it.

    Returns
    -------
    indptr : ndarray of int64, shape (nodes + 1,)
    indices : ndarray of int32 (int64 where that cannot count the nodes or edges)
        Sorted for each node.
    """
    from scipy import sparse

    proper = source != target
    kind = np.int32 if max(nodes, 2 * len(source)) < 2**31 else np.int64
    source, target = (ends[proper].astype(kind, copy=False) for ends in (source, target))
    ends = (np.minimum(source, target), np.maximum(source, target))
    # As truth values, of which any number of equal edges adds up to one.
    upper = sparse.coo_array((np.ones(len(source), dtype=bool), ends), shape=(nodes, nodes)).tocsr()
    graph = (upper + upper.T.tocsr()).tocsr()
    graph.sort_indices()
    return graph.indptr.astype(np.int64), graph.indices


def read_table(path: Path, **options: Any) -> Any:
    """Table of a CSV file, read by pandas with these options.

    Raises
    ------
    ScenarioError
        Where it cannot be read so.
    """
    import pandas as pd  # type: ignore[import-untyped]  # slow to import, so only here

    try:
        return pd.read_csv(path, **options)
    except (*ARCHIVE_ERRORS, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise broken(path, f"cannot be read as CSV ({reason})") from error


def read_edges(path: Path, nodes: int, **options: Any) -> tuple[Integers, Integers]:
    """Ends of the edges in the two columns of a CSV file.

    Raises
    ------
    ScenarioError
        Where it cannot be read, or an end is no number of a node, 0 to ``nodes`` - 1.
    """
    ends = read_table(path, dtype=np.int64, **options).to_numpy()
    if ends.ndim != 2 or ends.shape[1] != 2:
        raise broken(path, f"holds {ends.shape[1]} columns, not the two ends of edges")
    if ends.size and not 0 <= ends.min() <= ends.max() < nodes:
        raise broken(path, f"holds edges of nodes {ends.min()} to {ends.max()}, not 0 to {nodes - 1}")
    return ends[:, 0], ends[:, 1]


def read_active(path: Path, nodes: int, size: int) -> Any:
    """Features that are 0 or 1, from a gzipped JSON file with the numbers of each node's ones.

    Parameters
    ----------
    path : Path
        The file; numbers may be repeated.
    nodes, size : int
        How many nodes it has, 0 to ``nodes`` - 1, and how many features there are.

    Returns
    -------
    scipy.sparse.csr_array of float32, shape (nodes, size)

    Raises
    ------
    ScenarioError
        Where it cannot be read, or is not of these nodes and features.
    """
    from scipy import sparse

    try:
        with gzip.open(path) as file:
            active = json.load(file)
        lists = [np.array(active[str(node)], dtype=np.int64) for node in range(len(active))]
    except (*ARCHIVE_ERRORS, ValueError, TypeError, KeyError) as error:
        raise broken(path, f"not lists of numbers for nodes 0, 1, ... ({error!r})") from error
    if len(lists) != nodes:
        raise broken(path, f"holds {len(lists)} nodes, not {nodes}")
    column = np.concatenate([np.empty(0, dtype=np.int64), *lists])
    if column.size and not 0 <= column.min() <= column.max() < size:
        raise broken(path, f"holds features {column.min()} to {column.max()}, not 0 to {size - 1}")
    row = np.repeat(np.arange(nodes), [len(each) for each in lists])
    ones = sparse.coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=(nodes, size)).tocsr()
    return ones.astype(np.float32)


def projected(x: Any, features: int | None, seed: int) -> Features:
    """Features brought to fewer by a Gaussian random matrix, or all of them.

    The matrix depends on the two sizes and the seed alone, not on the data: clients that know these have the
    same without telling each other anything of their nodes, which no principal component analysis would give
    them. Distances are kept as they were, up to a factor near 1 (Johnson and Lindenstrauss).

    Parameters
    ----------
    x : scipy.sparse matrix or array, shape (nodes, size)
        Features.
    features : int or None
        How many to make; ``None`` keeps all.
    seed : int
        Of the matrix, whose entries have mean 0 and variance 1 / ``features``.

    Returns
    -------
    ndarray of float32, shape (nodes, features) or (nodes, size)
    """
    if features is None:
        return x.toarray().astype(np.float32, copy=False)
    from sklearn.random_projection import GaussianRandomProjection

    projection = GaussianRandomProjection(features, random_state=seed).fit(x[:1])
    return np.asarray(x @ projection.components_.T.astype(np.float32), dtype=np.float32)


def check_features(features: int | None, size: int) -> None:
    """Raise ValueError where more features are asked for than there are; fewer are for others to check."""
    if features is not None and features > size:
        raise ValueError(f"features: above the {size} that there are, got {features}; null keeps them all")


def check_once(field: str, values: Sequence[str]) -> None:
    """Raise ValueError where something is named twice."""
    for value in values:
        if list(values).count(value) > 1:
            raise ValueError(f"{field}: '{value}' is named twice; use each once")
