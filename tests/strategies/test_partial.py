"""Methods that keep part of the model with the client, step by step on quadratics: body 0:2, head 2:4."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from quadratic import SERVER, SOME, Quadratics, Two, Vector, four_clients, two_clients, vector

from clients.models.mlp import MLP
from fedbench.engine.grid import payload_bytes
from strategies import (
    SGD,
    FedAvgFT,
    FedBABU,
    FedBN,
    FedBNRule,
    FedPer,
    FedRep,
    FedRepRule,
    LGFedAvg,
    LocalOnly,
    LocalRule,
    Round,
    StrategyError,
)
from strategies.client import KEPT, record
from strategies.functional import Stateless

BODY, HEAD, ALL, NOTHING = slice(0, 2), slice(2, 4), slice(0, 4), slice(0, 0)
PARTS = {
    FedPer: (BODY, HEAD),
    FedRep: (BODY, HEAD),
    LGFedAvg: (HEAD, BODY),
    LocalOnly: (NOTHING, ALL),
}
"""What of the model is averaged, and what stays."""
OPTIONS = {FedRep: {"head_epochs": 2, "body_epochs": 1}}


def local(method, case, client, w):
    """A client's steps."""
    if method is not FedRep:
        return case.sgd(client, w)
    steps = case.taken[client]
    head_steps = max(1, min(steps - 1, round(steps * 2 / 3)))
    for t in range(steps):
        part = HEAD if t < head_steps else BODY
        moved = w - case.lr * case.gradient(client, w)
        w = w.copy()
        w[part] = moved[part]
    return w


def by_hand(method, case, rounds, chosen=None):
    """What is averaged after each round, and every client's whole model."""
    shared, _ = PARTS[method]
    everyone = range(len(case.a))
    own = [case.start.copy() for _ in everyone]
    common, trace = case.start[shared], []
    for t in range(rounds):
        sampled = chosen[t] if chosen else everyone
        for i in sampled:
            w = own[i].copy()
            w[shared] = common
            own[i] = local(method, case, i, w)
        common = case.mean([own[i][shared] for i in sampled], sampled)
        trace.append(common)
    for i in everyone:
        own[i][shared] = common
    return np.array(trace), own


def made(method):
    return method(**OPTIONS.get(method, {}), **SERVER)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("options", [{}, {"steps": (2, 5)}, {"rows": (3, 1)}], ids=str)
@pytest.mark.parametrize("method", PARTS)
def test_rounds_equal_those_by_hand(method, options, rounds):
    case, strategy = two_clients(**options), made(method)
    got, grid = case.run(strategy, rounds=rounds)
    want, own = by_hand(method, case, rounds)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for node in (0, 1):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), own[node], rtol=0, atol=1e-10)
        kept = vector(grid.state_of(node).array_records[KEPT])
        np.testing.assert_allclose(kept, own[node][PARTS[method][1]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", PARTS)
def test_a_client_that_is_left_out_keeps_its_part(method):
    case, strategy = four_clients(), made(method)
    got, grid = case.run(strategy, chosen=SOME)
    want, own = by_hand(method, case, 3, SOME)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for node in range(4):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), own[node], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [FedPer, LGFedAvg, LocalOnly])
