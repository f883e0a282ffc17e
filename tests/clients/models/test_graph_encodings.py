"""Positional encodings against dense matrices, and against what must hold of them on any graph."""

import numpy as np
import pytest
from scipy import sparse

from clients.errors import ClientError
from clients.models.graph_encodings import degrees, return_probabilities, spectral


def graph(edges, n):
    source, target = np.array(edges).reshape(-1, 2).T
    ends = (np.concatenate([source, target]), np.concatenate([target, source]))
    return sparse.csr_array((np.ones(2 * len(source)), ends), shape=(n, n))


def random_graph(n=80, edges=160, seed=0):
    rng = np.random.default_rng(seed)
    return graph(rng.integers(n, size=(edges, 2)), n)


def walks(adjacency, steps):
    """Diagonals of powers of the dense ``D^-1 A``."""
    A = (adjacency.toarray() != 0).astype(float)
    P = A / np.maximum(A.sum(1, keepdims=True), 1)
    return np.stack([np.diag(np.linalg.matrix_power(P, t)) for t in range(1, steps + 1)], 1)


def test_return_probabilities_of_small_graphs_are_exact():
    """Rows of several parts of different sizes, among them nodes alone, more than walk at once."""
    parts = [random_graph(80, 200), random_graph(30, 25, seed=1), graph([(0, 1)], 4)]
    order = np.random.default_rng(2).permutation(114)
    mixed = sparse.csr_array(sparse.block_diag(parts).tocsr()[order][:, order])
    found = return_probabilities(mixed, 7, seed=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, walks(mixed, 7), atol=1e-6)
    alone = np.diff(mixed.indptr) == 0
    assert alone.any()
    assert (found[alone] == 0).all()


def test_return_probabilities_of_a_large_part_are_estimated_within_the_stated_error():
    adjacency, probes = random_graph(400, 1600), 256
    exact = walks(adjacency, 8)
    found = return_probabilities(adjacency, 8, seed=0, probes=probes, exact=100)
    np.testing.assert_allclose(found[:, :2], exact[:, :2], atol=1e-6)
    even = found[:, 3::2] / np.maximum(exact[:, 3::2], 1e-9) - 1
    error = np.sqrt((even[np.diff(adjacency.indptr) > 0] ** 2).mean(0))
    assert (error < 1.1 * np.sqrt(2 / probes)).all()
    assert (error > 0).all()
    bound = np.sqrt(exact[:, 1:7:2] * exact[:, 3::2])
    odd = np.abs(found[:, 2::2] - exact[:, 2::2])
    assert np.sqrt((odd**2).sum() / (bound**2).sum()) < 1.1 * np.sqrt(2 / probes)
    biased = [return_probabilities(adjacency, 8, seed=s, exact=100) - exact for s in range(20)]
    bias = np.mean(biased, (0, 1))
    assert abs(bias[3::2] / exact[:, 3::2].mean(0)).max() < 0.02
    assert abs(bias[2::2] / bound.mean(0)).max() < 0.02


@pytest.mark.parametrize("exact", [2048, 20])
def test_an_encoding_depends_on_nothing_but_the_nodes_own_part(exact):
    mine, others = random_graph(60, 200), [random_graph(90, 200, seed=s) for s in (1, 2)]
    found = [
        return_probabilities(sparse.block_diag([mine, other]).tocsr(), 6, 0, exact=exact)[:60]
        for other in others
    ]
    np.testing.assert_array_equal(*found)


def test_degrees_are_counted_in_powers_of_two():
    star = graph([(0, leaf) for leaf in range(1, 8)] + [(1, 2)], 9)
    assert degrees(star, 4).argmax(1).tolist() == [3, 1, 1, 1, 1, 1, 1, 1, 0]
    assert degrees(star, 2).argmax(1).tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert (degrees(star, 4).sum(1) == 1).all()


def test_spectral_encodings_are_eigenvectors_without_the_trivial_one():
    adjacency = random_graph(80, 240)
    A = (adjacency.toarray() != 0).astype(float)
    scale = np.maximum(A.sum(1), 1) ** -0.5
    S = scale[:, None] * A * scale
    values, vectors = np.linalg.eigh(S)
    connected = np.isclose(values, 1).sum() == 1
    assert connected
    found = spectral(adjacency, 5).astype(float)
    np.testing.assert_allclose(found.T @ found / 80, np.eye(5), atol=1e-4)
    for column, value, vector in zip(found.T, values[-2::-1], vectors.T[-2::-1], strict=False):
        np.testing.assert_allclose(S @ column, value * column, atol=1e-4)
        np.testing.assert_allclose(abs(column @ vector), np.sqrt(80), rtol=1e-4)
        assert column[np.abs(column).argmax()] > 0


def test_spectral_encodings_tell_parts_apart_and_are_finite():
    two = sparse.block_diag([random_graph(40, 120), random_graph(40, 120, seed=1), np.zeros((3, 3))]).tocsr()
    first = spectral(two, 3)[:, 0]
    assert np.isfinite(first).all()
    degree = np.diff(two.indptr)
    left, right = first[:40][degree[:40] > 0], first[40:80][degree[40:80] > 0]
    assert np.median(left) * np.median(right) < 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: return_probabilities(sparse.csr_array((2, 3)), 3, 0), r"adjacency: .* shape \(2, 3\)"),
        (lambda: degrees(np.eye(3), 3), "adjacency: .* got ndarray"),
        (lambda: degrees(sparse.csr_array(([1.0], ([0], [1])), shape=(2, 2)), 3), "adjacency: .* both"),
        (lambda: return_probabilities(graph([(0, 1)], 2), 0, 0), "steps: must be 1"),
        (lambda: degrees(graph([(0, 1)], 2), 0), "dim: must be 1"),
        (lambda: spectral(graph([(0, 1)], 2), 2), "dim: .* below the graph's 2 nodes, got 2"),
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises(ClientError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
