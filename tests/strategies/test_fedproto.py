import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import (
    CLASSES,
    assert_halves_are_named,
    assert_padding_counts_for_nothing,
    assert_resumes,
    flat,
    kept_by,
    skewed,
)
from quadratic import SERVER

from strategies import FedProto, FedProtoRule, LocalRule
from strategies.client import record


class ByHand:
    """The distance to prototypes row by row, and prototypes from the modules of a round."""

    def __init__(self, case, lam=1.0):
        self.case, self.lam = case, lam
        self.prototypes, self.counts = {}, {}

    def __call__(self, step):
        rows = [
            ((z - self.prototypes[int(c)]) ** 2).mean() if int(c) in self.prototypes else 0 * z.sum()
            for z, c in zip(step.now.body(step.x), step.y, strict=True)
        ]
        return self.lam * torch.stack(rows).mean()

    def after(self, modules):
        for label in range(CLASSES):
            held = {c: int((self.case.y[c] == label).sum()) for c in modules}
            total = sum(held.values())
            if total:
                means = [n / total * self.case.class_mean(modules[c], c, label) for c, n in held.items() if n]
                self.prototypes[label], self.counts[label] = sum(means), total

    def alone(self, rounds, chosen=None):
        """The rounds of clients that keep their models."""
        models = {c: self.case.module() for c in range(len(self.case.y))}
        for t in range(rounds):
            clients = chosen[t] if chosen else models
            modules = {c: self.case.trained(c, models[c], self) for c in clients}
            models |= modules
            self.after(modules)
        return models


def assert_prototypes(strategy, hand):
    found = strategy.state["prototypes"]
    for label in range(CLASSES):
        assert found["counts"][label] == hand.counts.get(label, 0)
        if label in hand.prototypes:
            want = hand.prototypes[label].numpy()
            np.testing.assert_allclose(found["means"][label], want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lam", [1.0, 7.0])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_of_averaged_models_equal_the_formula_by_hand(rounds, lam):
    case = skewed()
    strategy = FedProto(lam=lam, average_model=True, **SERVER)
    got, grid, _ = case.run(strategy, rounds=rounds)
    hand = ByHand(case, lam)
    np.testing.assert_allclose(got, case.by_hand(rounds, hand, hand.after), rtol=0, atol=1e-10)
    assert_prototypes(strategy, hand)
    assert not strategy.personal
    assert not grid.client_states()


CHOSEN = [[0, 1], [2], [0, 2], [1]]


@pytest.mark.parametrize(("rounds", "chosen"), [(1, None), (3, None), (4, CHOSEN)])
def test_rounds_of_clients_own_models_equal_the_formula_by_hand(rounds, chosen):
    case = skewed(3)
    strategy = FedProto(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=rounds, chosen=chosen)
    hand = ByHand(case)
    for client, module in hand.alone(rounds, chosen).items():
        np.testing.assert_allclose(
            kept_by(grid, client), flat(record(module.state_dict())), rtol=0, atol=1e-10
        )
    assert_prototypes(strategy, hand)
    assert strategy.personal
    assert not arrays


def test_only_prototypes_travel():
    case = skewed()
    case.run(FedProto(**SERVER), rounds=2)
    up = 8 * (CLASSES * 4 + CLASSES)
    sizes = [(e.down, e.up) for e in case.seen]
    assert len({down for down, _ in sizes[:2]}) == 1
    for (first, sent), (later, again) in zip(sizes[:2], sizes[2:], strict=True):
        assert sent == again < up + 100  # metrics and the rule's name come on top
        assert later - up < first - 8 * flat(case.initial()).size + 1


@pytest.mark.parametrize("average_model", [True, False])
def test_without_weight_prototypes_change_nothing(average_model):
    case = skewed()
    got, grid, _ = case.run(FedProto(lam=0.0, average_model=average_model, **SERVER))
    if average_model:
        plain, _, _ = case.run(FedAvg(**SERVER), LocalRule())
        np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)
        return
    for client in (0, 1):
        module = case.module()
        for _ in range(3):
            module = case.trained(client, module)
        np.testing.assert_allclose(
            kept_by(grid, client), flat(record(module.state_dict())), rtol=0, atol=1e-12
        )


