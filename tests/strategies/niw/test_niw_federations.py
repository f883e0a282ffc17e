"""Whole federations in plain functions: the specification's verification experiments."""

from itertools import pairwise

import pytest
import torch
from niw_cases import HEAD, close, gaussians, logits, softmax_loss, vector

from strategies.niw import GGN, Descent, Gaussian, Newton, Prior, Quadratic, hyper_prior
from strategies.niw.estimators import adapted, gaussian_factor, laplace, map_estimate
from strategies.niw.fedhb import client_spike, server_update, spike_moments
from strategies.niw.objective import PriorGradient, meta_gradient
from strategies.niw.posterior import local_posterior, nlml
from strategies.niw.server import (
    evidence_gradient,
    evidence_update,
    gradient_state,
    gradient_update,
    moments,
    moments_update,
)
from strategies.optim import SGD, Adam

vmap = torch.func.vmap


# 8.1: conjugate Gaussians, whose best prior is known.

TAU, MEAN = vector(0.1, 0.5, 1.0, 2.0), vector(1.0, -1.0, 0.0, 2.0)


def conjugate(seed=0, n=200, k=5):
    g = torch.Generator().manual_seed(seed)
    theta = MEAN + TAU * torch.randn(n, 4, generator=g, dtype=torch.float64)
    x = gaussians(k, theta, g)["x"].mean(1)
    return Quadratic({"w": x}, {"w": torch.full_like(x, float(k))}), x


def start(n0=10.0):
    return Prior(
        {"w": torch.zeros(4, dtype=torch.float64)}, {"w": torch.zeros(4, dtype=torch.float64)}, n0, 1.0
    )


