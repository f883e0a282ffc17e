"""Steps of training against hand-computed ones, heads and scores against references."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics.functional.classification import multiclass_calibration_error

from scenarios.episodes import sine_lines
from strategies import SGD, Adam, StrategyError
from strategies.few_shot import (
    GradientSteps,
    LangevinMoments,
    Trial,
    episode_logits,
    evaluate,
    expected_calibration_error,
    maml_gradient,
    maml_step,
    niw_adapt,
    niw_predict,
    niw_step,
    protonet_step,
    prototype_logits,
    prototypes,
    reptile_step,
    ridge_logits,
)
from strategies.functional import Stateless
from strategies.niw.estimators import Descent
from strategies.niw.posterior import Prior, Quadratic
from strategies.niw.server import gradient_state

WAYS = 3

# --- MAML and Reptile on quadratics -----------------------------------------------------------------------


def quadratic(params, batch):
    """Half the squared distance from the mean row, stretched: Hessian diag(1, 4)."""
    away = params["w"] - batch["x"].mean(0)
    return (away.square() * torch.tensor([1.0, 4.0], dtype=torch.float64)).sum() / 2


def rows(*values):
    return {"x": torch.tensor(values, dtype=torch.float64)}


HESSIAN = torch.tensor([1.0, 4.0], dtype=torch.float64)
START = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
TRIALS = [Trial(rows([0.0, 1.0]), rows([1.0, 2.0])), Trial(rows([3.0, 0.0], [1.0, 0.0]), rows([-1.0, 1.0]))]


def adapted_by_hand(trial, steps, lr):
    """A gradient step contracts the distance from the support's mean by 1 - lr H."""
    centre = trial.support["x"].mean(0)
    return centre + (1 - lr * HESSIAN) ** steps * (START["w"] - centre)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_step_of_maml_by_hand(first_order):
    steps, lr = 3, 0.1
    gradients, losses = [], []
    for trial in TRIALS:
        away = adapted_by_hand(trial, steps, lr) - trial.query["x"][0]
        through = torch.ones(2) if first_order else (1 - lr * HESSIAN) ** steps
        gradients.append(through * HESSIAN * away)
        losses.append((HESSIAN * away.square()).sum() / 2)
    inner = GradientSteps(steps, lr)
    params, _, value = maml_step(
        quadratic, START, TRIALS, {}, inner, first_order=first_order, optimizer=SGD(), lr=0.5
    )
    torch.testing.assert_close(params["w"], START["w"] - 0.5 * (gradients[0] + gradients[1]) / 2)
    torch.testing.assert_close(value, (losses[0] + losses[1]) / 2)


def test_maml_without_inner_steps_is_training_on_queries():
    for first_order in (False, True):
        gradient, _ = maml_gradient(quadratic, START, TRIALS[0], GradientSteps(0), first_order=first_order)
        torch.testing.assert_close(gradient["w"], torch.func.grad(quadratic)(START, TRIALS[0].query)["w"])


def test_the_second_order_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = Stateless(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    trial = Trial(*({"x": torch.randn(6, 2).double(), "y": torch.randn(6, 1).double()} for _ in range(2)))
    inner = GradientSteps(4, 0.3)

    def loss(p, batch):
        return (model(p, batch) - batch["y"]).square().mean()

    def outer(p):
        return loss(inner(loss, p, trial.support), trial.query)

    params = model.initial()
    gradient, value = maml_gradient(loss, params, trial, inner)
    torch.testing.assert_close(value, outer(params))
    way = {k: torch.randn_like(p) for k, p in params.items()}
    ends = [outer({k: p + sign * 1e-5 * way[k] for k, p in params.items()}) for sign in (1, -1)]
    slope = sum((gradient[k] * way[k]).sum() for k in params)
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-6, atol=1e-8)
    first, _ = maml_gradient(loss, params, trial, inner, first_order=True)
    assert (first["0.weight"] - gradient["0.weight"]).abs().max() > 0.01


