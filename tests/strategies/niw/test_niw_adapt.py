"""A new client: adaptation and prediction against what they must be."""

import math

import pytest
import scipy.stats
import torch
from niw_cases import FAMILIES, HEAD, close, draws, flat, head_case, logits, random_case, softmax_loss, vector

from strategies.functional import Params
from strategies.niw import Descent, Gaussian, Newton, Prior, Quadratic
from strategies.niw.adapt import (
    closed_form,
    fixed_prior,
    personalise,
    predict_classes,
    predict_values,
    prior_predictive,
    student_penalty,
    student_t,
    variational,
)
from strategies.niw.estimators import adapted
from strategies.niw.posterior import local_posterior
from strategies.optim import SGD


def prior_of(at: Params, n0: float = 1.0) -> Prior:
    return Prior({"weight": at["weight"].cos()}, {"weight": at["weight"].sin()}, n0, 2.0)


def test_the_mode_pulls_harder_than_training_did():
    at, data = head_case(0, 20)
    prior = prior_of(at)
    assert fixed_prior(prior, "train") is prior
    close(flat(fixed_prior(prior, "mode").precision), 4 * flat(prior.precision))
    close(flat(fixed_prior(prior_of(at, 1000.0), "mode").precision), 1.003 * flat(prior.precision))
    with pytest.raises(ValueError, match="test_prior: must be 'train' or 'mode', got 'best'"):
        fixed_prior(prior, "best")
    quadratic = adapted(softmax_loss, prior.m0, data, HEAD)
    close(
        flat(closed_form(prior, quadratic, "mode").variance),
        1 / (flat(quadratic.curvature) + 4 * flat(prior.precision)),
    )


