"""Estimators of centre and curvature; numbers in names are those of the specification's property tests."""

from itertools import pairwise

import pytest
import torch
from niw_cases import HEAD, close, flat, head_case, logits, softmax_loss, vector

from strategies.errors import StrategyError
from strategies.niw import GGN, Descent, Fisher, Newton, Prior
from strategies.niw import estimators as module
from strategies.niw.estimators import (
    OFFICIAL_LIKE,
    adapted,
    gaussian_factor,
    laplace,
    map_estimate,
    sgld_moments,
    tensorwise,
)
from strategies.niw.posterior import hyper_kl, hyper_prior, local_posterior, nlml
from strategies.niw.server import moments, moments_update
from strategies.optim import SGD


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(curvature):
    """A summed loss of one row with this curvature in every weight, about 0."""
    return (lambda p, _: curvature / 2 * p["w"].square().sum()), {"x": torch.zeros(1, 1)}


def test_p11_stationary_variance_of_the_chain():
    loss, row = bowl(100.0)
    start = {"w": torch.zeros(500, dtype=torch.float64)}
    found = sgld_moments(
        loss, start, row, steps=1200, burnin=100, alpha=0.01, max_curvature=1e6, generator=stream()
    )
    variance = (1 / found.curvature["w"]).mean().item()
    assert variance == pytest.approx(1 / (100 * (1 - 0.01 * 100 / 4)), rel=0.05)
    assert found.mbar["w"].abs().max() < 0.02
    assert found.clip_fraction == 0


@pytest.mark.parametrize("n", [3, 10, 50])
def test_p11_variance_of_the_random_walk(n):
    loss, row = bowl(1e-6)
    start = {"w": torch.ones(100_000, dtype=torch.float64)}
    found = sgld_moments(loss, start, row, steps=n, alpha=0.01, max_curvature=1e12, generator=stream())
    assert (1 / found.curvature["w"]).mean().item() == pytest.approx(0.01 * (n + 1) / 6, rel=0.02)


def test_official_settings_clip_every_curvature():
    at, data = head_case(0, 100)
    found = sgld_moments(softmax_loss, at, data, steps=3, alpha=1e-6, max_curvature=1e3, generator=stream())
    assert found.clip_fraction == 1
    away = (found.mbar["weight"] - at["weight"]).abs().mean()
    assert 0.5e-4 < away < 2e-4  # sqrt(eta), the noise alone
    # Adam's first step is eta long, whatever the gradient and the noise; one iterate has no variance.
    once = sgld_moments(
        softmax_loss, at, data, steps=1, alpha=1.0, optimizer=OFFICIAL_LIKE, generator=stream()
    )
    close((once.mbar["weight"] - at["weight"]).abs(), torch.full((3, 4), 0.01), 1e-8)
    assert (once.curvature["weight"] == 1e-4).all()


def test_the_chain_takes_noise_from_one_source():
    at, data = head_case(0, 10)
    noise = {
        "weight": torch.stack([torch.randn(3, 4, generator=g, dtype=torch.float64) for g in [stream()] * 4])
    }
    drawn = sgld_moments(softmax_loss, at, data, steps=4, alpha=0.1, generator=stream())
    given = sgld_moments(softmax_loss, at, data, steps=4, alpha=0.1, noise=noise)
    assert torch.equal(drawn.mbar["weight"], given.mbar["weight"])
    # The two moments, kept apart as the recipe has them.
    p, path = at["weight"], []
    for xi in noise["weight"]:
        slope, _ = module.differentiate_functionally(lambda q: softmax_loss(q, data), {"weight": p})
        p = p - 0.01 / 2 * slope["weight"] - 0.1 * xi
        path.append(p)
    close(given.mbar["weight"], torch.stack(path).mean(0))
    close(given.curvature["weight"], (1 / torch.stack(path).var(0)).clamp(1e-4, 1e3), 1e-8)
    for wrong in ({}, {"noise": noise, "generator": stream()}):
        with pytest.raises(ValueError, match="generator, noise: give one of the two"):
            sgld_moments(softmax_loss, at, data, steps=4, **wrong)
    with pytest.raises(ValueError, match=r"burnin: must lie in \[0, steps = 4\), got 4"):
        sgld_moments(softmax_loss, at, data, steps=4, burnin=4, generator=stream())


