import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg, FedProx
from labelled import assert_halves_are_named
from quadratic import SERVER, Quadratics, two_clients

from strategies import SGD, FedNova, FedProxRule, LocalRule, StrategyError
from strategies.fednova import NORM
from strategies.method import Answer


def local(case, client, x, mu):
    """Where a client ends, and how far it would go at rate 1 if every gradient were 1."""
    m, look_ahead = case.optimizer.momentum, case.optimizer.nesterov
    y, velocity, norm, unit_velocity = x, 0.0, 0.0, 0.0
    for _ in range(case.taken[client]):
        g = case.gradient(client, y) + mu * (y - x)
        velocity, unit_velocity = m * velocity + g, m * unit_velocity + 1
        y = y - case.lr * (g + m * velocity if look_ahead else velocity)
        norm = (1 - case.lr * mu) * norm + (1 + m * unit_velocity if look_ahead else unit_velocity)
    return y, norm


def by_hand(case, rounds, mu=0.0, chosen=None):
    x, trace = case.start, []
    for t in range(rounds):
        clients = chosen[t] if chosen else range(len(case.a))
        ends = [local(case, i, x, mu) for i in clients]
        direction = case.mean([(x - y) / (case.lr * norm) for y, norm in ends], clients)
        x = x - case.mean([norm for _, norm in ends], clients) * case.lr * direction
        trace.append(x)
    return np.array(trace)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"steps": (2, 5)},
        {"steps": (2, 5), "rows": (3, 1)},
        {"steps": (2, 5), "optimizer": SGD(momentum=0.9)},
        {"steps": (2, 5), "optimizer": SGD(momentum=0.5, nesterov=True)},
        {"steps": (2, 5), "mu": 0.7},
    ],
    ids=["equal steps", "unequal steps", "weighted", "momentum", "nesterov", "proximal"],
)
def test_rounds_equal_normalised_averaging_by_hand(options, rounds):
    options = dict(options)
    mu = options.pop("mu", 0.0)
    case = two_clients(**options)
    got, _ = case.run(FedNova(mu=mu, **SERVER), rounds=rounds)
    np.testing.assert_allclose(got, by_hand(case, rounds, mu), rtol=0, atol=1e-10)


def test_with_some_clients_their_weights_add_up_to_1():
    rng = np.random.default_rng(0)
    case = Quadratics(
        rng.uniform(0.5, 1.5, (4, 4)), rng.normal(size=(4, 4)), np.zeros(4), (1, 2, 3, 4), steps=(1, 2, 3, 4)
    )
    chosen = [[0, 2], [1], [0, 1, 3]]
    got, _ = case.run(FedNova(**SERVER), chosen=chosen)
    np.testing.assert_allclose(got, by_hand(case, 3, chosen=chosen), rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_equal_steps_it_is_fedavg(momentum):
    case = two_clients(rows=(3, 1), optimizer=SGD(momentum=momentum))
    got, _ = case.run(FedNova(**SERVER))
    plain, _ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_with_equal_steps_and_a_proximal_term_it_is_fedprox():
    case = two_clients(rows=(3, 1))
    got, _ = case.run(FedNova(mu=0.7, **SERVER))
    prox, _ = case.run(FedProx(proximal_mu=0.7, **SERVER), FedProxRule())
    np.testing.assert_allclose(got, prox, rtol=0, atol=1e-12)


def test_the_weighted_optimum_holds_at_unequal_steps_where_fedavg_leaves_it():
    """In the limit of small rates, which the paper's objective inconsistency is about."""
    case = two_clients(steps=(2, 20), rows=(3, 1), lr=1e-6)
    weight = np.array([[0.75], [0.25]])
    case.start = (weight * case.a * case.b).sum(0) / (weight * case.a).sum(0)
    got, _ = case.run(FedNova(**SERVER), rounds=1)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=1)
    assert np.abs(got[0] - case.start).max() / case.lr < 1e-3
    assert np.abs(plain[0] - case.start).max() / case.lr > 1


def test_a_client_without_rows_changes_nothing():
    case = two_clients(steps=(0, 4), rows=(0, 2))
    got, _ = case.run(FedNova(**SERVER), rounds=1)
    np.testing.assert_allclose(got[0], case.sgd(1, case.start), rtol=0, atol=1e-12)


def test_what_has_no_norm_is_averaged():
    server = FedNova()
    server.sent = {"w": np.zeros(2), "mean": np.zeros(2)}
    moved = [{"w": np.full(2, v), "mean": np.full(2, v)} for v in (1.0, 9.0)]
    norms = [{NORM: {"w": np.array(n)}} for n in (1.0, 3.0)]
    answers = [Answer(i, 0.5, moved[i], norms[i], {}) for i in (0, 1)]
    got = server.combine({"w": np.full(2, 5.0), "mean": np.full(2, 5.0)}, answers)
    np.testing.assert_array_equal(got["mean"], 5.0)
    np.testing.assert_allclose(got["w"], 2 * (0.5 * 1 / 1 + 0.5 * 9 / 3))


def test_norms_cost_a_number_a_tensor():
    case, ups = two_clients(), {}
    for strategy, rule in ((FedNova(**SERVER), None), (FedAvg(**SERVER), LocalRule())):
        grid = case.grid(rule or strategy.client_half())
        messages = list(strategy.configure_train(1, case.initial(), ConfigRecord(), grid))
        records = [r.content.array_records for r in grid.send_and_receive(messages)]
        ups[type(strategy)] = sum(
            v.numpy().size for each in records for r in each.values() for v in r.values()
        )
    assert ups[FedNova] == ups[FedAvg] + 2 * 2


def test_a_proximal_term_and_momentum_do_not_go_together():
    with pytest.raises(StrategyError, match=r"mu above 0 needs SGD without momentum"):
        two_clients(optimizer=SGD(momentum=0.9)).run(FedNova(mu=0.1, **SERVER), rounds=1)


def test_a_missing_half_is_named():
    assert_halves_are_named(FedNova(**SERVER))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_mu_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"^mu: must be 0 or more"):
        FedNova(mu=value)
