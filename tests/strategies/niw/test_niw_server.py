"""The server's updates; numbers in names are those of the specification's property tests."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from niw_cases import close, flat, random_case

from strategies.errors import StrategyError
from strategies.niw import Gaussian, Prior, Quadratic, hyper_prior
from strategies.niw.objective import PriorGradient, envelope_gradient, hyper_gradient
from strategies.niw.posterior import local_posterior, nlml
from strategies.niw.server import (
    Moments,
    averaging_rate,
    conjugate_update,
    evidence_gradient,
    evidence_update,
    gradient_state,
    gradient_update,
    mean_gradient,
    moments,
    moments_gradient,
    moments_update,
    running_average,
)
from strategies.optim import Adam


def clients(n=6):
    """A prior and the quadratics of ``n`` clients, stacked."""
    prior, _ = random_case(0, "diag")
    each = [random_case(s, "diag")[1] for s in range(1, n + 1)]
    stacked = Quadratic(
        *(
            {k: torch.stack([getattr(q, part)[k] for q in each]) for k in prior.m0}
            for part in ("mbar", "curvature")
        )
    )
    return prior, each, stacked


@pytest.mark.parametrize("shared", [True, False])
def test_p14_expectation_maximisation_never_goes_uphill(shared):
    prior, _, stacked = clients()
    if shared:
        prior = replace(prior, log_precision={k: v.mean() for k, v in prior.log_precision.items()})
    values = []
    for _ in range(300):
        values.append(nlml(prior, stacked).item())
        prior = evidence_update(prior, stacked, least_variance=1e-12)
    assert all(b <= a + 1e-10 for a, b in pairwise(values))
    assert values[-1] < values[0] - 0.5


def test_p16_order_and_partial_sums_of_clients_do_not_matter():
    prior, each, stacked = clients()
    parts = [moments(local_posterior(prior, q), prior.m0) for q in each]
    small = replace(prior, m0={k: v.float() for k, v in prior.m0.items()})
    whole = moments_update(prior, moments(local_posterior(prior, stacked), prior.m0))
    for order in ([0, 1, 2, 3, 4, 5], [3, 1, 5, 0, 4, 2]):
        halves = [sum((parts[i] for i in half[1:]), parts[half[0]]) for half in (order[:2], order[2:])]
        new = moments_update(prior, halves[0] + halves[1])
        torch.testing.assert_close(flat(new.m0), flat(whole.m0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flat(new.precision), flat(whole.precision), rtol=1e-12, atol=0)
        singles = [
            Moments(*({k: v.float() for k, v in p.items()} for p in (m.first, m.second)), 1)
            for m in (halves[1], halves[0])
        ]
        new = moments_update(small, replace(singles[0] + singles[1], count=6))
        torch.testing.assert_close(flat(new.precision).double(), flat(whole.precision), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_moments_determine_the_gradient(shared):
    prior, each, stacked = clients()
    if shared:
        prior = replace(prior, log_precision={k: v.mean() for k, v in prior.log_precision.items()})
    direct = mean_gradient([envelope_gradient(prior, local_posterior(prior, q)) for q in each])
    sums = moments(local_posterior(prior, stacked), prior.m0)
    for other in (moments_gradient(prior, sums), evidence_gradient(prior, stacked)):
        close(flat(other.m0), flat(direct.m0))
        close(flat(other.log_precision), flat(direct.log_precision))
    leaf = {k: v.clone().requires_grad_() for k, v in prior.log_precision.items()}
    slopes = torch.autograd.grad(nlml(replace(prior, log_precision=leaf), stacked) / 6, list(leaf.values()))
    close(torch.cat([s.flatten() for s in slopes]), flat(direct.log_precision), 1e-10)
    hyper = hyper_prior(prior.m0)
    further = mean_gradient([direct] * 4, hyper_gradient(prior, hyper))
    close(
        flat(further.log_precision),
        flat(direct.log_precision) + flat(hyper_gradient(prior, hyper).log_precision) / 4,
    )


def test_a_gradient_step_is_adams_and_keeps_the_precision_in_range():
    prior, _, stacked = clients()
    gradient = evidence_gradient(prior, stacked)
    state = gradient_state(prior, Adam())
    new, state = gradient_update(prior, gradient, Adam(), state, 1e-2, 2e-2)
    close(flat(new.m0), flat(prior.m0) - 1e-2 * flat(gradient.m0).sign(), 1e-6)
    close(
        flat(new.log_precision), flat(prior.log_precision) - 2e-2 * flat(gradient.log_precision).sign(), 1e-6
    )
    up = PriorGradient(gradient.m0, {k: -torch.ones_like(v) for k, v in prior.m0.items()})
    new, _ = gradient_update(prior, up, Adam(), gradient_state(prior, Adam()), 1e-2, 100.0)
    close(flat(new.precision), torch.full((7,), 1e6), 1e-6)


def test_moments_are_centred_so_that_float32_keeps_the_variance():
    g = torch.Generator().manual_seed(0)
    weights = 3 + 1e-3 * torch.randn(50, 4, generator=g)
    q = Gaussian({"w": weights}, {"w": torch.full((50, 4), 1e-6)})
    prior = Prior({"w": torch.full((4,), 3.0005)}, {"w": torch.zeros(4)}, 9.0, 1.0)
    new = moments_update(prior, moments(q, prior.m0), least_variance=1e-12)
    expected = weights.double().var(0, correction=0) + 1e-6
    torch.testing.assert_close(1 / new.precision["w"].double(), expected, rtol=1e-3, atol=0)


def test_clients_that_are_all_alike_leave_the_least_variance():
    q = Gaussian({"w": torch.ones(5, 3)}, {"w": torch.zeros(5, 3)})
    prior = Prior({"w": torch.zeros(3)}, {"w": torch.zeros(3)}, 9.0, 1.0)
    new = moments_update(prior, moments(q, prior.m0), least_variance=1e-4)
    close(new.m0["w"].double(), [1.0] * 3)
    close(1 / new.precision["w"].double(), [1e-4] * 3, 1e-9)


@pytest.mark.parametrize("n0", [None, 40.0])
@pytest.mark.parametrize("family", ["full", "diag"])
def test_the_conjugate_update_is_the_textbook_posterior_and_a_minimum(family, n0):
    prior, _, stacked = clients()
    theta = stacked.mbar  # known exactly: no variance
    q = Gaussian(theta, {k: torch.zeros_like(v) for k, v in theta.items()})
    hyper = hyper_prior({k: v + 0.5 for k, v in prior.m0.items()}, family, 0.7, 1.5)
    new = conjugate_update(hyper, moments(q, prior.m0), prior.m0, n0)
    x, mu0 = torch.cat([v.flatten(1) for v in theta.values()], 1), flat(hyper.m0)
    mean = x.mean(0)
    close(flat(new.m0), (1.5 * mu0 + 6 * mean) / 7.5)
    scatter = (x - mean).T @ (x - mean) + 1.5 * 6 / 7.5 * torch.outer(mean - mu0, mean - mu0)
    best = 6 + hyper.n0
    close(flat(new.scale), (n0 or best) / best * (0.7 + scatter.diagonal()), 1e-10)
    assert (new.n0, new.l0) == (n0 or best, 7.5)
    # The bound's gradient in (m0, log P) at fixed n0, l0: all clients' parts and the hyper-prior's.
    parts = moments_gradient(new, moments(q, new.m0))
    hyper_part = hyper_gradient(new, hyper)
    close(6 * flat(parts.m0) + flat(hyper_part.m0), torch.zeros(7), 1e-10)
    close(6 * flat(parts.log_precision) + flat(hyper_part.log_precision), torch.zeros(7), 1e-10)
    # Means of as many clients, as a running average keeps them, lead to the same.
    again = conjugate_update(hyper, moments(q, prior.m0).means().times(6), prior.m0, n0)
    close(flat(again.scale), flat(new.scale))


def test_running_averages_move_with_the_centre():
    prior, each, _ = clients()
    rounds = [moments(local_posterior(prior, q), prior.m0) for q in each]
    assert [averaging_rate(r) for r in (1, 2, 4, 5, 9)] == [1, 0.5, 0.25, 0.2, 0.2]
    # Uniform over rounds until the rate is at its least: after four, the plain mean.
    kept, centre = None, prior.m0
    for r in range(1, 5):
        new = moments(local_posterior(prior, each[r - 1]), centre)
        kept = running_average(kept, new, averaging_rate(r))
        shift = {k: torch.full_like(v, 0.1 * r) for k, v in centre.items()}
        kept, centre = kept.recentred(shift), {k: v + shift[k] for k, v in centre.items()}
    mean = sum(rounds[1:4], rounds[0]).means().recentred({k: centre[k] - v for k, v in prior.m0.items()})
    close(flat(kept.first), flat(mean.first))
    close(flat(kept.second), flat(mean.second))
    # The same as moments taken about the new centre at once.
    about = moments(local_posterior(prior, each[0]), centre)
    moved = rounds[0].recentred({k: centre[k] - v for k, v in prior.m0.items()})
    close(flat(moved.second), flat(about.second))


def test_a_server_without_clients_says_so():
    prior, each, _ = clients()
    none = replace(moments(local_posterior(prior, each[0]), prior.m0), count=0)
    for f in (
        lambda: moments_update(prior, none),
        lambda: conjugate_update(hyper_prior(prior.m0), none, prior.m0),
        lambda: mean_gradient([]),
    ):
        with pytest.raises(StrategyError, match="of 0 clients: the prior needs at least one reply"):
            f()
    with pytest.raises(StrategyError, match="has shape"):
        moments(Gaussian({"w": torch.zeros(2, 5)}, {"w": torch.zeros(2, 5)}), {"w": torch.zeros(3)})
