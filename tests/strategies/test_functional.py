from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from clients.models.mlp import MLP
from clients.models.resnet18 import ResNet18
from clients.tasks.classification import Classification
from clients.training import Training
from clients.training import evaluate as evaluate_task
from strategies import LocalRule, Round
from strategies.client import train_client
from strategies.functional import Stateless, backpropagate, differentiate_functionally
from strategies.optim import SGD

ROWS = 23


class Normed(nn.Module):
    """BatchNorm, dropout, a frozen layer and an integer buffer of its own."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 5).requires_grad_(False)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.head(self.norm(self.frozen(x)) * self.scale)


def stateless(module=None):
    torch.manual_seed(1)
    return Stateless(Normed() if module is None else module())


def batch(rows=ROWS, features=4):
    generator = torch.Generator().manual_seed(rows)
    return {
        "x": torch.randn(rows, features, generator=generator),
        "y": torch.randint(0, 3, (rows,), generator=generator),
        "weight": torch.ones(rows),
    }


def round_of(model, data=None, optimizer=None):
    return Round(
        model=model,
        task_loss=Classification().loss,
        received=model.initial(),
        trainable=model.trainable,
        data=data or batch(),
        steps=1,
        lr=0.1,
        optimizer=optimizer or SGD(),
    )


def evaluate(model, params, data, **options):
    return evaluate_task(Classification(), partial(model.frozen, params), data, **options)


def train(model, data, training):
    plan = training.plan(len(data["weight"]), np.random.default_rng(0))
    now = replace(round_of(model, data, training.build_optimizer()), steps=len(plan))
    return train_client(LocalRule(), now, plan), now.received


# --- what is shared ------------------------------------------------------------------------------


def test_parameters_and_floating_buffers_are_shared_and_integer_buffers_are_not():
    model = stateless()
    assert model.shared == (
        "scale",
        "frozen.weight",
        "frozen.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "head.weight",
        "head.bias",
    )
    assert model.trainable == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert tuple(model.initial()) == model.shared


def test_initial_is_a_copy():
    model = stateless()
    model.initial()["head.bias"].fill_(9)
    assert (model.initial()["head.bias"] != 9).all()


def test_output_is_that_of_the_module_at_these_parameters():
    model, data = stateless(), batch()
    params = {k: v + 0.5 for k, v in model.initial().items()}
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    got = model({k: v.clone() for k, v in params.items()}, data)
    # The module itself is left as it was, its count of batches included.
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    model.module.load_state_dict({**before, **params})
    assert torch.equal(got, model.module(data["x"]))


def test_parameters_keep_their_type_and_other_tensors_theirs():
    model = stateless()
    wide = {k: v.double() for k, v in model.initial().items()} | {"x": torch.zeros(2).double()}
    got = model.to_device(wide)
    assert {k: v.dtype for k, v in got.items()} == dict.fromkeys(model.shared, torch.float32) | {
        "x": torch.float64
    }


def test_has_batch_norm():
    assert stateless().has_batch_norm
    assert not stateless(lambda: MLP((4,), 3)).has_batch_norm
    assert stateless(lambda: ResNet18((3, 8, 8), 3, norm="batch")).has_batch_norm
    assert not stateless(lambda: ResNet18((3, 8, 8), 3, norm="group")).has_batch_norm


# --- training ------------------------------------------------------------------------------------


def test_running_statistics_move_in_training_and_are_returned():
    model, data = stateless(), batch()
    (params, _), received = train(model, data, Training(batch_size=ROWS))
    features = nn.functional.linear(data["x"], received["frozen.weight"], received["frozen.bias"])
    torch.testing.assert_close(params["norm.running_mean"], 0.1 * features.mean(0))
    torch.testing.assert_close(params["norm.running_var"], 0.9 + 0.1 * features.var(0))
    assert tuple(params) == model.shared


def test_training_leaves_what_was_received_and_the_module_alone():
    model = stateless()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    (params, _), received = train(model, batch(), Training(batch_size=5, epochs=2))
    assert all(torch.equal(received[k], before[k]) for k in received)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    still = {k for k, v in params.items() if torch.equal(v, received[k])}
    assert still == {"scale", "frozen.weight", "frozen.bias"}
    assert not any(v.requires_grad for v in params.values())


@pytest.mark.parametrize(
    "training",
    [Training(lr=0.05, momentum=0.9, batch_size=5, epochs=3), Training(optimizer="adam", lr=0.01, steps=7)],
)
def test_training_equals_an_ordinary_loop(training):
    model, data = stateless(), batch()
    (params, loss), _ = train(model, data, training)

    module = stateless().module
    moving = [p for p in module.parameters() if p.requires_grad]
    if training.optimizer == "adam":
        optimizer = torch.optim.Adam(moving, lr=0.1)
    else:
        optimizer = torch.optim.SGD(moving, lr=0.1, momentum=0.9)
    losses = []
    for rows in training.plan(ROWS, np.random.default_rng(0)):
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(module(data["x"][rows]), data["y"][rows])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    for key, value in params.items():
        torch.testing.assert_close(value, module.state_dict()[key], rtol=0, atol=2e-6)
    assert loss == pytest.approx(np.mean(losses), abs=1e-6)


class SteeredRule(LocalRule):
    """Doubles the loss, then drops the gradient of the bias and takes a tenth of the others."""

    def loss(self, params, batch, round):
        return 2 * super().loss(params, batch, round)

    def gradient(self, grads, params, round):
        assert params.keys() == round.received.keys()
        return {k: g * (0 if k == "head.bias" else 0.1) for k, g in grads.items()}


def test_loss_and_gradient_are_the_rules():
    model, data = stateless(), batch()
    now = round_of(model)
    params, loss = train_client(SteeredRule(), now, [np.arange(ROWS)])
    grads, plain = backpropagate(
        lambda p: LocalRule().loss({**now.received, **p}, data, now),
        {k: now.received[k] for k in model.trainable},
    )
    assert loss == pytest.approx(2 * plain.item(), abs=1e-6)
    assert torch.equal(params["head.bias"], now.received["head.bias"])
    want = now.received["head.weight"] - now.lr * 0.2 * grads["head.weight"]
    torch.testing.assert_close(params["head.weight"], want, rtol=0, atol=1e-6)


def test_no_steps_change_nothing():
    model = stateless()
    now = round_of(model)
    params, loss = train_client(LocalRule(), now, [])
    assert loss == 0
    assert all(torch.equal(v, now.received[k]) for k, v in params.items())


def test_both_ways_of_differentiating_agree():
    params = {"w": torch.tensor([1.0, -2.0]), "unused": torch.tensor(3.0)}

    def loss(p):
        return (p["w"] ** 3).sum()

    for differentiate in (backpropagate, differentiate_functionally):
        grads, value = differentiate(loss, params)
        assert value.item() == -7
        assert not value.requires_grad
        assert grads["w"].tolist() == [3, 12]
        assert grads["unused"].item() == 0


def test_rows_of_weight_0_change_neither_loss_nor_gradient():
    model, data = stateless(lambda: MLP((4,), 3)), batch()
    junk = {"x": torch.full((6, 4), 50.0), "y": torch.zeros(6, dtype=torch.long), "weight": torch.zeros(6)}
    padded = {k: torch.cat([v, junk[k]]) for k, v in data.items()}
    params = model.initial()
    results = [
        backpropagate(lambda p, b=b: LocalRule().loss(p, b, round_of(model)), params) for b in (data, padded)
    ]
    (grads, loss), (padded_grads, padded_loss) = results
    torch.testing.assert_close(padded_loss, loss, rtol=0, atol=1e-6)
    for key in grads:
        torch.testing.assert_close(padded_grads[key], grads[key], rtol=0, atol=1e-6)


# --- evaluation ----------------------------------------------------------------------------------


def direct(model, params, data):
    """Summed metrics, straight from the definitions."""
    module = Normed()
    module.load_state_dict(params, strict=False)
    module.eval()
    logits = module(data["x"]).detach()
    chosen = logits.log_softmax(1)[torch.arange(len(data["y"])), data["y"]]
    return {
        "loss": float(-chosen.sum()),
        "correct": float((logits.argmax(1) == data["y"]).sum()),
        "count": float(len(data["y"])),
    }


def trained():
    model = stateless()
    (params, _), _ = train(model, batch(), Training(lr=0.5, batch_size=5, epochs=3))
    return model, params


def test_evaluation_equals_a_direct_computation():
    model, params = trained()
    assert evaluate(model, params, batch()) == pytest.approx(direct(model, params, batch()), abs=1e-4)


def test_sums_add_up_over_any_partition_of_the_rows():
    model, params = trained()
    data = batch()
    whole = evaluate(model, params, data)
    rng = np.random.default_rng(0)
    for parts in (1, 2, 5, ROWS):
        cuts = np.array_split(rng.permutation(ROWS), parts)
        sums = [evaluate(model, params, {k: v[rows] for k, v in data.items()}) for rows in cuts]
        added = {key: sum(s[key] for s in sums) for key in whole}
        assert added["count"] == whole["count"] == ROWS
        assert added["correct"] == whole["correct"]
        assert added["loss"] == pytest.approx(whole["loss"], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, ROWS, 1000])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model, params = trained()
    got = evaluate(model, params, batch(), batch_size=batch_size)
    assert got == pytest.approx(evaluate(model, params, batch()), abs=1e-4)


def test_rows_of_weight_0_are_not_evaluated():
    model, params = trained()
    data = batch()
    data["weight"][10:] = 0
    first = {k: v[:10] for k, v in data.items()}
    assert evaluate(model, params, data) == pytest.approx(evaluate(model, params, first), abs=1e-4)
    assert evaluate(model, params, data)["count"] == 10


def test_evaluation_moves_no_running_statistics_and_gives_the_mode_back():
    model, params = trained()
    before = {k: v.clone() for k, v in params.items()}
    evaluate(model, params, batch())
    assert all(torch.equal(v, before[k]) for k, v in params.items())
    assert model.module.training
    model.module.eval()
    evaluate(model, params, batch())
    assert not model.module.training


def test_no_rows_give_sums_of_0():
    model = stateless()
    empty = {k: v[:0] for k, v in batch().items()}
    assert evaluate(model, model.initial(), empty) == {"loss": 0, "correct": 0, "count": 0}


def test_accuracy_and_loss_agree_with_torchmetrics():
    from torchmetrics.functional import accuracy

    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    task = Classification()
    sums = task.metrics(logits, {"y": labels, "weight": torch.ones(50)})
    scores = task.scores({k: float(v) for k, v in sums.items()})
    assert scores["accuracy"] == pytest.approx(float(accuracy(logits, labels, "multiclass", num_classes=4)))
    assert scores["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
