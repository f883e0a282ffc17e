"""Closed forms of the hierarchy; numbers in names are those of the specification's property tests."""

import pytest
import scipy.special
import torch
from niw_cases import FAMILIES, close, draws, flat, golden, random_case, vector
from torch.distributions import Gamma, Wishart, kl_divergence

from strategies.errors import StrategyError
from strategies.niw.objective import expected_quadratic
from strategies.niw.posterior import (
    Gaussian,
    Prior,
    Quadratic,
    expected_kl,
    from_scale,
    hierarchy_gap,
    hyper_kl,
    hyper_prior,
    local_posterior,
    mean_kl,
    multivariate_digamma,
    multivariate_lgamma,
    nlml,
    penalty,
    scale_kl,
)


@pytest.mark.parametrize(
    ("family", "kl", "gap", "mode", "scale_part"),
    [
        ("full", 2.143882695474778, 0.7856418007962547, [0.2, 0.3], 0.6108476255317106),
        ("diag", 2.0340688482481655, 0.6758279535696428, [2 / 9, 1 / 3], 0.32813337274710186),
    ],
)
def test_golden_values(family, kl, gap, mode, scale_part):
    prior, quadratic = golden(family)
    q = local_posterior(prior, quadratic)
    close(flat(prior.precision), [3.0, 2.0])
    close(flat(q.mean), [4 / 7, -1 / 3])
    close(flat(q.variance), [1 / 7, 1 / 3])
    close(expected_kl(prior, q), kl)
    close(nlml(prior, quadratic), 3.5668576747238747)
    close(hierarchy_gap(prior), gap)
    close(1 / (prior.mode_ratio * flat(prior.precision)), mode)
    hyper = hyper_prior({k: torch.zeros_like(v) for k, v in prior.m0.items()}, family)
    assert hyper.n0 == (4 if family == "full" else 3)
    close(mean_kl(prior, hyper), 0.4431471805599453)
    close(scale_kl(prior, hyper), scale_part)
    close(hyper_kl(prior, hyper), 0.4431471805599453 + scale_part)


@pytest.mark.parametrize(("x", "d"), [(3.0, 2), (40.25, 7), (600.0, 1000)])
def test_multivariate_gamma_functions(x, d):
    close(multivariate_lgamma(x, d), scipy.special.multigammaln(x, d), 1e-12 * abs(x * d))
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    close(multivariate_digamma(x, d), torch.autograd.grad(torch.mvlgamma(at, d), at)[0], 1e-9)
    close(multivariate_digamma(3.0, 2), 1.6259409757437102)


def inner(prior, quadratic, q):
    """``h(m, V)``, what the local posterior minimises, less what does not depend on it."""
    return expected_quadratic(quadratic, q) + penalty(prior, q) / 2


@pytest.mark.parametrize("seed", range(3))
def test_p1_p2_the_closed_form_is_the_minimum(seed):
    prior, quadratic = random_case(seed, "diag")
    q = local_posterior(prior, quadratic)
    leaves = Gaussian(*({k: v.clone().requires_grad_() for k, v in p.items()} for p in (q.mean, q.variance)))
    least = inner(prior, quadratic, leaves)
    for slope in torch.autograd.grad(least, [*leaves.mean.values(), *leaves.variance.values()]):
        close(slope, torch.zeros_like(slope), 1e-12 * float(1 / flat(q.variance).min()))
    # A general posterior, against diagonal A and P: h depends on the diagonal of V and on its determinant.
    g = torch.Generator().manual_seed(seed)
    a, p = flat(quadratic.curvature), flat(prior.precision)
    v = flat(q.variance)
    for _ in range(20):
        way = torch.randn(7, generator=g, dtype=torch.float64) * 0.1
        root = torch.randn(7, 7, generator=g, dtype=torch.float64) * v.sqrt()[:, None] * 0.3
        wide = v.diag() + root @ root.T
        rise = ((a + p) * (way.square() + wide.diag() - v)).sum() / 2
        rise = rise - (torch.logdet(wide) - v.log().sum()) / 2
        moved = {
            k: m + w.reshape(m.shape) for (k, m), w in zip(q.mean.items(), way.split([6, 1]), strict=True)
        }
        grown = {
            k: w.reshape(m.shape) for (k, m), w in zip(q.mean.items(), wide.diag().split([6, 1]), strict=True)
        }
        assert rise > 0
        assert inner(prior, quadratic, Gaussian(moved, grown)) > least


