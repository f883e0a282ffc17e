import numpy as np
import pytest
from clocked import by_hand, clocked, rounds_of
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, four_clients, two_clients, vector

from strategies import FedAsync, FedAsyncRule, LocalRule, StrategyError

TENTHS = (10, 26, 33, 47)
"""What each of four clients takes, such that no two answer at the same moment."""


def trained(case, rho):
    """Local SGD with the proximal term towards the start."""

    def train(client, start):
        x = start
        for _ in range(case.taken[client]):
            x = x - case.lr * (case.gradient(client, x) + rho * (x - start))
        return x

    return train


def trust(kind, tau, a, b):
    if kind == "hinge":
        return 1.0 if tau <= b else 1 / (a * (tau - b) + 1)
    return (1 + tau) ** -a if kind == "polynomial" else 1.0


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize(
    ("kind", "a", "b"), [("constant", 0.5, 4), ("polynomial", 0.5, 4), ("polynomial", 2, 0), ("hinge", 10, 1)]
)
def test_updates_equal_the_algorithm_by_hand(kind, a, b, rho):
    case = four_clients()
    strategy = FedAsync(alpha=0.7, staleness=kind, a=a, b=b, rho=rho, concurrency=4, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, TENTHS), 15)

    def update(x, answers):
        ((_, _, y, age),) = answers
        alpha = 0.7 * trust(kind, age, a, b)
        return (1 - alpha) * x + alpha * y

    want = by_hand(case, TENTHS, 15, 1, trained(case, rho), update)
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], rtol=0, atol=1e-12)
    np.testing.assert_allclose([t for _, t in got], [t for _, t in want], rtol=0, atol=1e-6)


def test_the_first_updates_of_two_clients_by_hand():
    """Client 0 answers at 1, 2 and 3 s; client 1 at 2.6 s, when the model has moved twice."""
    case = two_clients()
    strategy = FedAsync(alpha=0.5, rho=0.0, concurrency=2, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, (10, 26)), 4)
    x0 = case.start
    x1 = 0.5 * x0 + 0.5 * case.sgd(0, x0)
    x2 = 0.5 * x1 + 0.5 * case.sgd(0, x1)
    alpha = 0.5 / np.sqrt(3)
    x3 = (1 - alpha) * x2 + alpha * case.sgd(1, x0)
    alpha = 0.5 / np.sqrt(2)  # client 0 started with x2, and x3 came in between
    x4 = (1 - alpha) * x3 + alpha * case.sgd(0, x2)
    np.testing.assert_allclose([x for x, _ in got], [x1, x2, x3, x4], rtol=0, atol=1e-12)
    np.testing.assert_allclose([t for _, t in got], [1.0, 2.0, 2.6, 3.0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "polynomial", "hinge"])
def test_one_client_at_a_time_and_alpha_1_is_training_in_turns(kind):
    case = four_clients()
    seen = []
    strategy = FedAsync(alpha=1.0, staleness=kind, rho=0.0, concurrency=1, seed=2, **SERVER)
    got = rounds_of(case, strategy, clocked(case, strategy, TENTHS, seen), 8)
    turns = [e.node for e in seen]
    assert len(set(turns)) > 1
    x, want, now = case.start, [], 0.0
    for client in turns:
        x, now = case.sgd(client, x), now + TENTHS[client] / 10
        want.append((x, now))
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], rtol=0, atol=1e-12)
    np.testing.assert_allclose([t for _, t in got], [t for _, t in want], rtol=0, atol=1e-6)


def test_answers_of_one_moment_are_mixed_in_one_after_the_other():
    case = two_clients()
    strategy = FedAsync(alpha=0.5, a=1.0, rho=0.0, concurrency=2, **SERVER)
    (x1, at), (x2, then) = rounds_of(case, strategy, clocked(case, strategy, (10, 10)), 2)
    assert at == then == pytest.approx(1.0)
    np.testing.assert_allclose(x1, 0.5 * case.start + 0.5 * case.sgd(0, case.start), rtol=0, atol=1e-12)
    np.testing.assert_allclose(x2, 0.75 * x1 + 0.25 * case.sgd(1, case.start), rtol=0, atol=1e-12)


def test_start_works_in_any_flower_project():
    case = four_clients()
    strategy = FedAsync(concurrency=4, fraction_evaluate=0.0, **SERVER)
    want = rounds_of(case, strategy, clocked(case, strategy, TENTHS), 6)
    started = FedAsync(concurrency=4, fraction_evaluate=0.0, **SERVER)
    result = started.start(clocked(case, started, TENTHS), case.initial(), num_rounds=6)
    np.testing.assert_array_equal(vector(result.arrays), want[-1][0])
    plain = FedAsync(concurrency=4, fraction_evaluate=0.0, **SERVER)
    assert np.isfinite(
        vector(plain.start(case.grid(FedAsyncRule()), case.initial(), num_rounds=6).arrays)
    ).all()


def test_a_client_without_its_half_is_named():
    case = two_clients()
    strategy = FedAsync(concurrency=2, fraction_evaluate=0.0, **SERVER)
    with pytest.raises(StrategyError, match=r"FedAsync: node 100\d trained with LocalRule.*FedAsyncRule"):
        strategy.start(case.grid(LocalRule()), case.initial(), num_rounds=1)


def test_a_server_without_its_half_is_named():
    with pytest.raises(StrategyError, match=r"no 'fedasync-rho'.*use strategies.FedAsync"):
        two_clients().run(FedAvg(**SERVER), FedAsyncRule(), rounds=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.0}, r"^alpha: must be above 0 and at most 1, got 0.0"),
        ({"alpha": 1.1}, r"^alpha: must be above 0 and at most 1, got 1.1"),
        ({"staleness": "linear"}, r"^staleness: must be one of constant, polynomial, hinge, got 'linear'"),
        ({"a": -1.0}, r"^a: must be 0 or more, got -1.0"),
        ({"b": -1.0}, r"^b: must be 0 or more, got -1.0"),
        ({"rho": -0.1}, r"^rho: must be 0 or more, got -0.1"),
        ({"concurrency": 0}, r"^concurrency: must be 1 or more, got 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FedAsync(**options)
