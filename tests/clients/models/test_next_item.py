"""Scores and losses against plain loops, and what holds of every model that says what comes next."""

import math
from functools import partial

import pytest
import torch
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clients.errors import ClientError
from clients.models.gru4rec import GRU4Rec
from clients.models.idnp_sequence import SequenceIDNP
from clients.models.next_item import ItemHead, NextItem, check_rates, next_item_loss, scores
from clients.models.popularity import Popularity
from clients.models.sasrec import SASRec
from strategies.functional import Stateless, differentiate_functionally

V, H, D = 9, 6, 8
INPUTS = ("hist", "times", "query_time", "user")
MODELS = {
    "gru4rec": partial(GRU4Rec, V, H, width=D, hidden=D, dropout=0.0),
    "gru4rec, wider": partial(GRU4Rec, V, H, width=D, hidden=12, dropout=0.0),
    "sasrec": partial(SASRec, V, H, width=D, dropout=0.0),
    "sasrec with time": partial(SASRec, V, H, width=D, dropout=0.0, time=True),
    "idnp": partial(
        SequenceIDNP, V, H, 3, width=D, latent=5, heads=2, dropout=0.0, user_dropout=0.0, split=False
    ),
    "popularity": partial(Popularity, V),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def scrambled(model, seed=0):
    """Weights that are nowhere what they start as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
            if name == "items.E":
                p[0] = 0
    return model.double()


def batch_of(seed=0):
    """Histories of 6, 4 and 1 events, and of none at all; the last of three users is new."""
    generator = torch.Generator().manual_seed(seed)
    hist = torch.randint(1, V + 1, (4, H), generator=generator)
    gaps = torch.rand(4, H + 1, generator=generator, dtype=torch.float64)
    for row, padding in enumerate((0, 2, H - 1, H)):
        hist[row, :padding] = 0
        gaps[row, :padding] = 0
    times = gaps.cumsum(1)
    return {
        "hist": hist,
        "times": times[:, :-1] * (hist > 0),
        "query_time": times[:, -1],
        "user": torch.tensor([0, 2, -1, 1]),
        "target": torch.cat([hist[:, 1:], torch.tensor([[4], [0], [7], [2]])], 1),
        "negatives": torch.randint(0, V + 1, (4, 5), generator=generator),
    }


def call(model, batch):
    return model(*(batch[k] for k in INPUTS))


def given(seed=0, bias_of_none=-math.inf):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    bias = draw(V + 1)
    bias[0] = bias_of_none
    return NextItem(draw(2, 3, D), draw(V + 1, D), bias, torch.zeros(2, 3))


def cross_entropy(out, b, t, target, others):
    """Of one query, one logit at a time."""
    if target == 0:
        return 0.0
    logit = {v: float(out.output[b, t] @ out.weight[v] + out.bias[v]) for v in {target, *others} if v > 0}
    counts = {v: 1 if v == target else others.count(v) for v in logit}
    return math.log(sum(counts[v] * math.exp(logit[v]) for v in logit)) - logit[target]


# --- scores and losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("bias_of_none", [-math.inf, 0.0])
def test_scores_are_of_the_last_query_and_never_of_no_item(bias_of_none):
    out = given(bias_of_none=bias_of_none)
    found = scores(out)
    assert found.shape == (2, V + 1)
    assert (found[:, 0] == -math.inf).all()
    expected = torch.stack([out.weight[1:] @ out.output[b, 2] + out.bias[1:] for b in range(2)])
    torch.testing.assert_close(found[:, 1:], expected)


@pytest.mark.parametrize("bias_of_none", [-math.inf, 0.0])
@pytest.mark.parametrize(
    "negatives", [None, [[2, 2, 5, 0], [9, 1, 3, 3]], [[0, 0], [4, 0]], [[*range(1, V + 1)]] * 2]
)
def test_loss_is_cross_entropy_of_a_target_and_others(negatives, bias_of_none):
    out, target = given(bias_of_none=bias_of_none), torch.tensor([[5, 0, 2], [3, 9, 4]])
    found = next_item_loss(out, target, None if negatives is None else torch.tensor(negatives))
    for b in range(2):
        others = [*range(1, V + 1)] if negatives is None else negatives[b]
        expected = [cross_entropy(out, b, t, int(target[b, t]), others) for t in range(3)]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sampled", [False, True], ids=["all items", "negatives"])
def test_loss_and_gradient_of_extreme_logits_are_finite(sampled):
    out = given()
    output, weight = (1e3 * out.output).requires_grad_(), (1e3 * out.weight).requires_grad_()
    negatives = torch.tensor([[1, 0], [0, 0]]) if sampled else None
    target = torch.tensor([[5, 0, 1], [3, 9, 4]])
    loss = next_item_loss(NextItem(output, weight, out.bias, out.penalty), target, negatives)
    loss.sum().backward()
    for x in (loss, output.grad, weight.grad):
        assert x.isfinite().all()
    assert (weight.grad[0] == 0).all()
    assert (output.grad[0, 1] == 0).all()


def test_a_head_maps_only_where_widths_differ():
    x, table = torch.randn(2, 3, 5), torch.randn(V + 1, D)
    same, other = ItemHead(V, D, D), ItemHead(V, 5, D)
    assert [name for name, _ in same.named_parameters()] == ["b"]
    torch.testing.assert_close(other(x, table).output, x @ other.W_out.weight.mT + other.W_out.bias)
    assert other(x, table).bias.tolist() == [-math.inf, *[0] * V]


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_rates_are_checked_by_name(rate):
    with pytest.raises(ClientError, match=f"^dropout: must be 0 or more and below 1, got {rate}$"):
        check_rates(dropout=rate)


# --- every model -----------------------------------------------------------------------------------


@each_model
def test_there_is_a_query_for_every_event(make):
    batch, model = batch_of(), make()
    for out in (call(model, batch), call(model.eval(), batch)):
        width = out.weight.shape[1]
        assert out.output.shape == (4, H, width)
        assert out.weight.shape == (V + 1, width)
        assert out.bias.shape == (V + 1,)
        assert out.bias[0] == -math.inf
        assert out.penalty.shape == (4, H)
        for x in (out.output, out.weight, out.bias[1:], out.penalty):
            assert x.isfinite().all()
            assert x.dtype == torch.float32


@each_model
def test_left_padding_changes_nothing(make):
    batch, model = batch_of(), scrambled(make()).eval()
    for row, padding in ((1, 2), (2, H - 2)):  # which leaves one column of padding to the second
        one = {k: x[row : row + 1] for k, x in batch.items()}
        short = {**one, **{k: one[k][:, padding:] for k in ("hist", "times")}}
        some = call(model, short).output
        torch.testing.assert_close(call(model, one).output[:, -some.shape[1] :], some)


@pytest.mark.parametrize("make", [MODELS[k] for k in MODELS if k != "idnp"])
def test_no_query_sees_what_comes_later(make):
    batch, model = batch_of(), scrambled(make())
    for t in range(H - 1):
        later = {**batch, "hist": batch["hist"].clone(), "times": batch["times"].clone()}
        later["hist"][:, t + 1 :] = 1 + later["hist"][:, t + 1 :] % V
        later["times"][:, t + 2 :] += 0.37
        a, b = (call(model, x).output[:, : t + 1] for x in (batch, later))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [MODELS[k] for k in MODELS if k != "idnp"])
def test_evaluation_asks_what_training_asks(make):
    batch, model = batch_of(), scrambled(make())
    torch.testing.assert_close(call(model, batch).output, call(model.eval(), batch).output)


@each_model
def test_a_batch_is_learned_and_row_0_stays_0(make):
    torch.manual_seed(0)
    batch, model = batch_of(), make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        out = call(model, batch)
        loss = (next_item_loss(out, batch["target"]) + out.penalty)[:, -1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    if hasattr(model, "items"):
        assert (model.items.E[0] == 0).all()


@each_model
@pytest.mark.parametrize("sampled", [False, True], ids=["all items", "negatives"])
def test_cohorts_are_clients_one_by_one(make, sampled):
    models = [scrambled(make(), seed) for seed in range(2)]
    # A draw of the latent variable is one that vmap cannot make; in evaluation there is none.
    training = not isinstance(models[0], SequenceIDNP)
    stateless = Stateless(models[0].train(training), lambda batch: tuple(batch[k] for k in INPUTS))
    each = [{name: p.detach() for name, p in m.named_parameters()} for m in models]
    clients = [batch_of(seed) for seed in range(2)]

    def step(params, batch):
        def loss(p):
            out = stateless(p, batch)
            target = batch["target"][:, -out.output.shape[1] :]
            return (next_item_loss(out, target, batch["negatives"] if sampled else None) + out.penalty).sum()

        return differentiate_functionally(loss, params)

    stacked = [{k: torch.stack([x[k] for x in xs]) for k in xs[0]} for xs in (each, clients)]
    with sdpa_kernel(SDPBackend.MATH):
        grads, losses = vmap(step)(*stacked)
    for i in range(2):
        alone, value = step(each[i], clients[i])
        torch.testing.assert_close(losses[i], value)
        for name, g in alone.items():
            torch.testing.assert_close(grads[name][i], g, msg=lambda text, name=name: f"{name}: {text}")
