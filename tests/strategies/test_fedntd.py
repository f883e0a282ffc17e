import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import (
    CLASSES,
    assert_halves_are_named,
    assert_lowered_by_training,
    assert_padding_counts_for_nothing,
    skewed,
)
from quadratic import SERVER

from strategies import FedNTD, FedNTDRule, LocalRule


def divergence(local, taught, y, tau):
    """Not-true divergence of one row, by its definition."""
    others = [c for c in range(CLASSES) if c != y]

    def softmax(logits):
        e = torch.stack([torch.exp(logits[c] / tau) for c in others])
        return e / e.sum()

    p, q = softmax(taught), softmax(local)
    return (p * (p / q).log()).sum()


def by_hand(beta, tau):
    def term(step):
        local, taught = step.now(step.x), step.start(step.x).detach()
        rows = [divergence(a, b, int(c), tau) for a, b, c in zip(local, taught, step.y, strict=True)]
        return beta * tau**2 * torch.stack(rows).mean()

    return term


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("options", [{}, {"beta": 0.3}, {"beta": 2, "tau": 3.0}], ids=str)
def test_rounds_equal_the_formula_by_hand(options, rounds):
    case = skewed()
    got, grid, _ = case.run(FedNTD(**options, **SERVER), rounds=rounds)
    want = case.by_hand(rounds, by_hand(**{"beta": 1.0, "tau": 1.0, **options}))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    assert not grid.client_states()


def test_some_clients_a_round():
    case, chosen = skewed(3), [[0, 1], [2], [0, 2]]
    got, _, _ = case.run(FedNTD(**SERVER), chosen=chosen)
    np.testing.assert_allclose(got, case.by_hand(3, by_hand(1, 1), chosen=chosen), rtol=0, atol=1e-10)


def test_without_weight_it_is_fedavg():
    case = skewed()
    got, _, _ = case.run(FedNTD(beta=0.0, **SERVER))
    plain, _, _ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_with_one_local_step_it_is_fedavg():
    """Where the local model is the global one, the divergence is at its minimum."""
    case = skewed()
    case.batches = [plan[:1] for plan in case.batches]
    got, _, _ = case.run(FedNTD(beta=5.0, **SERVER))
    plain, _, _ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


class Logits:
    """A model whose parameters are its logits; the received ones are its teacher."""

    def __call__(self, params, _):
        return params["logits"]

    frozen = __call__


def gradient(local, taught, y, beta=1.0):
    """Gradient of the method's term alone with respect to the logits."""
    case = skewed()
    now = case.round(
        0,
        model=Logits(),
        task_loss=lambda output, _: 0 * output.sum(),
        received={"logits": taught},
        config={"fedntd-beta": beta, "fedntd-tau": 1.0},
    )
    params = {"logits": local.clone().requires_grad_()}
    loss = FedNTDRule().loss(params, {"y": y, "weight": torch.ones(len(y)).double()}, now)
    return torch.autograd.grad(loss, params["logits"])[0]


def test_the_true_class_has_no_part_in_it():
    rng = np.random.default_rng(0)
    local, taught = torch.from_numpy(rng.normal(size=(2, 6, CLASSES)))
    y = torch.arange(6) % CLASSES
    grads = gradient(local, taught, y)
    assert (grads[torch.arange(6), y] == 0).all()
    assert (grads.sum(dim=1).abs() < 1e-15).all()
    moved = taught.clone()
    moved[torch.arange(6), y] += 100
    torch.testing.assert_close(gradient(local, moved, y), grads, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_logits_of_any_size_have_gradients(size):
    local = size * torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0]]).double()
    assert torch.isfinite(gradient(local, -local, torch.tensor([0, 1]))).all()


def test_the_global_view_of_other_classes_is_kept_better_than_in_fedavg():
    assert_lowered_by_training(skewed(), by_hand(5.0, 1.0), skewed().module())


def test_padding_counts_for_nothing():
    case = skewed()
    assert_padding_counts_for_nothing(case, FedNTDRule(), config={"fedntd-beta": 1.0, "fedntd-tau": 2.0})


def test_a_missing_half_is_named():
    assert_halves_are_named(FedNTD(**SERVER))


@pytest.mark.parametrize(
    ("options", "said"), [({"beta": -0.1}, "beta: must be 0 or more"), ({"tau": 0.0}, "tau: must be above 0")]
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FedNTD(**options)