def test_without_examples_the_prior_is_left():
    at, data = head_case(0, 0)
    prior = prior_of(at)
    expected = prior_predictive(prior)
    for solver in (Newton(HEAD), Descent(5)):
        q = personalise(softmax_loss, prior, data, HEAD, solver=solver)
        assert torch.equal(q.mean["weight"], prior.m0["weight"])
        close(flat(q.variance), flat(expected.variance))
    noise = {
        "weight": torch.randn(300, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    }
    q = variational(softmax_loss, prior, data, solver=Descent(300), noise=noise, test_prior="train")
    close(flat(q.mean), flat(prior.m0), 1e-6)
    close(flat(q.variance), flat(expected.variance), 1e-6)


def test_a_constant_precision_is_fedprox():
    at, data = head_case(1, 15)
    prior = Prior(at, {"weight": torch.tensor(math.log(3.0), dtype=torch.float64)}, 9.0, 1.0)
    q = personalise(softmax_loss, prior, data, HEAD, solver=Descent(20, 0.01, SGD()))
    w = at["weight"]
    for _ in range(20):
        slope = torch.func.grad(lambda p: softmax_loss(p, data))({"weight": w})["weight"]
        w = w - 0.01 * (slope + 3 * (w - at["weight"]))
    close(q.mean["weight"], w)


def test_the_variational_posterior_of_a_quadratic_is_the_closed_form():
    prior, wild = random_case(4, "diag")
    quadratic = Quadratic(wild.mbar, {k: 1 + v.sin().square() for k, v in wild.curvature.items()})

    def loss(p, data):
        terms = [(a * (p[k] - quadratic.mbar[k]).square()).sum() for k, a in quadratic.curvature.items()]
        return sum(terms) / 2

    rows = {"x": torch.zeros(1, 1)}
    # Draws of -1 and 1 in turn have the moments that matter to a quadratic.
    signs = (-1.0) ** torch.arange(600).double()
    noise = {k: signs.reshape(-1, *[1] * v.ndim).expand(-1, *v.shape) for k, v in prior.m0.items()}
    solver = Descent(600, 0.02, SGD())
    q = variational(loss, prior, rows, solver=solver, test_prior="train", noise=noise)
    best = local_posterior(prior, quadratic)
    close((flat(q.mean) - flat(best.mean)) / flat(best.variance).sqrt(), torch.zeros(7), 0.05)
    close((flat(q.variance) / flat(best.variance)).log(), torch.zeros(7), 0.03)
    with pytest.raises(ValueError, match="generator, noise: give one of the two"):
        variational(loss, prior, rows)


def test_clients_are_mapped():
    at, _ = head_case(0, 1)
    clients = [head_case(s, 6)[1] for s in range(2)]
    data = {k: torch.stack([c[k] for c in clients]) for k in clients[0]}
    prior = prior_of(at)
    noise = {"weight": torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}

    def one(rows):
        q = variational(softmax_loss, prior, rows, solver=Descent(5), noise=noise)
        return predict_classes(logits, q, rows, 5, noise=noise), student_penalty(prior, q.mean)

    for mapped, alone in zip(torch.func.vmap(one)(data), one(clients[1]), strict=True):
        close(mapped[1], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_with_phi_integrated_out_follow_students_t(family):
    prior = Prior({"w": vector(0.0, 0.5)}, {"w": vector(3.0, 2.0).log()}, 6.0, 2.0, family)
    df, scale = student_t(prior)
    points = torch.tensor([[0.2, 0.1], [1.5, -1.0], [-3.0, 2.0]], dtype=torch.float64)
    if family == "full":
        law = scipy.stats.multivariate_t(prior.m0["w"].numpy(), scale["w"].diag().numpy(), df)
        expected = torch.as_tensor(law.logpdf(points.numpy())) - law.logpdf(prior.m0["w"].numpy())
    else:
        law = torch.distributions.StudentT(df, prior.m0["w"], scale["w"].sqrt())
        expected = (law.log_prob(points) - law.log_prob(prior.m0["w"])).sum(1)
    close([-student_penalty(prior, {"w": p}).item() for p in points], expected)
    # And the law itself is the mean of N(mu, Sigma) over the prior.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mu, sigma = draws(prior, 200_000)
    density = torch.distributions.MultivariateNormal(mu, sigma).log_prob(points[0]).exp()
    exact = law.pdf(points[0].numpy()) if family == "full" else law.log_prob(points[0]).sum().exp().item()
    assert abs(density.mean().item() - exact) < 4 * density.std().item() / 200_000**0.5


def test_predictions_average_probabilities_not_logits():
    at, data = head_case(3, 10)
    q = Gaussian(at, {"weight": torch.ones(3, 4, dtype=torch.float64)})
    noise = {"weight": torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    mean = torch.stack([(data["x"] @ (at["weight"] + e).T).softmax(1) for e in noise["weight"]]).mean(0)
    close(predict_classes(logits, q, data, 8, noise=noise), mean.log())
    drawn = predict_classes(logits, q, data, 8, generator=torch.Generator().manual_seed(1))
    close(drawn.exp().sum(1), torch.ones(10))
    close(predict_classes(logits, q, data), logits(at, data).log_softmax(1))
    with pytest.raises(ValueError, match="generator, noise: give one of the two"):
        predict_classes(logits, q, data, 2)


def test_predictions_of_a_linear_regression_have_the_exact_variance():
    q = Gaussian({"w": vector(1.0, -2.0)}, {"w": vector(0.5, 0.1)})
    batch = {"x": torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)}

    def output(p, rows):
        return rows["x"] @ p["w"]

    g = torch.Generator().manual_seed(0)
    mean, variance = predict_values(output, q, batch, 0.36, 20_000, g)
    close(mean, [-3.0, -6.0], 0.03)
    close(variance / vector(0.36 + 0.5 + 0.4, 0.36 + 0.9), [1.0, 1.0], 0.03)
    mean, variance = predict_values(output, q, batch, vector(0.36))
    close(mean, [-3.0, -6.0])
    close(variance, [0.36, 0.36])
