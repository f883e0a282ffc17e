"""The contract of local rules: one client at a time, or a cohort under ``vmap``, with the same result.

Every rule that ``strategies`` exports is found and held to it. What a rule needs of the server comes from
its server half as it stands before round 1; one that needs more has its records in ``SENT``.
"""

import inspect

import numpy as np
import pytest
import torch

import strategies
from clients.models.cnn import CNN
from clients.models.linear import Linear
from clients.models.mlp import MLP
from clients.models.timexer import TimeXer
from clients.tasks.classification import Classification
from clients.tasks.forecasting import Forecasting
from clients.training import Training
from strategies import SGD, Adam, LocalRule, Method, Round, recording
from strategies.client import train_client
from strategies.cohort import CohortTrainer, Member
from strategies.functional import Stateless, backpropagate
from strategies.wrapped import WrappedRule

RULES = sorted(
    (
        c
        for c in vars(strategies).values()
        if inspect.isclass(c) and issubclass(c, LocalRule) and not issubclass(c, WrappedRule)
    ),
    key=lambda c: c.__name__,
)
SERVERS = {
    c.client_half: c
    for c in vars(strategies).values()
    if inspect.isclass(c) and issubclass(c, Method) and c is not Method
}
CONFIG = {"server-round": 1, "proximal-mu": 0.1}


def prototypes(received, labels):
    """One vector for each label, as wide as what goes into the head."""
    head = received["head.weight"]
    return torch.from_numpy(np.random.default_rng(0).random((len(labels), head.shape[1]))).to(head.dtype)


def global_prototypes(received):
    counts = torch.tensor([2.0, 0.0, 1.0, 3.0]).to(received["head.weight"].dtype)
    return {"prototypes": {"means": prototypes(received, counts), "counts": counts}}


def cluster_prototypes(received):
    labels = torch.tensor([0, 0, 2, 3, 3])
    return {"fpl-clusters": {"means": prototypes(received, labels), "labels": labels}}


SENT = {strategies.FedProtoRule: global_prototypes, strategies.FPLRule: cluster_prototypes}
"""Rule to a function from the received parameters to the records that are sent with them."""
ROUNDING = {
    strategies.MoonRule: 1e-5,
    strategies.FedProtoRule: 1e-5,
    strategies.FPLRule: 1e-4,
    strategies.FedBNRule: 1e-5,
}
"""Tolerance in float32 where terms divide by lengths and small temperatures, or representations are sent:
one client alone is about as far from float64."""

MODELS = {
    "linear": lambda: Linear((1, 16, 16), 4),
    "mlp": lambda: MLP((1, 16, 16), 4, hidden=(12, 8)),
    "cnn": lambda: CNN((1, 16, 16), 4),
}
NORMED = {"normed": lambda: MLP((1, 16, 16), 4, hidden=(12, 8), norm="layer")}
OPTIMIZERS = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9, weight_decay=0.01, nesterov=True),
    # With the usual eps, a gradient of about 0 makes a step of any size out of float32's rounding.
    "adam": Adam(eps=1e-3, weight_decay=0.01),
}
TRAINING = Training(batch_size=4, epochs=2)
SIZES = (3, 9, 14)
RATES = (0.03, 0.02, 0.01)


