"""Methods with a second model for each client, and Per-FedAvg, step by step on quadratics."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, SOME, Quadratics, four_clients, loss, two_clients, vector
from torch.func import functional_call, grad, vmap

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
from strategies.client import KEPT, train_client
from strategies.functional import Stateless, backpropagate, differentiate_functionally
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


def test_a_first_inner_step_of_pfedme_is_sgd_at_the_product_of_its_rates():
    """One batch, one inner step: ``w - lr * lam * personal_lr * gradient``."""
    case = two_clients(steps=1)
    got, _ = case.run(PFedMe(lam=4.0, inner_steps=1, personal_lr=0.05, **SERVER), rounds=1)
    want = plain(two_clients(steps=1, lr=case.lr * 4.0 * 0.05), rounds=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


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


# --- what the methods are for: fixed points ------------------------------------------------------


def test_dittos_models_settle_between_own_optimum_and_common_model():
    case, strategy = two_clients(steps=1, lr=0.5), Ditto(lam=0.7, **SERVER)
    got, grid = case.run(strategy, rounds=60)
    for node in (0, 1):
        between = (case.a[node] * case.b[node] + 0.7 * got[-1]) / (case.a[node] + 0.7)
        np.testing.assert_allclose(case.predicted(strategy, grid, node), between, rtol=0, atol=1e-8)


def test_pfedme_minimises_the_mean_of_the_moreau_envelopes():
    """An envelope of a quadratic has curvature ``lam a / (lam + a)``."""
    case, lam = two_clients(steps=1, lr=0.8), 2.0
    strategy = PFedMe(lam=lam, inner_steps=5, personal_lr=0.3, **SERVER)
    got, grid = case.run(strategy, rounds=60)
    curvature = lam * case.a / (lam + case.a)
    optimum = (curvature * case.b).sum(0) / curvature.sum(0)
    np.testing.assert_allclose(got[-1], optimum, rtol=0, atol=1e-8)
    for node in (0, 1):
        nearest = (case.a[node] * case.b[node] + lam * optimum) / (case.a[node] + lam)
        np.testing.assert_allclose(case.predicted(strategy, grid, node), nearest, rtol=0, atol=1e-8)


def test_hf_minimises_the_loss_after_a_step_and_fo_and_fedavg_do_not():
    case, alpha = two_clients(steps=1, copies=3, lr=1.0), 0.4
    curvature = case.a * (1 - alpha * case.a) ** 2
    optimum = (curvature * case.b).sum(0) / curvature.sum(0)
    ends = {v: case.run(PerFedAvg(variant=v, alpha=alpha, **SERVER), rounds=90)[0][-1] for v in ("hf", "fo")}
    np.testing.assert_allclose(ends["hf"], optimum, rtol=0, atol=1e-8)
    assert np.abs(ends["fo"] - optimum).max() > 0.05
    assert np.abs(plain(case, rounds=40)[-1] - optimum).max() > 0.05


@pytest.mark.parametrize(("adaptive", "lr"), [(False, 1.0), (True, 0.5)])
def test_apfls_mixtures_reach_their_clients_optima(adaptive, lr):
    """At a rate of 1, a share that adapts falls to 0 and stays there."""
    case, strategy = two_clients(steps=1, lr=lr), APFL(alpha=0.7, adaptive=adaptive, **SERVER)
    _, grid = case.run(strategy, rounds=150)
    for node in (0, 1):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), case.b[node], rtol=0, atol=1e-8)


# --- parts of a batch, running statistics, cohorts -----------------------------------------------


@pytest.mark.parametrize("rows", [7, 3, 1])
def test_perfedavg_deals_the_rows_of_a_batch_out(rows):
    """Rows 0, k, ... for a client's own step, 1, k + 1, ... after it, 2, k + 2, ... for the Hessian."""
    rng, alpha = np.random.default_rng(rows), 0.3
    a, b, w = rng.uniform(0.5, 1.5, (rows, 4)), rng.normal(size=(rows, 4)), rng.normal(size=4)

    def slope(part, at):
        return (a[part] * (at - b[part])).mean(0) if len(a[part]) else np.zeros(4)

    batch = {"a": torch.tensor(a), "b": torch.tensor(b), "x": torch.zeros(rows, 1).double()}
    batch["weight"] = torch.ones(rows).double()
    for variant, parts in (("fo", 2), ("hf", 3)):
        first, second, third = (slice(i, None, parts) for i in range(3))
        want = slope(second, w - alpha * slope(first, w))
        if variant == "hf":
            want = want - alpha * (slope(third, want) - slope(third, 0 * want))
        case = two_clients(start=w)
        model = Stateless(case.module())
        settings = PerFedAvg(variant=variant, alpha=alpha).settings
        now = Round(model, loss, model.initial(), model.trainable, config=settings)
        got, _ = PerFedAvgRule().direction(now.received, model.trainable, batch, now)
        got = np.concatenate([got[k].numpy() for k in sorted(got)])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def normed_round(strategy, lr=0.1):
    torch.manual_seed(0)
    model = Stateless(MLP((3,), 3, hidden=(4,), norm="batch").double())
    data = {
        "x": torch.randn(12, 3).double() + 1,
        "y": torch.arange(12) % 3,
        "weight": torch.ones(12).double(),
    }
    rule, received = strategy.client_half(), model.initial()
    now = Round(
        model,
        weighted_cross_entropy,
        received,
        model.trainable,
        data=data,
        kept=rule.keep(received),
        config=strategy.settings,
        steps=3,
        lr=lr,
    )
    return rule, now, [np.arange(i, i + 6) for i in (0, 3, 6)]