def test_p3_limits_of_the_curvature():
    prior, quadratic = random_case(0, "diag")
    none = local_posterior(prior, Quadratic(quadratic.mbar, {k: 0 * v for k, v in quadratic.mbar.items()}))
    assert torch.equal(flat(none.mean), flat(prior.m0))
    close(flat(none.variance), 1 / flat(prior.precision))
    much = {k: torch.full_like(v, 1e12) for k, v in quadratic.mbar.items()}
    sure = local_posterior(prior, Quadratic(quadratic.mbar, much))
    close(flat(sure.mean), flat(quadratic.mbar), 1e-10)
    assert flat(sure.variance).max() < 1e-11
    # An infinite precision is the global model, exactly.
    fixed = Prior(prior.m0, {k: torch.full_like(v, torch.inf) for k, v in prior.m0.items()}, 1.0, 1.0)
    assert torch.equal(flat(local_posterior(fixed, quadratic).mean), flat(prior.m0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_p4_training_the_prior_is_empirical_bayes(seed, family):
    prior, quadratic = random_case(seed, family)
    q = local_posterior(prior, quadratic)
    bound = expected_quadratic(quadratic, q) + expected_kl(prior, q)
    close(bound, nlml(prior, quadratic) + hierarchy_gap(prior), 1e-10)
    assert hierarchy_gap(prior) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_p7_p8_closed_forms_equal_monte_carlo_means(family):
    prior, quadratic = golden(family)
    q = local_posterior(prior, quadratic)
    m, v = flat(q.mean), flat(q.variance)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mu, sigma = draws(prior, 400_000)
    precision = torch.linalg.inv(sigma)
    logdet = torch.logdet(sigma)
    away = mu - m
    kl = (precision.diagonal(dim1=1, dim2=2) * v).sum(1) + torch.einsum("ni,nij,nj->n", away, precision, away)
    kl = (kl + logdet - v.log().sum() - prior.d) / 2
    assert kl.min() >= 0

    def agrees(values, expected):
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - expected).abs() <= 4 * error).all()

    agrees(kl, expected_kl(prior, q))
    agrees(precision.diagonal(dim1=1, dim2=2), flat(prior.precision))
    if family == "full":
        psi = multivariate_digamma(prior.n0 / 2, 2)
    else:
        psi = 2 * torch.digamma(vector(prior.n0 / 2))[0]
    agrees(logdet, flat(prior.scale).log().sum() - prior.d * torch.log(vector(2.0))[0] - psi)


@pytest.mark.parametrize("seed", range(3))
def test_p9_divergences_equal_those_of_torch(seed):
    for family in FAMILIES:
        prior, _ = random_case(seed, family)
        hyper, _ = random_case(seed + 10, family)
        q, p = ((torch.tensor(r.n0, dtype=torch.float64), flat(r.scale)) for r in (prior, hyper))
        if family == "full":
            expected = kl_divergence(Wishart(q[0], (1 / q[1]).diag()), Wishart(p[0], (1 / p[1]).diag()))
        else:
            expected = kl_divergence(Gamma(q[0] / 2, q[1] / 2), Gamma(p[0] / 2, p[1] / 2)).sum()
        close(scale_kl(prior, hyper), expected, 1e-9 * max(1.0, abs(expected.item())))
        close(hyper_kl(prior, prior), 0.0, 1e-9)