class Case:
    """Three clients of unequal size, each with its own data, plan, learning rate and kept tensors."""

    def __init__(self, rule, model, optimizer, dtype):
        torch.manual_seed(0)
        self.rule, self.optimizer = rule, OPTIMIZERS[optimizer]
        self.model = Stateless((MODELS | NORMED)[model]().to(dtype))
        self.received = self.model.initial()
        self.data = [
            {
                "x": torch.randn(n, 1, 16, 16, dtype=dtype),
                "y": torch.randint(0, 4, (n,)),
                "weight": torch.ones(n, dtype=dtype),
            }
            for n in SIZES
        ]
        self.plans = [TRAINING.plan(n, np.random.default_rng(n)) for n in SIZES]
        self.kept = [
            {
                k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v
                for k, v in rule.keep(self.received).items()
            }
            for _ in SIZES
        ]
        self.sent, self.config = {}, dict(CONFIG)
        if type(rule) in SERVERS:
            server = SERVERS[type(rule)]()
            server.sent = {k: v.numpy() for k, v in self.received.items()}
            extra = server.extra().items()
            self.sent = {k: {n: torch.from_numpy(a) for n, a in arrays.items()} for k, arrays in extra}
            self.config |= server.settings
        if type(rule) in SENT:
            self.sent |= SENT[type(rule)](self.received)

    def round(self, kept, steps, lr, data):
        return Round(
            model=self.model,
            task_loss=Classification().loss,
            received=self.received,
            trainable=self.model.trainable,
            head=self.model.head,
            norms=self.model.norms,
            data=data,
            kept=kept,
            sent=self.sent,
            config=self.config,
            steps=steps,
            lr=lr,
            optimizer=self.optimizer,
            differentiate=backpropagate,
        )

    def one_by_one(self):
        """Each client through ``train_client``."""
        for data, plan, kept, lr in zip(self.data, self.plans, self.kept, RATES, strict=True):
            now = self.round(kept, len(plan), lr, data)
            params, loss = train_client(self.rule, now, plan)
            yield params, loss, self.rule.end(params, now)

    def together(self):
        """All clients as a cohort."""
        members = [
            Member(self.round(kept, len(plan), lr, data), plan)
            for data, plan, kept, lr in zip(self.data, self.plans, self.kept, RATES, strict=True)
        ]
        return CohortTrainer(self.rule).train(members)


def parts(upload):
    """What a client hands back, as dicts of tensors by name."""
    metrics = {k: torch.as_tensor(v) for k, v in upload.metrics.items()}
    return {"arrays": upload.arrays, "kept": upload.kept, "metrics": metrics, **upload.extra}


def assert_contract(rule, model, optimizer, dtype, tolerance):
    case = Case(rule, model, optimizer, dtype)
    assert len({len(plan) for plan in case.plans}) == 3
    cohort, moved = case.together(), []
    for client, (params, loss, upload) in enumerate(case.one_by_one()):
        moved.append(max(float((params[k] - v).abs().max()) for k, v in case.received.items()))
        assert float(cohort.loss[client]) == pytest.approx(loss, abs=10 * tolerance, rel=1e-5)
        together = parts(cohort.of(client))
        for part, tensors in parts(upload).items():
            assert tensors.keys() == together[part].keys()
            for key, tensor in tensors.items():
                got = together[part][key]
                assert got.dtype == tensor.dtype
                torch.testing.assert_close(got, tensor, rtol=0, atol=tolerance)
    assert max(moved) > 1e-3  # FedLC's clients of one class stand still