def hessian(loss, at, data):
    n = at["weight"].numel()
    return torch.func.hessian(lambda w: loss({"weight": w}, data))(at["weight"]).reshape(n, n)


def test_curvatures_are_what_they_say():
    at, data = head_case(0, 30)
    full = hessian(softmax_loss, at, data)
    for chunk in (7, 64):  # the head's Hessian, whatever the chunks
        close(flat(GGN(logits, chunk=chunk).diagonal(at, data)), full.diagonal())
    squares = torch.zeros(3, 4, dtype=torch.float64)
    for i in range(30):
        one = {k: v[i : i + 1] for k, v in data.items()}
        squares += torch.func.grad(lambda p, one=one: softmax_loss(p, one))(at)["weight"].square()
    close(Fisher(softmax_loss, chunk=8).diagonal(at, data)["weight"], squares)
    # A regression with scalar output: sum of (df/dtheta)^2 over the noise's variance.
    ggn = GGN(lambda p, batch: (batch["x"] @ p["weight"].T).tanh().sum(1), gaussian_factor(0.36))
    slopes = torch.stack([torch.func.jacrev(ggn.output)(at, {"x": x[None]})["weight"][0] for x in data["x"]])
    close(ggn.diagonal(at, data)["weight"], slopes.square().sum(0) / 0.36)


@pytest.mark.parametrize("rows", [0, 2, 30])
def test_newton_systems_are_solved_with_few_rows_and_many(rows):
    at, data = head_case(1, 30)
    data = {k: v[:rows] for k, v in data.items()}
    precision = {"weight": at["weight"].exp()}
    found = GGN(logits, chunk=9).solve(at, data, precision, at)
    matrix = hessian(softmax_loss, at, data) + flat(precision).diag()
    close(flat(found), torch.linalg.solve(matrix, flat(at)), 1e-10)


def test_newton_refuses_matrices_that_fit_no_memory(monkeypatch):
    monkeypatch.setattr(module, "MOST_NEWTON", 11)
    at, data = head_case(1, 30)
    with pytest.raises(StrategyError, match=r"on 12 weights is too large; take a Descent above 11"):
        HEAD.solve(at, data, at, at)


def test_p12_laplace_at_the_map_is_its_own_local_posterior():
    at, data = head_case(2, 25)
    prior = Prior({"weight": at["weight"].cos()}, {"weight": at["weight"].sin()}, 9.0, 1.0)
    q, quadratic = laplace(softmax_loss, prior, data, HEAD, solver=Newton(HEAD))
    again = local_posterior(prior, quadratic)
    close(flat(again.mean), flat(q.mean), 1e-10)
    close(flat(again.variance), flat(q.variance), 1e-10)
    # It is the MAP, to which first-order steps go as well, and the curvature is the Hessian's diagonal there.
    slope = torch.func.grad(lambda p: softmax_loss(p, data))(q.mean)["weight"]
    close(
        slope + prior.precision["weight"] * (q.mean["weight"] - prior.m0["weight"]), torch.zeros(3, 4), 1e-9
    )
    close(
        flat(q.variance), 1 / (hessian(softmax_loss, q.mean, data).diagonal() + flat(prior.precision)), 1e-10
    )
    slow, _ = laplace(softmax_loss, prior, data, HEAD, solver=Descent(600, 0.05, SGD()))
    close(flat(slow.mean), flat(q.mean), 1e-6)


def test_newton_steps_go_downhill_from_afar():
    at, data = head_case(3, 40)
    far = {"weight": 30 * at["weight"]}
    precision = {"weight": torch.full((3, 4), 1e-3, dtype=torch.float64)}

    def value(p):
        return softmax_loss(p, data) + 5e-4 * (p["weight"] - far["weight"]).square().sum()

    path = [
        value(map_estimate(softmax_loss, far, precision, data, Newton(HEAD, n))).item() for n in range(40)
    ]
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(path))
    assert path[-1] == pytest.approx(path[-2], rel=1e-12)
    assert path[-1] < 50 < path[0]


