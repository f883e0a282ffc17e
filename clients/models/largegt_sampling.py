"""What LargeGT needs to know of a graph, made once before training: who attends to whom, and hop features.

Dwivedi et al., "Graph Transformers for Large Graphs", arXiv 2312.11109, as its released code does it; from a
description (cited as "spec" with its sections), not from that code. :mod:`clients.models.largegt` is the
model.

Sizes in docstrings: n nodes with F features; K nodes in a list, the first of which is the seed. A graph is a
sparse matrix (n, n) with an entry in row i and column j for an edge from i to j, so that an undirected
graph has both; which value an entry has does not matter, as long as it is not 0. A node may have an edge to
itself and then is a neighbour of its own; the spec is silent on that (RECONSTRUCTED).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from torch import Tensor

from clients.errors import ClientError
from strategies.seeding import generator

Integers = npt.NDArray[np.int64]

HOPS = 3
"""Tokens of a node: its features, and those of its first and of its second hop."""
_PATHS = 1 << 23
"""Most paths of two edges that are followed at once, if a single node has not more."""
_ROWS = 1 << 13
"""Most nodes that draw at once, so that what they drew stays in a cache."""


def neighbour_lists(
    adjacency: Any, length: int, seed: int, nodes: Integers | None = None, ids: Integers | None = None
) -> Integers:
    """Nodes that each seed attends to: itself, then ``length`` - 1 of its first two hops (spec 2.1).

    The candidates of node i are N1(i), to where its edges lead, and then N2(i), to where paths of two edges
    do, i itself included if one does; a node of both is a candidate twice. With as many candidates as
    are needed, or more, they are drawn without replacement; with fewer, they are repeated in order; with
    none, distinct nodes of the whole graph are drawn.

    Parameters
    ----------
    adjacency : scipy.sparse matrix or array, shape (n, n)
        The graph.
    length : int
        K, at least 1.
    seed : int
        Seed of the run.
    nodes : ndarray of int64, optional
        Seeds to make lists for; all nodes by default.
    ids : ndarray of int64, shape (n,), optional
        Names under which nodes draw, not negative; their numbers by default. For a client's subgraph: numbers
        in the whole graph, so that clients draw independently.

    Returns
    -------
    ndarray of int64, shape (seeds, K)
        Numbers of nodes. What a node draws depends on the seed, its name and its number of candidates.

    Raises
    ------
    ClientError
        If an argument does not fit the graph.

    Notes
    -----
    N1 and N2 are each in ascending order, and those that are drawn in no particular one: the model looks at
    the set alone. In a graph of fewer than K - 1 nodes, a node without candidates gets all of them, repeated
    in order; the spec has no such graph (RECONSTRUCTED).

    Paths are followed for as many nodes at once as have about 8 million of them. Draws are Floyd's sampling
    without replacement (Bentley and Floyd, "A sample of brilliance", Communications of the ACM, 1987), for
    thousands of nodes at once, with random numbers that are a hash of the seed, the node's name and the
    number of the draw (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    graph = _pattern(adjacency)
    n = graph.shape[0]
    if length < 1:
        raise ClientError(f"length: lists have the seed and so 1 node or more, got {length}")
    seeds = np.arange(n) if nodes is None else _numbers("nodes", nodes, n)
    names = (np.arange(n) if ids is None else _names(ids, n)).astype(np.uint64)
    key = generator(seed, "largegt neighbour lists").integers(2**64, dtype=np.uint64)
    lists = np.empty((len(seeds), length), dtype=np.int64)
    lists[:, 0] = seeds
    for rows in _blocks(graph, seeds):
        lists[rows, 1:] = _neighbours(graph, seeds[rows], length - 1, key ^ _scrambled(names[seeds[rows]]))
    return lists


def propagation(adjacency: Any) -> sparse.csr_array:
    """``P = diag(colsum A~)^-1/2 A~ diag(rowsum A~)^-1/2`` with ``A~ = A + I``, in float64 (spec 2.2).

    For an undirected graph, the usual symmetric normalisation. For a directed one, rows are scaled by
    in-degrees and columns by out-degrees, as in the authors' code.
    """
    graph = _pattern(adjacency).astype(np.float64)
    closed = (graph + sparse.eye_array(graph.shape[0])).tocsr()
    rows, columns = (sparse.diags_array(closed.sum(axis) ** -0.5) for axis in (0, 1))
    return (rows @ closed @ columns).tocsr()


def hop_features(adjacency: Any, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Features of each node, and of its first and second hop: X, P X and P P X (spec 2.2).

    Parameters
    ----------
    adjacency : scipy.sparse matrix or array, shape (n, n)
        The graph.
    x : ndarray, shape (n, F)
        X.

    Returns
    -------
    ndarray, shape (n, 3, F)
        In the type of ``x``, which P is rounded to.

    Raises
    ------
    ClientError
        If the graph is not square, or ``x`` is not of its nodes.
    """
    P = propagation(adjacency)
    if x.ndim != 2 or len(x) != P.shape[0] or not np.issubdtype(x.dtype, np.floating):
        raise ClientError(
            f"x: must be floating features of the graph's {P.shape[0]} nodes, ({P.shape[0]}, F), "
            f"got {x.dtype} of shape {x.shape}"
        )
    P = P.astype(x.dtype)
    hops = np.empty((len(x), HOPS, x.shape[1]), dtype=x.dtype)
    hops[:, 0] = x
    for hop in range(1, HOPS):
        hops[:, hop] = P @ hops[:, hop - 1]
    return hops


def token_sequence(hops: Tensor, lists: Tensor) -> Tensor:
    """Tokens of seeds (spec 2.3): of each node in the list, its features, first hop and second hop.

    Parameters
    ----------
    hops : Tensor, shape (n, 3, F)
        Of all nodes, from :func:`hop_features`.
    lists : Tensor of int64, shape (B, K)
        Of the seeds, from :func:`neighbour_lists`.

    Returns
    -------
    Tensor, shape (B, 3K, F)
        ``seq`` of :class:`clients.models.largegt.LargeGT`; its first token is the seed's features.
    """
    return hops[lists].flatten(1, 2)


def _pattern(adjacency: Any) -> sparse.csr_array:
    """Where there are edges, rows in ascending order."""
    if not sparse.issparse(adjacency) or adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        kind = f"shape {adjacency.shape}" if sparse.issparse(adjacency) else type(adjacency).__name__
        raise ClientError(f"adjacency: must be a sparse matrix of scipy's with a row a node, got {kind}")
    graph = sparse.csr_array(adjacency, copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    return sparse.csr_array((np.ones(graph.nnz, dtype=bool), graph.indices, graph.indptr), shape=graph.shape)


def _numbers(name: str, nodes: Integers, n: int) -> Integers:
    nodes = np.asarray(nodes)
    if nodes.ndim != 1 or (nodes.size and not 0 <= nodes.min() <= nodes.max() < n):
        raise ClientError(f"{name}: must be numbers of the graph's {n} nodes, 0 to {n - 1}, in one axis")
    return nodes.astype(np.int64)


def _names(ids: Integers, n: int) -> Integers:
    ids = np.asarray(ids)
    if ids.shape != (n,) or (ids.size and ids.min() < 0):
        raise ClientError(
            f"ids: must be one for each of the graph's {n} nodes, and not negative, got shape {ids.shape}"
        )
    return ids.astype(np.int64)


def _blocks(graph: sparse.csr_array, seeds: Integers) -> Iterator[slice]:
    """Seeds that are taken together, in order."""
    degree = np.diff(graph.indptr).astype(np.int64)
    reached = np.concatenate([[0], np.cumsum(degree[graph.indices])])
    paths = reached[graph.indptr[1:]] - reached[graph.indptr[:-1]] + degree
    ends = np.cumsum(paths[seeds])
    start = 0
    while start < len(seeds):
        before = ends[start - 1] if start else 0
        fit = int(np.searchsorted(ends, before + _PATHS, side="right"))
        stop = min(max(fit, start + 1), start + _ROWS)
        yield slice(start, stop)
        start = stop


def _neighbours(
    graph: sparse.csr_array, seeds: Integers, count: int, keys: npt.NDArray[np.uint64]
) -> Integers:
    """Candidates of the seeds, or any nodes for those that have none: (seeds, count)."""
    first = graph[seeds]
    second = first @ graph
    second.sort_indices()
    degree, degree2 = (np.diff(hop.indptr).astype(np.int64) for hop in (first, second))
    candidates = degree + degree2
    place = _places(np.where(candidates > 0, candidates, graph.shape[0]), count, keys)
    near = place < degree[:, None]
    far = ~near & (candidates > 0)[:, None]
    found = place.copy()
    found[near] = first.indices[(place + first.indptr[:-1, None])[near]]
    found[far] = second.indices[(place + (second.indptr[:-1] - degree)[:, None])[far]]
    return found


def _places(size: Integers, count: int, keys: npt.NDArray[np.uint64]) -> Integers:
    """(rows, count) of entries of lists of ``size`` each: distinct at random, or all in order, repeatedly."""
    places = np.arange(count) % size[:, None]
    long = size >= count
    size, keys = size[long], keys[long]
    drawn = np.empty((count, len(size)), dtype=np.int64)
    for t in range(count):
        last = size - count + t
        entry = _uniform(keys, t, last + 1)
        taken = (drawn[:t] == entry).any(0)
        drawn[t] = np.where(taken, last, entry)
    places[long] = drawn.T
    return places


def _uniform(keys: npt.NDArray[np.uint64], draw: int, bound: Integers) -> Integers:
    """A draw of each key from 0 to ``bound`` - 1; bounds are far below 2^32, so that the bias is too."""
    step = np.uint64((draw + 1) * 0x9E3779B97F4A7C15 % 2**64)
    bits = _scrambled(keys + step) >> np.uint64(32)
    return (bits * bound.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def _scrambled(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's bijection of 64 bits, after which neighbours have nothing in common."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