def test_clients_predict_by_the_nearest_prototype():
    case = skewed()
    strategy = FedProto(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=2)
    hand = ByHand(case)
    models = hand.alone(2)
    for client, output in enumerate(case.outputs(strategy, grid, arrays)):
        with torch.no_grad():
            z = models[client].body(torch.from_numpy(case.x[client]))
        want = np.stack([-(z - hand.prototypes[c]).norm(dim=1).numpy() for c in range(CLASSES)], axis=1)
        np.testing.assert_allclose(output, want, rtol=0, atol=1e-7)


def test_a_class_without_a_prototype_is_never_predicted():
    case = skewed()
    strategy = FedProto(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=1, chosen=[[0]])
    assert strategy.state["prototypes"]["counts"].tolist() == [3, 3, 0]
    for output in case.outputs(strategy, grid, arrays):
        assert np.isfinite(output).all()
        assert (output.argmax(axis=1) < 2).all()


def test_a_class_that_nobody_brings_keeps_its_prototype():
    case = skewed()
    strategy = FedProto(average_model=True, **SERVER)
    chosen = [[0, 1], [0]]
    _, grid, arrays = case.run(strategy, rounds=1, chosen=chosen)
    before = strategy.state["prototypes"]["means"].copy()
    case.run(strategy, rounds=1, chosen=chosen, grid=grid, arrays=arrays, first=2)
    after = strategy.state["prototypes"]["means"]
    np.testing.assert_array_equal(after[2], before[2])
    assert (after[:2] != before[:2]).all()


@pytest.mark.parametrize("average_model", [True, False])
def test_before_prototypes_arrive_and_with_averaged_models_the_last_layer_predicts(average_model):
    case = skewed()
    strategy = FedProto(average_model=average_model, **SERVER)
    rounds = 2 if average_model else 0
    grid, arrays = case.grid(FedProtoRule()), case.initial()
    if rounds:
        _, grid, arrays = case.run(strategy, rounds=rounds)
    module = case.module()
    module.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in arrays.items()})
    for client, output in enumerate(case.outputs(strategy, grid, arrays)):
        with torch.no_grad():
            want = module(torch.from_numpy(case.x[client])).numpy()
        np.testing.assert_allclose(output, want, rtol=0, atol=1e-12)


def test_clients_prototypes_of_a_class_come_closer_than_in_local_training():
    case = skewed()

    def apart(lam):
        models = ByHand(case, lam).alone(8)
        return float((case.class_mean(models[0], 0, 1) - case.class_mean(models[1], 1, 1)).norm())

    assert apart(5.0) < 0.8 * apart(0.0)


@pytest.mark.parametrize("average_model", [True, False])
def test_state_is_given_and_taken(average_model):
    assert_resumes(skewed(), lambda: FedProto(average_model=average_model, **SERVER))


def test_a_new_server_sends_the_prototypes_that_the_old_one_had():
    case = skewed()
    strategy, again = FedProto(**SERVER), FedProto(**SERVER)
    case.run(strategy, rounds=2)
    again.load_state_dict(strategy.state_dict())
    for key, value in strategy.extra()["prototypes"].items():
        np.testing.assert_array_equal(again.extra()["prototypes"][key], value)


def test_padding_counts_for_nothing():
    case = skewed()
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(CLASSES, 4)))
    sent = {"prototypes": {"means": means, "counts": torch.tensor([1.0, 0.0, 2.0])}}
    config = {"fedproto-lam": 1.0, "fedproto-average": True}
    assert_padding_counts_for_nothing(case, FedProtoRule(), sent=sent, config=config)


@pytest.mark.parametrize("average_model", [True, False])
def test_a_missing_half_is_named(average_model):
    assert_halves_are_named(FedProto(average_model=average_model, **SERVER))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="lam: must be 0 or more"):
        FedProto(lam=-1.0)
