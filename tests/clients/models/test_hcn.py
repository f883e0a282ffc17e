"""HCN and ComiRec-SA against plain loops, the specification's numbers, and what must hold of any weights."""

import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from clients.errors import ClientError
from clients.models.comirec import (
    ComiRecSA,
    Interests,
    diversity,
    next_item_loss,
    ranking_logits,
    ranking_loss,
    readout,
    redundancy,
    retrieve,
    scores,
)
from clients.models.hcn import HCN, CoInterest, Extractor, Level
from strategies.functional import Stateless, differentiate_functionally, weighted_mean

V, LONG, SHORT, D, K = 30, 12, 5, 8, 3
CATEGORIES = [0, *(1 + v % 4 for v in range(V))]

small = partial(HCN, V, LONG + SHORT, short=SHORT, width=D, interests=K)
MODELS = {
    "union": small,
    "gate": partial(small, mode="gate"),
    "none": partial(small, mode="none"),
    "proto": partial(small, init="proto"),
    "one shot": partial(small, levels=0),
    "categories": partial(small, CATEGORIES),
    "rank": partial(small, rank=True),
    "comirec": partial(ComiRecSA, V, LONG + SHORT, width=D, interests=K),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def scrambled(model, seed=0, dtype=torch.float64):
    """Weights that are nowhere what they start as, so that no test passes because they are 0 or identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
            if name.rpartition(".")[2] in ("E", "E_cat"):
                p[0] = 0
    return model.to(dtype).eval()


def histories():
    """Full, with some padding, and with none of the long-term events: of three lengths, and empty."""
    generator = torch.Generator().manual_seed(1)
    hist = torch.randint(1, V + 1, (6, LONG + SHORT), generator=generator)
    for row, events in enumerate((LONG + SHORT, LONG + SHORT - 4, SHORT, 2, 1, 0)):
        hist[row, : LONG + SHORT - events] = 0
    return hist


def old_events_alone():
    hist = histories()[:2].clone()
    hist[:, LONG:] = 0
    return hist


def size(model):
    return sum(p.numel() for p in model.parameters())


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=atol)


# --- parameters ------------------------------------------------------------------------------------


def without_memory(make, *args, **options):
    with torch.device("meta"):
        return make(*args, **options)


def test_number_of_parameters_is_the_specified_one():
    model = without_memory(HCN, 720, 50, width=16)
    assert [size(part) for part in (model.long, model.short, model.co)] == [3459, 2979, 1312]
    assert size(model) - size(model.items) == 7750
    assert size(model) == 721 * 16 + 7750


def test_number_of_parameters_has_a_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(30):
        v, n, s, d, k = (int(x) for x in rng.integers(1, (40, 30, 20, 20, 6)))
        t = int(rng.integers(0, 5))
        make = partial(without_memory, HCN, v, n + s, short=s, width=d, interests=k, levels=t)
        sides = sum(m * d + 4 * d**2 + 4 * d * k + 2 * t * d**2 + t for m in (n, s))
        gate, table = 2 * d**2 + d, (v + 1) * d
        assert size(make()) == table + sides + d**2 + 2 * gate
        assert size(make(rank=True)) == size(make()) + 2
        assert size(make(mode="gate")) == size(make()) - gate
        assert size(make(mode="none")) == table + sides
        proto = 2 * (k * d + 2 * t * d**2 + t)
        assert size(make(init="proto", mode="none")) == table + proto
        comirec = without_memory(ComiRecSA, v, n, width=d, interests=k)
        assert size(comirec) == table + n * d + 4 * d**2 + 4 * d * k
    assert size(small(CATEGORIES)) == size(small()) + 5 * D


def test_weights_have_these_names_and_shapes():
    shapes = {"items.E": (V + 1, D), "items.E_cat": (5, D), "tau": (1,), "bias": (1,), "co.W": (D, D)}
    for gate in ("co.Wl", "co.Ws"):
        shapes |= {f"{gate}.weight": (D, 2 * D), f"{gate}.bias": (D,)}
    for side, n in (("long", LONG), ("short", SHORT)):
        shapes |= {f"{side}.start.P": (n, D), f"{side}.start.W1.weight": (4 * D, D)}
        shapes |= {f"{side}.start.W2.weight": (K, 4 * D)}
        for t in range(2):
            level = f"{side}.levels.{t}"
            shapes |= {f"{level}.Wq": (D, D), f"{level}.Wk": (D, D), f"{level}.g": (1,)}
    model = small(CATEGORIES, levels=2, rank=True)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes
    # Nothing is sent but what is learned: not the categories.
    assert set(model.state_dict()) == set(shapes)


def test_defaults_are_those_of_real_data():
    model = HCN(100)
    assert model.long.start.P.shape == (40, 64)
    assert model.short.start.P.shape == (10, 64)
    assert model.long.start.W2.weight.shape == (4, 256)
    assert len(model.long.levels) == len(model.short.levels) == 3
    assert model.mode == "union"
    assert ComiRecSA(100).extractor.P.shape == (50, 64)


def test_initial_weights():
    torch.manual_seed(0)
    model = HCN(3000, categories=[0] + [1 + v % 900 for v in range(3000)], rank=True)
    for table in (model.items.E, model.items.E_cat):
        assert (table[0] == 0).all()
        assert table[1:].std().item() == pytest.approx(1 / 8, rel=0.02)
        assert table[1:].mean().item() == pytest.approx(0, abs=0.002)
    for side in (model.long, model.short):
        assert side.start.P.std().item() == pytest.approx(0.02, rel=0.1)
        for level in side.levels:
            assert torch.equal(level.Wq, torch.eye(64))
            assert torch.equal(level.Wk, torch.eye(64))
            assert level.g == 0
    assert torch.equal(model.co.W, torch.eye(64))
    for gate in (model.co.Wl, model.co.Ws):
        assert (gate.weight == 0).all()
        assert (gate.bias == 2).all()
    assert (model.tau, model.bias) == (1, 0)
    proto = HCN(10, init="proto", interests=200).long.start.C
    assert proto.std().item() == pytest.approx(1 / 8, rel=0.05)


# --- plain loops -----------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - np.max(z))
    return e / e.sum()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def plain_extraction(state, x):
    """Centers of one side of one user, event by event; padding is not there at all."""
    if not len(x):
        return np.zeros((K, D))
    if "start.C" in state:
        c = state["start.C"]
    else:
        position = state["start.P"][len(state["start.P"]) - len(x) :]
        hidden = [
            state["start.W2.weight"] @ np.tanh(state["start.W1.weight"] @ (e + p))
            for e, p in zip(x, position, strict=True)
        ]
        c = np.stack([softmax(row) @ x for row in np.array(hidden).T])
    for t in range(sum(name.endswith(".g") for name in state)):
        wq, wk, g = (state[f"levels.{t}.{name}"] for name in ("Wq", "Wk", "g"))
        moved = np.zeros((K, D))
        mass = np.zeros(K)
        for e in x:
            share = softmax(np.array([(each @ wq) @ (e @ wk) for each in c]))
            moved += share[:, None] * e
            mass += share
        c = c + sigmoid(g) * (moved / (mass + 1e-6)[:, None] - c)
    return c


def plain_mix(weight, bias, own, said):
    gate = sigmoid(weight @ np.concatenate([own, said]) + bias)
    return gate * own + (1 - gate) * said


def plain_interests(model, hist):
    """The valid interests of one user that has any event."""
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def part(prefix):
        return {name.removeprefix(prefix): p for name, p in state.items() if name.startswith(prefix)}

    def vector(v):
        return state["items.E"][v] + (state["items.E_cat"][CATEGORIES[v]] if "items.E_cat" in state else 0)

    old, new = (np.array([vector(v) for v in events if v]) for events in (hist[:LONG], hist[LONG:]))
    if not isinstance(model, HCN):
        both = np.array([vector(v) for v in hist if v])
        return plain_extraction({f"start.{name}": p for name, p in part("extractor.").items()}, both)
    lg, sh = plain_extraction(part("long."), old), plain_extraction(part("short."), new)
    if model.mode == "none":
        return np.concatenate([lg] * bool(len(old)) + [sh] * bool(len(new)))
    if not len(old):
        return sh if model.mode == "union" else np.tile(sh.mean(0), (K, 1))
    if not len(new):
        return lg
    lf, sf = [], []
    for u in lg:
        said = softmax(np.array([4 / math.sqrt(D) * (u @ state["co.W"]) @ s for s in sh])) @ sh
        lf.append(plain_mix(state["co.Wl.weight"], state["co.Wl.bias"], u, said))
    if model.mode == "gate":
        return np.array(lf)
    for s in sh:
        said = softmax(np.array([4 / math.sqrt(D) * (u @ state["co.W"]) @ s for u in lg])) @ lg
        sf.append(plain_mix(state["co.Ws.weight"], state["co.Ws.bias"], s, said))
    return np.array(lf + sf)


@each_model
def test_interests_are_those_of_plain_loops(make):
    model = scrambled(make())
    hist = histories()[:5]
    if isinstance(model, HCN):
        hist = torch.cat([hist, old_events_alone()])
    out = model(hist)
    for user in range(len(hist)):
        close(out.vectors[user][out.valid[user]], plain_interests(model, hist[user].tolist()))
        assert (out.vectors[user][~out.valid[user]] == 0).all()


def test_items_have_their_categories_vectors_added():
    model = scrambled(small(CATEGORIES))
    items = model(histories()).items
    for v in range(1, V + 1):
        close(items[v], model.items.E[v] + model.items.E_cat[CATEGORIES[v]])
    # An item of no category has none, whatever row 0 is.
    model = scrambled(small([0] * 7 + [1] * (V - 6)))
    with torch.no_grad():
        model.items.E_cat[0] = 9.0
    close(model(histories()).items[:7], model.items.E[:7])


# --- the specification's numbers -------------------------------------------------------------------


def worked_example(g, levels):
    x = torch.tensor([[[3.0, 0], [3, 0], [0, 3], [0, 3]]], dtype=torch.float64)
    center = torch.tensor([[[1.6, 1.4], [1.4, 1.6]]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    level = Level(2).double()
    nn.init.constant_(level.g, g)
    first = level.compete(center, x, mask)
    centers = []
    for _ in range(levels):
        center, _ = level(center, x, mask)
        centers.append(center[0].detach())
    return first[0].detach(), centers


@pytest.mark.parametrize(
    ("g", "expected", "cosines"),
    [
        (40.0, [(1.9370, 1.0630), (2.7968, 0.2032), (2.9987, 0.0013)], [0.8436, 0.1446, 0.0008]),
        (0.0, [(1.7685, 1.2315), (2.1345, 0.8655), (2.5347, 0.4653)], [0.9379, 0.6964, 0.3552]),
    ],
    ids=["gamma 1", "gamma 0.5"],
)
def test_worked_example(g, expected, cosines):
    share, centers = worked_example(g, 3)
    close(share, [[0.6457, 0.6457, 0.3543, 0.3543], [0.3543, 0.3543, 0.6457, 0.6457]], 5e-5)
    for center, (near, far), cosine in zip(centers, expected, cosines, strict=True):
        close(center, [[near, far], [far, near]], 6e-5)
        close(redundancy(center[None])[0], [cosine], 6e-5)


def clustered(seed, users=256, n=40, directions=4, width=16):
    generator = torch.Generator().manual_seed(seed)
    randn = partial(torch.randn, generator=generator)
    true = functional.normalize(randn(users, directions, width), dim=-1)
    which = torch.randint(directions, (users, n), generator=generator)
    x = true.gather(1, which[..., None].expand(-1, -1, width)) + 0.1 * randn(users, n, width)
    return true, 4 * functional.normalize(x, dim=-1)


FROZEN = {
    40.0: (
        [0.952, 0.591, 0.217, 0.085, 0.042, 0.028],
        [0.137, 0.538, 0.823, 0.918, 0.946, 0.956],
        (0.15, 0.85),
    ),
    0.0: (
        [0.952, 0.782, 0.514, 0.305, 0.180, 0.110],
        [0.137, 0.358, 0.679, 0.843, 0.910, 0.939],
        (0.40, 0.75),
    ),
}


@pytest.mark.parametrize("g", FROZEN, ids=["gamma 1", "gamma 0.5"])
def test_redundancy_falls_with_depth_before_any_training(g):
    red, coverage = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        extractor = Extractor(40, 16, 4, 5, "attention")
        for level in extractor.levels:
            nn.init.constant_(level.g, g)
        true, x = clustered(seed)
        with torch.no_grad():
            centers = extractor(x, torch.ones(x.shape[:2], dtype=torch.bool)).centers
        assert len(centers) == 6
        red.append([redundancy(c)[0].mean().item() for c in centers])
        cosine = [functional.normalize(c, dim=-1) @ true.mT for c in centers]
        coverage.append([(c.amax(1) > 0.8).float().mean().item() for c in cosine])
    red, coverage = np.mean(red, 0), np.mean(coverage, 0)
    specified_red, specified_coverage, (most, least) = FROZEN[g]
    assert (np.diff(red) < 0).all()
    assert (np.diff(coverage) > 0).all()
    assert red[0] >= 0.9
    assert red[3] <= most
    assert coverage[3] >= least
    # Means of other draws: near, not the same.
    assert red == pytest.approx(specified_red, abs=0.05)
    assert coverage == pytest.approx(specified_coverage, abs=0.04)


# --- what must hold with any weights ---------------------------------------------------------------


def test_extra_padding_on_the_left_changes_nothing():
    extractor = scrambled(Extractor(12, D, K, 3, "attention"), dtype=torch.float32)
    torch.manual_seed(0)
    x = torch.randn(4, 8, D)
    short = extractor(x, torch.ones(4, 8, dtype=torch.bool))
    mask = torch.arange(12).expand(4, 12) >= 4
    padded = extractor(torch.cat([torch.randn(4, 4, D), x], 1), mask)
    for a, b in zip(padded.centers, short.centers, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for a, b in zip(padded.assignments, short.assignments, strict=True):
        assert (a[..., :4] == 0).all()
        torch.testing.assert_close(a[..., 4:], b, rtol=0, atol=1e-5)


@each_model
def test_shorter_histories_need_no_padding(make):
    model, hist = scrambled(make()), histories()
    hist[5, -SHORT + 1 :] = hist[0, : SHORT - 1]
    for user, events in ((1, LONG + SHORT - 4), (2, SHORT), (3, 2), (4, 1), (5, SHORT - 1)):
        padded, bare = model(hist[user : user + 1]), model(hist[user : user + 1, -events:])
        for a, b in zip(padded, bare, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_assignments_are_means_over_real_events_that_centers_compete_for():
    model = scrambled(small(), dtype=torch.float32)
    hist = histories()
    x = functional.embedding(hist, model.items.E)
    for extraction, extractor, part in zip(
        model.extract(hist), (model.long, model.short), (slice(LONG), slice(LONG, None)), strict=True
    ):
        mask = hist[:, part] > 0
        assert len(extraction.centers) == 4
        for a in extraction.assignments:
            assert (a >= 0).all()
            assert (a.masked_select(~mask[:, None]) == 0).all()
            close(a.sum(-1), mask.any(1).float()[:, None].expand(-1, K), 1e-4)
        for level, center in zip(extractor.levels, extraction.centers, strict=False):
            share = level.compete(center, x[:, part], mask)
            close(share.sum(1), mask.float(), 1e-5)


def test_weights_at_one_shot_are_means_over_real_events():
    extractor = scrambled(MODELS["comirec"]()).extractor
    mask = histories() > 0
    x = torch.randn(*mask.shape, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    a = extractor.weights(x, mask)
    assert (a >= 0).all()
    assert (a.masked_select(~mask[:, None]) == 0).all()
    close(a.sum(-1), mask.any(1).double()[:, None].expand(-1, K))


def test_centers_stay_in_the_hull_of_the_events():
    model = scrambled(small(), dtype=torch.float32)
    hist = torch.randint(1, V + 1, (200, LONG + SHORT), generator=torch.Generator().manual_seed(2))
    norm = functional.embedding(hist, model.items.E).norm(dim=-1)
    extractions = model.extract(hist)
    for extraction, part in zip(extractions, (norm[:, :LONG], norm[:, LONG:]), strict=True):
        for center in extraction.centers:
            assert (center.norm(dim=-1) <= part.amax(1, keepdim=True) + 1e-5).all()


def test_centers_of_one_item_are_the_item():
    model = scrambled(small(), dtype=torch.float32)
    hist = torch.arange(1, V + 1)[:, None].expand(-1, LONG + SHORT)
    for extraction in model.extract(hist):
        for center in extraction.centers:
            close(center, model.items.E[1:, None].detach().expand(-1, K, -1), 1e-4)


def test_only_positions_know_the_order_of_events():
    model, hist = scrambled(small()), histories()
    order = torch.randperm(LONG, generator=torch.Generator().manual_seed(3))
    shuffled = torch.cat([hist[:1, order], hist[:1, LONG:]], 1)
    assert (model(shuffled).vectors - model(hist[:1]).vectors).abs().max() > 1e-3
    for side in (model.long, model.short):
        nn.init.zeros_(side.start.P)
    torch.testing.assert_close(model(shuffled).vectors, model(hist[:1]).vectors, rtol=0, atol=1e-12)
    exchanged = hist[:1].clone()
    exchanged[0, [2, -2]] = hist[0, [-2, 2]]
    assert exchanged[0, 2] != hist[0, 2]
    assert (model(exchanged).vectors - model(hist[:1]).vectors).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["long", "short"])
def test_interests_have_no_order(side):
    model, hist = scrambled(small(), dtype=torch.float32), histories()
    before = model(hist)
    order = torch.tensor([2, 0, 1])
    w2 = model.get_submodule(side).start.W2.weight
    with torch.no_grad():
        w2.copy_(w2[order].clone())
    after = model(hist)
    new = torch.cat([order, torch.arange(K, 2 * K)] if side == "long" else [torch.arange(K), K + order])
    torch.testing.assert_close(after.vectors, before.vectors[:, new], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores(after), scores(before), rtol=0, atol=1e-5)
    assert (after.vectors - before.vectors).abs().max() > 1e-3


def test_without_levels_and_co_network_it_is_two_comirecs():
    model = scrambled(small(levels=0, mode="none"))
    hist = histories()[:2]
    found = model(hist).vectors
    for side, n, columns, rows in (
        ("long", LONG, slice(LONG), slice(K)),
        ("short", SHORT, slice(LONG, None), slice(K, None)),
    ):
        comirec = scrambled(ComiRecSA(V, n, width=D, interests=K), seed=9)
        start = model.get_submodule(side).start.state_dict()
        comirec.load_state_dict(
            {"items.E": model.items.E, **{f"extractor.{name}": p for name, p in start.items()}}
        )
        assert torch.equal(comirec(hist[:, columns]).vectors, found[:, rows])


def test_each_level_and_the_co_network_make_a_difference():
    outputs = [
        scrambled(small(levels=t, mode=mode))(histories()).vectors
        for t, mode in ((0, "none"), (1, "none"), (2, "none"), (2, "union"))
    ]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(outputs))


def test_gates_start_near_the_interest_itself():
    torch.manual_seed(0)
    co, yes = CoInterest(D, both=True), torch.ones(1, 1, 1, dtype=torch.bool)
    lg, sh = torch.randn(2, 1, K, D)
    lf, sf = co(lg, sh, yes, yes)
    R = 4 / math.sqrt(D) * lg @ sh.mT
    close(lf, 0.8808 * lg + 0.1192 * R.softmax(2) @ sh, 5e-4)
    close(sf, 0.8808 * sh + 0.1192 * R.mT.softmax(2) @ lg, 5e-4)
    same = 30 * torch.eye(D)[None, :K]
    for mixed in co(same, same, yes, yes):
        close(mixed, same, 1e-5)


def test_users_without_one_side_or_both():
    for mode, vectors in (("union", 2 * K), ("gate", K), ("none", 2 * K)):
        model = scrambled(small(mode=mode))
        hist = torch.cat([histories(), old_events_alone()])
        out = model(hist)
        assert out.vectors.shape == (8, vectors, D)
        found = scores(out)
        assert found[:, 1:].isfinite().all()
        # None is told from another by a user without a history.
        assert (found[5, 1:] == 0).all()
        long, short = ([True] * K + [False] * K)[:vectors], ([False] * K + [True] * K)[:vectors]
        if mode == "gate":
            long = short = [True] * K
        all_of_them = [True] * vectors
        expected = [all_of_them, all_of_them, short, short, short, all_of_them, long, long]
        assert out.valid.tolist() == expected


@pytest.mark.parametrize("mode", ["union", "gate", "none"])
def test_one_event_is_its_own_best_match(mode):
    model = scrambled(small(mode=mode), dtype=torch.float32)
    with torch.no_grad():
        model.items.E[1:] = functional.normalize(model.items.E[1:], dim=-1)
    hist = torch.zeros(V, LONG + SHORT, dtype=torch.long)
    hist[:, -1] = torch.arange(1, V + 1)
    assert torch.equal(scores(model(hist)).argmax(1), torch.arange(1, V + 1))


@each_model
def test_row_zero_of_the_items_is_nobodys(make):
    model, hist = scrambled(make()), histories()
    before = scores(model(hist))
    candidates = torch.tensor([[3, 0, 7]]).expand(6, -1)
    label = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64).expand(6, -1)
    target = torch.tensor([4, 2, 0, 3, 9, 1])
    out = model(hist)
    weight = (target > 0).double()
    loss = (next_item_loss(out, target) * weight).sum()
    loss = loss + (next_item_loss(out, target, math.inf, torch.tensor([4, 9, 11])) * weight).sum()
    loss = loss + ranking_loss(out, candidates, label).sum()
    loss.backward()
    for name, p in model.named_parameters():
        if name in ("items.E", "items.E_cat"):
            assert (p.grad[0] == 0).all()
            assert (p.grad[1:] != 0).any()
    with torch.no_grad():
        model.items.E[0] = 5.0
    assert torch.equal(scores(model(hist)), before)


@each_model
def test_every_weight_learns(make):
    model = scrambled(make(rank=True) if make is not MODELS["comirec"] else make())
    out = model(histories())
    label = torch.eye(6, 4, dtype=torch.float64)
    loss = next_item_loss(out, torch.tensor([4, 2, 8, 3, 9, 1])).sum()
    (loss + ranking_loss(out, torch.arange(1, 25).view(6, 4), label).sum()).backward()
    for name, p in model.named_parameters():
        rows = p.grad[1:] if name in ("items.E", "items.E_cat") else p.grad
        assert (rows != 0).any(), name


@each_model
@pytest.mark.parametrize("power", [1, 2])
def test_gradients_are_those_of_small_differences(make, power):
    model = scrambled(make())
    hist, target = histories(), torch.tensor([4, 2, 8, 3, 9, 1])
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        out = functional_call(model, dict(zip(names, weights, strict=True)), (hist,))
        both = next_item_loss(out, target, power) + 0.1 * diversity(out)
        return both[:5].sum() + ranking_logits(out, target[:, None]).sum()

    weights = tuple(model.parameters())
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


# --- scores, losses, redundancy --------------------------------------------------------------------


def given(vectors, items, valid=None, tau=1.0, bias=0.0):
    vectors, items = (torch.as_tensor(x, dtype=torch.float64) for x in (vectors, items))
    valid = torch.ones(vectors.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid)
    return Interests(vectors, valid, items, vectors, *torch.tensor([[tau], [bias]], dtype=torch.float64))


def a_few():
    """Two users of three interests, the second's last not valid; five items in two features."""
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return given(vectors, items, [[True] * 3, [True, True, False]], tau=1.7, bias=-0.4)


def inner(out, user, v):
    return [float(u @ out.items[v]) for u, ok in zip(out.vectors[user], out.valid[user], strict=True) if ok]


def test_score_is_the_best_valid_interests():
    out = a_few()
    found = scores(out)
    for user in range(2):
        assert found[user, 0] == -math.inf
        for v in range(1, 6):
            assert found[user, v].item() == pytest.approx(max(inner(out, user, v)))
            assert all(found[user, v] >= s for s in inner(out, user, v))
    candidates = torch.tensor([[5, 1, 0], [2, 2, 4]])
    assert torch.equal(scores(out, candidates), found.gather(1, candidates))
    twice = out._replace(
        vectors=torch.cat([out.vectors, out.vectors[:, 1:2]], 1),
        valid=torch.cat([out.valid, out.valid[:, 1:2]], 1),
    )
    torch.testing.assert_close(scores(twice), found, rtol=0, atol=1e-14)
    # An interest that is 0 as it is not valid is not better than a negative inner product.
    alone = given([[[1.0, 0.0], [0.0, 0.0]]], [[0.0, 0.0], [-3.0, 1.0]], [[True, False]])
    assert scores(alone)[0, 1] == -3


def test_retrieval_merges_what_each_interest_finds():
    model, hist = scrambled(small()), histories()
    out = model(hist)
    # A row of padding that every interest would like best.
    out = out._replace(items=torch.cat([100 * out.vectors[0].mean(0, keepdim=True), out.items[1:]]))
    for n in (1, 5, 20, V, 2 * V):
        ids, found = retrieve(out, n)
        assert ids.shape == found.shape == (6, min(n, V))
        for user in range(6):
            merged = {}
            for u, ok in zip(out.vectors[user], out.valid[user], strict=True):
                if ok:
                    near = (out.items[1:] @ u).topk(min(n, V))
                    for v, s in zip(near.indices.tolist(), near.values.tolist(), strict=True):
                        merged[v + 1] = max(s, merged.get(v + 1, -math.inf))
            best = sorted(merged, key=merged.__getitem__, reverse=True)[:n]
            listed = ids[user].tolist()
            assert len(set(listed)) == len(listed)
            assert 0 not in listed
            close(found[user], [merged[v] for v in best])
            if user != 5:  # whose items all score 0
                assert listed == best


@pytest.mark.parametrize("power", [1.0, 2.0, math.inf])
def test_readout_weighs_interests_by_the_target(power):
    out = a_few()
    for user in range(2):
        for v in range(1, 6):
            s = np.array(inner(out, user, v))
            a = np.eye(len(s))[s.argmax()] if math.isinf(power) else softmax(power * s)
            expected = a @ out.vectors[user][out.valid[user]].numpy()
            close(readout(out, torch.tensor([v, v]), power)[user], expected)


@pytest.mark.parametrize("power", [1.0, 2.0, math.inf])
def test_next_item_loss_is_cross_entropy_over_items(power):
    out, target = a_few(), torch.tensor([2, 5])
    user = readout(out, target, power)
    found = next_item_loss(out, target, power)
    sampled = next_item_loss(out, target, power, torch.tensor([[5, 1, 1], [3, 2, 4]]))
    for row, v in enumerate(target.tolist()):
        logits = {i: float(user[row] @ out.items[i]) for i in range(1, 6)}
        total = sum(math.exp(x) for x in logits.values())
        assert found[row].item() == pytest.approx(math.log(total) - logits[v])
        # Accidental hits are left out, repetitions are not.
        others = [i for i in (5, 1, 1, 3, 2, 4) if i != v]
        total = sum(math.exp(logits[i]) for i in (v, *others))
        assert sampled[row].item() == pytest.approx(math.log(total) - logits[v])


def test_all_negatives_are_the_full_softmax():
    out, target = scrambled(small())(histories()), torch.tensor([4, 2, 8, 3, 9, 1])
    every = torch.arange(1, V + 1)
    torch.testing.assert_close(next_item_loss(out, target, 1.0, every), next_item_loss(out, target))


def test_power_must_be_positive():
    with pytest.raises(ClientError, match=r"^power: must be positive, got 0$"):
        next_item_loss(a_few(), torch.tensor([1, 2]), 0)


def test_ranking_loss_is_cross_entropy_of_clicks():
    out = a_few()
    candidates, label = torch.tensor([[1, 4, 0], [5, 0, 0]]), torch.tensor([[1.0, 0, 1], [0, 0, 0]]).double()
    logits = {
        (user, v): math.log(sum(math.exp(s) for s in inner(out, user, v))) / 1.7 - 0.4
        for user in range(2)
        for v in range(1, 6)
    }
    found = ranking_logits(out, candidates)
    assert found[0, 1].item() == pytest.approx(logits[0, 4])
    first = -math.log(sigmoid(logits[0, 1])) - math.log(1 - sigmoid(logits[0, 4]))
    close(ranking_loss(out, candidates, label), [first / 2, -math.log(1 - sigmoid(logits[1, 5]))])
    close(ranking_loss(out, 0 * candidates, label), [0.0, 0.0])


def test_temperature_and_offset_are_learned_where_asked_for():
    out, model = scrambled(small())(histories()), scrambled(small(rank=True))
    assert (out.tau.item(), out.bias.item()) == (1, 0)
    learned = model(histories())
    assert learned.tau is model.tau
    assert learned.bias is model.bias


def test_redundancy_is_the_mean_cosine_of_pairs():
    centers = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    centers[1, 2] = 0
    centers[2, 1:] = 0
    centers[3] = 0
    red, count = redundancy(centers)
    for user, rows in enumerate(([0, 1, 2], [0, 1])):
        c = centers[user].numpy()
        pairs = [(i, j) for i in rows for j in rows if i != j]
        cosines = [c[i] @ c[j] / np.linalg.norm(c[i]) / np.linalg.norm(c[j]) for i, j in pairs]
        assert red[user].item() == pytest.approx(np.mean(cosines))
        out = given(centers, torch.zeros(2, 2))
        assert diversity(out)[user].item() == pytest.approx(np.mean(np.square(cosines)))
    assert red[2:].tolist() == [0, 0]
    assert count.tolist() == [1, 1, 0, 0]
    assert [x.tolist() for x in redundancy(centers[:, :1])] == [[0] * 4, [0] * 4]
    same = torch.ones(1, 4, 2)
    close(redundancy(3 * same)[0], [1.0], 1e-6)


@pytest.mark.parametrize("init", ["attention", "proto"])
def test_centers_are_the_long_term_ones_before_the_co_network(init):
    model, hist = scrambled(small(init=init)), histories()
    long, _ = model.extract(hist)
    assert torch.equal(model(hist).centers, long.centers[-1])
    assert all((c[2:] == 0).all() for c in long.centers)
    red, count = redundancy(model(hist).centers)
    assert count.tolist() == [1, 1, 0, 0, 0, 0]
    assert (red[2:] == 0).all()


# --- as a pure function, in cohorts ----------------------------------------------------------------


@each_model
@pytest.mark.parametrize("sampled", [False, True], ids=["all items", "negatives"])
def test_cohorts_are_clients_one_by_one(make, sampled):
    models = [scrambled(make(), seed) for seed in range(3)]
    stateless = Stateless(models[0], lambda batch: (batch["hist"],))
    each = [{name: p.detach() for name, p in m.named_parameters()} for m in models]
    assert set(stateless.initial()) == set(each[0])
    cohort = {name: torch.stack([p[name] for p in each]) for name in each[0]}
    generator = torch.Generator().manual_seed(6)
    batch = {
        "hist": torch.stack([histories(), histories().roll(1, 0), histories().flip(0)]),
        "target": torch.randint(1, V + 1, (3, 6), generator=generator),
        "negatives": torch.randint(1, V + 1, (3, 6, 2), generator=generator),
        "weight": torch.tensor([[1.0, 1, 1, 1, 0, 0]] * 3, dtype=torch.float64),
    }

    def loss(params, batch):
        out = stateless(params, batch)
        negatives = batch["negatives"] if sampled else None
        return weighted_mean(next_item_loss(out, batch["target"], 1.0, negatives), batch)

    def step(params, batch):
        return differentiate_functionally(lambda p: loss(p, batch), params)

    grads, losses = vmap(step)(cohort, batch)
    for i in range(3):
        alone, value = step(each[i], {name: x[i] for name, x in batch.items()})
        torch.testing.assert_close(losses[i], value)
        for name, g in alone.items():
            torch.testing.assert_close(grads[name][i], g, msg=lambda text, name=name: f"{name}: {text}")


@each_model
def test_what_metrics_need_comes_in_cohorts_as_well(make):
    hist, models = histories(), [scrambled(make(), seed) for seed in range(2)]
    cohort = {n: torch.stack([m.state_dict()[n] for m in models]) for n in models[0].state_dict()}
    candidates = torch.tensor([[1, 4, 0]]).expand(6, -1)

    def measure(out):
        red = redundancy(out.centers)
        return (
            *out,
            scores(out),
            scores(out, candidates),
            *retrieve(out, 5),
            *red,
            ranking_logits(out, candidates),
        )

    together = vmap(lambda p: measure(functional_call(models[0], p, (hist,))))(cohort)
    for i, model in enumerate(models):
        for a, b in zip(together, measure(model(hist)), strict=True):
            torch.testing.assert_close(a[i], b)


def test_padded_rows_change_nothing():
    model = scrambled(small())
    params = {name: p.detach() for name, p in model.named_parameters()}
    hist, target = histories(), torch.tensor([4, 2, 8, 3, 9, 1])

    def step(hist, target, weight):
        batch = {"weight": torch.tensor(weight, dtype=torch.float64)}

        def loss(params):
            return weighted_mean(next_item_loss(functional_call(model, params, (hist,)), target), batch)

        return grad(loss)(params)

    padded = torch.cat([hist, torch.zeros(2, LONG + SHORT, dtype=torch.long)])
    a, b = step(hist, target, [1.0] * 6), step(padded, functional.pad(target, (0, 2)), [1.0] * 6 + [0.0] * 2)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-12)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: must be 1 or more, got 0"),
        ({"history": 0}, "history: must be 1 or more, got 0"),
        ({"width": 0}, "width: must be 1 or more, got 0"),
        ({"interests": -1}, "interests: must be 1 or more, got -1"),
        ({"short": 0}, "short: must be 1 or more, got 0"),
        ({"levels": -1}, "levels: must be 0 or more, got -1"),
        ({"short": 50}, "short: must be less than the history of 50 events, got 50"),
        ({"init": "zeros"}, "init: must be one of attention, proto, got 'zeros'"),
        ({"mode": "both"}, "mode: must be one of union, gate, none, got 'both'"),
        ({"categories": [0, 1]}, "categories: must be one for each id 0..3, 4 in all, got 2"),
        (
            {"categories": [1, 1, 2, 2]},
            "categories: must be 0 for id 0, which is padding, and 0 or more for items; got 1 for id 0, and "
            "1 as the lowest",
        ),
        (
            {"categories": [0, 1, -2, 2]},
            "categories: must be 0 for id 0, which is padding, and 0 or more for items; got 0 for id 0, and "
            "-2 as the lowest",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    models = [HCN]
    if options.keys() <= set(inspect.signature(ComiRecSA).parameters):
        models.append(ComiRecSA)
    for model in models:
        with pytest.raises(ClientError) as caught:
            model(**{"items": 3, **options})
        assert str(caught.value) == message


@pytest.mark.parametrize(("make", "most"), [(small, LONG), (MODELS["comirec"], LONG + SHORT)])
def test_longer_histories_are_refused(make, most):
    message = f"^history: the model is made for {most} events, but is given {most + 1}$"
    with pytest.raises(ClientError, match=message):
        make()(torch.ones(2, LONG + SHORT + 1, dtype=torch.long))


# --- the specification's synthetic problem ---------------------------------------------------------


def popularity(n, exponent):
    weight = np.arange(1, n + 1) ** -exponent
    return weight / weight.sum()


def g2(users, seed, categories=60, each=12, own=4, eps=0.1, p_new=0.3, mix=0.5):
    """58 events of each user, whose newest interests are a few of many, some of them new."""
    rng = np.random.default_rng(seed)
    noise = rng.permutation(categories * each) + 1
    of_category, of_index = popularity(categories, 0.6), popularity(each, 0.7)
    of_noise = popularity(categories * each, 1.0)
    events = np.empty((users, 58), dtype=np.int64)
    for user in range(users):
        mine = rng.choice(categories, own, replace=False, p=of_category)
        w = rng.dirichlet([2.0] * own)
        active = rng.choice(mine, 2, replace=False)
        if rng.random() < p_new:
            active[1] = rng.choice(np.setdiff1d(np.arange(categories), mine))
        by_weight, uniform = rng.choice(mine, 58, p=w), rng.choice(active, 58)
        n = np.arange(58)
        lately = (n >= 40) & ((n < 50) | (rng.random(58) < mix))
        item = np.where(lately, uniform, by_weight) * each + rng.choice(each, 58, p=of_index) + 1
        random = rng.choice(noise, 58, p=of_noise)
        events[user] = np.where(rng.random(58) < eps, random, item)
    return events


def measured(ranked, tests):
    """Recall@20, and AUC of each target against all items, ties half, for scores (users, V + 1)."""
    recall, auc = [], []
    for row, events in zip(ranked, tests, strict=True):
        target = np.unique(events[50:])
        best = 1 + np.argsort(-row[1:], kind="stable")[:20]
        recall.append(np.isin(target, best).mean())
        below = (row[1:] < row[target, None]).sum(1) + 0.5 * ((row[1:] == row[target, None]).sum(1) - 1)
        auc.append(below.mean() / (len(row) - 2))
    return np.mean(recall), np.mean(auc)


def trained(make, events, seed, epochs):
    """Recall@20 and AUC of a model that was trained, and of popularity; and the redundancy of its centers."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, tests = events[: len(events) * 8 // 10], events[len(events) * 9 // 10 :]
    padded = torch.from_numpy(np.pad(train, ((0, 0), (50, 0))))
    model = make()
    steps = epochs * -(-2 * len(train) // 128)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        users = torch.randperm(2 * len(train), generator=generator) % len(train)
        for batch in users.split(128):
            target = torch.randint(20, 58, (len(batch), 1), generator=generator)
            window = padded[batch[:, None], target + torch.arange(51)]
            optimizer.zero_grad()
            next_item_loss(model(window[:, :50]), window[:, 50]).mean().backward()
            optimizer.step()
            schedule.step()
    assert (model.items.E[0] == 0).all()
    with torch.no_grad():
        out = model(torch.from_numpy(tests[:, :50]))
        ranked, (red, count) = scores(out).numpy(), redundancy(out.centers)
    seen = np.bincount(train.ravel(), minlength=721).astype(float)
    return (
        measured(ranked, tests),
        measured(np.tile(seen, (len(tests), 1)), tests),
        float(red.sum() / count.sum()),
    )


def test_a_little_training_beats_popularity():
    """In twice the specification's 15 epochs, after which AUC here is still that of popularity, not above."""
    (recall, auc), (popular_recall, popular_auc), _ = trained(
        partial(HCN, 720, width=16), g2(400, seed=0), 0, epochs=30
    )
    assert recall >= popular_recall + 0.02
    assert auc > popular_auc


@pytest.mark.slow
def test_synthetic_problem():
    """Limits are the specification's for means of three seeds, which hold here; this is one of them.

    Means over seeds 0 to 2 here, Recall@20 and AUC: HCN 0.473 and 0.893, without levels 0.429 and 0.856,
    without the co-network 0.470 and 0.890; ComiRec-SA with 8 interests 0.413 and 0.860; popularity 0.149
    and 0.687.
    """
    events = g2(1500, seed=2)
    hcn = partial(HCN, 720, width=16)
    (recall, auc), (popular_recall, _), red = trained(hcn, events, 2, epochs=60)
    assert recall >= 0.45
    assert auc >= 0.88
    assert recall >= popular_recall + 0.28
    (other_recall, other_auc), _, _ = trained(
        partial(ComiRecSA, 720, width=16, interests=8), events, 2, epochs=60
    )
    assert recall >= other_recall + 0.02
    assert auc >= other_auc + 0.02
    (_, shallow_auc), _, shallow_red = trained(partial(hcn, levels=0), events, 2, epochs=60)
    assert auc >= shallow_auc + 0.012
    assert red < shallow_red
