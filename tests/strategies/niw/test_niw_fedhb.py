"""Block descent of FedHB: golden values, what each block minimises, and the descent of the whole bound."""

from itertools import pairwise

import pytest
import torch
from niw_cases import FAMILIES, HEAD, close, gaussians, head_case, softmax_loss, vector

from strategies.niw import Descent, Gaussian, Newton, Prior, Quadratic, hyper_prior
from strategies.niw.adapt import student_t
from strategies.niw.fedhb import (
    client_spike,
    dropped,
    gaussian_moments,
    mixture_penalty,
    mixture_responsibilities,
    mixture_update,
    server_update,
    spike_moments,
    spike_penalty,
)
from strategies.niw.objective import expected_quadratic
from strategies.niw.posterior import expected_kl, from_scale, hyper_kl, local_posterior
from strategies.optim import SGD

SPIKES = [{"w": vector(1.0, 0.0)}, {"w": vector(0.0, 2.0)}, {"w": vector(2.0, 3.0)}]


@pytest.mark.parametrize("centre", [vector(0.0, 0.0), vector(0.7, -1.3)])
@pytest.mark.parametrize(
    ("family", "n0", "client", "personal"),
    [
        ("full", 7, [1.88806473, 0.91294425], [2.96695887, 1.43462667]),
        ("diag", 6, [1.61834120, 0.78252364], [2.42751180, 1.17378546]),
    ],
)
def test_golden_values_of_the_server(family, n0, client, personal, centre):
    hyper = hyper_prior({"w": vector(0.0, 0.0)}, family)
    parts = [spike_moments(m, {"w": centre}, 0.9, 0.01) for m in SPIKES]
    sums = parts[0] + parts[1] + parts[2]
    stacked = spike_moments({"w": torch.stack([m["w"] for m in SPIKES])}, {"w": centre}, 0.9, 0.01)
    close(stacked.second["w"], sums.second["w"])
    new = server_update(hyper, sums, {"w": centre})
    close(new.m0["w"], [0.675, 1.125])
    close(new.scale["w"], [3.7075, 7.6675])
    assert (new.l0, new.n0) == (4, n0)
    close(new.precision["w"], client, 1e-8)
    close(new.mode_ratio * new.precision["w"], personal, 1e-8)
    df, scale = student_t(new)
    assert df == 6
    close(scale["w"], [0.77239583, 1.59739583], 1e-8)


def test_golden_values_of_the_mixture():
    prototypes = [{"w": vector(0.0, 0.0)}, {"w": vector(2.0, 1.0)}]
    c = torch.stack([mixture_responsibilities(m, prototypes, 0.5) for m in SPIKES])
    close(c, [[0.73105858, 0.26894142], [0.73105858, 0.26894142], [0.000123395, 0.999876605]], 1e-8)
    new = mixture_update(SPIKES, prototypes, 0.5)
    close(new[0]["w"], [0.37268895, 0.74531501], 1e-8)
    close(new[1]["w"], [1.11332799, 1.73598148], 1e-8)
    penalties = torch.stack([mixture_penalty(m, prototypes, 0.5) for m in SPIKES])
    close(penalties, [0.68673831, 3.68673831, 3.99987660], 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_servers_block_is_level_at_its_update(family):
    centre = {"w": vector(0.3, 0.1)}
    hyper = hyper_prior(centre, family, 0.5, 2.0)
    sums = spike_moments({"w": torch.stack([m["w"] for m in SPIKES])}, centre, 0.8, 0.02)
    new = server_update(hyper, sums, centre)
    m0, log_scale = new.m0["w"].clone().requires_grad_(), new.scale["w"].log().requires_grad_()
    n0, l0 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (new.n0, new.l0))
    prior = Prior({"w": m0}, {"w": n0.log() - log_scale}, n0, l0, family)
    bound = hyper_kl(prior, hyper)
    for spike in SPIKES:  # q_i's moments are all that the bound knows of it
        mean = 0.8 * spike["w"]
        variance = 0.8 * spike["w"].square() + 0.02 - mean.square()
        bound = bound + expected_kl(prior, Gaussian({"w": mean}, {"w": variance}))
    for slope in torch.autograd.grad(bound, [m0, log_scale, n0, l0]):
        close(slope, torch.zeros_like(slope), 1e-12)
    # At other degrees of freedom, the best V0 is level too.
    other = server_update(hyper, sums, centre, n0=50.0)
    close(other.scale["w"], 50 / new.n0 * new.scale["w"])


@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_a_client_finds_the_minimum_of_its_block(keep):
    at, data = head_case(0, 30)
    prior = from_scale(at, {"weight": at["weight"].exp()}, 8.0, 2.0)
    spike = client_spike(softmax_loss, prior, data, keep, Newton(HEAD))
    slope = torch.func.grad(lambda m: softmax_loss(m, data) + spike_penalty(prior, m, keep))(spike)
    close(slope["weight"], torch.zeros(3, 4), 1e-8)
    with pytest.raises(ValueError, match=r"keep: must lie in \(0, 1\], got 0"):
        client_spike(softmax_loss, prior, data, 0.0)


