"""The objective and its gradients; numbers in names are those of the specification's property tests."""

from dataclasses import replace

import pytest
import torch
from niw_cases import FAMILIES, HEAD, close, flat, golden, head_case, random_case, softmax_loss
from torch import nn

from strategies.functional import backpropagate
from strategies.niw import Descent, Fisher, Prior, Quadratic, hyper_prior
from strategies.niw.estimators import adapted
from strategies.niw.objective import (
    envelope_gradient,
    expected_quadratic,
    health,
    hyper_gradient,
    meta_gradient,
    objective,
    regulariser,
    sampled_objective,
)
from strategies.niw.posterior import expected_kl, hierarchy_gap, hyper_kl, local_posterior, nlml


def learning(prior: Prior) -> Prior:
    """The same prior with leaves that ask for gradients, ``n0`` and ``l0`` among them."""
    m0, log_precision = (
        {k: v.clone().requires_grad_() for k, v in p.items()} for p in (prior.m0, prior.log_precision)
    )
    n0, l0 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (prior.n0, prior.l0))
    return Prior(m0, log_precision, n0, l0, prior.family)


def slopes(value, prior):
    """Autograd's gradients in the prior's two tensors."""
    leaves = [*prior.m0.values(), *prior.log_precision.values()]
    grads = torch.autograd.grad(value, leaves, retain_graph=True)
    n = len(prior.m0)
    return torch.cat([g.flatten() for g in grads[:n]]), torch.cat([g.flatten() for g in grads[n:]])


@pytest.mark.parametrize(
    ("family", "g", "value"),
    [("full", 6.6740597520694465, 6.045646656080075), ("diag", 6.454432057616222, 5.935832808853463)],
)
def test_golden_values(family, g, value):
    prior, quadratic = golden(family)
    q = local_posterior(prior, quadratic)
    f = expected_quadratic(quadratic, q)
    close(f, 2.208616780045352)
    close(regulariser(prior, q), g)
    close(objective(prior, q, f), value)
    close(f + expected_kl(prior, q), {"full": 4.35249947552013, "diag": 4.2426856282935175}[family])
    gradient = envelope_gradient(prior, q)
    close(flat(gradient.m0), [-12 / 7, 5 / 3])
    close(flat(gradient.log_precision), [10 / 49, 19 / 36])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_p5_p6_envelope_and_degrees_of_freedom(seed, family):
    prior, quadratic = random_case(seed, family)
    prior = learning(prior)
    q = local_posterior(prior, quadratic)
    value = objective(prior, q, expected_quadratic(quadratic, q))
    envelope = envelope_gradient(prior, q)
    by_mean, by_precision = slopes(value, prior)
    close(flat(envelope.m0), by_mean, 1e-10)
    close(flat(envelope.log_precision), by_precision, 1e-10)
    (by_l0,) = torch.autograd.grad(value, prior.l0, retain_graph=True)
    close(by_l0, -prior.d / (2 * prior.l0**2), 1e-12)
    (gap,) = torch.autograd.grad(hierarchy_gap(prior), prior.n0)
    assert gap < 0
    # At fixed P the objective knows n0 through the gap alone, plus the constant that it drops.
    (by_n0,) = torch.autograd.grad(value, prior.n0)
    close(by_n0, gap)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_p13_gradient_of_one_sample_equals_autograd(noisy, shared):
    at, data = head_case(0, 20)
    g = torch.Generator().manual_seed(1)
    log_precision = torch.randn((), generator=g, dtype=torch.float64) if shared else at["weight"].sin()
    prior = learning(Prior({"weight": at["weight"].cos()}, {"weight": log_precision}, 5.0, 3.0))
    quadratic = Quadratic(at, {"weight": at["weight"].exp()})
    noise = {"weight": torch.randn(3, 4, generator=g, dtype=torch.float64)} if noisy else None
    gradient, _, f = meta_gradient(softmax_loss, prior, quadratic, data, noise)
    value = sampled_objective(softmax_loss, prior, quadratic, data, noise)
    by_mean, by_precision = slopes(value, prior)
    close(flat(gradient.m0), by_mean, 1e-10)
    close(flat(gradient.log_precision), by_precision, 1e-10)
    close(f, softmax_loss(local_posterior(prior, quadratic).at(noise), data))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_hyper_prior_equals_autograd(family):
    prior, _ = random_case(3, family)
    prior = learning(prior)
    hyper = hyper_prior({k: v.detach() + 1 for k, v in prior.m0.items()}, family, 0.3, 0.7)
    gradient = hyper_gradient(prior, hyper)
    by_mean, by_precision = slopes(hyper_kl(prior, hyper), prior)
    close(flat(gradient.m0), by_mean, 1e-10)
    close(flat(gradient.log_precision), by_precision, 1e-10)


