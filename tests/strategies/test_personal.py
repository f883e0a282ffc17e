"""Methods with a second model for each client, and Per-FedAvg, step by step on quadratics."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, SOME, Quadratics, four_clients, two_clients, vector
from torch.func import functional_call, grad

from clients.models.mlp import MLP
from strategies import (
    APFL,
    SGD,
    Ditto,
    LocalRule,
    PerFedAvg,
    PerFedAvgRule,
    PFedMe,
    Round,
    StrategyError,
    weighted_cross_entropy,
)
from strategies.client import KEPT
from strategies.functional import Stateless
from strategies.local import part
from strategies.personal import PERSONAL

METHODS = {
    "ditto": lambda: Ditto(lam=0.7, **SERVER),
    "pfedme": lambda: PFedMe(lam=2.0, inner_steps=3, personal_lr=0.05, **SERVER),
    "pfedme beta 2": lambda: PFedMe(lam=2.0, inner_steps=3, personal_lr=0.05, beta=2.0, **SERVER),
    "apfl": lambda: APFL(alpha=0.3, **SERVER),
    "apfl adaptive": lambda: APFL(alpha=0.3, adaptive=True, **SERVER),
}


def local(name, case, i, w, v, alpha):
    """A client's steps on the common model, its own, and its share: what goes up, and the two others."""
    sent = w
    for _ in range(case.taken[i]):
        if name == "ditto":
            w, v = (
                w - case.lr * case.gradient(i, w),
                v - case.lr * (case.gradient(i, v) + 0.7 * (v - sent)),
            )
        elif name.startswith("pfedme"):
            for _ in range(3):
                v = v - 0.05 * (case.gradient(i, v) + 2.0 * (v - w))
            w = w - case.lr * 2.0 * (w - v)
        else:
            g = case.gradient(i, alpha * v + (1 - alpha) * w)
            slope = (v - w) @ g
            w, v = w - case.lr * case.gradient(i, w), v - case.lr * alpha * g
            if name == "apfl adaptive":
                alpha = np.clip(alpha - case.lr * slope, 0, 1)
    up = 2 * w - sent if name == "pfedme beta 2" else w
    return up, v, alpha


def by_hand(name, case, rounds, chosen=None):
    """Common model after each round, and what each client predicts with; a model starts when it is needed."""
    everyone = range(len(case.a))
    w, own, alphas, trace = case.start, {}, [0.3 for _ in everyone], []
    for t in range(rounds):
        sampled = chosen[t] if chosen else everyone
        uploads = []
        for i in sampled:
            up, own[i], alphas[i] = local(name, case, i, w, own.get(i, w), alphas[i])
            uploads.append(up)
        w = case.mean(uploads, sampled)
        trace.append(w)
    mixed = name.startswith("apfl")
    predicts = [alphas[i] * own.get(i, w) + (1 - alphas[i]) * w if mixed else own.get(i, w) for i in everyone]
    return np.array(trace), own, predicts


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("options", [{}, {"steps": (2, 5)}, {"rows": (3, 1)}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_rounds_equal_those_by_hand(name, options, rounds):
    case, strategy = two_clients(**options), METHODS[name]()
    got, grid = case.run(strategy, rounds=rounds)
    want, own, predicts = by_hand(name, case, rounds)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for node in (0, 1):
        kept = grid.state_of(node).array_records[KEPT]
        held = {k: torch.from_numpy(v.numpy()) for k, v in kept.items()}
        np.testing.assert_allclose(vector(part(PERSONAL, held)), own[node], rtol=0, atol=1e-10)
        np.testing.assert_allclose(case.predicted(strategy, grid, node), predicts[node], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_is_left_out_keeps_its_model(name):
    case, strategy = four_clients(), METHODS[name]()
    got, grid = case.run(strategy, chosen=SOME)
    want, _, predicts = by_hand(name, case, 3, SOME)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for node in range(4):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), predicts[node], rtol=0, atol=1e-10)


# --- limit cases ---------------------------------------------------------------------------------


def plain(case, rounds=3):
    return case.run(FedAvg(**SERVER), LocalRule(), rounds=rounds)[0]


def alone(case, node, steps):
    """A client that trains without any other."""
    return Quadratics(case.a[[node]], case.b[[node]], case.start, rows=(1,), steps=steps).sgd(0, case.start)


@pytest.mark.parametrize("name", ["ditto", "apfl", "apfl adaptive"])
def test_the_common_model_is_fedavgs(name):
    case = two_clients()
    np.testing.assert_allclose(case.run(METHODS[name]())[0], plain(case), rtol=0, atol=1e-12)


def test_without_a_pull_dittos_model_trains_alone():
    case, strategy = two_clients(), Ditto(lam=0.0, **SERVER)
    _, grid = case.run(strategy)
    for node in (0, 1):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), alone(case, node, 9), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_apfl_goes_from_fedavg_to_training_alone(alpha):
    case, strategy = two_clients(), APFL(alpha=alpha, **SERVER)
    got, grid = case.run(strategy)
    for node in (0, 1):
        want = alone(case, node, 9) if alpha else got[-1]
        np.testing.assert_allclose(case.predicted(strategy, grid, node), want, rtol=0, atol=1e-12)