def test_8_1_expectation_maximisation_finds_the_maximum_of_the_marginal_likelihood():
    data, x = conjugate()
    prior, values = start(), []
    for _ in range(300):
        prior = evidence_update(prior, data, least_variance=1e-12)
        values.append(nlml(prior, data).item())
    assert all(b <= a + 1e-10 for a, b in pairwise(values))
    best = (x.var(0, correction=0) - 0.2).clamp(min=0)
    inside = best > 0.03
    assert inside.sum() >= 3
    close(prior.m0["w"], x.mean(0), 1e-4)
    close(1 / prior.precision["w"][inside], best[inside], 1e-4)
    assert (1 / prior.precision["w"][~inside] < 0.05).all()

    # A new client's expected error, against the best that any prior can do, and against no prior at all.
    g = torch.Generator().manual_seed(1)
    theta = MEAN + TAU * torch.randn(40_000, 4, generator=g, dtype=torch.float64)
    one = gaussians(1, theta, g)["x"].mean(1)
    q = local_posterior(prior, Quadratic({"w": one}, {"w": torch.ones_like(one)}))
    error = (q.mean["w"] - theta).square().mean(0)
    local, common = (one - theta).square().mean(0), (prior.m0["w"] - theta).square().mean(0)
    torch.testing.assert_close(error[1:], (1 / (TAU**-2 + 1))[1:], rtol=0.05, atol=0)
    torch.testing.assert_close(local, torch.ones(4).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(common[1:], TAU[1:].square(), rtol=0.05, atol=0)


def test_8_1_gradient_steps_find_it_too():
    data, x = conjugate()
    prior, g = start(), torch.Generator().manual_seed(0)
    state = gradient_state(prior, Adam())
    for step in range(600):
        rows = torch.randperm(200, generator=g)[:16]
        batch = Quadratic({"w": data.mbar["w"][rows]}, {"w": data.curvature["w"][rows]})
        rate = 1.0 if step < 350 else 0.05
        prior, state = gradient_update(
            prior, evidence_gradient(prior, batch), Adam(), state, 3e-2 * rate, 6e-2 * rate
        )
    best = x.var(0, correction=0) - 0.2
    # Means by the standard deviation of what clients are seen to have.
    assert ((prior.m0["w"] - x.mean(0)).abs() < 0.05 * (best + 0.2).sqrt()).all()
    torch.testing.assert_close(1 / prior.precision["w"][1:], best[1:], rtol=0.05, atol=0)


# 8.2: lines and sines, regression in a small network.

SIZES = (40, 40, 40 * 40, 40, 40, 1)


def curve(p, batch):
    """A tanh network 1-40-40-1 whose weights lie in one vector, for speed."""
    a, b, c, d, e, f = p["w"].split(SIZES)
    h = (torch.outer(batch["x"] / 2, a) + b).tanh()
    return (h @ c.reshape(40, 40).T + d).tanh() @ e + f


def squared_errors(p, batch):
    return (curve(p, batch) - batch["y"]).square().sum() / 0.72


CURVE = GGN(curve, gaussian_factor(0.36))


def network(g):
    """Weights with variance 1/fan_in, biases 0."""
    scale = torch.repeat_interleave(
        torch.tensor([1.0, 0.0, 40**-0.5, 0.0, 40**-0.5, 0.0]), torch.tensor(SIZES)
    )
    return {"w": scale * torch.randn(len(scale), generator=g)}


def episodes(n, points, g):
    """Observations (n, points) of lines and sines, and the curves themselves."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, 1, generator=g)

    a, b, height, phase, kind = (
        uniform(-3, 3),
        uniform(-3, 3),
        uniform(0.1, 5),
        uniform(0, 3.141592),
        uniform(0, 1),
    )

    def truth(x):
        return torch.where(kind < 0.5, a * x + b, height * (x + phase).sin())

    x = -5 + 10 * torch.rand(n, points, generator=g)
    return {"x": x, "y": truth(x) + 0.3 * torch.randn(n, points, generator=g)}, truth


def mean_error(adapt):
    """Mean squared error against the curves of 200 tasks seen at 5 points."""
    support, truth = episodes(200, 5, torch.Generator().manual_seed(1000))
    params = vmap(adapt)(support)
    x = torch.linspace(-5, 5, 100).expand(200, 100)
    return (vmap(lambda p, x: curve(p, {"x": x}))(params, x) - truth(x)).square().mean().item()


@pytest.mark.slow
def test_8_2_lines_and_sines():
    steps = 750
    g = torch.Generator().manual_seed(0)
    m0 = network(g)
    prior = Prior(m0, {k: torch.full_like(v, 10.0).log() for k, v in m0.items()}, 1e3, 1e3)
    state = gradient_state(prior, Adam())

    def client(rows, prior):
        quadratic = adapted(squared_errors, prior.m0, rows, CURVE, solver=Descent(30, 0.02))
        gradient, _, _ = meta_gradient(squared_errors, prior, quadratic, rows)
        return gradient.m0, gradient.log_precision

    for step in range(steps):
        rows, _ = episodes(8, 25, g)
        grads = vmap(lambda r, prior=prior: client(r, prior))(rows)
        gradient = PriorGradient(*({k: v.mean(0) for k, v in part.items()} for part in grads))
        rate = 1.0 if step < 0.7 * steps else 0.2
        prior, state = gradient_update(prior, gradient, Adam(), state, 1e-2 * rate, 2e-2 * rate)

    # The baseline: one network for all, trained with as many batches.
    g = torch.Generator().manual_seed(0)
    pooled = network(g)
    adam = Adam()
    moment = adam.init(pooled)
    for _ in range(2 * steps):
        rows, _ = episodes(8, 25, g)
        flatten = {k: v.flatten() for k, v in rows.items()}
        slope = torch.func.grad(lambda p, rows=flatten: squared_errors(p, rows) / 200)(pooled)
        pooled, moment = adam.step(pooled, slope, moment, 1e-3)

    def tuned(n, lr):
        return lambda rows: Descent(n, lr).minimise(lambda p: squared_errors(p, rows), pooled)

    def under(precision):
        return lambda rows: map_estimate(squared_errors, prior.m0, precision, rows, Descent(100, 0.02))

    errors = {
        "niw": mean_error(under(prior.precision)),
        "no prior": mean_error(under({k: torch.zeros_like(v) for k, v in m0.items()})),
        "P = 1": mean_error(under({k: torch.ones_like(v) for k, v in m0.items()})),
        "pooled": mean_error(lambda _: pooled),
        "pooled + fine-tuning": min(
            mean_error(tuned(n, lr)) for n in (10, 30, 100) for lr in (0.001, 0.005, 0.02)
        ),
    }
    print("8.2", errors)
    assert errors["niw"] < 2.4
    assert errors["niw"] < 0.75 * errors["pooled + fine-tuning"]
    assert errors["no prior"] > 1.7 * errors["niw"]


# 8.3: a heterogeneous federation of linear heads.

CLASSES, FEATURES = 5, 10
SPREAD = torch.tensor([0.0] * 5 + [1.5] * 5 + [0.5], dtype=torch.float64)


def heads(n, centre, g):
    return centre + SPREAD * torch.randn(n, CLASSES, FEATURES + 1, generator=g, dtype=torch.float64)


def examples(weights, counts, g):
    """``max(counts)`` rows of each client, those beyond its count being padding."""
    n, most = len(weights), int(counts.max())
    x = torch.randn(n, most, FEATURES, generator=g, dtype=torch.float64)
    x = torch.cat([x, torch.ones(n, most, 1, dtype=torch.float64)], 2)
    p = (x @ weights.mT).softmax(2)
    y = torch.multinomial(p.flatten(0, 1), 1, generator=g).reshape(n, most)
    return {"x": x, "y": y, "weight": (torch.arange(most) < counts[:, None]).double()}


def scored(params, test):
    """Accuracy and negative log-likelihood, means over clients."""
    log_p = vmap(logits)(params, test).log_softmax(2)
    nll = -log_p.gather(2, test["y"][..., None]).mean().item()
    return (log_p.argmax(2) == test["y"]).double().mean().item(), nll


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_8_3_heterogeneous_federation_of_heads(seed):
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(CLASSES, FEATURES + 1, generator=g, dtype=torch.float64)
    counts = torch.randint(40, 161, (40,), generator=g)
    train = examples(heads(40, shared, g), counts, g)
    new = heads(60, shared, g)
    test = examples(new, torch.full((60,), 1000), g)
    zero = {"weight": torch.zeros_like(shared)}

    def constant(p):
        return {"weight": torch.full_like(shared, p)}

    # NIW, protocol C: Laplace by Newton on clients, moments to the server.
    prior = Prior(zero, constant(0.0), 1e3, 1e3)
    for _ in range(30):

        def client(rows, prior=prior):
            q, _ = laplace(softmax_loss, prior, rows, HEAD, solver=Newton(HEAD, 6))
            return q.mean, q.variance

        prior = moments_update(prior, moments(Gaussian(*vmap(client)(train)), prior.m0))

    # FedHB, both families, spikes without dropout.
    blocks = {}
    for family in ("diag", "full"):
        hyper = hyper_prior(zero, family)
        block = hyper
        for _ in range(20):
            solve = vmap(lambda rows, q=block: client_spike(softmax_loss, q, rows, 1.0, Newton(HEAD, 6)))
            block = server_update(hyper, spike_moments(solve(train), block.m0), block.m0)
        blocks[family] = {k: block.mode_ratio * v for k, v in block.precision.items()}, block.m0

    pool = {k: v.flatten(0, 1) for k, v in train.items()}
    pooled = map_estimate(softmax_loss, zero, constant(1e-3), pool, Newton(HEAD, 15))
    results = {}
    for k in (5, 20, 100):
        rows = examples(new, torch.full((60,), k), g)

        def solved(mean, precision, rows=rows):
            found = vmap(lambda r: map_estimate(softmax_loss, mean, precision, r, Newton(HEAD, 8)))(rows)
            return scored(found, test)

        tuned = vmap(
            lambda r, k=k: Descent(20, 0.3, SGD()).minimise(lambda p: softmax_loss(p, r) / k, pooled)
        )(rows)
        results[k] = {
            "global": scored({"weight": pooled["weight"].expand(60, -1, -1)}, test),
            "local": solved(zero, constant(1.0)),
            "fine-tuned": scored(tuned, test),
            "prox": solved(pooled, constant(3.0)),
            "niw": solved(prior.m0, prior.precision),
            "fedhb diag": solved(blocks["diag"][1], blocks["diag"][0]),
            "fedhb full": solved(blocks["full"][1], blocks["full"][0]),
            "oracle": solved(
                {"weight": shared}, {"weight": (SPREAD.square() + 1e-6).reciprocal().expand(5, -1)}
            ),
        }
    for k, row in results.items():
        print(
            f"8.3 seed {seed} k={k}", {name: tuple(round(v, 3) for v in pair) for name, pair in row.items()}
        )
    variance = (1 / prior.precision["weight"]).mean(0)
    print("8.3 variance", variance)
    for k, row in results.items():
        assert row["niw"][0] >= row["prox"][0]
        assert row["fedhb full"][0] < row["fedhb diag"][0]
        assert row["niw"][0] > max(row["global"][0], row["local"][0])
        assert k == 5 or row["niw"][1] < row["prox"][1]
    assert results[20]["niw"][0] >= results[20]["global"][0] + 0.08
    assert variance[5:10].mean() / variance[:5].mean() > 20
