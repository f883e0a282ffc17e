import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from labelled import assert_halves_are_named, assert_resumes, skewed
from quadratic import SERVER, Quadratics, two_clients, vector

from strategies import FedDyn, LocalRule
from strategies.client import KEPT
from strategies.feddyn import TRAINED
from strategies.method import Answer


def by_hand(case, rounds, alpha, chosen=None):
    """Algorithm 1 for quadratics: the model after each round, ``h`` and all linear terms."""
    everyone = range(len(case.a))
    x, h = case.start, np.zeros_like(case.start)
    linear = [np.zeros_like(h) for _ in everyone]
    trace = []
    for t in range(rounds):
        clients = chosen[t] if chosen else everyone
        ends = []
        for i in clients:
            y = x
            for _ in range(case.taken[i]):
                y = y - case.lr * (case.gradient(i, y) - linear[i] + alpha * (y - x))
            linear[i] = linear[i] - alpha * (y - x)
            ends.append(y)
        h = h - alpha * len(clients) / len(case.a) * case.mean([y - x for y in ends], clients)
        x = case.mean(ends, clients) - h / alpha
        trace.append(x)
    return np.array(trace), h, linear


def assert_equals_by_hand(case, alpha, rounds=3, chosen=None):
    strategy = FedDyn(alpha=alpha, **SERVER)
    got, grid = case.run(strategy, rounds=rounds, chosen=chosen)
    want, h, linear = by_hand(case, rounds, alpha, chosen)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    state = strategy.state["h"]
    np.testing.assert_allclose(np.concatenate([state[k] for k in sorted(state)]), h, rtol=0, atol=1e-10)
    for node, term in enumerate(linear):
        kept = vector(grid.state_of(node).array_records[KEPT])
        np.testing.assert_allclose(kept, term, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"steps": (2, 5)}, {"rows": (3, 1)}], ids=["plain", "unequal steps", "weighted"]
)
def test_rounds_equal_the_algorithm_by_hand(options, rounds):
    assert_equals_by_hand(two_clients(**options), alpha=0.3, rounds=rounds)


def four_clients(**options):
    rng = np.random.default_rng(0)
    return Quadratics(
        rng.uniform(0.5, 1.5, (4, 4)), rng.normal(size=(4, 4)), np.zeros(4), (1,) * 4, **options
    )


def test_with_some_clients_the_sum_is_over_all_and_what_the_others_keep_stays():
    assert_equals_by_hand(four_clients(), alpha=0.3, rounds=4, chosen=[[0, 2], [1], [0, 1, 3], [2]])


def test_where_alpha_vanishes_the_first_round_goes_twice_fedavgs_way():
    case = two_clients(rows=(3, 1))
    got, _ = case.run(FedDyn(alpha=1e-13, **SERVER), rounds=1)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=1)
    np.testing.assert_allclose(got, 2 * plain - case.start, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [(1, 1), (3, 1)])
def test_many_local_steps_reach_the_common_optimum_where_fedavg_does_not(rows):
    case = two_clients(steps=15, lr=0.3, rows=rows)
    weight = np.array(rows)[:, None]
    optimum = (weight * case.a * case.b).sum(0) / (weight * case.a).sum(0)
    got, _ = case.run(FedDyn(alpha=0.7, **SERVER), rounds=40)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=10)
    np.testing.assert_allclose(got[-1], optimum, atol=1e-6)
    assert np.abs(plain[-1] - optimum).max() > 0.1


def test_what_was_not_trained_is_averaged():
    server = FedDyn(alpha=0.5)
    server.population, server.sent = 2, {"w": np.zeros(2), "mean": np.zeros(2)}
    mean = {"w": np.ones(2), "mean": np.ones(2)}
    got = server.combine(mean, [Answer(i, 0.5, mean, {TRAINED: {"w": np.zeros(0)}}, {}) for i in (0, 1)])
    np.testing.assert_array_equal(got["mean"], 1.0)
    np.testing.assert_array_equal(got["w"], 2.0)
    assert server.state["h"].keys() == {"w"}


def test_state_is_given_and_taken():
    assert_resumes(skewed(), lambda: FedDyn(alpha=0.1, **SERVER))


def test_a_missing_half_is_named():
    assert_halves_are_named(FedDyn(**SERVER))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_an_alpha_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"^alpha: must be above 0"):
        FedDyn(alpha=value)