def test_limits_are_reptile_and_fedsgd():
    prior, quadratic = random_case(0, "diag")
    away = flat(prior.m0) - flat(quadratic.mbar)
    for scale, expected in ((1e9, flat(prior.precision) * away), (1e-9, None)):
        curvature = {k: scale * v for k, v in quadratic.curvature.items()}
        gradient = flat(
            envelope_gradient(prior, local_posterior(prior, replace(quadratic, curvature=curvature))).m0
        )
        expected = flat(curvature) * away if expected is None else expected
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


def test_clients_are_mapped():
    at, _ = head_case(0, 1)
    clients = [head_case(s, 12)[1] for s in range(3)]
    data = {k: torch.stack([c[k] for c in clients]) for k in clients[0]}
    prior = Prior({"weight": 0 * at["weight"]}, {"weight": torch.tensor(0.3).double()}, 9.0, 1.0)
    noise = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def one(rows, eps):
        quadratic = adapted(softmax_loss, prior.m0, rows, HEAD, solver=Descent(steps=5))
        gradient, q, f = meta_gradient(softmax_loss, prior, quadratic, rows, {"weight": eps})
        return gradient.m0["weight"], gradient.log_precision["weight"], f, health(prior, quadratic, q)

    mapped = torch.func.vmap(one)(data, noise)
    for i, rows in enumerate(clients):
        alone = one(rows, noise[i])
        for a, b in zip(mapped[:3], alone[:3], strict=True):
            close(a[i], b)
        for k, v in alone[3].items():
            close(mapped[3][k][i].double(), v)


def saved_bytes(outer):
    """Bytes of saved tensors that the outer backward pass reads; ``outer()`` gives its loss and leaves."""
    sizes: dict[int, int] = {}
    counting = False

    def pack(tensor):
        return tensor.detach() if tensor.is_leaf and not tensor.requires_grad else tensor

    def unpack(tensor):
        if counting:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss, leaves = outer()
        counting = True
        torch.autograd.grad(loss, leaves)
    return sum(sizes.values())


def test_p15_memory_of_the_outer_gradient_does_not_grow_with_inner_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    start = {k.replace(".", "_"): v.detach() for k, v in net.named_parameters()}
    batch = {"x": torch.randn(25, 6), "y": torch.randint(3, (25,))}

    def output(p, rows):
        return (rows["x"] @ p["0_weight"].T + p["0_bias"]).tanh() @ p["2_weight"].T + p["2_bias"]

    def loss(p, rows):
        return nn.functional.cross_entropy(output(p, rows), rows["y"], reduction="sum")

    def maml(steps):
        leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
        p = leaves
        for _ in range(steps):
            slope = torch.autograd.grad(loss(p, batch), list(p.values()), create_graph=True)
            p = {k: v - 0.01 * g for (k, v), g in zip(p.items(), slope, strict=True)}
        return loss(p, batch), list(leaves.values())

    class Backpropagated(Fisher):
        def diagonal(self, params, data):  # saved-tensor hooks and torch.func do not go together
            grads, _ = backpropagate(lambda p: self.loss(p, data), params)
            return {k: g.square() for k, g in grads.items()}

    def niw(steps):
        prior = learning(Prior(start, {k: torch.zeros_like(v) for k, v in start.items()}, 9.0, 1.0))
        quadratic = adapted(
            loss, prior.m0, batch, Backpropagated(loss), solver=Descent(steps), differentiate=backpropagate
        )
        value = sampled_objective(loss, prior, quadratic, batch)
        return value, [*prior.m0.values(), *prior.log_precision.values()]

    growing = [saved_bytes(lambda k=k: maml(k)) for k in (1, 5, 10)]
    steady = [saved_bytes(lambda k=k: niw(k)) for k in (1, 5, 10)]
    assert growing[0] < growing[1] < growing[2]
    assert steady[0] == steady[1] == steady[2] > 0


def test_free_degrees_of_freedom_drift_and_leave_the_prior_alone():
    # 200 clients of one weight that know it exactly enough: the variance of the truth is 4.
    g = torch.Generator().manual_seed(0)
    theta = 2 * torch.randn(200, 1, generator=g, dtype=torch.float64)
    quadratic = Quadratic({"w": theta}, {"w": torch.full((200, 1), 5.0, dtype=torch.float64)})
    leaves = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in ((1,), (), ())]
    optimizer = torch.optim.Adam(leaves, 5e-2)
    seen = []
    for _ in range(300):
        prior = Prior({"w": leaves[0]}, {"w": leaves[1]}, leaves[2].exp(), 1.0)
        value = nlml(prior, quadratic) / 200 + hierarchy_gap(prior)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(leaves[2].exp().item())
    assert seen[99] < seen[199] < seen[299]
    assert seen[299] > 20
    best = (theta.var(correction=0) - 0.2).item()
    assert abs((-leaves[1]).exp().item() / best - 1) < 0.02
