"""Where a node stands in its graph, as numbers: positional encodings, made once before training.

The first two are basis-free: what a column means does not depend on the graph, so that weights which read
it can be averaged over clients with graphs of their own. What they give a node depends on nothing but the
connected part of the graph that it is in, its number and the seed. Spectral encodings are not like that.

A graph is a sparse matrix (n, n) with an entry in row i and column j for an edge between i and j, and one in
row j and column i; which value an entry has does not matter, as long as it is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh

from clients.errors import ClientError
from strategies.seeding import generator

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

EXACT = 2048
"""Most nodes of a connected part whose return probabilities are computed and not estimated."""
_COLUMNS = 32
"""Vectors that walk at once."""


def return_probabilities(
    adjacency: Any, steps: int, seed: int, *, probes: int = 128, exact: int = EXACT
) -> Floats:
    """Probability that a random walk is back at its start after 1, 2, ..., ``steps`` steps.

    Column t - 1 is the diagonal of ``P^t``, with ``P = D^-1 A``: the encoding of Dwivedi, Luu, Laurent,
    Bengio and Bresson, "Graph Neural Networks with Learnable Structural and Positional Representations", ICLR
    2022, arXiv 2110.07875, section 3.2.

    Parameters
    ----------
    adjacency : scipy.sparse matrix or array, shape (n, n)
        The graph.
    steps : int
        Longest walk, at least 1.
    seed : int
        Seed of the probes.
    probes : int
        Random vectors with which large connected parts are estimated.
    exact : int
        Most nodes of a connected part that is computed exactly, at a cost of its edges times its nodes.

    Returns
    -------
    ndarray of float32, shape (n, steps)
        0 in all columns for a node without edges, from which no walk starts.

    Raises
    ------
    ClientError
        If the graph is not square and symmetric in its edges, or an option is too small.

    Notes
    -----
    Powers of ``P`` and of the symmetric ``S = D^-1/2 A D^-1/2`` have the same diagonals, and that of
    ``S^(a + b)`` is the row sum of ``S^a * S^b``, elementwise. In a small part, rows of ``S^a`` are written
    out. In a large one, ``(S^a z) * (S^b z)`` has that mean for random signs z: Hutchinson's estimator, with
    the power halved (a = b, or a + 1 = b). For even t its standard error is at most ``sqrt(2 / probes)`` of
    the value, whatever the graph; that of the usual ``z * (S^t z)`` is larger the more nodes a walk reaches.
    For odd t it is at most ``sqrt(2 / probes)`` of the geometric mean of the values for t - 1 and t + 1.
    Columns 1 and 2 are exact. Estimates may be a little below 0, as they would otherwise be biased.
    """
    for name, value in (("steps", steps), ("probes", probes)):
        if value < 1:
            raise ClientError(f"{name}: must be 1 or more, got {value}")
    graph = _undirected(adjacency)
    S = _normalised(graph)
    n = S.shape[0]
    found = np.zeros((n, steps))
    _, part = connected_components(graph, directed=False)
    size = np.bincount(part, minlength=1)[part]

    small = np.flatnonzero(size <= exact)
    place = _places(part)
    # The k-th node of every part starts a walk in column k, so that a row holds that of S^a within its part.
    for first in range(0, int(size[small].max(initial=0)), _COLUMNS):
        small = small[size[small] > first]
        column = place[small] - first
        starts = np.zeros((len(small), _COLUMNS))
        here = np.flatnonzero((column >= 0) & (column < _COLUMNS))
        starts[here, column[here]] = 1
        found[small] += _returns(S[small][:, small], starts, steps)

    large = np.flatnonzero(size > exact)
    if len(large):
        within = S[large][:, large].astype(np.float32)
        for signs in _signs(n, probes, seed):
            found[large] += _returns(within, signs[large], steps) / probes
        found[large, 0] = within.diagonal()
        if steps > 1:
            found[large, 1] = np.asarray(within.multiply(within).sum(1)).ravel()
    return found.astype(np.float32)


def degrees(adjacency: Any, dim: int) -> Floats:
    """One-hot of the order of magnitude of each node's degree.

    Column k is 1 where ``2^k <= degree + 1 < 2^(k + 1)``; the last has no upper end.

    Parameters
    ----------
    adjacency : scipy.sparse matrix or array, shape (n, n)
        The graph.
    dim : int
        Columns, at least 1.

    Returns
    -------
    ndarray of float32, shape (n, dim)

    Raises
    ------
    ClientError
        As :func:`return_probabilities`.
    """
    if dim < 1:
        raise ClientError(f"dim: must be 1 or more, got {dim}")
    degree = np.diff(_undirected(adjacency).indptr)
    order = np.minimum(np.log2(degree + 1.0).astype(np.int64), dim - 1)
    return np.eye(dim, dtype=np.float32)[order]


def spectral(adjacency: Any, dim: int, seed: int = 0) -> Floats:
    """Eigenvectors of ``D^-1/2 A D^-1/2`` with the largest eigenvalues, times ``sqrt(n)``.

    The trivial one, ``D^1/2 1``, is left out. In a graph of several connected parts, as that of clients
    without edges between them is, those that tell the parts apart come first.

    Parameters
    ----------
    adjacency : scipy.sparse matrix or array, shape (n, n)
        The graph.
    dim : int
        Eigenvectors, at least 1 and below n.
    seed : int
        Of the vector that the search starts from.

    Returns
    -------
    ndarray of float32, shape (n, dim)
        Entries of nodes without edges are finite and say nothing.

    Raises
    ------
    ClientError
        As :func:`return_probabilities`.

    Notes
    -----
    For comparison alone, since no federation could compute it: the columns are a basis that is arbitrary in
    sign and, for equal eigenvalues, in rotation, so that they must come from one graph, in one place. Signs
    are chosen such that the largest entry is positive.
    """
    S = _normalised(graph := _undirected(adjacency))
    n = S.shape[0]
    if not 1 <= dim < n:
        raise ClientError(f"dim: must be at least 1 and below the graph's {n} nodes, got {dim}")
    trivial = np.sqrt(np.diff(graph.indptr))
    trivial /= max(np.linalg.norm(trivial), 1.0)

    def without_trivial(v: Numbers) -> Numbers:
        v = v.ravel()
        # Down to -2, below all eigenvalues of S.
        return S @ v - 3 * trivial * (trivial @ v)

    start = generator(seed, "graph spectral start").standard_normal(n)
    values, vectors = eigsh(
        LinearOperator((n, n), without_trivial, dtype=np.float64), dim, which="LA", v0=start
    )
    vectors = vectors[:, np.argsort(-values, kind="stable")]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(dim)]
    return (vectors * np.sign(largest) * np.sqrt(n)).astype(np.float32)


def _undirected(adjacency: Any) -> sparse.csr_array:
    """Where there are edges, in ascending order within rows."""
    if not sparse.issparse(adjacency) or adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        kind = f"shape {adjacency.shape}" if sparse.issparse(adjacency) else type(adjacency).__name__
        raise ClientError(f"adjacency: must be a sparse matrix of scipy's with a row a node, got {kind}")
    graph = sparse.csr_array(adjacency, copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    back = graph.T.tocsr()
    back.sort_indices()
    if not (np.array_equal(graph.indptr, back.indptr) and np.array_equal(graph.indices, back.indices)):
        raise ClientError("adjacency: must have every edge in both directions, but some have one")
    return sparse.csr_array((np.ones(graph.nnz, dtype=bool), graph.indices, graph.indptr), shape=graph.shape)


def _normalised(graph: sparse.csr_array) -> sparse.csr_array:
    """``S = D^-1/2 A D^-1/2``; rows without edges stay 0."""
    degree = np.diff(graph.indptr)
    scale = np.maximum(degree, 1) ** -0.5
    values = np.repeat(scale, degree) * scale[graph.indices]
    return sparse.csr_array((values, graph.indices, graph.indptr), shape=graph.shape)


def _places(part: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Of each node, how many with lower numbers are in its part."""
    order = np.argsort(part, kind="stable")
    count = np.bincount(part)
    place = np.empty(len(part), dtype=np.int64)
    place[order] = np.arange(len(part)) - np.repeat(np.cumsum(count) - count, count)
    return place


def _signs(n: int, probes: int, seed: int) -> Iterator[Floats]:
    """Random signs (n, some) of the probes; those of a node depend on its number and the seed."""
    for first in range(0, probes, _COLUMNS):
        rng = generator(seed, "graph return probes", first)
        signs = rng.integers(2, size=(n, min(_COLUMNS, probes - first)), dtype=np.int8)
        yield (2 * signs - 1).astype(np.float32)


def _returns(S: sparse.csr_array, start: npt.NDArray[Any], steps: int) -> npt.NDArray[Any]:
    """Row sums of ``(S^a start) * (S^b start)`` for a + b = 1, ..., ``steps``."""
    found = np.empty((len(start), steps), dtype=start.dtype)
    before = after = start
    for t in range(steps):
        if t % 2 == 0:
            before, after = after, S @ after
            found[:, t] = np.einsum("ij,ij->i", before, after)
        else:
            found[:, t] = np.einsum("ij,ij->i", after, after)
    return found