def buffers(params, now):
    return {k: v for k, v in params.items() if k not in now.trainable}


ALIKE = {
    "ditto": lambda: Ditto(lam=0.0),
    "apfl own": lambda: APFL(alpha=1.0),
    "apfl common": lambda: APFL(alpha=0.0),
}
"""Limit cases in which both models pass through the same parameters."""


@pytest.mark.parametrize("name", ALIKE)
def test_each_of_two_models_has_running_statistics_of_its_own(name):
    """Where both models go the same way, the statistics of both are those of plain training."""
    rule, now, plan = normed_round(ALIKE[name]())
    before = {k: v.clone() for k, v in now.received.items()}
    params, _ = train_client(rule, now, plan)
    want, _ = train_client(LocalRule(), now, plan)
    upload = rule.end(params, now)
    torch.testing.assert_close(upload.arrays, want, rtol=0, atol=1e-12)
    own = rule.own(upload.kept)
    torch.testing.assert_close(buffers(own, now), buffers(want, now), rtol=0, atol=1e-12)
    assert buffers(want, now)
    assert all(
        torch.equal(now.received[k], v) and torch.equal(now.kept[PERSONAL + k], v) for k, v in before.items()
    )


def test_pfedme_averages_the_statistics_of_personal_models_as_they_are():
    rule, now, plan = normed_round(PFedMe(beta=2.0))
    params, _ = train_client(rule, now, plan)
    upload = rule.end(params, now)
    own = buffers(rule.own(upload.kept), now)
    torch.testing.assert_close(buffers(upload.arrays, now), own, rtol=0, atol=0)
    assert not any(torch.equal(v, now.received[k]) for k, v in own.items())
    for k in now.trainable:
        extrapolated = 2 * params[k] - now.received[k]
        torch.testing.assert_close(upload.arrays[k], extrapolated, rtol=0, atol=1e-14)


@pytest.mark.parametrize("strategy", ["perfedavg hf", "apfl adaptive"])
def test_a_cohort_steps_as_its_clients_do(strategy):
    """What the contract of rules (tests/clients/test_cohort.py) leaves out: options that are no default."""
    server = PerFedAvg(variant="hf", alpha=0.3) if "hf" in strategy else APFL(alpha=0.3, adaptive=True)
    torch.manual_seed(0)
    model, rule = Stateless(MLP((3,), 3, hidden=(4,)).double()), server.client_half()
    received = model.initial()
    kept = [{k: v + 0.1 * torch.randn_like(v) for k, v in rule.keep(received).items()} for _ in range(2)]
    batches = [
        {"x": torch.randn(6, 3).double(), "y": torch.arange(6) % 3, "weight": torch.ones(6).double()}
        for _ in range(2)
    ]
    batches[1]["weight"][4:] = 0

    def stepped(kept, batch, differentiate):
        now = Round(
            model,
            weighted_cross_entropy,
            received,
            model.trainable,
            kept=kept,
            config=server.settings,
            steps=1,
            lr=0.1,
            differentiate=differentiate,
        )
        (phase,) = rule.phases(now)
        return rule.step(rule.begin(now), {}, phase.moving, batch, now)[0]

    def stack(dicts):
        return {k: torch.stack([d[k] for d in dicts]) for k in dicts[0]}

    together = vmap(lambda *mine: stepped(*mine, differentiate_functionally))(stack(kept), stack(batches))
    for i in range(2):
        one = stepped(kept[i], batches[i], backpropagate)
        assert one.keys() == together.keys()
        for k, v in one.items():
            torch.testing.assert_close(together[k][i], v, rtol=0, atol=1e-12)
            assert k in kept[i] or not torch.equal(v, received[k])


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
