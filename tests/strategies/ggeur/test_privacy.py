"""The Gaussian mechanism on GGEUR's statistics: calibration, sensitivity, and what clients send."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import FedAvg
from nodes import CLASSES, COUNTS, DIM, Nodes, delivered, error, examples, prepared, uploads
from scipy.stats import norm

from fedbench.engine.grid import payload_bytes
from strategies import GGEUR
from strategies.errors import StrategyError
from strategies.ggeur.moments import class_moments, from_sums, to_sums, unpack_triangle
from strategies.ggeur.privacy import GaussianMechanism, gaussian_delta, gaussian_std, private_moments

EPSILONS = [1e-3, 0.1, 0.5, 0.99, 1.0, 3.0, 10.0, 100.0]
DELTAS = [1e-10, 1e-5, 1e-2, 0.3]
LAX = {"epsilon": 1e9, "clip": 1e3, "classes": CLASSES}
"""So little noise that only clipping counts."""


# --- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("std", [0.3, 1.0, 5.0, 40.0])
def test_delta_is_that_of_theorem_8(epsilon, std):
    a, b = 1 / (2 * std) - epsilon * std, 1 / (2 * std) + epsilon * std
    expected = norm.cdf(a) - math.exp(epsilon + norm.logcdf(-b))
    # The difference of two nearly equal numbers, in the reference too; beyond b = 25 an upper bound.
    near = pytest.approx(expected, rel=1e-4 if b > 25 else 1e-8, abs=1e-13 * norm.cdf(a) + 1e-300)
    assert gaussian_delta(epsilon, std) == near


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_std_is_the_least_that_is_private(epsilon, delta):
    std = gaussian_std(epsilon, delta)
    assert gaussian_delta(epsilon, std) <= delta < gaussian_delta(epsilon, std * (1 - 1e-4))
    assert gaussian_std(epsilon, delta, 7.0) == pytest.approx(7 * std, rel=1e-9)
    if epsilon < 1:
        assert std <= math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize("epsilon", [300.0, 312.0, 320.0, 1e3, 1e6, 1e12])
def test_any_epsilon_will_do(epsilon):
    std = gaussian_std(epsilon, 1e-5)
    assert 0 < std < gaussian_std(epsilon / 1.1, 1e-5)
    # For large epsilon the loss eps = 1 / (2 s^2) + z / s decides, with z of the order of a delta quantile.
    least = (norm.isf(1e-5) + math.sqrt(norm.isf(1e-5) ** 2 + 2 * epsilon)) / (2 * epsilon)
    assert std == pytest.approx(least, rel=0.01)


# --- sensitivity ---------------------------------------------------------------------------------


class Constant:
    """A generator whose every draw is the same."""

    def __init__(self, value):
        self.value = value

    def standard_normal(self, size):
        return np.full(size, self.value)


@pytest.mark.parametrize("clip", [0.5, 3.0, 100.0])
def test_one_example_moves_the_sums_by_no_more_than_the_noise_allows(clip):
    """The noise is one Gaussian vector: with it scaled to variance 1, what counts is the L2 distance."""
    mechanism = GaussianMechanism(1.0, 1e-5, clip)
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(300):
        x = rng.normal(size=(rng.integers(1, 9), 5)) * rng.choice([0.1, 1, 50])
        with_, without = (mechanism.clipped(rows) for rows in (x, x[1:]))
        exact = mechanism.noisy_sums(with_, Constant(0.0))
        moved = exact - mechanism.noisy_sums(without, Constant(0.0))
        std = mechanism.noisy_sums(with_, Constant(1.0)) - exact
        # An entry of the triangle stands for two of the matrix, whose noise is the same.
        largest = max(largest, np.linalg.norm(moved / std))
    allowed = 1 / gaussian_std(1.0, 1e-5)
    assert largest <= allowed * (1 + 1e-6)
    assert largest == pytest.approx(allowed, rel=1e-6)  # attained by whatever is clipped


def test_clipping_shortens_what_is_too_long_and_nothing_else():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [30.0, 40.0]], np.float32)
    clipped = GaussianMechanism(1.0, 1e-5, 5.0).clipped(x)
    assert np.allclose(clipped, [[3, 4], [0.3, 0.4], [0, 0], [3, 4]], atol=1e-7)
    assert clipped.dtype == np.float64


def test_noise_has_the_stated_deviation():
    mechanism = GaussianMechanism(2.0, 1e-5, 3.0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 4))
    sums = to_sums(class_moments(x, np.zeros(30, np.int64))[0])
    noise = np.stack([mechanism.noisy_sums(mechanism.clipped(x * 0.1), rng) for _ in range(4000)])
    exact = mechanism.noisy_sums(mechanism.clipped(x * 0.1), Constant(0.0))
    assert error(exact, to_sums(class_moments(x * 0.1, np.zeros(30, np.int64))[0])) < 1e-12
    assert sums.shape == exact.shape
    measured = unpack_triangle((noise - exact).std(axis=0) / mechanism.std, 5)
    expected = np.full((5, 5), 9 / math.sqrt(2))
    expected[0] = expected[:, 0] = 3
    np.fill_diagonal(expected, 9)
    expected[0, 0] = 1
    assert np.abs(measured / expected - 1).max() < 0.06
    assert np.abs(np.corrcoef((noise - exact).T) - np.eye(15)).max() < 0.08


@pytest.mark.parametrize("clients", [1, 4])
def test_the_edge_is_where_the_eigenvalues_of_noise_end(clients):
    mechanism, rng, d, count = GaussianMechanism(1.0, 1e-5, 2.0), np.random.default_rng(2), 80, 500
    nothing = np.zeros((0, d))
    sums = np.sum([mechanism.noisy_sums(nothing, rng) for _ in range(clients)], axis=0)
    noise = unpack_triangle(sums, d + 1)[1:, 1:] / count
    assert np.linalg.eigvalsh(noise)[-1] == pytest.approx(mechanism.edge(d, clients, count), rel=0.1)


# --- moments -------------------------------------------------------------------------------------


def moments_of(x, y, mechanism, seed=0, classes=CLASSES, **options):
    return private_moments(
        x, y, classes, mechanism, lambda label: np.random.default_rng([seed, label]), **options
    )


def test_with_next_to_no_noise_they_are_those_of_the_clipped_rows():
    e = examples()[0]
    mechanism = GaussianMechanism(1e12, 1e-5, 8.0)
    clipped = mechanism.clipped(e.x)
    assert not np.allclose(clipped, e.x)
    found, exact = moments_of(e.x, e.y, mechanism), class_moments(clipped, e.y)
    assert found.keys() == exact.keys()
    for label, m in exact.items():
        assert found[label].count == m.count
        assert error(found[label].mean, m.mean) < 1e-3
        assert error(unpack_triangle(found[label].cov, DIM), m.cov) < 1e-2


def test_which_classes_are_there_does_not_show():
    """An absent class is told about as often as a class of one, at a noise of 6 examples."""
    mechanism = GaussianMechanism(1.0, 1e-5, 1.0)
    x, y = np.ones((2, 3)), np.array([0, 2])
    told = [set(moments_of(x, y, mechanism, seed)) for seed in range(400)]
    share = [np.mean([label in t for t in told]) for label in range(CLASSES)]
    assert np.allclose(share, [0.53, 0.47, 0.53, 0.47], atol=0.08)
    assert not any(moments_of(x, y, mechanism, seed, min_count=60) for seed in range(50))


def test_the_noise_is_keyed():
    e = examples()[0]
    mechanism = GaussianMechanism(3.0, 1e-5, 8.0)
    first, again, other = (moments_of(e.x, e.y, mechanism, seed) for seed in (0, 0, 1))
    for label in first:
        assert np.array_equal(first[label].cov, again[label].cov)
        assert label not in other or not np.array_equal(first[label].cov, other[label].cov)


def test_rows_that_are_not_finite_are_refused():
    e = examples()[0]
    with pytest.raises(ValueError, match=r"^x: has values that are not finite$"):
        moments_of(e.x * np.inf, e.y, GaussianMechanism(1.0, 1e-5, 1.0))


# --- over a grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [6.0, 1e3])
def test_a_large_epsilon_gives_what_clipped_features_give(clip):
    lax = {**LAX, "clip": clip, "epsilon": 1e15}
    mechanism = GaussianMechanism(1.0, 1e-5, clip)
    private = prepared(Nodes(examples()), policy="multi", **lax)
    plain = prepared(Nodes([replace(e, x=mechanism.clipped(e.x)) for e in examples()]), policy="multi")
    covariances, prototypes = delivered(private)
    expected, means = delivered(plain)
    assert covariances.keys() == expected.keys()
    assert prototypes.keys() == means.keys()
    assert private.delivery["ggeur-options"]["counts"] == plain.delivery["ggeur-options"]["counts"]
    for label, cov in expected.items():
        assert error(covariances[label], cov) < 2e-2
    for key, mean in means.items():
        assert error(prototypes[key], mean) < 1e-2


def test_noise_averages_out_over_clients_before_anything_is_projected():
    """Pooled noisy moments are those of the sum of the noisy sums, eigenvalues below the edge left out."""
    grid = Nodes(examples(counts=20 * COUNTS))
    strategy = prepared(grid, epsilon=4.0, clip=12.0, classes=CLASSES, n_min_upload=30)
    covariances, _ = delivered(strategy)
    for label, cov in covariances.items():
        summed, clients = 0.0, 0
        for upload in uploads(grid):
            if f"count/{label}" in upload:
                n, mean = int(upload[f"count/{label}"]), upload[f"mean/{label}"]
                spread = unpack_triangle(upload[f"cov/{label}"], DIM) + np.outer(mean, mean)
                z = np.block([[np.ones((1, 1)), mean[None]], [mean[:, None], spread]])
                summed, clients = summed + n * z[np.triu_indices(DIM + 1)], clients + 1
        pooled = from_sums(summed)
        values, vectors = np.linalg.eigh(unpack_triangle(pooled.cov, DIM))
        kept = values > strategy.mechanism.edge(DIM, clients, pooled.count)
        assert 0 < kept.sum() < DIM
        assert error(cov, (vectors[:, kept] * values[kept]) @ vectors[:, kept].T) < 1e-9


def test_what_the_books_say():
    exchanges = []
    strategy = prepared(Nodes(examples(), exchanges.append), epsilon=2.0, delta=1e-6, clip=9, classes=CLASSES)
    told = strategy.diagnostics
    assert (told["ggeur_epsilon"], told["ggeur_delta"]) == (2.0, 1e-6)
    assert told["ggeur_privacy_std"] == pytest.approx(gaussian_std(2.0, 1e-6, math.sqrt(3)))
    assert "ggeur_cells_50_up" in told  # of noisy counts
    queries = [e for e in exchanges if e.phase == "query.ggeur_statistics"]
    words = sum(map(len, ["float64"])) + 8 * len(["n-min-upload", "classes", "epsilon", "delta", "clip"])
    assert {e.down for e in queries} == {words}
    assert not any(e.metrics for e in exchanges)  # exact counts of originals or new vectors would tell


def test_training_uses_the_rows_as_they_are():
    grid = Nodes(examples())
    prepared(grid, epsilon=5.0, clip=1.0, classes=CLASSES, policy="multi", own=50, foreign=5)
    for node, e in enumerate(examples()):
        context = Context(1, 1, {}, grid.state_of(node), {})
        aligned = grid.client.training_set(context, e)
        assert len(aligned.y) > len(e.y)
        assert np.array_equal(aligned.x[: len(e.y)], e.x)
        assert aligned.weight == len(e.y)


def test_the_same_seed_gives_the_same_upload_and_another_node_another_noise():
    first, second = (Nodes([examples()[0]] * 2) for _ in range(2))
    for grid in (first, second):
        prepared(grid, epsilon=50.0, clip=9.0, classes=CLASSES)
    for a, b in zip(uploads(first), uploads(second), strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[k], b[k]) for k in a)
    other = Nodes([examples()[0], replace(examples()[0], node=1)])
    prepared(other, epsilon=50.0, clip=9.0, classes=CLASSES)
    a, b = uploads(other)
    assert not any(np.array_equal(a[k], b[k]) for k in a if "mean" in k and k in b)


def test_a_client_answers_one_private_query():
    """Two with the same noise at two scales could be subtracted."""
    grid = Nodes(examples())
    prepared(grid, **LAX)
    with pytest.raises(StrategyError, match=r"one private query; its privacy budget is spent$"):
        prepared(grid, **{**LAX, "epsilon": 1.0})


def test_labels_beyond_the_classes_are_refused_and_not_told():
    with pytest.raises(StrategyError, match=r"labels outside 0\.\.1; set classes to their number$"):
        prepared(Nodes(examples()), **{**LAX, "classes": 2})


def test_options_off_leave_the_messages_as_they_were():
    grid = Nodes(examples())
    strategy = prepared(grid)
    assert "quiet" not in strategy.delivery["ggeur-options"]
    assert all("classes" not in u for u in uploads(grid))
    assert payload_bytes(RecordDict({"config": grid.replies["deliver"][1000].content["metrics"]})) == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.0, "classes": 3}, r"^clip: epsilon needs it and nothing else does, got None with"),
        ({"clip": 1.0}, r"^clip: epsilon needs it and nothing else does, got 1.0 with epsilon None$"),
        (
            {"epsilon": 1.0, "clip": 1.0},
            r"^classes: epsilon and secure need the number of classes, got none$",
        ),
        ({**LAX, "classes": 0}, r"^classes: must be 1 or more, got 0$"),
        ({**LAX, "epsilon": 0.0}, r"^epsilon: must be above 0 and below inf, got 0.0$"),
        ({**LAX, "epsilon": math.inf}, r"^epsilon: must be above 0 and below inf, got inf$"),
        ({**LAX, "clip": -1.0}, r"^clip: must be above 0 and below inf, got -1.0$"),
        ({**LAX, "delta": 0.0}, r"^delta: must be above 0 and below 1, got 0.0$"),
        ({**LAX, "delta": 1.0}, r"^delta: must be above 0 and below 1, got 1.0$"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        GGEUR(FedAvg(), **options)