def test_a_strong_pull_holds_pfedmes_models_at_the_common_one():
    case = two_clients()
    strategy = PFedMe(lam=1e4, inner_steps=50, personal_lr=1e-4, **SERVER)
    case.lr = 1e-4
    _, grid = case.run(strategy, rounds=1)
    for node in (0, 1):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), case.start, atol=1e-2)


# --- Per-FedAvg ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_perfedavg_on_quadratics_by_hand(variant, chosen):
    alpha = 0.2
    case = four_clients(copies=6)
    strategy = PerFedAvg(variant=variant, alpha=alpha, test_steps=2, **SERVER)
    got, grid = case.run(strategy, chosen=chosen)
    w = case.start
    for t in range(3):
        sampled = chosen[t] if chosen else range(4)
        ends = []
        for i in sampled:
            y = w
            for _ in range(case.taken[i]):
                g = case.gradient(i, y - alpha * case.gradient(i, y))
                y = y - case.lr * (g - alpha * case.a[i] * g if variant == "hf" else g)
            ends.append(y)
        w = case.mean(ends, sampled)
        np.testing.assert_allclose(got[t], w, rtol=0, atol=1e-10)
    for node in range(4):
        tuned = w
        for _ in range(2):
            tuned = tuned - alpha * case.gradient(node, tuned)
        np.testing.assert_allclose(case.predicted(strategy, grid, node), tuned, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_without_a_step_of_its_own_perfedavg_is_fedavg(variant):
    case = two_clients(copies=3)
    got, _ = case.run(PerFedAvg(variant=variant, alpha=0.0, **SERVER))
    np.testing.assert_allclose(got, plain(case), rtol=0, atol=1e-12)


def test_hf_is_the_gradient_through_the_clients_own_step():
    """Where all three parts of a batch are the same rows, against autograd on a network."""
    torch.manual_seed(0)
    module = MLP((3,), 3, hidden=(4,)).double()
    model, alpha = Stateless(module), 0.3
    rows = {"x": torch.randn(5, 3).double(), "y": torch.arange(5) % 3, "weight": torch.ones(5).double()}
    batch = {k: v.repeat_interleave(3, dim=0) for k, v in rows.items()}
    params = model.initial()
    settings = PerFedAvg(variant="hf", alpha=alpha, delta=1e-4).settings
    now = Round(model, weighted_cross_entropy, params, model.trainable, config=settings)
    got, _ = PerFedAvgRule().direction(params, model.trainable, batch, now)

    def loss(p):
        return torch.nn.functional.cross_entropy(functional_call(module, p, rows["x"]), rows["y"])

    def after_a_step(p):
        slope = grad(loss)(p)
        return loss({k: p[k] - alpha * slope[k] for k in p})

    want = grad(after_a_step)(params)
    for k in params:
        torch.testing.assert_close(got[k], want[k], rtol=0, atol=1e-7)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (Ditto, "lam", -1.0),
        (PFedMe, "lam", 0.0),
        (PFedMe, "inner_steps", 0),
        (PFedMe, "personal_lr", 1.0),
        (PFedMe, "beta", 0.0),
        (PerFedAvg, "variant", "second"),
        (PerFedAvg, "alpha", -0.1),
        (PerFedAvg, "delta", 0.0),
        (PerFedAvg, "test_steps", 0),
        (APFL, "alpha", 1.5),
    ],
)
def test_numbers_that_cannot_be_are_refused(method, option, value):
    with pytest.raises(ValueError, match=rf"^{option}: must be"):
        method(**{option: value})


@pytest.mark.parametrize("method", [Ditto, PFedMe, PerFedAvg, APFL])
def test_a_missing_half_is_named(method):
    with pytest.raises(StrategyError, match=rf"{method.__name__}: node 1000 trained with LocalRule"):
        two_clients().run(method(**SERVER), LocalRule(), rounds=1)
    with pytest.raises(StrategyError, match=rf"server half is missing; use strategies\.{method.__name__}"):
        two_clients(copies=3).run(FedAvg(**SERVER), method.client_half(), rounds=1)


def test_momentum_moves_both_of_dittos_models():
    case, strategy = two_clients(optimizer=SGD(momentum=0.9)), Ditto(lam=0.5, **SERVER)
    _, grid = case.run(strategy, rounds=1)
    for node in (0, 1):
        v, speed = case.start, np.zeros(4)
        for _ in range(3):
            speed = 0.9 * speed + case.gradient(node, v) + 0.5 * (v - case.start)
            v = v - case.lr * speed
        np.testing.assert_allclose(case.predicted(strategy, grid, node), v, rtol=0, atol=1e-10)