def test_masks_of_each_step_lead_to_the_minimum_of_their_mean():
    prior = Prior({"w": vector(0.5, -1.0)}, {"w": vector(0.0, 0.5)}, 6.0, 2.0)
    centre, curvature = vector(2.0, 1.0), vector(1.0, 2.0)

    def loss(p, _):
        return (curvature * (p["w"] - centre).square()).sum() / 2

    data = {"x": torch.zeros(1, 1)}
    # Coordinates are kept and dropped in turn: for p = 1/2, all that the mean over masks knows.
    draws = {"w": torch.tensor([[0.2, 0.8], [0.7, 0.1]], dtype=torch.float64).repeat(400, 1)}
    solver = Descent(800, 0.02, SGD())
    spike = client_spike(loss, prior, data, 0.5, solver, draws=draws)
    best = local_posterior(prior, Quadratic({"w": centre}, {"w": curvature})).mean["w"]
    close(spike["w"], best, 0.02)
    g = torch.Generator().manual_seed(0)
    close(client_spike(loss, prior, data, 0.5, Descent(800, 0.01, SGD()), generator=g)["w"], best, 0.15)
    for wrong in ({"draws": draws, "generator": g}, {"draws": draws, "solver": Newton(HEAD)}):
        with pytest.raises(ValueError, match=r"generator, draws|solver: "):
            client_spike(loss, prior, data, 0.5, **wrong)


def test_spikes_are_the_limit_of_fedavg_and_fedprox():
    at, data = head_case(1, 30)
    # V0 / n0 = c: FedProx with mu = 1/c; V0 without bound: plain training; and the mean of the clients.
    for c in (4.0, 1e12):
        prior = from_scale(at, {"weight": torch.full((3, 4), 7 * c, dtype=torch.float64)}, 7.0, 2.0)
        spike = client_spike(softmax_loss, prior, data, solver=Newton(HEAD, 30))
        prox = (
            torch.func.grad(lambda m: softmax_loss(m, data))(spike)["weight"]
            + (spike["weight"] - at["weight"]) / c
        )
        close(prox, torch.zeros(3, 4), 1e-7)
    flat_hyper = hyper_prior(SPIKES[0], lambda0=0.0)
    sums = spike_moments({"w": torch.stack([m["w"] for m in SPIKES])}, SPIKES[1])
    close(server_update(flat_hyper, sums, SPIKES[1]).m0["w"], [1.0, 5 / 3])


def test_dropped_weights_have_the_spikes_moments():
    spike = {"w": torch.tensor([1.0, -2.0]).double().expand(50_000, 2)}
    draws = {"w": torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    sample = dropped(spike, 0.7, draws)["w"]
    sums = spike_moments({"w": spike["w"][0]}, {"w": vector(0.0, 0.0)}, 0.7, 0.0)
    torch.testing.assert_close(sample.mean(0), sums.first["w"], rtol=0.02, atol=0)
    torch.testing.assert_close(sample.square().mean(0), sums.second["w"], rtol=0.02, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_8_5_the_bound_never_rises_and_spikes_underestimate_the_spread(family):
    g = torch.Generator().manual_seed(0)
    tau = vector(0.1, 0.5, 1.0, 2.0)
    theta = vector(1.0, -1.0, 0.0, 2.0) + tau * torch.randn(100, 4, generator=g, dtype=torch.float64)
    x = gaussians(5, theta, g)["x"].mean(1)
    data = Quadratic({"w": x}, {"w": torch.full((100, 4), 5.0, dtype=torch.float64)})
    hyper = hyper_prior({"w": torch.zeros(4, dtype=torch.float64)}, family)
    variances = {}
    for width in (None, 1e-4):  # clients' own variances, or that of spikes
        prior = hyper_prior({"w": torch.zeros(4, dtype=torch.float64)}, family, lambda0=2.0)
        path = []

        def bound(q, prior):
            each = torch.func.vmap(lambda m, v: expected_kl(prior, Gaussian({"w": m}, {"w": v})))
            clients = each(q.mean["w"], q.variance["w"]).sum()
            return (expected_quadratic(data, q) + clients + hyper_kl(prior, hyper)).item()

        for _ in range(60):
            q = local_posterior(prior, data)
            if width is not None:
                q = Gaussian(q.mean, {"w": torch.full_like(q.mean["w"], width)})
            path.append(bound(q, prior))
            prior = server_update(hyper, gaussian_moments(q, prior.m0), prior.m0)
            path.append(bound(q, prior))
        assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(path))
        assert path[-1] < path[0] - 10
        variances[width] = 1 / prior.precision["w"]
    assert (variances[1e-4] <= variances[None]).all()
    best = (x.var(0, correction=0) - 0.2).clamp(min=0)
    assert (variances[1e-4][1:] < best[1:]).all()
