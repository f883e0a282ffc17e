import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, Quadratics, two_clients, vector

from strategies import SGD, LocalRule, Scaffold, ScaffoldRule, StrategyError
from strategies.client import KEPT


def by_hand(case, rounds, server_lr=1.0, chosen=None):
    """Algorithm 1, option II, for quadratics: the model after each round, ``c`` and all ``c_i``."""
    everyone = range(len(case.a))
    x, c = case.start, np.zeros_like(case.start)
    own = [np.zeros_like(c) for _ in everyone]
    trace = []
    for t in range(rounds):
        sampled = chosen[t] if chosen else everyone
        moved, changes = [], []
        for i in sampled:
            y = case.sgd(i, x, correction=c - own[i])
            new = own[i] - c + (x - y) / (case.taken[i] * case.lr)
            changes.append(new - own[i])
            own[i] = new
            moved.append(y - x)
        x = x + server_lr * case.mean(moved, sampled)
        c = c + len(sampled) / len(case.a) * case.mean(changes, sampled)
        trace.append(x)
    return np.array(trace), c, own


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"steps": (2, 5)}, {"rows": (3, 1)}, {"server_lr": 0.5}],
    ids=["plain", "unequal steps", "weighted", "server_lr"],
)
def test_rounds_equal_the_algorithm_by_hand(options, rounds):
    server_lr = options.pop("server_lr", 1.0)
    case = two_clients(**options)
    strategy = Scaffold(server_lr=server_lr, **SERVER)
    got, grid = case.run(strategy, rounds=rounds)
    want, c, own = by_hand(case, rounds, server_lr)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    control = strategy.state["control"]
    np.testing.assert_allclose(np.concatenate([control[k] for k in sorted(control)]), c, atol=1e-10)
    for node in (0, 1):
        kept = vector(grid.state_of(node).array_records[KEPT])
        np.testing.assert_allclose(kept, own[node], rtol=0, atol=1e-10)


def test_with_some_clients_the_control_moves_by_their_share_of_all():
    rng = np.random.default_rng(0)
    case = Quadratics(
        a=rng.uniform(0.5, 1.5, (4, 4)), b=rng.normal(size=(4, 4)), start=np.zeros(4), rows=(1,) * 4
    )
    chosen = [[0, 2], [1], [0, 1, 3]]
    strategy = Scaffold(**SERVER)
    got, _ = case.run(strategy, chosen=chosen)
    want, c, _ = by_hand(case, 3, chosen=chosen)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    control = strategy.state["control"]
    np.testing.assert_allclose(np.concatenate([control[k] for k in sorted(control)]), c, atol=1e-10)


def test_the_first_round_is_fedavgs():
    case = two_clients()
    got, _ = case.run(Scaffold(**SERVER), rounds=1)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=1)
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_a_lone_client_is_plain_training():
    case = two_clients()
    alone = Quadratics(case.a[:1], case.b[:1], case.start, rows=(1,))
    got, _ = alone.run(Scaffold(**SERVER), rounds=4)
    plain, _ = alone.run(FedAvg(**SERVER), LocalRule(), rounds=4)
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_many_local_steps_reach_the_common_optimum_where_fedavg_does_not():
    case = two_clients(steps=20)
    optimum = (case.a * case.b).sum(0) / case.a.sum(0)
    got, _ = case.run(Scaffold(**SERVER), rounds=60)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=60)
    np.testing.assert_allclose(got[-1], optimum, atol=1e-8)
    assert np.abs(plain[-1] - optimum).max() > 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_momentum_the_control_is_still_an_average_of_gradients(nesterov):
    """Where the gradient is the same in every step, that average is the gradient."""
    case = two_clients(a=np.full((2, 4), 1e-9), optimizer=SGD(momentum=0.9, nesterov=nesterov))
    _, grid = case.run(Scaffold(**SERVER), rounds=1)
    for node in (0, 1):
        kept = vector(grid.state_of(node).array_records[KEPT])
        np.testing.assert_allclose(kept, case.gradient(node, case.start), rtol=1e-5)


def test_a_client_without_its_half_is_named():
    case = two_clients()
    with pytest.raises(StrategyError, match=r"Scaffold: node 1000 trained with LocalRule.*ScaffoldRule"):
        case.run(Scaffold(**SERVER), LocalRule(), rounds=1)


def test_a_server_without_its_half_is_named():
    with pytest.raises(StrategyError, match=r"no record 'scaffold-control'.*use strategies.Scaffold"):
        two_clients().run(FedAvg(**SERVER), ScaffoldRule(), rounds=1)


def test_state_is_given_and_taken():
    case = two_clients()
    strategy, again = Scaffold(**SERVER), Scaffold(**SERVER)
    case.run(strategy, rounds=2)
    again.load_state_dict(strategy.state_dict())
    assert again.population == 2
    assert vector_of(again.state["control"]) == pytest.approx(vector_of(strategy.state["control"]), abs=0)


def vector_of(arrays):
    return np.concatenate([arrays[k] for k in sorted(arrays)])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_step_size_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"server_lr: must be above 0"):
        Scaffold(server_lr=value)
