import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import assert_halves_are_named, skewed
from quadratic import SERVER, Quadratics, two_clients
from torch import nn

from strategies import FedSAM, FedSAMRule, LocalRule, Round, weighted_cross_entropy
from strategies.functional import Stateless


def by_hand(case, rounds, rho, chosen=None):
    x, trace = case.start, []
    for t in range(rounds):
        ends, clients = [], chosen[t] if chosen else range(len(case.a))
        for i in clients:
            w = x
            for _ in range(case.taken[i]):
                g = case.gradient(i, w)
                w = w - case.lr * case.gradient(i, w + rho * g / np.linalg.norm(g))
            ends.append(w)
        x = case.mean(ends, clients)
        trace.append(x)
    return np.array(trace)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("options", [{}, {"steps": (2, 5), "rows": (3, 1)}], ids=["plain", "unequal"])
def test_rounds_equal_the_algorithm_by_hand(options, rounds):
    case = two_clients(**options)
    got, _ = case.run(FedSAM(rho=0.4, **SERVER), rounds=rounds)
    np.testing.assert_allclose(got, by_hand(case, rounds, 0.4), rtol=0, atol=1e-10)


def test_some_clients_are_averaged_as_in_fedavg():
    chosen = [[1], [0, 1], [0]]
    case = two_clients(rows=(3, 1))
    got, _ = case.run(FedSAM(rho=0.4, **SERVER), chosen=chosen)
    np.testing.assert_allclose(got, by_hand(case, 3, 0.4, chosen), rtol=0, atol=1e-10)


def test_rho_0_is_fedavg_to_the_bit():
    case = skewed()
    got, *_ = case.run(FedSAM(rho=0.0, **SERVER))
    plain, *_ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_array_equal(got, plain)


def test_where_the_gradient_is_0_it_stays():
    case = two_clients()
    alone = Quadratics(case.a[:1], case.start[None], case.start, rows=(1,))
    got, _ = alone.run(FedSAM(**SERVER), rounds=2)
    np.testing.assert_array_equal(got[-1], case.start)


def test_running_statistics_see_a_batch_once_and_at_the_point_itself():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    model = Stateless(module)
    batch = {"x": torch.randn(8, 3).double(), "y": torch.arange(8) % 2, "weight": torch.ones(8).double()}
    after = []
    for rule in (FedSAMRule(), LocalRule()):
        received = model.initial()
        now = Round(model, weighted_cross_entropy, received, model.trainable, config={"fedsam-rho": 0.5})
        grads, loss = rule.direction(received, model.trainable, batch, now)
        after.append((received["1.running_mean"], received["1.running_var"], loss))
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=0)
    assert set(grads) == model.trainable


def test_the_loss_is_flatter_where_it_ends():
    """At the radius that is trained for, the loss rises less around FedSAM's model than around FedAvg's."""
    case = skewed(clients=1)
    rho, rises = 0.5, []
    for strategy, rule in ((FedSAM(rho=rho, **SERVER), None), (FedAvg(**SERVER), LocalRule())):
        *_, arrays = case.run(strategy, rule, rounds=60)
        now = case.round(0)
        params = {k: torch.from_numpy(arrays[k].numpy()) for k in arrays}

        def at(p, now=now):
            return LocalRule().direction(p, now.trainable, now.data, now)

        grads, low = at(params)
        norm = sum((g**2).sum() for g in grads.values()).sqrt()
        rises.append(float(at({k: v + rho * grads[k] / norm for k, v in params.items()})[1] - low))
    assert rises[0] < 0.9 * rises[1]


def test_a_missing_half_is_named():
    assert_halves_are_named(FedSAM(**SERVER))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_radius_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"^rho: must be 0 or more"):
        FedSAM(rho=value)
