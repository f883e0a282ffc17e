"""NIW-Meta and FedHB through Flower's messages: by hand on quadratics, whose posteriors have closed forms."""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from labelled import skewed
from quadratic import SERVER, SOME, four_clients, two_clients, vector

from clients.app import ClientSpec, make_client_app
from clients.models.mlp import MLP
from clients.tasks.classification import Classification
from clients.training import Training
from fedbench.engine.grid import payload_bytes
from fedbench.engine.serial import SerialGrid
from fedbench.results.state import flatten, unflatten
from strategies import (
    GGEUR,
    DittoRule,
    FedAsync,
    FedAvgFT,
    FedAvgFTRule,
    FedDyn,
    FedHB,
    FedHBRule,
    FedNova,
    FedPer,
    FedProxRule,
    GGEURClient,
    KeepLocal,
    LocalOnly,
    LocalRule,
    NIWMeta,
    NIWRule,
    RuleClient,
    Scaffold,
    SeenRows,
    StrategyError,
    averaging_seen_rows,
    weighted_cross_entropy,
)
from strategies.arrays import numpy_of, record
from strategies.client import train_client
from strategies.cohort import CohortTrainer, Member
from strategies.functional import Stateless
from strategies.niw.rule import MOMENTS, PRIOR, names_in_scope
from strategies.optim import Adam

EXACT = {"estimator": "newton", "max_curvature": 1e9}


def niw(inner=None, **options):
    return NIWMeta(inner or FedAvg(**SERVER), **{**EXACT, **options})


def run(case, strategy, rule=None, **given):
    half = rule or strategy.client_half()
    return case.run(strategy, strategy.client_rule(half), **given)


def posterior(case, client, m0, p, part=slice(2, None)):
    a, b = case.a[client][part], case.b[client][part]
    return (a * b + p * m0) / (a + p), 1 / (a + p)


def by_hand(case, rounds=3, chosen=None, p=1.0, scalar=False, rho=0.2):
    """``m0`` after each round and ``P`` after the last, by expectation-maximisation with running averages."""
    m0, p, trace, s2 = case.start[2:], np.full(2, p), [], None
    for t in range(rounds):
        here = chosen[t] if chosen else range(len(case.a))
        q = [posterior(case, i, m0, p) for i in here]
        first = np.mean([m - m0 for m, _ in q], 0)
        second = np.mean([(m - m0) ** 2 + v for m, v in q], 0)
        if s2 is not None and len(here) < len(case.a):
            rate = max(rho, 1 / (t + 1))
            first, second = rate * first, (1 - rate) * s2 + rate * second
        spread = second - first**2
        s2, m0 = spread, m0 + first  # about the new mean, the first moment is 0
        p = 1 / np.maximum(np.full(2, spread.mean()) if scalar else spread, 1e-6)
        trace.append(m0)
    return np.array(trace), p


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("chosen", [None, SOME], ids=["all", "some"])
def test_three_rounds_by_hand(chosen, scalar):
    case, strategy = four_clients(), niw(scalar_precision=scalar, precision=2.0)
    got, grid = run(case, strategy, chosen=chosen)
    m0, p = by_hand(case, chosen=chosen, p=2.0, scalar=scalar)
    np.testing.assert_allclose(got[:, 2:], m0, rtol=0, atol=1e-9)
    learned = strategy.log_precision["head.w"].exp().numpy()
    assert learned.shape == (() if scalar else (2,))
    np.testing.assert_allclose(np.broadcast_to(learned, 2), p, rtol=1e-8)
    for node in range(4):  # a client that took no part is adapted all the same
        want = [*got[-1, :2], *posterior(case, node, m0[-1], p)[0]]
        np.testing.assert_allclose(case.predicted(strategy, grid, node), want, rtol=0, atol=1e-8)
    told = strategy.diagnostics
    assert told["niw_clip_fraction"] == 0
    assert told["niw_curvature_over_precision"] > 0