def test_rules_are_found():
    assert {"LocalRule", "FedProxRule"} <= {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", RULES, ids=lambda c: c.__name__)
def test_a_cohort_trains_as_its_clients_do_one_by_one(rule, model, optimizer, dtype):
    if rule.cuts_model and model == "linear":
        model = "mlp"  # a linear model is nothing but a head
    if rule.needs_norms:
        model = "normed"
    if rule.sgd_only and optimizer == "adam":
        optimizer = "momentum"
    float32 = ROUNDING.get(rule, 1e-6)
    assert_contract(rule(), model, optimizer, dtype, 1e-12 if dtype == torch.float64 else float32)


@pytest.mark.parametrize("rule", RULES, ids=lambda c: c.__name__)
def test_recorded_steps_are_the_same_steps(rule, monkeypatch):
    monkeypatch.setattr(recording, "_RECORD_AFTER", 0)
    model = "normed" if rule.needs_norms else "mlp"
    assert_contract(rule(), model, "sgd", torch.float64, 1e-12)


def trained(case, trainer, clients):
    members = [
        Member(case.round(case.kept[c], len(case.plans[c]), RATES[0], case.data[c]), case.plans[c])
        for c in clients
    ]
    return trainer.train(members).upload.arrays


def test_a_recording_serves_its_own_shapes_and_settings_alone(monkeypatch):
    case = Case(strategies.FedProxRule(), "mlp", "momentum", torch.float64)
    recorded = CohortTrainer(case.rule)
    for mu, clients in ((0.1, (0, 1, 2)), (0.1, (1, 2)), (5.0, (0, 1, 2)), (0.1, (2, 1, 0)), (5.0, (0, 2))):
        case.config["proximal-mu"] = mu
        monkeypatch.setattr(recording, "_RECORD_AFTER", 0)
        got = trained(case, recorded, clients)
        monkeypatch.setattr(recording, "_RECORD_AFTER", 10**9)
        expected = trained(case, CohortTrainer(case.rule), clients)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


class FromKeptRule(LocalRule):
    """Starts where the client was, and is pulled back there: what is read of the start must stay."""

    def keep(self, received):
        return {k: v.clone() for k, v in received.items()}

    def begin(self, round):
        return round.kept

    def gradient(self, grads, params, round):
        return {k: g + (params[k] - round.kept[k]) for k, g in grads.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_write_in_place_leave_the_start_alone(optimizer, monkeypatch):
    monkeypatch.setattr(recording, "_RECORD_AFTER", 0)
    assert_contract(FromKeptRule(), "mlp", optimizer, torch.float64, 1e-12)


class EverythingRule(LocalRule):
    """Uses all that a round has and all that an upload can hold, in one rule."""

    def keep(self, received):
        return {k: torch.zeros_like(v) for k, v in received.items()}

    def begin(self, round):
        return {k: v + 0.1 * round.kept[k] for k, v in round.received.items()}

    def gradient(self, grads, params, round):
        return {k: g + round.kept[k] + 0.01 * params[k] for k, g in grads.items()}

    def end(self, params, round):
        moved = {k: (v - round.received[k]) / (round.steps * round.lr) for k, v in params.items()}
        size = sum((v**2).sum() for v in moved.values())
        return strategies.Upload(arrays=params, kept=moved, extra={"moved": moved}, metrics={"size": size})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_part_of_a_rule_runs_in_a_cohort(optimizer):
    assert_contract(EverythingRule(), "mlp", optimizer, torch.float64, 1e-9)


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_attention_is_vectorised_over_clients(monkeypatch):
    """TimeXer: fused attention has no rule for a batch of models, so cohorts must take another."""
    monkeypatch.setattr(recording, "_RECORD_AFTER", 1)
    task = Forecasting((12, 2), 3, day=3, week=12)
    torch.manual_seed(0)
    net = TimeXer((12, 2), 3, patch_len=4, d_model=8, n_heads=2, e_layers=1, d_ff=8, dropout=0.0).double()
    model, plan = Stateless(net, task.inputs), [np.arange(4), np.arange(2, 6), np.arange(1, 5)]

    def round_of(client):
        draws = torch.Generator().manual_seed(client)
        shapes = {"x": (6, 12, 2), "marks": (6, 12, 4), "future": (6, 3, 2), "unit": (6, 2)}
        data = {k: torch.randn(s, generator=draws, dtype=torch.float64) for k, s in shapes.items()}
        data["weight"] = torch.ones(6, dtype=torch.float64)
        return Round(model, task.loss, model.initial(), model.trainable, data=data, steps=3, lr=0.1)

    rounds = [round_of(client) for client in range(3)]
    stacked = CohortTrainer(LocalRule()).train([Member(r, plan) for r in rounds])
    for client, now in enumerate(rounds):
        alone, _ = train_client(LocalRule(), now, plan)
        torch.testing.assert_close(stacked.of(client).arrays, alone, rtol=1e-9, atol=1e-11)