def test_a_step_of_reptile_by_hand():
    params = reptile_step(quadratic, START, [t.support for t in TRIALS], Descent(2, 0.1, SGD()), 0.7)
    ends = [adapted_by_hand(trial, 2, 0.1) for trial in TRIALS]
    torch.testing.assert_close(params["w"], START["w"] + 0.7 * ((ends[0] + ends[1]) / 2 - START["w"]))


def test_maml_adapts_to_lines_and_sines_better_than_joint_training():
    torch.manual_seed(0)
    model = Stateless(
        nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    )

    def loss(p, batch):
        return (model(p, batch)[:, 0] - batch["y"]).square().mean()

    def batches(x, y):
        return {"x": torch.from_numpy(x)[..., None] / 2, "y": torch.from_numpy(y)}

    maml = joint = model.initial()
    inner, adam = GradientSteps(3, 0.05), Adam()
    maml_state, joint_state = adam.init(maml), adam.init(joint)
    for step in range(400):
        some = sine_lines(range(16 * step, 16 * step + 16), 20, 0)
        each = batches(some.x, some.y)
        support, query = ({k: v[:, part] for k, v in each.items()} for part in (slice(5), slice(5, None)))
        gradients, _ = torch.func.vmap(lambda s, q, p=maml: maml_gradient(loss, p, Trial(s, q), inner))(
            support, query
        )
        mean = {k: v.mean(0) for k, v in gradients.items()}
        maml, maml_state = adam.step(maml, mean, maml_state, 2e-3)
        slope = torch.func.grad(loss)(joint, {k: v.flatten(0, 1) for k, v in each.items()})
        joint, joint_state = adam.step(joint, slope, joint_state, 2e-3)

    tasks = sine_lines(range(200), 5, 0, purpose="test")
    support = batches(tasks.x, tasks.y)
    curve = batches(np.broadcast_to(tasks.grid, tasks.truth.shape).copy(), tasks.truth)

    def error(params):
        return torch.func.vmap(lambda s, q: loss(inner(loss, params, s), q))(support, curve).mean().item()

    print("lines and sines", error(maml), error(joint))
    assert error(maml) < 0.85 * error(joint)


# --- heads -------------------------------------------------------------------------------------------------


def test_prototypes_and_their_distances_by_hand():
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]])
    y = torch.tensor([0, 0, 2])
    assert prototypes(z, y, 3).tolist() == [[1.0, 0.0], [0.0, 0.0], [5.0, 1.0]]
    assert prototype_logits(z, y, torch.tensor([[1.0, 2.0]]), 3).tolist() == [[-4.0, -5.0, -17.0]]


def test_the_ridge_head_is_scikit_learns():
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    for shots in (1, 5):  # fewer and more rows than dimensions
        z = torch.randn(WAYS * shots, 6, generator=rng, dtype=torch.float64)
        y = torch.arange(WAYS).repeat(shots)
        ridge = Ridge(alpha=0.3, fit_intercept=False).fit(z.numpy(), one_hot(y, WAYS).numpy())
        got = ridge_logits(z, y, queries, WAYS, strength=0.3, scale=2.0)
        np.testing.assert_allclose(got, 2 * ridge.predict(queries.numpy()), atol=1e-10)


# --- bodies under a head -----------------------------------------------------------------------------------