def test_a_lone_client_is_plain_training(method):
    case = two_clients()
    alone = Quadratics(case.a[:1], case.b[:1], case.start, rows=(1,))
    strategy = made(method)
    _, grid = alone.run(strategy)
    predicted = alone.predicted(strategy, grid, 0)
    plain, _ = alone.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(predicted, plain[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", PARTS)
def test_only_what_is_averaged_is_sent(method):
    """Once everybody has the initial model: numbers in float64, beside what FedAvg sends with them."""
    case, shared = two_clients(), PARTS[method][0]

    def sent(strategy, rule):
        _, grid = case.run(strategy, rule, rounds=2)
        messages = list(strategy.configure_train(3, case.arrays, ConfigRecord(), grid))
        replies = grid.send_and_receive(messages)
        arrays = [{"arrays": m.content["arrays"]} for m in (messages[0], replies[0])]
        return [payload_bytes(RecordDict(each)) for each in arrays]

    saved = 8 * (4 - (shared.stop - shared.start))
    plain = sent(FedAvg(**SERVER), LocalRule())
    assert sent(made(method), method.client_half()) == [plain[0] - saved, plain[1] - saved]


def test_flowers_own_loop_runs_where_nothing_is_averaged():
    case = two_clients()
    strategy = LocalOnly(**SERVER, fraction_evaluate=0.0)
    grid = case.grid(strategy.client_half())
    result = strategy.start(grid, case.initial(), num_rounds=3)
    assert dict(result.arrays) == {}
    _, own = by_hand(LocalOnly, case, 3)
    for node in (0, 1):
        kept = vector(grid.state_of(node).array_records[KEPT])
        np.testing.assert_allclose(kept, own[node], rtol=0, atol=1e-10)


class Elsewhere(Quadratics):
    """Clients in processes of their own, whose modules are made with weights of their own."""

    def module(self):
        return Two([7.0, 7.0], [7.0, 7.0])

    def initial(self):
        return record({k: p.detach() for k, p in super().module().named_parameters()})


@pytest.mark.parametrize("method", [*PARTS, FedBABU])
def test_clients_of_round_1_start_at_the_common_weights_whatever_their_modules_hold(method):
    case = two_clients()
    elsewhere = Elsewhere(case.a, case.b, case.start)
    got, _ = elsewhere.run(made(method))
    np.testing.assert_array_equal(got, case.run(made(method))[0])


def test_fedbabus_late_clients_have_the_common_head_too():
    case = two_clients()
    elsewhere, chosen = Elsewhere(case.a, case.b, case.start), [[0], [1]]
    got, _ = elsewhere.run(FedBABU(**SERVER), rounds=2, chosen=chosen)
    np.testing.assert_array_equal(got, case.run(FedBABU(**SERVER), rounds=2, chosen=chosen)[0])


def test_fedper_serves_each_client_where_one_model_cannot_serve_both():
    """They agree on the body, and each wants a head of its own."""
    case = two_clients(b=np.array([[1.0, -2.0, 0.5, 3.0], [1.0, -2.0, 2.0, -0.5]]))
    strategy = FedPer(**SERVER)
    _, grid = case.run(strategy, rounds=100)
    predicted = [case.predicted(strategy, grid, node) for node in (0, 1)]
    np.testing.assert_allclose(predicted, case.b, rtol=0, atol=1e-6)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=100)
    for node in (0, 1):
        assert np.abs(plain[-1] - case.b[node]).max() > 0.1


# --- FedRep's phases -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "head", "body"), [(11, 10, 1), (22, 20, 2), (5, 4, 1), (2, 1, 1), (1, 1, 0)]
)
def test_steps_are_divided_as_epochs_are(steps, head, body):
    now = Round(
        model=None,
        task_loss=None,
        received={},
        trainable=frozenset({"body.w", "head.w"}),
        head=frozenset({"head.w"}),
        config=FedRep().settings,
        steps=steps,
    )
    first, second = FedRepRule().phases(now)
    assert (first.steps, second.steps) == (head, body)
    assert (first.moving, second.moving) == ({"head.w"}, {"body.w"})


def test_momentum_and_decay_move_no_part_in_the_others_phase():
    case = two_clients(steps=4, optimizer=SGD(momentum=0.9, weight_decay=0.1))
    strategy = FedRep(head_epochs=1, body_epochs=1, **SERVER)
    case.run(strategy, rounds=1)

    def phase(client, part):
        w, v = case.start.copy(), np.zeros(4)
        for _ in range(2):
            v = 0.9 * v + case.gradient(client, w) + 0.1 * w
            w = w - case.lr * v
        return w[part]

    np.testing.assert_allclose(vector(case.arrays), case.mean([phase(i, BODY) for i in (0, 1)]), atol=1e-10)