def test_p10_the_mode_is_where_the_density_is_level():
    prior, _ = golden("full")
    m0, scale, n0, d = flat(prior.m0), flat(prior.scale).diag(), prior.n0, prior.d
    mu = m0.clone().requires_grad_()
    sigma = (1 / flat(prior.precision) / prior.mode_ratio).diag().requires_grad_()
    inverse = torch.linalg.inv(sigma)
    log_density = -((n0 + d + 1) / 2 + 0.5) * torch.logdet(sigma) - torch.trace(scale @ inverse) / 2
    log_density = log_density - prior.l0 / 2 * (mu - m0) @ inverse @ (mu - m0)
    for slope in torch.autograd.grad(log_density, [mu, sigma]):
        close(slope, torch.zeros_like(slope), 1e-12)
    prior, _ = golden("diag")
    s = (1 / flat(prior.precision) / prior.mode_ratio).requires_grad_()
    law = torch.distributions.InverseGamma(vector(n0 / 2), flat(prior.scale) / 2)
    (slope,) = torch.autograd.grad((law.log_prob(s) - s.log() / 2).sum(), s)
    close(slope, torch.zeros(2), 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_precision_a_tensor_is_that_precision_of_each_weight(family):
    prior, quadratic = random_case(1, family)
    shared = {k: v.mean() for k, v in prior.log_precision.items()}
    one = Prior(prior.m0, shared, prior.n0, prior.l0, family)
    each = Prior(
        prior.m0, {k: shared[k].expand_as(v) for k, v in prior.m0.items()}, prior.n0, prior.l0, family
    )
    hyper = hyper_prior(prior.m0, family)
    q = local_posterior(one, quadratic)
    close(flat(q.mean), flat(local_posterior(each, quadratic).mean))
    for f in (lambda p: expected_kl(p, q), lambda p: hyper_kl(p, hyper), lambda p: nlml(p, quadratic)):
        close(f(one), f(each))


def test_clients_are_mapped_and_types_kept():
    prior, quadratic = random_case(2, "full")
    stacked = [
        {k: torch.stack([v, 2 * v]) for k, v in p.items()} for p in (quadratic.mbar, quadratic.curvature)
    ]

    def one(mbar, curvature):
        q = local_posterior(prior, Quadratic(mbar, curvature))
        return q.mean, expected_kl(prior, q)

    mean, kl = torch.func.vmap(one)(*stacked)
    close(kl[0], one(quadratic.mbar, quadratic.curvature)[1])
    close(mean["w"], local_posterior(prior, Quadratic(*stacked)).mean["w"])

    small = Prior(
        *({k: v.float() for k, v in p.items()} for p in (prior.m0, prior.log_precision)), 900.0, 2.0
    )
    exact = Prior(prior.m0, prior.log_precision, 900.0, 2.0)
    assert hierarchy_gap(small).dtype == nlml(small, quadratic).dtype == torch.float32
    torch.testing.assert_close(hierarchy_gap(small).double(), hierarchy_gap(exact), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        hyper_kl(small, hyper_prior(small.m0)).double(),
        hyper_kl(exact, hyper_prior(exact.m0)),
        rtol=1e-6,
        atol=0,
    )


def test_bad_priors_are_refused_in_one_line():
    m0 = {"w": torch.zeros(3, 2)}
    good = {"w": torch.zeros(())}
    with pytest.raises(StrategyError, match=r"n0: the full family needs n0 > 5 \(d - 1, d = 6\), got 5.0"):
        Prior(m0, good, 5.0, 1.0, "full")
    Prior(m0, good, 0.5, 0.0)
    for n0, l0 in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(StrategyError, match=r"(n0|l0): "):
            Prior(m0, good, n0, l0)
    with pytest.raises(StrategyError, match=r"shape \(2,\)"):
        Prior(m0, {"w": torch.zeros(2)}, 1.0, 1.0)
    with pytest.raises(StrategyError, match=r"names \['v'\]; the weights are \['w'\]"):
        Prior(m0, {"v": torch.zeros(())}, 1.0, 1.0)
    with pytest.raises(ValueError, match="family: must be 'full' or 'diag', got 'wide'"):
        Prior(m0, good, 1.0, 1.0, "wide")
    with pytest.raises(StrategyError, match="family"):
        hyper_kl(Prior(m0, good, 9.0, 1.0), hyper_prior(m0, "full"))
    close(flat(from_scale(m0, {"w": torch.full((3, 2), 4.0)}, 8.0, 1.0).precision).double(), [2.0] * 6, 1e-6)