def trials(count, seed, noise=0.5, shots=2, queries=5):
    """Classes are points of a plane; the other two of four coordinates are noise, and far larger."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        centres = 2 * torch.randn(WAYS, 1, 2, generator=g)
        shape = (WAYS, shots + queries, 2)
        x = torch.cat(
            [centres + noise * torch.randn(shape, generator=g), 6 * torch.randn(shape, generator=g)], -1
        )
        y = torch.arange(WAYS)[:, None].expand(shape[:2])
        parts = (slice(None, shots), slice(shots, None))
        out.append(Trial(*({"x": x[:, p].reshape(-1, 4), "y": y[:, p].reshape(-1)} for p in parts)))
    return out


def linear_body():
    torch.manual_seed(0)
    return Stateless(nn.Linear(4, 4, bias=False))


def accuracy(body, params, head=prototype_logits):
    return evaluate(
        lambda t: episode_logits(body, head, WAYS, params, t).log_softmax(1), trials(100, 99)
    ).accuracy


@pytest.mark.parametrize("head", [prototype_logits, ridge_logits])
def test_a_body_learns_what_matters_in_all_tasks(head):
    body = linear_body()
    start = params = body.initial()
    state = Adam().init(params)
    for step in range(100):
        params, state, _ = protonet_step(body, params, trials(4, step), state, WAYS, head=head, lr=0.02)
    assert accuracy(body, params, head) > accuracy(body, start, head) + 0.2
    weight = params["weight"]
    assert weight[:, :2].norm() > 2 * weight[:, 2:].norm()


def niw_prior(body, precision, dtype=None):
    m0 = {k: v.to(dtype or v.dtype) for k, v in body.initial().items()}
    return Prior(m0, {k: torch.full_like(v, precision).log() for k, v in m0.items()}, 1.0, 1.0)


class Fixed:
    """A quadratic model of given curvature around a place off the prior's mean."""

    def __init__(self, curvature, away=0.0):
        self.curvature, self.away = curvature, away

    def __call__(self, loss, prior, data, generator):  # noqa: ARG002 - an estimator's parameters
        mbar = {k: v.detach() + self.away for k, v in prior.m0.items()}
        return Quadratic(mbar, {k: torch.full_like(v, self.curvature) for k, v in prior.m0.items()})