def test_extreme_priors_are_the_global_model_and_local_training():
    at, data = head_case(4, 20)
    fixed = Prior(at, {"weight": torch.tensor(30.0).double()}, 9.0, 1.0)
    q, _ = laplace(softmax_loss, fixed, data, HEAD, solver=Newton(HEAD))
    close(flat(q.mean), flat(at), 1e-10)
    solver = Descent(15, 0.05)
    free = Prior(at, {"weight": torch.tensor(-torch.inf).double()}, 9.0, 1.0)
    q, _ = laplace(softmax_loss, free, data, HEAD, solver=solver)
    assert torch.equal(q.mean["weight"], adapted(softmax_loss, at, data, HEAD, solver=solver).mbar["weight"])


def test_padding_does_nothing_and_clients_are_mapped():
    at, _ = head_case(5, 1)
    clients = [head_case(s, n)[1] for s, n in ((0, 3), (1, 8), (2, 0))]
    padded = [
        {
            "x": torch.cat([c["x"], torch.ones(8 - len(c["y"]), 4).double()]),
            "y": torch.cat([c["y"], torch.zeros(8 - len(c["y"]), dtype=torch.long)]),
            "weight": (torch.arange(8) < len(c["y"])).double(),
        }
        for c in clients
    ]
    data = {k: torch.stack([c[k] for c in padded]) for k in padded[0]}
    prior = Prior(at, {"weight": torch.tensor(0.1).double()}, 9.0, 1.0)

    def newton(rows):
        q, _ = laplace(softmax_loss, prior, rows, HEAD, solver=Newton(HEAD, 5))
        return q.mean["weight"], q.variance["weight"]

    def steps(rows):
        found = adapted(softmax_loss, at, rows, Fisher(softmax_loss), solver=Descent(5), max_curvature=1.0)
        return found.mbar["weight"], found.curvature["weight"], found.clip_fraction

    noise = {"weight": torch.randn(6, 3, 4, generator=stream(), dtype=torch.float64)}

    def chain(rows):
        found = sgld_moments(softmax_loss, at, rows, steps=6, alpha=0.1, noise=noise)
        return found.mbar["weight"], found.curvature["weight"]

    for estimate in (newton, steps, chain):
        mapped = torch.func.vmap(estimate)(data)
        for i, rows in enumerate(clients[:2] if estimate is chain else clients):
            for a, b in zip(mapped, estimate(rows), strict=True):
                close(a[i].double(), b, 1e-9)
    # Without rows there is nothing but the prior.
    close(torch.func.vmap(newton)(data)[0][2], at["weight"])


def test_clipping_and_one_curvature_a_tensor():
    at, data = head_case(6, 20)
    found = adapted(softmax_loss, at, data, HEAD, max_curvature=3.0)
    free = adapted(softmax_loss, at, data, HEAD)
    assert 0 < found.clip_fraction < 1
    assert found.clip_fraction == pytest.approx((free.curvature["weight"] >= 3).double().mean().item())
    close(tensorwise(free).curvature["weight"], free.curvature["weight"].mean())
    prior = Prior(at, {"weight": torch.tensor(0.1).double()}, 9.0, 1.0)
    assert local_posterior(prior, tensorwise(free)).variance["weight"].shape == (3, 4)
    with pytest.raises(ValueError, match="max_curvature"):
        adapted(softmax_loss, at, data, HEAD, max_curvature=-1.0)
    assert not found.mbar["weight"].requires_grad
    assert vector(1.0).dtype == free.mbar["weight"].dtype


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    at, data = head_case(7, 25)
    noise = {"weight": torch.randn(6, 3, 4, generator=stream(), dtype=torch.float64)}
    found = []
    for device in ("cpu", "cuda"):
        here = {k: v.to(device) for k, v in at.items()}
        rows = {k: v.to(device) for k, v in data.items()}
        eps = {k: v.to(device) for k, v in noise.items()}
        prior = Prior(here, {"weight": here["weight"].sin()}, 30.0, 1.0, "full")
        q, quadratic = laplace(softmax_loss, prior, rows, HEAD, solver=Newton(HEAD, 5))
        chain = sgld_moments(softmax_loss, here, rows, steps=6, alpha=0.1, noise=eps)
        new = moments_update(prior, moments(q, prior.m0))
        kl = hyper_kl(prior, hyper_prior(here, "full"))
        values = [chain.mbar["weight"], chain.curvature["weight"], new.precision["weight"], kl]
        found.append(torch.cat([v.flatten() for v in [*values, nlml(prior, quadratic)]]).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)