# --- FedBABU and fine-tuning ---------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [None, SOME])
def test_fedbabu_moves_the_body_under_the_initial_head_and_fine_tunes_both(chosen):
    case, strategy = four_clients(), FedBABU(epochs=2, **SERVER)
    got, grid = case.run(strategy, chosen=chosen)
    w = case.start
    for t in range(3):
        sampled = chosen[t] if chosen else range(4)
        body = case.mean([case.sgd(i, w)[BODY] for i in sampled], sampled)
        w = np.concatenate([body, case.start[HEAD]])
        np.testing.assert_allclose(got[t], w, rtol=0, atol=1e-10)
    for node in range(4):
        tuned = w
        for _ in range(2):
            tuned = tuned - case.lr * case.gradient(node, tuned)
        np.testing.assert_allclose(case.predicted(strategy, grid, node), tuned, rtol=0, atol=1e-10)


def test_fine_tuning_starts_at_fedavgs_model_and_leaves_it_alone():
    case, strategy = two_clients(), FedAvgFT(epochs=4, **SERVER)
    got, grid = case.run(strategy)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_array_equal(got, plain)
    case.run(strategy)
    tuned = got[-1]
    for _ in range(4):
        tuned = tuned - case.lr * case.gradient(1, tuned)
    np.testing.assert_allclose(case.predicted(strategy, grid, 1), tuned, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(case.predicted(FedAvgFT(epochs=0, **SERVER), grid, 1), got[-1])


# --- FedBN ---------------------------------------------------------------------------------------


def test_a_model_without_norms_has_nothing_for_fedbn_to_keep():
    with pytest.raises(StrategyError, match=r"the model has none.*client\.model\.norm=batch"):
        two_clients().run(FedBN(**SERVER), rounds=1)


class VectorNorm(Vector):
    """Counts as a normalisation layer by its name."""


class Normed(Quadratics):
    def module(self):
        two = super().module()
        two.body = VectorNorm(self.start[BODY].tolist())
        return two


@pytest.mark.parametrize("chosen", [None, SOME])
def test_fedbn_keeps_what_normalises_and_averages_the_rest(chosen):
    """Where the body is all that normalises, as LG-FedAvg does."""
    four = four_clients()
    case, strategy = Normed(four.a, four.b, four.start, four.rows), FedBN(**SERVER)
    got, grid = case.run(strategy, chosen=chosen)
    want, own = by_hand(LGFedAvg, case, 3, chosen)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for node in range(4):
        np.testing.assert_allclose(case.predicted(strategy, grid, node), own[node], rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_normalisation_layers_stay_with_their_statistics(norm):
    model = Stateless(MLP((4,), 3, hidden=(5,), norm=norm))
    received = model.initial()
    now = Round(
        model=model,
        task_loss=None,
        received=received,
        trainable=model.trainable,
        norms=model.norms,
        kept={k: v + 1 for k, v in received.items()},
    )
    rule = FedBNRule()
    begun = rule.begin(now)
    assert len(model.norms) == (4 if norm == "batch" else 2)
    for k, v in received.items():
        torch.testing.assert_close(begun[k], v + 1 if k in model.norms else v)
    upload = rule.end(begun, now)
    assert set(upload.arrays) == set(received) - model.norms
    assert set(upload.kept) == model.norms


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (FedRep, "head_epochs", 0),
        (FedRep, "body_epochs", -1),
        (FedAvgFT, "epochs", -1),
        (FedBABU, "epochs", -1),
    ],
)
def test_numbers_that_cannot_be_are_refused(method, option, value):
    with pytest.raises(ValueError, match=rf"^{option}: must be"):
        method(**{option: value})


@pytest.mark.parametrize("method", [FedAvgFT, FedBABU])
def test_a_server_without_its_half_is_named(method):
    case = two_clients()
    _, grid = case.run(method(**SERVER), rounds=1)
    with pytest.raises(StrategyError, match=rf"server half is missing; use strategies\.{method.__name__}"):
        case.predicted(FedAvg(**SERVER), grid, 0)


@pytest.mark.parametrize("method", [*PARTS, FedAvgFT, FedBABU])
def test_a_client_without_its_half_is_named(method):
    with pytest.raises(StrategyError, match=rf"{method.__name__}: node 1000 trained with LocalRule"):
        two_clients().run(made(method), LocalRule(), rounds=1)