def test_without_curvature_and_noise_a_step_of_niw_meta_is_one_of_protonet_on_sums():
    body, many = linear_body(), trials(3, 1)
    prior = niw_prior(body, 10.0)
    new, _, told = niw_step(
        body,
        prior,
        many,
        gradient_state(prior, SGD()),
        WAYS,
        torch.Generator(),
        estimator=Fixed(0.0),
        noise=False,
        optimizer=SGD(),
        lr=1e-3,
    )
    params, _, loss = protonet_step(body, body.initial(), many, {}, WAYS, optimizer=SGD(), lr=15e-3)
    torch.testing.assert_close(new.m0["weight"], params["weight"])
    assert told["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_step_of_niw_meta_follows_the_gradient_of_its_objective():
    """Section 2.4: J = f + g/2 with the posterior in closed form, here differentiated by autograd."""
    body = linear_body()
    (trial,) = trials(1, 2)
    prior, a, away = niw_prior(body, 3.0), 2.0, 0.2
    m0, log_p = prior.m0["weight"].requires_grad_(), prior.log_precision["weight"].requires_grad_()
    mbar, p = m0.detach() + away, log_p.exp()
    v = 1 / (a + p)
    m = v * (a * mbar + p * m0)
    logits = episode_logits(body, prototype_logits, WAYS, {"weight": m}, trial)
    f = cross_entropy(logits, trial.query["y"], reduction="sum")
    (f + (-log_p - v.log() + p * v + p * (m - m0).square()).sum() / 2).backward()

    resting = niw_prior(body, 3.0)
    new, _, _ = niw_step(
        body,
        resting,
        [trial],
        gradient_state(resting, SGD()),
        WAYS,
        torch.Generator(),
        estimator=Fixed(a, away),
        noise=False,
        optimizer=SGD(),
        lr=0.01,
        lr_precision=0.02,
    )
    torch.testing.assert_close(new.m0["weight"], m0.detach() - 0.01 * m0.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        new.log_precision["weight"], log_p.detach() - 0.02 * log_p.grad, rtol=1e-4, atol=1e-6
    )


def test_with_the_official_flags_niw_meta_is_protonet_with_a_little_noise():
    """Section 8.4: all curvatures at their bound, accuracy within 0.02 and no gain."""
    body, generator = linear_body(), torch.Generator().manual_seed(0)
    prior, params = niw_prior(body, 1e6), body.initial()
    state, proto_state = gradient_state(prior, Adam()), Adam().init(params)
    for step in range(100):
        some = trials(4, step)
        prior, state, told = niw_step(body, prior, some, state, WAYS, generator, lr=0.02)
        params, proto_state, _ = protonet_step(body, params, some, proto_state, WAYS, lr=0.02)
    assert told["clip_fraction"] == 1

    def predict(trial):
        q = niw_adapt(body, prior, trial.support, WAYS, generator)
        return niw_predict(body, q, trial, WAYS, generator)

    scores = evaluate(predict, trials(100, 99))
    assert scores.accuracy == pytest.approx(accuracy(body, params), abs=0.02)


def test_adapting_takes_the_closed_form_and_looks_at_the_support_alone():
    body = linear_body()
    prior = niw_prior(body, 2.0)
    q = niw_adapt(body, prior, trials(1, 3)[0].support, WAYS, torch.Generator(), estimator=Fixed(6.0, 0.4))
    torch.testing.assert_close(q.mean["weight"], prior.m0["weight"] + 6 / 8 * 0.4)
    torch.testing.assert_close(q.variance["weight"], torch.full((4, 4), 1 / 8))


def test_predictions_average_probabilities_over_draws():
    body = linear_body()
    (trial,) = trials(1, 4)
    q = niw_adapt(
        body, niw_prior(body, 4.0), trial.support, WAYS, torch.Generator(), estimator=LangevinMoments()
    )
    got = niw_predict(body, q, trial, WAYS, torch.Generator().manual_seed(5), samples=4)
    g = torch.Generator().manual_seed(5)
    probabilities = 0
    for _ in range(4):
        weight = q.mean["weight"] + q.variance["weight"].sqrt() * torch.randn(4, 4, generator=g)
        logits = episode_logits(body, prototype_logits, WAYS, {"weight": weight}, trial)
        probabilities = probabilities + logits.softmax(1) / 4
    torch.testing.assert_close(got.exp(), probabilities)


# --- scores ------------------------------------------------------------------------------------------------


def test_calibration_error_is_torchmetrics():
    g = torch.Generator().manual_seed(0)
    for scale, bins in ((0.3, 15), (3.0, 15), (3.0, 7)):
        probabilities = (scale * torch.randn(500, 5, generator=g)).softmax(1)
        y = torch.randint(5, (500,), generator=g)
        want = multiclass_calibration_error(probabilities, y, num_classes=5, n_bins=bins, norm="l1")
        assert expected_calibration_error(probabilities, y, bins) == pytest.approx(float(want), abs=1e-6)


def test_scores_by_hand():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    made = [Trial({}, {"y": torch.tensor(y)}) for y in ([0, 0], [0, 1])]
    scores = evaluate(lambda _: p.log(), made)
    assert scores.accuracy == 0.75
    assert scores.interval == pytest.approx(1.96 * np.std([1.0, 0.5], ddof=1) / 2**0.5)
    assert scores.nll == pytest.approx(-np.log([0.8, 0.6, 0.8, 0.4]).mean(), rel=1e-6)
    assert scores.ece == pytest.approx((2 * 0.2 + abs(1 - 2 * 0.6)) / 4, rel=1e-5)
    assert math.isnan(evaluate(lambda _: p.log(), made[:1]).interval)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"^steps: must be 0 or more, got -1"):
        GradientSteps(steps=-1)
    with pytest.raises(ValueError, match=r"^lr: must be above 0, got 0"):
        GradientSteps(lr=0)
    with pytest.raises(ValueError, match=r"^strength: must be above 0, got 0"):
        ridge_logits(torch.ones(2, 2), torch.tensor([0, 1]), torch.ones(1, 2), 2, strength=0)
    with pytest.raises(ValueError, match=r"^bins: must be 1 or more, got 0"):
        expected_calibration_error(torch.ones(1, 1), torch.tensor([0]), 0)
    for call in (
        lambda: maml_step(quadratic, START, [], {}, GradientSteps()),
        lambda: reptile_step(quadratic, START, [], Descent()),
        lambda: evaluate(lambda _: torch.ones(1, 1), []),
    ):
        with pytest.raises(StrategyError, match="there are none"):
            call()