METHODS = {
    "fedavg": (FedAvg, LocalRule, {}),
    "fedprox": (FedProx, FedProxRule, {"proximal_mu": 0.5}),
    "fedadam": (FedAdam, LocalRule, {"eta": 0.1}),
    "scaffold": (Scaffold, None, {"server_lr": 0.7}),
    "feddyn": (FedDyn, None, {}),
    "fednova": (FedNova, None, {}),
    "localonly": (LocalOnly, None, {}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("train_scope", [True, False])
def test_the_rest_goes_the_way_that_it_goes_without_a_prior(name, train_scope):
    server, half, options = METHODS[name]
    rule = (half or server.client_half)()
    whole, _ = four_clients().run(server(**SERVER, **options), rule, chosen=SOME)
    case = four_clients()
    got, _ = run(case, niw(server(**SERVER, **options), train_scope=train_scope), rule, chosen=SOME)
    m0, _ = by_hand(case, chosen=SOME)
    if name != "localonly":
        np.testing.assert_allclose(got[:, :2], whole[:, :2], rtol=0, atol=1e-10)
    np.testing.assert_allclose(got[:, -2:], m0, rtol=0, atol=1e-9)


def test_all_parameters_may_have_a_prior_and_clients_then_take_no_steps():
    case, strategy = two_clients(), niw(scope="all", precision=0.5)
    got, grid = run(case, strategy, rounds=1)
    q = [posterior(case, i, case.start, 0.5, slice(None)) for i in (0, 1)]
    np.testing.assert_allclose(got[0], np.mean([m for m, _ in q], 0), rtol=0, atol=1e-10)
    (message, *_) = strategy.configure_train(2, case.arrays, ConfigRecord(), grid)
    assert not message.content["arrays"]
    (reply, _) = grid.send_and_receive(strategy.configure_train(2, case.arrays, ConfigRecord(), grid))
    a, b = case.a[0], case.b[0]
    assert reply.content["metrics"]["train_loss"] == pytest.approx(0.5 * (a * (got[0] - b) ** 2).sum())


def test_the_gradient_protocol_takes_a_step_of_adam_on_the_mean_gradient():
    """Where quadratics are exact the gradient is that of the envelope, whatever the noise."""
    case, strategy = two_clients(), niw(protocol="gradient", noise=False, server_lr=0.05, precision=2.0)
    got, _ = run(case, strategy, rounds=1)
    q = [posterior(case, i, case.start[2:], 2.0) for i in (0, 1)]
    slope = np.mean([2.0 * (case.start[2:] - m) for m, _ in q], 0)
    log_p = []
    for i, (m, v) in enumerate(q):  # the loss at the mean, not its expectation: f has no a V / 2
        a, share, away = case.a[i][2:], 2.0 * v, m - case.start[2:]
        u = a * (m - case.b[i][2:])
        log_p.append(
            -u * share * away + (-1 + 2 * share - share**2 + 2 * away**2) / 2 - 2 * away * share * away
        )
    want = case.start[2:] - 0.05 * np.sign(slope)
    np.testing.assert_allclose(got[0, 2:], want, rtol=0, atol=1e-6)
    moved = strategy.log_precision["head.w"].numpy() - np.log(2.0)
    np.testing.assert_allclose(moved, -0.02 * np.sign(np.mean(log_p, 0)), rtol=0, atol=1e-6)


def test_rounds_end_at_the_maximum_of_the_marginal_likelihood():
    """For clients of one curvature: the mean of their optima, and their variance less that of the data."""
    case, strategy = two_clients(a=np.full((2, 4), 6.0), steps=1), niw()
    got, _ = run(case, strategy, rounds=40)
    np.testing.assert_allclose(got[-1, 2:], case.b[:, 2:].mean(0), rtol=0, atol=1e-6)
    variance = (-strategy.log_precision["head.w"]).exp().numpy()
    np.testing.assert_allclose(variance, case.b[:, 2:].var(0) - 1 / 6, rtol=1e-4)


def test_fedhb_by_hand():
    case, strategy = two_clients(), FedHB(FedAvg(**SERVER), estimator="newton", spike_variance=0.01)
    m0, p, hyper = case.start[2:], np.full(2, 3.0), case.start[2:]
    got, grid = run(case, strategy, rounds=2)
    for t in range(2):
        spikes = np.array([posterior(case, i, m0, p)[0] for i in (0, 1)])
        m0 = (hyper + spikes.sum(0)) / 3
        scale = 1 + (hyper - m0) ** 2 + 2 * 0.01 + ((spikes - m0) ** 2).sum(0)
        p = 5 / scale
        np.testing.assert_allclose(got[t, 2:], m0, rtol=0, atol=1e-9)
    assert (strategy.options.n0, strategy.options.l0) == (5, 3)
    want = posterior(case, 0, m0, p * 8 / 5)[0]  # the mode's precision
    np.testing.assert_allclose(case.predicted(strategy, grid, 0)[2:], want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("keep_variance", [False, True])
def test_fedhb_sends_one_number_a_weight_or_two(keep_variance):
    case = two_clients()
    strategy = FedHB(FedAvg(**SERVER), estimator="newton", keep_variance=keep_variance)
    grid = case.grid(strategy.client_rule(LocalRule()))
    arrays = strategy.prepare(grid, case.initial())
    replies = grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    sent = replies[0].content.array_records[strategy._key]
    assert sum(v.numpy().size for v in sent.values()) == (4 if keep_variance else 2)


# --- limits --------------------------------------------------------------------------------------


def test_a_firm_prior_is_the_global_model_and_a_loose_one_local_training():
    case = two_clients()
    firm = niw(precision=1e14)
    got, grid = run(case, firm, rounds=1)
    np.testing.assert_allclose(got[0, 2:], case.start[2:], rtol=0, atol=1e-12)
    loose = niw(precision=1e-14, estimator="laplace", personal_steps=7, lr=0.1)
    case.arrays = case.initial()
    for node in (0, 1):
        predicted = case.predicted(niw(precision=1e14), grid, node)
        np.testing.assert_allclose(predicted[2:], case.start[2:], rtol=0, atol=1e-12)
        adam, w = Adam(betas=(0.9, 0.99)), {"w": torch.tensor(case.start[2:])}
        state = adam.init(w)
        for _ in range(7):
            slope = torch.tensor(case.a[node][2:]) * (w["w"] - torch.tensor(case.b[node][2:]))
            w, state = adam.step(w, {"w": slope}, state, 0.1)
        predicted = case.predicted(loose, grid, node)
        np.testing.assert_allclose(predicted[2:], w["w"].numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["map", "closed", "variational", "none"])
def test_ways_to_adapt(how):
    case = two_clients(a=np.full((2, 4), 50.0))
    strategy = niw(personalise=how, precision=25.0, personal_steps=600, lr=0.005)
    grid = case.grid(strategy.client_rule(LocalRule()))
    case.arrays = case.initial()
    messages = strategy.configure_evaluate(1, case.arrays, ConfigRecord(), grid)
    rows, draws = case.data(0), torch.Generator().manual_seed(0)
    here = next(iter(messages))

    def predicted(data):
        context = Context(1, 1000, {"partition-id": 0}, grid.state_of(0), {})
        predict = case.clients.predictor(here, context, data, generator=draws)
        return predict({"x": torch.zeros(1, 1).double()})[0, 2:].numpy()

    want = case.start[2:] if how == "none" else posterior(case, 0, case.start[2:], 25.0)[0]
    tolerance = 0.1 if how == "variational" else 1e-9
    np.testing.assert_allclose(predicted(rows), want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(predicted({}), case.start[2:], rtol=0, atol=1e-12)  # no rows, no change
    assert strategy.personal == (how != "none")


def test_draws_average_probabilities():
    case = skewed()
    strategy = NIWMeta(FedAvg(**SERVER), samples=400, precision=4.0)
    rule = strategy.client_rule(LocalRule())
    model = Stateless(case.module())
    now = case.round(
        0,
        sent={PRIOR: tensors(prior_record(strategy, case.initial()))},
        config=strategy.options.record(),
        generator=torch.Generator().manual_seed(0),
    )
    params = rule.predictor(now)
    batch = now.data
    got = rule.output(params, batch, now)
    np.testing.assert_allclose(got.exp().sum(1).numpy(), 1, atol=1e-12)
    mean = {k: v for k, v in params.items() if k in model.shared}
    draws = torch.stack([v for k, v in params.items() if k.endswith("head.bias") and k != "head.bias"])
    assert len(draws) == 400
    np.testing.assert_allclose(draws.mean(0), mean["head.bias"], atol=0.1)
    single = model.frozen(mean, batch).softmax(1)
    entropy = [-(p * p.log()).sum() for p in (got.exp(), single)]
    assert entropy[0] > entropy[1]  # not knowing the weights makes predictions less sure


def prior_record(strategy, arrays):
    grid = SerialGrid(ClientApp, [1, 1])
    (message, *_) = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    return message.content[PRIOR]


def tensors(arrays):
    return {k: torch.tensor(v) for k, v in numpy_of(arrays).items()}


# --- on the wire ---------------------------------------------------------------------------------


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
    )


class Headed(nn.Module):
    def __init__(self, features, classes, width=None):
        super().__init__()
        self.body = nn.Linear(features, width) if width else nn.Identity()
        self.head = nn.Linear(width or features, classes)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("module", "scope", "full", "scalar", "alone"),
    [
        # With one precision a tensor, n0 takes 8 bytes here where the specification's table has 4.
        (lambda: Headed(3, 10, 512), "head", 41_048, 20_536, 3 * 512 * 4 + 512 * 4),
        (lenet, "all", 493_656, 246_872, 0),
    ],
)
def test_bytes(module, scope, full, scalar, alone):
    arrays = record(module().state_dict())
    for wanted, down in ((False, full), (True, scalar)):
        strategy = NIWMeta(FedAvg(**SERVER), scope=scope, scalar_precision=wanted)
        grid = SerialGrid(ClientApp, [1, 1])
        one, other = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        assert one.content is other.content
        n0 = {"config": ConfigRecord({"n0": one.content["config"]["niw-n0"]})}
        assert payload_bytes(RecordDict({PRIOR: one.content[PRIOR], **n0})) == down
        assert payload_bytes(RecordDict({"arrays": one.content["arrays"]})) == alone


@pytest.mark.parametrize(("scalar", "up"), [(False, 8 * 5130), (True, 4 * 5130 + 8)])
def test_bytes_of_an_upload(scalar, up):
    x, y = torch.randn(12, 3), torch.arange(12) % 10
    client = RuleClient(NIWRule(LocalRule()), Headed(3, 10, 512), weighted_cross_entropy)
    app = ClientApp()

    @app.train()
    def train(message, context):
        return client.train(message, context, {"x": x, "y": y}, [np.arange(12)], 0.1)

    strategy = NIWMeta(FedAvg(**SERVER), scalar_precision=scalar)
    grid = SerialGrid(lambda: app, [12, 12])
    arrays = record(client.model.module.state_dict())
    replies = grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    content = replies[0].content
    assert payload_bytes(RecordDict({MOMENTS: content[MOMENTS]})) == up
    assert set(content["arrays"]) == {"body.weight", "body.bias"}
    after, _ = strategy.aggregate_train(1, replies)
    assert list(after) == list(arrays)
    assert all(after[k].dtype == "float32" for k in after)


@pytest.mark.parametrize(
    "make",
    [
        niw,
        lambda: niw(Scaffold(**SERVER), scalar_precision=True),
        lambda: niw(protocol="gradient", noise=False),
        lambda: FedHB(FedAvg(**SERVER), estimator="newton"),
    ],
    ids=["moments", "scaffold", "gradient", "fedhb"],
)
def test_two_rounds_a_reload_and_one_more_equal_three(make):
    case, first, again = four_clients(), make(), make()
    whole, _ = run(case, make(), chosen=SOME)
    _, grid = run(case, first, rounds=2, chosen=SOME)
    again.load_state_dict(unflatten(*flatten(first.state_dict())))
    assert again.diagnostics == first.diagnostics
    with grid.cohort(SOME[2]):
        replies = grid.send_and_receive(again.configure_train(3, case.arrays, ConfigRecord(), grid))
    arrays, _ = again.aggregate_train(3, replies)
    np.testing.assert_array_equal(vector(arrays), whole[-1])


def test_the_order_of_replies_does_not_matter():
    case, ends = four_clients(), []
    for order in (1, -1):
        strategy = niw()
        grid = case.grid(strategy.client_rule(LocalRule()))
        arrays = strategy.prepare(grid, case.initial())
        replies = list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
        arrays, _ = strategy.aggregate_train(1, replies[::order])
        ends.append(arrays["head.w"].numpy())
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("options", [{}, {"estimator": "laplace"}, {"scope": "all", "curvature": "ggn"}])
def test_a_cohort_answers_as_its_clients_alone(options):
    case = skewed(3)
    strategy = NIWMeta(FedAvg(**SERVER), **options)
    rule, prior = strategy.client_rule(LocalRule()), tensors(prior_record(strategy, case.initial()))
    members = [
        Member(
            case.round(i, sent={PRIOR: prior}, config=strategy.options.record(), steps=2, lr=0.1),
            case.batches[i][:2],
        )
        for i in range(3)
    ]
    together = CohortTrainer(rule).train(members)
    for i, member in enumerate(members):
        params, _ = train_client(rule, member.round, member.plan)
        alone = rule.end(params, member.round)
        assert alone.arrays.keys() == together.of(i).arrays.keys()
        torch.testing.assert_close(together.of(i).arrays, alone.arrays, rtol=0, atol=1e-10)
        torch.testing.assert_close(together.of(i).extra[MOMENTS], alone.extra[MOMENTS], rtol=0, atol=1e-8)


def test_what_draws_says_that_it_needs_a_generator():
    """Inside a cohort there is none, so that the engine repeats its clients one at a time."""
    case, strategy = skewed(), NIWMeta(FedAvg(**SERVER), estimator="sgld", steps=5)
    with pytest.raises(StrategyError, match="pass generator="):
        run(case, strategy, rounds=1)


def test_a_linear_head_is_fitted_to_representations_as_the_whole_model_is():
    case = skewed()
    strategy = NIWMeta(FedAvg(**SERVER), estimator="newton", precision=0.5)
    prior = tensors(prior_record(strategy, case.initial()))
    now = case.round(0, sent={PRIOR: prior}, config=strategy.options.record())
    fast, slow = strategy.client_rule(LocalRule()), strategy.client_rule(LocalRule())
    slow._linear = False
    ends = [rule.end(rule.begin(now), now).extra[MOMENTS] for rule in (fast, slow) if rule.phases(now)]
    assert fast._linear
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)
    # The posterior mean is where gradient and pull cancel, with the loss a sum.
    m = {k: v + ends[0][f"s1.{k}"] for k, v in now.received.items() if k.startswith("head.")}
    leaves = {k: v.clone().requires_grad_() for k, v in m.items()}
    out = now.model(now.received | leaves, now.data)
    nn.functional.cross_entropy(out, now.data["y"], reduction="sum").backward()
    for k, v in leaves.items():
        torch.testing.assert_close(v.grad, -0.5 * (m[k] - now.received[k]), rtol=0, atol=1e-8)


# --- other methods, other parts ------------------------------------------------------------------


def test_a_part_that_stays_local_goes_with_a_prior():
    case, strategy = two_clients(), averaging_seen_rows(niw(scope="body"))
    body = {"body.w": case.module().body.w.detach()}
    case.initial = lambda: record(body)
    half = SeenRows(KeepLocal(LocalRule(), frozenset({"head.w"})), {})  # as the testbed nests them
    got, grid = run(case, strategy, half, rounds=1)
    q = [posterior(case, i, case.start[:2], 1.0, slice(2))[0] for i in (0, 1)]
    np.testing.assert_allclose(got[0], np.mean(q, 0), rtol=0, atol=1e-9)
    alone = case.sgd(0, case.start)
    np.testing.assert_allclose(case.predicted(strategy, grid, 0)[2:], alone[2:], rtol=0, atol=1e-9)


def test_methods_that_adapt_leave_it_to_the_prior():
    case, strategy = two_clients(), niw(FedAvgFT(epochs=2, **SERVER))
    got, grid = run(case, strategy, rounds=1)
    np.testing.assert_allclose(case.predicted(strategy, grid, 0)[:2], got[0, :2], rtol=0, atol=1e-12)
    assert strategy.client_rule(FedAvgFTRule()).fine_tunes
    off = niw(FedAvgFT(epochs=2, **SERVER), personalise="none")
    assert (case.predicted(off, grid, 0)[:2] != got[0, :2]).all()
    assert niw(FedPer(**SERVER), personalise="none").personal


@dataclass(frozen=True)
class Rows:
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def mlp():
    torch.manual_seed(3)
    return MLP((5,), 3, hidden=(6,))


def engine(strategy, data_rule=None, cohort=None, rounds=2):
    """Final arrays of six of fedbench's clients, replies of their evaluation, and why they trained alone."""
    rng = np.random.default_rng(0)
    label = np.arange(6 * 12) % 3
    arrays = {"x": (rng.normal(size=(72, 5)) + 2 * label[:, None]).astype(np.float32), "y": label}
    spec = ClientSpec(
        arrays=arrays,
        splits=[
            Rows(12 * i + np.arange(8 + i % 3), np.arange(0), 12 * i + np.arange(10, 12)) for i in range(6)
        ],
        domains=["a"] * 6,
        model=mlp,
        task=Classification(),
        training=Training(lr=0.05, batch_size=4),
        rule=NIWRule(LocalRule()),
        data_rule=data_rule,
        seed=5,
    )
    grid = SerialGrid(partial(make_client_app, spec), [8] * 6, cohort=cohort)
    arrays = strategy.prepare(grid, record(Stateless(mlp()).initial()))
    for t in range(1, rounds + 1):
        replies = grid.send_and_receive(strategy.configure_train(t, arrays, ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(t, replies)
    replies = grid.send_and_receive(strategy.configure_evaluate(t, arrays, ConfigRecord(), grid))
    return numpy_of(arrays), replies, grid.alone


def test_clients_that_need_draws_train_one_at_a_time_and_others_together():
    ends = [engine(NIWMeta(FedAvg(**SERVER)), cohort=n) for n in (3, 1)]
    assert ends[0][2] is None
    for k, v in ends[0][0].items():
        np.testing.assert_allclose(v, ends[1][0][k], rtol=0, atol=2e-5)
    draws = {"estimator": "sgld", "steps": 20, "burnin": 5, "samples": 3}
    ends = [engine(NIWMeta(FedAvg(**SERVER), **draws), cohort=n) for n in (3, 1)]
    assert "cannot be vectorised (StrategyError: NIWRule draws" in ends[0][2]
    for k, v in ends[0][0].items():
        np.testing.assert_array_equal(v, ends[1][0][k])
    assert not any(r.has_error() for r in ends[0][1])


def test_alignment_may_lie_inside_and_around():
    inside, replies, _ = engine(NIWMeta(GGEUR(FedAvg(**SERVER))), GGEURClient())
    around, _, _ = engine(GGEUR(NIWMeta(FedAvg(**SERVER))), GGEURClient())
    plain, _, _ = engine(NIWMeta(FedAvg(**SERVER)))
    assert not any(r.has_error() for r in replies)
    assert list(inside) == list(plain)
    for k, v in inside.items():
        np.testing.assert_array_equal(v, around[k])
        assert (v != plain[k]).any()


def test_diagnostics_are_those_of_all_layers():
    strategy = NIWMeta(GGEUR(FedAvg(**SERVER)))
    engine(strategy, GGEURClient(), rounds=1)
    assert {"ggeur_rank", "niw_clip_fraction", "niw_variance_median"} <= strategy.diagnostics.keys()


# --- mistakes ------------------------------------------------------------------------------------


def test_a_missing_half_is_named():
    said = r"^NIWMeta: node 1000 sent no record 'niw-moments', .*strategies\.NIWRule"
    with pytest.raises(StrategyError, match=said):
        two_clients().run(niw(), LocalRule(), rounds=1)
    with pytest.raises(StrategyError, match=r"^NIWRule got no record .* use strategies\.NIWMeta$"):
        two_clients().run(FedAvg(**SERVER), NIWRule(LocalRule()), rounds=1)
    with pytest.raises(StrategyError, match=r"^FedHBRule does not know protocol 'moments'; use"):
        two_clients().run(niw(), FedHBRule(LocalRule()), rounds=1)
    with pytest.raises(StrategyError, match="Scaffold: node 1000 trained with LocalRule"):
        run(two_clients(), niw(Scaffold(**SERVER)), LocalRule(), rounds=1)


def test_scopes_that_do_not_fit():
    with pytest.raises(StrategyError, match=r"^scope 'tail' matches no parameter; the model has body\.w, h"):
        run(two_clients(), niw(scope="tail"), rounds=1)
    with pytest.raises(StrategyError, match=r"scope 'body' means body\.w here, but .* of head\.w; give both"):
        two_clients().run(niw(), NIWRule(LocalRule(), "body"), rounds=1)
    names = ["a.weight", "n.running_mean", "n.weight", "head.bias"]
    assert names_in_scope(names, "all") == {"a.weight", "n.weight", "head.bias"}
    assert names_in_scope(names, "^n") == {"n.weight"}
    with pytest.raises(StrategyError, match="DittoRule trains several models"):
        NIWRule(DittoRule())


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (NIWMeta, "scope", "("),
        (NIWMeta, "protocol", "fedhb"),
        (NIWMeta, "estimator", "magic"),
        (NIWMeta, "precision", 0.0),
        (NIWMeta, "least_rate", 0.0),
        (NIWMeta, "personalise", "all"),
        (NIWMeta, "samples", -1),
        (NIWMeta, "loss_scale", 0.0),
        (FedHB, "estimator", "sgld"),
        (FedHB, "keep", 0.0),
        (FedHB, "centre", "mean"),
        (FedHB, "variance", 0.0),
    ],
)
def test_options_that_cannot_be_are_refused(make, option, value):
    with pytest.raises(ValueError, match=f"^{option}: must"):
        make(FedAvg(**SERVER), **{option: value})


def test_clients_that_are_asked_one_by_one_are_refused():
    with pytest.raises(ValueError, match=r"^strategy: must ask its clients in rounds"):
        NIWMeta(FedAsync())


def test_a_bound_that_decides_is_told(caplog):
    with caplog.at_level(logging.WARNING, logger="fedbench.niw"):
        strategy = niw(max_curvature=1e-5)
        run(two_clients(), strategy)
    assert strategy.diagnostics["niw_clip_fraction"] == 1
    told = [r.message.split()[:4] for r in caplog.records]  # once each
    assert [" ".join(words) for words in told] == ["NIWMeta: 100% of the", "NIWMeta: the median curvature"]


# --- a federation --------------------------------------------------------------------------------

CLASSES, FEATURES, OLD, NEW = 5, 10, 40, 60
SPREAD = np.array([0.0] * 5 + [1.5] * 5 + [0.5])


@pytest.mark.slow
def test_new_clients_of_a_heterogeneous_federation():
    """Heads that clients share in half of their features (the specification's 8.3), k = 20."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(CLASSES, FEATURES + 1))
    heads = shared + SPREAD * rng.normal(size=(OLD + NEW, CLASSES, FEATURES + 1))

    def rows(head, n):
        x = rng.normal(size=(n, FEATURES))
        scores = x @ head[:, :-1].T + head[:, -1] + rng.gumbel(size=(n, CLASSES))
        return {"x": torch.tensor(x), "y": torch.tensor(scores.argmax(1))}

    train = [rows(h, int(rng.integers(40, 161)) if i < OLD else 20) for i, h in enumerate(heads)]
    test = [rows(h, 1000) for h in heads]
    module = Headed(FEATURES, CLASSES).double()
    nn.init.zeros_(module.head.weight)
    nn.init.zeros_(module.head.bias)

    def federation(rule):
        client, app = RuleClient(rule, module, weighted_cross_entropy), ClientApp()

        @app.train()
        def fit(message, context):
            data = train[int(context.node_config["partition-id"])]
            return client.train(message, context, data, [np.arange(len(data["y"]))] * 20, 0.5)

        @app.evaluate()
        def score(message, context):
            node = int(context.node_config["partition-id"])
            predict = client.predictor(message, context, train[node])
            right = float((predict(test[node]).argmax(1) == test[node]["y"]).double().mean())
            return Message(
                RecordDict({"m": MetricRecord({"num-examples": 1, "right": right})}), reply_to=message
            )

        return SerialGrid(lambda: app, [1] * (OLD + NEW))

    scores, learned = {}, None
    for name, strategy, rounds in (
        ("global", FedAvg(**SERVER), 12),
        ("niw", NIWMeta(FedAvg(**SERVER)), 8),
        ("fedhb", FedHB(FedAvg(**SERVER)), 4),
    ):
        rule = LocalRule() if name == "global" else strategy.client_rule(LocalRule())
        grid, arrays = federation(rule), record(module.state_dict())
        if name != "global":
            with grid.cohort(range(OLD)):
                arrays = strategy.prepare(grid, arrays)
        for t in range(1, rounds + 1):
            with grid.cohort(range(OLD)):
                replies = grid.send_and_receive(strategy.configure_train(t, arrays, ConfigRecord(), grid))
                arrays, _ = strategy.aggregate_train(t, replies)
        with grid.cohort(range(OLD, OLD + NEW)):
            messages = strategy.configure_evaluate(rounds, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(messages)
        scores[name] = np.mean([r.content["m"]["right"] for r in replies])
        if name == "niw":
            learned = (-strategy.log_precision["head.weight"]).exp().mean(0)
    print("8.3 k=20", scores, learned)
    assert scores["niw"] >= scores["global"] + 0.08
    assert scores["niw"] >= scores["fedhb"]
    assert learned[5:].mean() / learned[:5].mean() > 10
