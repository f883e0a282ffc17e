import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import (
    CLASSES,
    Labelled,
    assert_halves_are_named,
    assert_padding_counts_for_nothing,
    skewed,
)
from quadratic import SERVER, two_clients
from torch.nn import functional

from strategies import FedLC, FedLCRule, LocalRule, StrategyError
from strategies.fedlc import class_counts


def calibration(case, tau):
    """What a step's loss has beyond the cross-entropy, for a client's counts."""

    def term(step):
        counts = np.bincount(case.y[step.client], minlength=CLASSES)
        margin = torch.tensor([tau * max(n, 1e-8) ** -0.25 for n in counts])
        logits = step.now(step.x)
        return functional.cross_entropy(logits - margin, step.y) - functional.cross_entropy(logits, step.y)

    return term


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_rounds_equal_training_on_calibrated_logits_by_hand(tau, rounds):
    case = skewed(clients=3)
    got, *_ = case.run(FedLC(tau=tau, **SERVER), rounds=rounds)
    np.testing.assert_allclose(got, case.by_hand(rounds, calibration(case, tau)), rtol=0, atol=1e-10)


def test_some_clients_are_averaged_as_in_fedavg():
    case, chosen = skewed(clients=3), [[0, 2], [1], [0, 1]]
    got, *_ = case.run(FedLC(**SERVER), chosen=chosen)
    want = case.by_hand(3, calibration(case, 1.0), chosen=chosen)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def lone_loss(labels, tau=1.0):
    """A client with these labels: loss and gradient of the initial model on all of its rows."""
    rows = np.random.default_rng(0).normal(size=(len(labels), 3))
    case = Labelled([rows], [np.array(labels)], [[np.arange(len(labels))]])
    now = case.round(0, config={"fedlc-tau": tau})
    grads, loss = FedLCRule().direction(now.received, now.trainable, now.data, now)
    logits = now.model(now.received, now.data).detach().numpy()
    return float(loss), grads, logits


def test_the_loss_is_the_papers_with_the_true_class_in_the_sum():
    labels = [0, 0, 0, 0, 1, 2]
    loss, _, logits = lone_loss(labels, tau=0.8)
    calibrated = logits - 0.8 * np.array([4.0, 1.0, 1.0]) ** -0.25
    shares = np.exp(calibrated) / np.exp(calibrated).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(shares[np.arange(6), labels]).mean(), abs=1e-12)


def test_an_absent_class_leaves_the_softmax():
    labels = [0, 0, 0, 1]
    loss, grads, logits = lone_loss(labels)
    calibrated = logits[:, :2] - np.array([3.0, 1.0]) ** -0.25
    shares = np.exp(calibrated) / np.exp(calibrated).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(shares[np.arange(4), labels]).mean(), abs=1e-12)
    assert float(grads["head.weight"][2].abs().max()) < 1e-12
    assert float(grads["head.weight"][1].abs().max()) > 1e-3


def test_a_client_of_one_class_has_nothing_to_train_on():
    loss, grads, _ = lone_loss([1, 1, 1])
    assert loss == pytest.approx(0, abs=1e-12)
    assert max(float(g.abs().max()) for g in grads.values()) < 1e-12


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_without_strength_or_without_skew_it_is_fedavg(tau):
    """Equal counts move all logits alike, which the softmax does not see."""
    case = skewed()
    if tau:
        case.y = [np.arange(len(y)) % CLASSES for y in case.y]
    got, *_ = case.run(FedLC(tau=tau, **SERVER))
    plain, *_ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_padding_counts_for_nothing():
    case = skewed()
    assert_padding_counts_for_nothing(case, FedLCRule(), config={"fedlc-tau": 1.0})
    now = case.round(0)
    plain = class_counts(CLASSES, now)
    for key in ("y", "weight"):
        now.data[key] = torch.cat([now.data[key], torch.zeros_like(now.data[key])])
    torch.testing.assert_close(class_counts(CLASSES, now), plain, rtol=0, atol=0)


def test_rare_classes_get_larger_logits_than_under_fedavg():
    """The model must clear a larger margin for a rare class, so it leans to it more."""
    labels = np.array([0] * 20 + [1] * 4 + [2] * 4)
    rows = np.random.default_rng(0).normal(size=(28, 3))
    case = Labelled([rows], [labels], [[np.arange(28)] * 20])
    rare = []
    for strategy, rule in ((FedLC(**SERVER), None), (FedAvg(**SERVER), LocalRule())):
        _, grid, arrays = case.run(strategy, rule, rounds=10)
        shares = functional.softmax(torch.from_numpy(case.outputs(strategy, grid, arrays)[0]), dim=1)
        rare.append(float(shares[:, 1:].sum(dim=1).mean()))
    assert rare[0] > rare[1] + 0.02


def test_a_task_without_labels_is_refused():
    with pytest.raises(StrategyError, match=r"^FedLC counts class labels 'y', but the task has none"):
        two_clients().run(FedLC(**SERVER), rounds=1)
    now = skewed().round(0)
    now.data["y"] = now.data["y"].double()
    with pytest.raises(StrategyError, match="the task has none"):
        class_counts(CLASSES, now)


def test_a_missing_half_is_named():
    assert_halves_are_named(FedLC(**SERVER))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_strength_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"^tau: must be 0 or more"):
        FedLC(tau=value)
