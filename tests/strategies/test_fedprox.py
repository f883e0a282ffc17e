import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedProx
from quadratic import SERVER, SOME, four_clients
from torch.func import functional_call, grad, vmap

from strategies import FedProxRule, LocalRule, Round, StrategyError


def quadratic(w, config, **more):
    """A round on the model ``w`` with loss ``(w - target)^2 / 2``."""
    return Round(
        model=lambda params, _: params["w"],
        task_loss=lambda output, batch: 0.5 * (output - batch["target"]) ** 2,
        received={"w": torch.tensor(w, dtype=torch.float64)} | more,
        trainable=frozenset({"w"}),
        config=config,
    )


def train(rule, round, target, lr, steps):
    params, batch = dict(round.received), {"target": torch.tensor(target, dtype=torch.float64)}
    for _ in range(steps):
        grads = grad(lambda w, rest=params: rule.loss({**rest, "w": w}, batch, round))(params["w"])
        params = {**params, "w": params["w"] - lr * grads}
    return params["w"]


def test_loss_is_the_task_loss_and_half_mu_times_the_squared_distance():
    now = quadratic(1.0, {"proximal-mu": 0.4})
    params, batch = {"w": torch.tensor(3.0)}, {"target": torch.tensor(5.0)}
    # (3 - 5)^2 / 2 + 0.4 / 2 * (3 - 1)^2
    assert float(FedProxRule().loss(params, batch, now)) == pytest.approx(2.8, abs=1e-6)


def test_two_steps_on_a_quadratic_by_hand():
    lr, mu, start, target = 0.25, 0.6, 2.0, -1.0
    # The proximal term vanishes at the start and pulls back from the second step on.
    first = start - lr * (start - target)
    second = first - lr * ((first - target) + mu * (first - start))
    got = train(FedProxRule(), quadratic(start, {"proximal-mu": mu}), target, lr, steps=2)
    assert float(got) == pytest.approx(second, abs=1e-10)
    assert float(got) == pytest.approx(0.8, abs=1e-10)


def test_two_clients_meet_where_the_arithmetic_says():
    """Round after round, each client ends near (target + mu w) / (1 + mu), and the server averages."""
    mu, targets, w = 0.5, (4.0, -1.0), 10.0
    for _ in range(3):
        local = [
            float(train(FedProxRule(), quadratic(w, {"proximal-mu": mu}), a, 0.4, steps=80)) for a in targets
        ]
        exact = [(a + mu * w) / (1 + mu) for a in targets]
        np.testing.assert_allclose(local, exact, rtol=0, atol=1e-10)
        w = sum(local) / 2
    assert w == pytest.approx(1.5 + (10 - 1.5) / 3**3, abs=1e-10)


@pytest.mark.parametrize("chosen", [None, SOME], ids=["all", "some"])
def test_rounds_with_flowers_server_half_by_hand(chosen):
    case, mu, w = four_clients(), 0.6, four_clients().start
    got, grid = case.run(FedProx(proximal_mu=mu, **SERVER), FedProxRule(), chosen=chosen)
    for t in range(3):
        sampled = chosen[t] if chosen else range(4)
        ends = []
        for i in sampled:
            y = w
            for _ in range(case.taken[i]):
                y = y - case.lr * (case.gradient(i, y) + mu * (y - w))
            ends.append(y)
        w = case.mean(ends, sampled)
        np.testing.assert_allclose(got[t], w, rtol=0, atol=1e-10)
    assert not grid.client_states()


def test_buffers_are_no_part_of_the_distance():
    now = quadratic(1.0, {"proximal-mu": 1.0}, mean=torch.tensor(0.0))
    params = {"w": torch.tensor(1.0), "mean": torch.tensor(100.0)}
    assert float(FedProxRule().loss(params, {"target": torch.tensor(1.0)}, now)) == 0


def net_round(config):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    received = {k: p.detach() for k, p in net.named_parameters()}
    return Round(
        model=lambda params, batch: functional_call(net, params, (batch["x"],)),
        task_loss=lambda output, batch: torch.nn.functional.cross_entropy(output, batch["y"]),
        received=received,
        trainable=frozenset(received),
        config=config,
    )


def test_mu_0_is_plain_training_bit_for_bit():
    now = net_round({"proximal-mu": 0.0})
    params = {k: v + 0.1 * torch.randn_like(v) for k, v in now.received.items()}
    batch = {"x": torch.randn(8, 4), "y": torch.randint(0, 3, (8,))}
    prox, plain = ({}, {})
    for rule, into in ((FedProxRule(), prox), (LocalRule(), plain)):
        into |= grad(lambda p, rule=rule: rule.loss(p, batch, now))(params)
        into["loss"] = rule.loss(params, batch, now)
    assert all(torch.equal(prox[k], plain[k]) for k in plain)


def test_the_term_adds_mu_times_the_way_gone_to_the_gradient():
    now = net_round({"proximal-mu": 0.3})
    params = {k: v + 0.1 * torch.randn_like(v) for k, v in now.received.items()}
    batch = {"x": torch.randn(8, 4), "y": torch.randint(0, 3, (8,))}
    prox = grad(lambda p: FedProxRule().loss(p, batch, now))(params)
    plain = grad(lambda p: LocalRule().loss(p, batch, now))(params)
    for key in plain:
        want = plain[key] + 0.3 * (params[key] - now.received[key])
        torch.testing.assert_close(prox[key], want, rtol=0, atol=1e-6)


def test_a_cohort_may_differ_in_mu():
    mus = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    got = vmap(lambda mu: train(FedProxRule(), quadratic(1.0, {"proximal-mu": mu}), 3.0, 0.1, steps=5))(mus)
    for mu, w in zip(mus.tolist(), got, strict=True):
        want = train(FedProxRule(), quadratic(1.0, {"proximal-mu": mu}), 3.0, 0.1, steps=5)
        assert float(w) == pytest.approx(float(want), abs=1e-12)


def test_without_its_server_half_it_says_so():
    with pytest.raises(StrategyError, match=r"no 'proximal-mu'.*use flwr\.serverapp\.strategy\.FedProx"):
        FedProxRule().loss({"w": torch.tensor(1.0)}, {"target": torch.tensor(1.0)}, quadratic(1.0, {}))
