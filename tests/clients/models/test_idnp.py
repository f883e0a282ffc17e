"""IDNP against plain loops, the specification's numbers, and what must hold of any weights."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from clients.errors import ClientError
from clients.models.idnp import (
    IDNP,
    Gaussian,
    Prediction,
    averaged,
    binary_loss,
    blocks,
    divergence,
    next_item_loss,
    objective,
    observations,
    random_context,
    ranks,
    scores,
    visible,
)
from strategies.functional import Stateless, differentiate_functionally

V, U, L, D, DZ = 12, 5, 3, 8, 6
INPUTS = ("user", "ctx_w", "ctx_g", "ctx_tau", "ctx_y", "mask", "qry_w", "qry_g", "qry_tau")

small = partial(
    IDNP, V, users=U, window=L, width=D, latent=DZ, heads=2, dropout=0.0, user_dropout=0.0, split=False
)
MODELS = {
    "default": (small, L, 1),
    "untied": (partial(small, tied=False), L, 1),
    "no users": (partial(small, users=None), L, 1),
    "one scale": (partial(small, dilations=()), L, 1),
    "long": (partial(small, window=9), 9, 1),
    "several items": (small, L, 2),
    "frequencies": (partial(small, frequencies=(1.0, 0.3)), L, 1),
}
each_model = pytest.mark.parametrize(("make", "window", "targets"), MODELS.values(), ids=MODELS)


def scrambled(model, seed=0, dtype=torch.float64):
    """Weights that are nowhere what they start as, so that no test passes because they are 0 or identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
            if name == "items.E":
                p[0] = 0
    return model.to(dtype).eval()


def histories(users=4, events=9, items=V, seed=1, dtype=torch.float64):
    """Full, with some padding on the left and, of four, one with a single event, of which nothing is told."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(1, items + 1, (users, events), generator=generator)
    gaps = torch.rand(users, events, generator=generator, dtype=torch.float64) ** 3
    for row, padding in enumerate((0, 3, events - 2, events - 1)[:users]):
        history[row, :padding] = 0
    return history, gaps.cumsum(1).to(dtype)


def batch_of(history, times, window=L, targets=1):
    """Every observation as a query as well, as in training."""
    o = observations(history, times, window, targets)
    mask = visible(o.position, o.position, window, targets).expand(len(history), -1, -1)
    user = torch.arange(len(history)) % U
    return dict(zip(INPUTS, (user, o.w, o.g, o.tau, o.y, mask, o.w, o.g, o.tau), strict=True))


def later(batch, queries=slice(0, 2), shift=0.37):
    """Other queries than the context's observations, that see parts of it at random."""
    generator = torch.Generator().manual_seed(7)
    new = {k: batch[k][:, queries].roll(1, 0) for k in ("qry_w", "qry_g", "qry_tau")}
    new["qry_tau"] = new["qry_tau"] + shift
    shape = (*new["qry_tau"].shape, batch["ctx_w"].shape[1])
    return {**batch, **new, "mask": torch.rand(shape, generator=generator) < 0.6}


def call(model, batch, eps=None):
    return model(*(batch[k] for k in INPUTS), eps=eps)


def size(model):
    return sum(p.numel() for p in model.parameters())


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=atol)


# --- parameters ------------------------------------------------------------------------------------


def without_memory(*args, **options):
    with torch.device("meta"):
        return IDNP(*args, **options)


def test_number_of_parameters_is_the_specified_one():
    model = without_memory(240, 1000, width=32, latent=32)
    lag, path, latent = model.aie.lag, model.deterministic, model.latent
    assert size(model.time) - size(model.time.norm) == 352
    assert size(model.aie) - size(lag) - size(model.aie.norm) - model.aie.pos.numel() == 7520
    assert [size(m) for m in (path.mlp, latent.mlp, latent.W_mu, latent.W_s)] == [8288, 8288, 1056, 1056]
    assert [size(m) for m in (path.W_q, path.W_k, path.W_v, path.W_o)] == [2080, 2080, 1056, 1056]
    assert [size(m) for m in (model.decoder, model.head.W_out, lag)] == [14496, 2080, 1152]
    assert size(model.time.norm) + size(model.aie.norm) == 128
    assert model.aie.pos.numel() == 96
    data = {"items.E": 241 * 32, "user.E_u": 1000 * 32, "head.b": 241}
    assert {name: p.numel() for name, p in model.named_parameters() if name in data} == data
    assert size(model) - sum(data.values()) == 50_784
    # Of what a round sends, per direction.
    shared = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("user."))
    assert shared == 241 * 33 + 50_784


def test_number_of_parameters_has_a_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(30):
        v, u, w, dz, heads, F = (int(x) for x in rng.integers(1, (40, 30, 12, 20, 5, 7)))
        d, J = heads * int(rng.integers(1, 6)), int(rng.integers(0, 4))
        make = partial(without_memory, v, width=d, latent=dz, heads=heads, window=w, dilations=[1] * J)
        make = partial(make, frequencies=[1.0] * F)
        time, lag = (2 * F + 1) * d + 2 * d, 3 * d + d * d + d
        aie = w * d + lag + J * (3 * d * d + d + 2 * d) + (1 + J) * d + d * d + d + d + 2 * d
        mlp = (3 * d + 1) * 2 * d + (2 * d + 1) * d
        deterministic = mlp + 2 * (2 * d + 1) * d + 2 * (d + 1) * d
        latent = mlp + 2 * (d + 1) * dz
        decoder = (3 * d + dz + 1) * 2 * d + (2 * d + 1) * 2 * d + (2 * d + 1) * d
        rest = time + aie + deterministic + latent + decoder
        assert size(make()) == rest + (v + 1) * d + (2 * d + 1) * d + v + 1
        assert size(make(users=u)) == size(make()) + u * d
        assert size(make(tied=False)) == rest + (v + 1) * d + v * 2 * d + v + 1


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def test_weights_have_these_names_and_shapes():
    shapes = {"items.E": (V + 1, D), "user.E_u": (U, D), "head.b": (V + 1,)}
    shapes |= {"aie.pos": (L, D), "aie.s": (3, D), "aie.v.weight": (1, D)}
    for norm in ("time.norm", "aie.norm", "aie.norms.0", "aie.norms.1"):
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    for j in range(2):
        shapes |= {f"aie.convs.{j}.weight": (D, D, 3), f"aie.convs.{j}.bias": (D,)}
    shapes |= linear("time.W_t", 10, D) | linear("aie.W_a", D, D)
    shapes |= linear("aie.lag.W_1", 2, D) | linear("aie.lag.W_2", D, D)
    for path in ("deterministic", "latent"):
        shapes |= linear(f"{path}.mlp.0", 3 * D, 2 * D) | linear(f"{path}.mlp.2", 2 * D, D)
    for letter, inputs in zip("vokq", (D, D, 2 * D, 2 * D), strict=True):
        shapes |= linear(f"deterministic.W_{letter}", inputs, D)
    shapes |= linear("latent.W_mu", D, DZ) | linear("latent.W_s", D, DZ)
    shapes |= linear("decoder.0", 3 * D + DZ, 2 * D) | linear("decoder.2", 2 * D, 2 * D)
    shapes |= linear("decoder.4", 2 * D, D)
    out = linear("head.W_out", 2 * D, D)
    assert {k: tuple(p.shape) for k, p in small().named_parameters()} == shapes | out
    # Frequencies are not sent.
    assert set(small().state_dict()) == set(shapes | out)
    untied = {k: tuple(p.shape) for k, p in small(tied=False).named_parameters()}
    assert untied == shapes | {"head.W": (V, 2 * D)}
    assert set(small().state_dict()) - set(small(users=None).state_dict()) == {"user.E_u"}


def test_initial_weights_are_the_specified_ones():
    torch.manual_seed(0)
    model = IDNP(400, 300, window=8)
    d, eye = 64, torch.eye(64)
    path = model.deterministic
    close(model.items.E.std() * math.sqrt(d), 1.0, 0.03)
    assert (model.items.E[0] == 0).all()
    close(model.user.E_u.std() * d, 1.0, 0.03)
    close(model.aie.pos.std() / 0.02, 1.0, 0.1)
    assert torch.equal(path.W_v.weight, eye)
    assert torch.equal(path.W_o.weight, eye)
    assert torch.equal(model.head.W_out.weight, torch.cat([eye, eye], 1))
    close(path.W_q.weight @ path.W_q.weight.mT, 1.4**2 * eye, 1e-5)
    assert torch.equal(path.W_q.weight, path.W_k.weight)
    assert path.W_q.weight is not path.W_k.weight
    for zeros in (path.W_q.bias, path.W_k.bias, model.head.W_out.bias, model.head.b, model.aie.s):
        assert (zeros == 0).all()
    special = {path.W_v.weight, path.W_o.weight, path.W_q.weight, path.W_k.weight, model.head.W_out.weight}
    special |= {path.W_q.bias, path.W_k.bias, model.head.W_out.bias}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.LayerNorm):
            assert (layer.weight == 1).all(), name
            assert (layer.bias == 0).all(), name
        elif hasattr(layer, "weight"):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for p in {layer.weight, layer.bias} - special - {None}:
                assert p.abs().max() <= bound, name
                assert p.abs().max() > 0.8 * bound, name


def test_defaults():
    short, long = (without_memory(10, window=w) for w in (7, 8))
    assert [conv.dilation for conv in short.aie.convs] == [1, 2]
    assert [conv.dilation for conv in long.aie.convs] == [1, 2, 4]
    model = IDNP(10)
    assert (len(model.aie.pos), model.items.E.shape[1], len(model.latent.W_mu.bias)) == (3, 64, 64)
    assert (model.deterministic.heads, model.split) == (4, True)
    assert model.time.f.tolist() == [0.25, 0.5, 1, 2, 4]
    assert (model.dropout.p, model.aie.dropout.p, model.user.dropout.p) == (0.2, 0.2, 0.5)


# --- plain loops -----------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Loops:
    """Section 2 of the specification, one user, one event and one head at a time, in numpy."""

    def __init__(self, model, state=None):
        self.p = {k: v.detach().numpy() for k, v in (state or model.state_dict()).items()}
        self.f = model.time.f.numpy()
        self.dilations = [conv.dilation for conv in model.aie.convs]
        self.heads = model.deterministic.heads
        self.d = self.p["items.E"].shape[1]

    def linear(self, name, x):
        return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]

    def norm(self, name, x):
        scaled = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def mlp(self, name, x, layers):
        for i in range(layers):
            x = self.linear(f"{name}.{2 * i}", x if i == 0 else np.maximum(x, 0))
        return x

    def time(self, t):
        angles = 2 * np.pi * self.f * t
        return self.norm("time.norm", self.linear("time.W_t", np.r_[np.sin(angles), np.cos(angles)]))

    def encode(self, w, g):
        p, length = self.p, len(w)
        x = np.zeros((length, self.d))
        for i in range(length):
            if w[i] > 0:
                lag = [math.log(1 + max(g[i], 0)), math.exp(-10 * max(g[i], 0))]
                lag = self.linear("aie.lag.W_2", np.tanh(self.linear("aie.lag.W_1", np.array(lag))))
                x[i] = p["items.E"][w[i]] + p["aie.pos"][i] + lag
        h, a = [], []
        for i in (i for i in range(length) if w[i] > 0):
            for j in range(1 + len(self.dilations)):
                value = x[i]
                if j > 0:
                    y = p[f"aie.convs.{j - 1}.bias"].copy()
                    for tap in range(3):
                        source = i - (2 - tap) * self.dilations[j - 1]
                        if source >= 0:
                            y += p[f"aie.convs.{j - 1}.weight"][:, :, tap] @ x[source]
                    value = self.norm(f"aie.norms.{j - 1}", x[i] + np.maximum(y, 0))
                h.append(value + p["aie.s"][j])
                a.append(p["aie.v.weight"][0] @ np.tanh(self.linear("aie.W_a", h[-1])))
        alpha = np.exp(np.array(a)) / np.exp(np.array(a)).sum()
        return self.norm("aie.norm", sum((alpha[i] * h[i] for i in range(len(h))), np.zeros(self.d)))

    def gaussian(self, u):
        hbar = np.mean([self.mlp("latent.mlp", x, 2) for x in u], 0) if len(u) else np.zeros(self.d)
        return self.linear("latent.W_mu", hbar), 0.1 + 0.9 * sigmoid(self.linear("latent.W_s", hbar))

    def attend(self, query, keys, values):
        mixed, width = np.zeros(self.d), self.d // self.heads
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            a = np.exp([query[part] @ k[part] / math.sqrt(width) for k in keys])
            for i in range(len(keys)):
                mixed[part] += a[i] / a.sum() * values[i][part]
        return mixed

    def user(self, b, batch, eps, training):
        """Logits of items 1..V, and both distributions, of all queries of user b."""
        x = {k: v.numpy()[b] for k, v in batch.items()}
        items = [np.atleast_1d(y)[np.atleast_1d(y) > 0] for y in x["ctx_y"]]
        real = [i for i in range(len(items)) if len(items[i])]
        r = {i: self.encode(x["ctx_w"][i], x["ctx_g"][i]) for i in real}
        tm = {i: self.time(x["ctx_tau"][i]) for i in real}
        e = {i: self.p["items.E"][items[i]].mean(0) for i in real}
        u = {i: np.r_[r[i], tm[i], e[i]] for i in real}
        key = {i: self.linear("deterministic.W_k", np.r_[r[i], tm[i]]) for i in real}
        value = {
            i: self.linear("deterministic.W_v", e[i] + self.mlp("deterministic.mlp", u[i], 2)) for i in real
        }
        posterior = self.gaussian([u[i] for i in real])
        e_u = self.p["user.E_u"][x["user"]] if "user.E_u" in self.p and x["user"] >= 0 else np.zeros(self.d)
        logits, priors = [], []
        for j in range(len(x["qry_tau"])):
            seen = [i for i in real if x["mask"][j, i]]
            prior = self.gaussian([u[i] for i in seen])
            mu, sigma = posterior if training else prior
            z = mu if eps is None else mu + sigma * eps.numpy()[b]
            r_q, t_q = self.encode(x["qry_w"][j], x["qry_g"][j]), self.time(x["qry_tau"][j])
            query = self.linear("deterministic.W_q", np.r_[r_q, t_q])
            mixed = self.attend(query, [key[i] for i in seen], [value[i] for i in seen])
            r_d = self.linear("deterministic.W_o", mixed)
            d_q = r_d + self.mlp("decoder", np.r_[r_d, z, r_q, t_q], 3)
            features = np.r_[d_q, e_u]
            if "head.W" in self.p:
                items_logits = self.p["head.W"] @ features
            else:
                items_logits = self.p["items.E"][1:] @ self.linear("head.W_out", features)
            logits.append(items_logits + self.p["head.b"][1:])
            priors.append(prior)
        return np.array(logits), priors, posterior

    def all(self, batch, eps=None, training=False):
        return [self.user(b, batch, eps, training) for b in range(len(batch["user"]))]

    def objective(self, batch, target, eps, kind):
        """Of a batch in training mode, section 3.1."""
        ce, div = [], []
        for b, (logits, priors, (mu_d, sigma_d)) in enumerate(self.all(batch, eps, training=True)):
            for j in range(len(logits)):
                ids = [y for y in np.atleast_1d(target[b, j].numpy()) if y > 0]
                if not ids:
                    continue
                log_p = logits[j] - np.log(np.exp(logits[j]).sum())
                ce.append(np.mean([-log_p[y - 1] for y in ids]))
                mu_c, sigma_c = priors[j]
                if kind == "w2":
                    div.append(((mu_d - mu_c) ** 2).sum() + ((sigma_d - sigma_c) ** 2).sum())
                else:
                    ratio = (sigma_d**2 + (mu_d - mu_c) ** 2) / (2 * sigma_c**2)
                    div.append((np.log(sigma_c / sigma_d) + ratio - 0.5).sum())
        return np.mean(ce), np.mean(div)


def draws(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_model
@pytest.mark.parametrize("mode", ["mean", "sampled", "training"])
def test_predictions_are_those_of_plain_loops(make, window, targets, mode):
    model = scrambled(make()).train(mode == "training")
    batch = later(batch_of(*histories(), window, targets), slice(1, 4))
    batch["user"] = torch.tensor([3, -1, 0, 4])
    eps = None if mode == "mean" else draws(4, DZ)
    out = call(model, batch, eps)
    assert out.prior.mu.shape == (4, 3, DZ)
    assert out.posterior.mu.shape == (4, 1, DZ)
    logits = scores(out)
    assert logits.shape == (4, 3, V + 1)
    for b, (expected, priors, posterior) in enumerate(Loops(model).all(batch, eps, mode == "training")):
        close(logits[b, :, 1:].detach(), expected, 1e-10)
        for j, prior in enumerate(priors):
            for found, value in zip(out.prior, prior, strict=True):
                close(found[b, j].detach(), value)
        for found, value in zip(out.posterior, posterior, strict=True):
            close(found[b, 0].detach(), value)


@each_model
@pytest.mark.parametrize("kind", ["w2", "kl"])
def test_objective_and_its_gradient_are_those_of_plain_loops(make, window, targets, kind):
    model = scrambled(make()).train()
    batch, eps = batch_of(*histories(), window, targets), draws(4, DZ)
    loops = partial(Loops(model).objective, batch, batch["ctx_y"], eps, kind)
    loss = objective(call(model, batch, eps), batch["ctx_y"], kind=kind, strength=0.7)
    ce, div = loops()
    close(loss.detach(), ce + 0.7 * div, 1e-10)
    # Along a random direction in the parameters of each part, by differences of the loops.
    state = model.state_dict()
    gradients = dict(zip(state, torch.autograd.grad(loss, [*map(model.get_parameter, state)]), strict=True))
    directions = {name: draws(*p.shape, seed=i) for i, (name, p) in enumerate(state.items())}
    directions["items.E"][0] = 0
    for part in dict.fromkeys(name.partition(".")[0] for name in state):
        names = {name for name in state if name.startswith(f"{part}.")}
        values = []
        for h in (1e-6, -1e-6):
            moved = {name: p + h * directions[name] * (name in names) for name, p in state.items()}
            ce, div = Loops(model, moved).objective(batch, batch["ctx_y"], eps, kind)
            values.append(ce + 0.7 * div)
        slope = sum((gradients[name] * directions[name]).sum().item() for name in names)
        # Differences that cross a corner of a ReLU are off; here none does.
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7, rel=1e-5), part


def test_samples_are_an_axis_of_their_own():
    model, batch, eps = scrambled(small()), later(batch_of(*histories())), draws(5, 4, DZ)
    target = torch.randint(1, V + 1, (4, 2), generator=torch.Generator().manual_seed(0))
    together = call(model, batch, eps)
    each = [call(model, batch, one) for one in eps]
    assert together.output.shape == (5, 4, 2, D)
    torch.testing.assert_close(scores(together), torch.stack([scores(out) for out in each]))
    p = torch.stack([scores(out).softmax(-1) for out in each]).mean(0)
    torch.testing.assert_close(averaged(scores(together)).exp(), p)
    assert (averaged(scores(together))[..., 0] == -math.inf).all()
    losses = torch.stack([next_item_loss(out, target) for out in each])
    torch.testing.assert_close(next_item_loss(together, target), losses)
    expected = torch.stack([objective(out, target) for out in each]).mean()
    torch.testing.assert_close(objective(together, target), expected)
    negatives = torch.randint(1, V + 1, (4, 2, 3), generator=torch.Generator().manual_seed(1))
    for loss in (next_item_loss, binary_loss):
        losses = torch.stack([loss(out, target, negatives) for out in each])
        torch.testing.assert_close(loss(together, target, negatives), losses)


# --- section 7.1, in float32 and evaluation --------------------------------------------------------


def everyday(seed=0, users=6, events=20):
    """The specification's sizes, 19 observations of 6 users, and weights as they start but for zeros."""
    torch.manual_seed(seed)
    model = IDNP(240, users, width=32, latent=32).eval()
    with torch.no_grad():
        for p in (model.aie.s, model.head.b, *model.deterministic.parameters()):
            p += 0.1 * torch.randn_like(p)
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(1, 241, (users, events), generator=generator)
    times = (torch.rand(users, events, generator=generator) ** 4).cumsum(1)
    return model, history, times


CONTEXT = ("ctx_w", "ctx_g", "ctx_tau", "ctx_y")


def outputs(model, batch):
    with torch.no_grad():
        out = call(model, batch)
    return scores(out)[..., 1:], *out.prior


def test_01_the_order_of_context_changes_nothing():
    model, history, times = everyday()
    batch = {**batch_of(history, times), "user": torch.arange(6)}
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    other = {**batch, **{k: batch[k][:, order] for k in CONTEXT}, "mask": batch["mask"][:, :, order]}
    for a, b in zip(outputs(model, batch), outputs(model, other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    # The columns of the mask must go with it.
    wrong = {**other, "mask": batch["mask"]}
    assert (outputs(model, batch)[0] - outputs(model, wrong)[0]).abs().max() > 1e-2


def with_hidden(batch, hidden):
    mask = batch["mask"].clone()
    mask[:, :, hidden] = False
    return {**batch, "mask": mask}


def test_02_what_a_masked_observation_says_is_irrelevant():
    model, history, times = everyday()
    batch, hidden = with_hidden(batch_of(history, times), [2, 11]), torch.tensor([2, 11])
    other = {k: v.clone() for k, v in batch.items()}
    other["ctx_w"][:, hidden] = 7
    other["ctx_g"][:, hidden] = 3.0
    other["ctx_tau"][:, hidden] = -8.8
    other["ctx_y"][:, hidden] = 9
    found = outputs(model, batch)
    for a, b in zip(found, outputs(model, other), strict=True):
        assert torch.equal(a, b)
    # What is not masked is not.
    for k in CONTEXT:
        visibly = {**batch, k: batch[k].clone()}
        visibly[k][:, 5] = visibly[k][:, 5] % 240 + 1
        assert (outputs(model, visibly)[0] - found[0]).abs().max() > 1e-3


def test_03_masking_an_observation_is_removing_it():
    model, history, times = everyday()
    batch = batch_of(history, times)
    keep = [i for i in range(19) if i not in (0, 7, 18)]
    masked = with_hidden(batch, [0, 7, 18])
    removed = {**batch, **{k: batch[k][:, keep] for k in CONTEXT}, "mask": batch["mask"][:, :, keep]}
    padded = {**batch, "ctx_y": batch["ctx_y"].clone()}
    padded["ctx_y"][:, [0, 7, 18]] = 0
    for a, b, c in zip(*(outputs(model, x) for x in (masked, removed, padded)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert torch.equal(a, c)
    with torch.no_grad():
        a, b = call(model, removed).posterior, call(model, padded).posterior
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_04_context_twice_is_context_once():
    model, history, times = everyday()
    batch = batch_of(history, times)
    twice = {k: torch.cat([batch[k], batch[k]], 1) for k in CONTEXT}
    twice = {**batch, **twice, "mask": torch.cat([batch["mask"]] * 2, 2)}
    for a, b in zip(outputs(model, batch), outputs(model, twice), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with torch.no_grad():
        a, b = call(model, batch).posterior, call(model, twice).posterior
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_05_queries_do_not_interact():
    model, history, times = everyday()
    batch = batch_of(history, times)
    together = outputs(model, batch)
    for j in (0, 6, 18):
        one = {k: batch[k][:, j : j + 1] for k in ("mask", "qry_w", "qry_g", "qry_tau")}
        for a, b in zip(outputs(model, {**batch, **one}), together, strict=True):
            torch.testing.assert_close(a, b[:, j : j + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_06_empty_context_is_legal(training):
    model, history, times = everyday()
    batch = batch_of(history, times)
    for empty in (
        {"mask": torch.zeros_like(batch["mask"])},
        {"ctx_y": torch.zeros_like(batch["ctx_y"])},
        {"qry_w": torch.zeros_like(batch["qry_w"]), "mask": torch.zeros_like(batch["mask"])},
        {k: batch[k][:, :0] for k in CONTEXT} | {"mask": batch["mask"][:, :, :0]},
    ):
        out = call(model.train(training), {**batch, **empty})
        loss = objective(out, batch["qry_w"][..., -1])
        assert scores(out)[..., 1:].isfinite().all()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_06_without_context_attention_gives_its_bias():
    model, seen = scrambled(small()), []
    model.deterministic.register_forward_hook(lambda *call: seen.append(call[-1]))
    batch = batch_of(*histories())
    out = call(model, {**batch, "mask": torch.zeros_like(batch["mask"])})
    bias = model.deterministic.W_o.bias
    assert torch.equal(seen[0], bias.expand_as(seen[0]))
    assert torch.equal(out.prior.mu, model.latent.W_mu.bias.expand_as(out.prior.mu))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_06_sigma_is_between_a_tenth_and_one(scale):
    model, history, times = everyday()
    with torch.no_grad():
        model.latent.W_s.weight.mul_(scale)
    out = call(model, batch_of(history, times))
    sigma = torch.cat([out.prior.sigma, out.posterior.sigma], 1)
    assert sigma.min() >= 0.1 - 1e-7
    assert sigma.max() <= 1.0 + 1e-7
    if scale > 1:
        close(torch.stack([sigma.min(), sigma.max()]).detach(), [0.1, 1.0], 1e-6)


def test_07_lags_of_padding_are_irrelevant():
    model, history, times = everyday()
    history[:, :8] = 0
    batch = batch_of(history, times)
    other = {k: v.clone() for k, v in batch.items()}
    for k in ("ctx", "qry"):
        padding = batch[f"{k}_w"] == 0
        assert padding.any()
        other[f"{k}_g"][padding] = 12.5
    found = outputs(model, batch)
    for a, b in zip(found, outputs(model, other), strict=True):
        assert torch.equal(a, b)
    for k in ("ctx_g", "qry_g"):
        assert (outputs(model, {**batch, k: 2 * batch[k]})[0] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [1, 2])
def test_08_no_query_sees_its_answer_and_all_others_do(targets):
    """An item moves queries that have it in their window, or in an observation that has none of their own.

    With T = 1 those are all 18 others, as in the specification, save for the last items: they are in few
    observations, all of which up to 3 queries before have to do without.
    """
    model, history, times = everyday()
    before = outputs(model, batch_of(history, times, L, targets))
    positions = range(1, before[0].shape[1] + 1)

    def items(p):
        return set(range(p, p + targets))

    counts = []
    for changed in range(1, 20):
        other = history.clone()
        other[:, changed] = other[:, changed] % 240 + 1
        after = outputs(model, batch_of(other, times, L, targets))
        others = {p for p in positions if changed not in items(p)}
        expected = {
            p
            for p in others
            if changed in range(p - L, p)
            or any(
                changed in range(i - L, i + targets) and not items(p) & set(range(i - L, i + targets))
                for i in positions
            )
        }
        moved = (before[0] != after[0]).any(-1)
        assert [{1 + j for j in row.nonzero()[:, 0].tolist()} for row in moved] == [expected] * 6
        for p in set(positions) - others:
            for a, b in zip(before, after, strict=True):
                assert torch.equal(a[:, p - 1], b[:, p - 1])
        counts.append(len(expected))
    if targets == 1:
        assert counts == [18] * 16 + [17, 16, 15]


def pair():
    one, half, zero = (torch.full((2,), x, dtype=torch.float64) for x in (1.0, 0.5, 0.0))
    return Gaussian(torch.tensor([1.0, 0.0], dtype=torch.float64), half), Gaussian(zero, one)


def test_09_divergences_are_the_specified_numbers():
    q, p = pair()
    close(divergence(q, p, "w2"), 1.5)
    assert divergence(q, p).item() == divergence(q, p, "w2").item()
    close(divergence(q, p, "kl"), 1.1363, 5e-5)
    close(divergence(p, q, "w2"), 1.5)
    other = torch.distributions.kl_divergence(torch.distributions.Normal(*q), torch.distributions.Normal(*p))
    close(divergence(q, p, "kl"), other.sum())


@pytest.mark.parametrize("kind", ["w2", "kl"])
def test_09_divergences_are_positive(kind):
    q, p = (Gaussian(draws(50, 3, seed=s), draws(50, 3, seed=s + 1).exp()) for s in (0, 2))
    assert divergence(q, p, kind).shape == (50,)
    assert (divergence(q, p, kind) > 0).all()
    close(divergence(q, q, kind), torch.zeros(50))


def test_10_time_returns_after_four_periods():
    model, history, times = everyday()
    batch = batch_of(history, times)
    moved = {**batch, "ctx_tau": batch["ctx_tau"] + 4, "qry_tau": batch["qry_tau"] + 4}
    torch.testing.assert_close(outputs(model, batch)[0], outputs(model, moved)[0], rtol=0, atol=1e-4)
    for k in ("ctx_tau", "qry_tau"):
        assert (outputs(model, {**batch, k: batch[k] + 0.3})[0] - outputs(model, batch)[0]).abs().max() > 1e-3


def test_10_times_of_long_ago_keep_their_phase():
    """Days since 1970, as float64, of a model in float32."""
    model, history, times = everyday()
    now = batch_of(history, times.double())
    long = batch_of(history, times.double() + 20_000)
    torch.testing.assert_close(outputs(model, now)[0], outputs(model, long)[0], rtol=0, atol=1e-5)
    assert outputs(model, now)[0].dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_11_id_0_has_no_probability(tied):
    model = scrambled(small(tied=tied))
    logits = scores(call(model, batch_of(*histories())))
    assert (logits.softmax(-1)[..., 0] == 0).all()
    assert (logits.topk(V).indices > 0).all()
    close(logits.softmax(-1)[..., 1:], logits[..., 1:].softmax(-1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("negatives", [None, torch.tensor([0, 1, 5, 0])], ids=["all", "negatives"])
def test_12_row_0_stays_zero(tied, negatives):
    torch.manual_seed(0)
    model = IDNP(V, U, width=D, latent=DZ, tied=tied)
    optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    batch = batch_of(*histories(dtype=torch.float32))
    for _ in range(3):
        optimizer.zero_grad()
        objective(call(model, batch), batch["ctx_y"], negatives=negatives).backward()
        optimizer.step()
    assert (model.items.E[0] == 0).all()
    assert (model.items.E[1:] != 0).any(-1).all()
    assert model.head.b[0] == 0


def test_13_users_differ_by_data_and_vector_alone():
    model, history, times = everyday()
    batch = batch_of(history[:1].expand(3, -1), times[:1].expand(3, -1))
    batch["user"] = torch.tensor([1, 2, 1])
    a, b, c = outputs(model, batch)[0]
    torch.testing.assert_close(a, c, rtol=0, atol=0)
    assert (a - b).abs().max() > 1e-4
    with torch.no_grad():
        model.user.E_u[2] = model.user.E_u[1]
    a, b, _ = outputs(model, batch)[0]
    assert torch.equal(a, b)


def test_15_a_step_lowers_the_loss():
    torch.manual_seed(0)
    model = IDNP(240, 8, width=32, latent=32, dropout=0, user_dropout=0, split=False)
    _, history, times = everyday(1, users=8)
    batch, eps = batch_of(history, times) | {"user": torch.arange(8)}, torch.randn(8, 32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss = objective(call(model, batch, eps), batch["ctx_y"])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, g in gradients.items():
        assert g.isfinite().all(), name
        # The first tap of the second dilation sees padding alone; nothing else idles, keys' bias aside.
        assert (g != 0).any() or name == "deterministic.W_k.bias", name
    assert (gradients["aie.convs.1.weight"][:, :, 0] == 0).all()
    assert (gradients["user.E_u"] != 0).any(-1).all()
    optimizer.step()
    assert objective(call(model, batch, eps), batch["ctx_y"]) < loss


# --- what is random in training --------------------------------------------------------------------


def test_evaluation_draws_nothing():
    model, history, times = everyday()
    batch, state = batch_of(history, times), torch.get_rng_state()
    a, b = outputs(model, batch)[0], outputs(model, batch)[0]
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    eps = torch.zeros(6, 32)
    assert torch.equal(scores(call(model, batch, eps))[..., 1:], a)


def test_training_draws_one_eps_for_all_queries_of_a_user():
    model, seen = scrambled(small()).train(), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., D : D + DZ]))
    batch = batch_of(*histories())
    torch.manual_seed(0)
    out = call(model, batch)
    z = seen[0]
    assert torch.equal(z, z[:, :1].expand_as(z))
    drawn = (z[:, :1] - out.posterior.mu) / out.posterior.sigma
    assert 0.5 < drawn.std() < 1.6
    torch.manual_seed(0)
    call(model, batch, torch.randn(4, DZ, dtype=torch.float64))
    torch.testing.assert_close(seen[1], z)
    call(model.eval(), batch, drawn[:, 0])
    torch.testing.assert_close(seen[2], out.prior.mu + out.prior.sigma * drawn)


def test_training_shows_a_random_context_to_all_queries():
    model, seen = scrambled(small(split=True)).train(), []
    model.deterministic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[4]))
    history, times = histories(4, 12)
    batch = batch_of(history, times) | {"mask": torch.ones(4, 11, 11, dtype=torch.bool)}
    for seed in range(20):
        torch.manual_seed(seed)
        context = random_context(batch["ctx_y"] > 0)
        torch.manual_seed(seed)
        call(model, batch)
        assert torch.equal(seen[-1], context[:, None].expand(-1, 11, -1))
    call(model, batch_of(history, times))
    assert not (seen[-1] & ~batch_of(history, times)["mask"]).any()
    call(model.eval(), batch)
    assert torch.equal(seen[-1], (batch["ctx_y"] > 0)[:, None].expand(-1, 11, -1))


def test_the_posterior_sees_all_observations_whatever_is_context():
    model = scrambled(small(split=True)).train()
    batch = batch_of(*histories())
    a, b = call(model, batch).posterior, call(model.eval(), batch).posterior
    torch.testing.assert_close(a, b)


def test_dropout_is_where_it_should_be():
    model, batch = scrambled(small(dropout=0.5)).train(), batch_of(*histories())
    seen = {}
    for name in ("dropout", "aie.dropout", "user.dropout"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.setdefault(name, []).append((inputs[0], output))
        )
    call(model, batch)
    assert {name: len(calls) for name, calls in seen.items()} == {
        "dropout": 1,
        "aie.dropout": 3,
        "user.dropout": 1,
    }
    given, kept = seen["dropout"][0]
    assert 0.3 < (kept == 0)[given != 0].double().mean() < 0.7
    given, kept = seen["user.dropout"][0]
    assert given.shape == (4, D)
    assert torch.equal(given, kept)


def test_random_context_is_a_uniform_number_of_observations():
    real = torch.ones(6000, 6, dtype=torch.bool)
    real[:, 0] = False
    context = random_context(real, torch.Generator().manual_seed(0))
    assert not (context & ~real).any()
    counts = context.sum(1)
    share = torch.bincount(counts, minlength=6) / 6000
    close(share, [0, 0.25, 0.25, 0.25, 0.25, 0], 0.02)
    # And each observation as often as any other.
    for n in range(1, 5):
        close(context[counts == n].double().mean(0)[1:], [n / 5] * 5, 0.05)
    few = torch.tensor([[False, False], [True, False], [True, True]])
    found = torch.stack([random_context(few, torch.Generator().manual_seed(s)) for s in range(30)])
    assert not found[:, :2].any()
    assert (found[:, 2].sum(1) == 1).all()
    assert found[:, 2, 0].any()
    assert found[:, 2, 1].any()


# --- scores and losses -----------------------------------------------------------------------------


def given(output, weight, bias=None):
    zero = torch.zeros(*output.shape[:2], 1, dtype=output.dtype)
    bias = torch.zeros(len(weight), dtype=output.dtype) if bias is None else bias
    bias[0] = -math.inf
    beliefs = Gaussian(zero, zero + 1)
    return Prediction(output, weight, bias, beliefs, beliefs)


def a_few(targets=None):
    generator = torch.Generator().manual_seed(4)
    output, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 4), (6, 4))
    )
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    weight[0] = 0
    target = torch.randint(1, 6, (2, 3) if targets is None else (2, 3, targets), generator=generator)
    return given(output, weight, bias), target


def logit(out, b, j, v):
    return float(out.output[b, j] @ out.weight[v] + out.bias[v])


@pytest.mark.parametrize("targets", [None, 3])
def test_next_item_loss_is_cross_entropy_over_items(targets):
    out, target = a_few(targets)
    target[0, 1] = 0
    if targets:
        target[1, 2, 0] = 0
    negatives = torch.tensor([[5, 1, 1], [3, 0, 4]])
    found, sampled = next_item_loss(out, target), next_item_loss(out, target, negatives)
    assert found.shape == sampled.shape == (2, 3)
    for b in range(2):
        for j in range(3):
            full, few = [], []
            for y in (y for y in target[b, j].reshape(-1).tolist() if y):
                total = sum(math.exp(logit(out, b, j, v)) for v in range(1, 6))
                full.append(math.log(total) - logit(out, b, j, y))
                # Accidental hits and padding are left out, repetitions are not.
                others = [v for v in (5, 1, 1, 3, 4) if v != y]
                total = sum(math.exp(logit(out, b, j, v)) for v in (y, *others))
                few.append(math.log(total) - logit(out, b, j, y))
            assert found[b, j].item() == pytest.approx(np.mean(full) if full else 0)
            assert sampled[b, j].item() == pytest.approx(np.mean(few) if few else 0)


def test_all_negatives_are_the_full_softmax():
    out = call(scrambled(small()), batch_of(*histories()))
    target = batch_of(*histories())["ctx_y"]
    every = torch.arange(1, V + 1)
    torch.testing.assert_close(next_item_loss(out, target, every), next_item_loss(out, target))


@pytest.mark.parametrize("targets", [None, 2])
def test_binary_loss_is_cross_entropy_of_likes(targets):
    out, target = a_few(targets)
    target[0, 1] = 0
    negatives = torch.tensor([1, 4, 0, 2, 5, 3]).expand(2, 3, -1).clone()
    negatives[1, 0] = 0
    found = binary_loss(out, target, negatives)
    for b in range(2):
        for j in range(3):
            liked = [
                math.log1p(math.exp(-logit(out, b, j, y))) for y in target[b, j].reshape(-1).tolist() if y
            ]
            others = [math.log1p(math.exp(logit(out, b, j, v))) for v in negatives[b, j].tolist() if v]
            expected = (np.mean(liked) + (np.mean(others) if others else 0)) if liked else 0
            assert found[b, j].item() == pytest.approx(expected)


def test_objective_is_a_mean_over_queries_of_real_rows():
    model, batch, eps = scrambled(small()).train(), batch_of(*histories()), draws(4, DZ)
    out, target = call(model, batch, eps), batch["ctx_y"]
    each = next_item_loss(out, target) + 0.5 * divergence(out.posterior, out.prior, "kl")
    weight = torch.tensor([1.0, 1, 0, 1], dtype=torch.float64)
    real = (target > 0) & (weight > 0)[:, None]
    assert 0 < real.sum() < target.numel()
    found = objective(out, target, weight, kind="kl", strength=0.5)
    torch.testing.assert_close(found, each[real].mean())
    assert objective(out, target, 0 * weight) == 0
    assert objective(out, 0 * target) == 0
    ce = next_item_loss(out, target)[target > 0].mean()
    torch.testing.assert_close(objective(out, target, strength=0), ce)
    w2 = divergence(out.posterior, out.prior)[target > 0].mean()
    torch.testing.assert_close(objective(out, target), ce + w2)


def test_padded_rows_and_observations_change_nothing():
    model, eps = scrambled(small()).train(), draws(4, DZ)
    params = {name: p.detach() for name, p in model.named_parameters()}
    history, times = histories()

    def step(batch, eps, weight):
        def loss(params):
            out = functional_call(model, params, (*(batch[k] for k in INPUTS), eps))
            return objective(out, batch["ctx_y"], torch.tensor(weight, dtype=torch.float64))

        return grad(loss)(params)

    alone = step(batch_of(history, times), eps, [1.0] * 4)
    # Rows below, and positions on the left, which histories are padded with.
    longer = torch.nn.functional.pad(history, (2, 0, 0, 2))
    when = torch.nn.functional.pad(times, (2, 0, 0, 2), value=-0.6)
    padded = step(batch_of(longer, when), torch.cat([eps, draws(2, DZ)]), [1.0] * 4 + [0.0] * 2)
    for name, g in alone.items():
        close(padded[name], g)


def test_ranks_count_half_of_ties():
    logits = torch.tensor([[-math.inf, 3.0, 1.0, 3.0, 2.0, 3.0]]).expand(5, 6)[:, None]
    found = ranks(logits, torch.tensor([[1], [2], [3], [4], [5]]))
    assert found.tolist() == [[1.0], [4.0], [1.0], [3.0], [1.0]]
    # Two of the history are out of the way; a target is ranked even if it was met before.
    exclude = torch.tensor([[1, 4, 0]]).expand(5, -1)
    assert ranks(logits, torch.tensor([[1], [2], [3], [4], [5]]), exclude).tolist() == [
        [1.0],
        [2.0],
        [0.5],
        [2.0],
        [0.5],
    ]
    assert (logits[..., 1] == 3).all()


# --- observations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_observations_are_those_of_plain_loops(window, targets):
    history, times = histories(4, 7)
    o = observations(history, times, window, targets)
    n = 7 - targets
    assert o.position.tolist() == list(range(1, n + 1))
    assert o.w.shape == o.g.shape == (4, n, window)
    assert o.y.shape == ((4, n) if targets == 1 else (4, n, targets))
    for b in range(4):
        for i in range(n):
            p = i + 1
            assert o.tau[b, i] == times[b, p]
            for k in range(window):
                source = p - window + k
                item = int(history[b, source]) if source >= 0 else 0
                assert o.w[b, i, k] == item
                close(o.g[b, i, k], times[b, p] - times[b, source] if item else 0.0)
            expected = history[b, p : p + targets].tolist() if history[b, p - 1] else [0] * targets
            assert o.y[b, i].reshape(-1).tolist() == expected


@pytest.mark.parametrize(("window", "targets"), [(3, 1), (2, 2), (5, 3)])
def test_visible_hides_what_has_an_item_of_the_query(window, targets):
    position = torch.arange(1, 15)
    found, causal = (visible(position, position, window, targets, causal=c) for c in (False, True))
    for j, p_j in enumerate(position.tolist()):
        for i, p_i in enumerate(position.tolist()):
            shared = set(range(p_i - window, p_i + targets)) & set(range(p_j, p_j + targets))
            assert found[j, i] == (not shared)
            assert causal[j, i] == (not shared and p_i < p_j)
            if targets == 1:
                assert found[j, i] == (not p_j <= p_i <= p_j + window)
    batched = visible(position.expand(2, -1)[:, :4], position.expand(2, -1), window, targets)
    assert torch.equal(batched, found[:4].expand(2, -1, -1))


@pytest.mark.parametrize(("window", "targets"), [(3, 1), (2, 2)])
def test_blocks_share_no_event(window, targets):
    position, length = torch.arange(1, 19), window + targets
    offset = torch.arange(length)[:, None]
    found = blocks(position, offset, window, targets)
    for row in range(length):
        starts = [int(p) - window for p in position[found[row]]]
        assert starts == [s for s in range(row, 19 - window, length) if s + window >= 1]
    one = position[found[1]]
    hidden = ~visible(one, one, window, targets)
    assert torch.equal(hidden, torch.eye(len(one), dtype=torch.bool))


# --- as a pure function, in cohorts ----------------------------------------------------------------


@each_model
@pytest.mark.parametrize("sampled", [False, True], ids=["all items", "negatives"])
def test_cohorts_are_clients_one_by_one(make, window, targets, sampled):
    models = [scrambled(make(), seed).train() for seed in range(3)]
    stateless = Stateless(models[0], lambda batch: tuple(batch[k] for k in (*INPUTS, "eps")))
    each = [{name: p.detach() for name, p in m.named_parameters()} for m in models]
    assert set(stateless.initial()) == set(each[0])
    cohort = {name: torch.stack([p[name] for p in each]) for name in each[0]}
    clients = [batch_of(*histories(seed=seed), window, targets) for seed in range(3)]
    batch = {k: torch.stack([client[k] for client in clients]) for k in INPUTS}
    batch["eps"] = draws(3, 4, DZ)
    batch["weight"] = torch.tensor([[1.0, 1, 0, 1]] * 3, dtype=torch.float64)
    batch["negatives"] = torch.arange(1, 10).view(3, 3)

    def loss(params, batch):
        negatives = batch["negatives"] if sampled else None
        out = stateless(params, batch)
        return objective(out, batch["ctx_y"], batch["weight"], kind="kl", negatives=negatives)

    def step(params, batch):
        return differentiate_functionally(lambda p: loss(p, batch), params)

    grads, losses = vmap(step)(cohort, batch)
    for i in range(3):
        alone, value = step(each[i], {name: x[i] for name, x in batch.items()})
        torch.testing.assert_close(losses[i], value)
        for name, g in alone.items():
            torch.testing.assert_close(grads[name][i], g, msg=lambda text, name=name: f"{name}: {text}")


@each_model
def test_what_metrics_need_comes_in_cohorts_as_well(make, window, targets):
    batch, models = batch_of(*histories(), window, targets), [scrambled(make(), seed) for seed in range(2)]
    cohort = {n: torch.stack([m.state_dict()[n] for m in models]) for n in models[0].state_dict()}
    target, eps = batch["qry_w"][..., -1].clamp(min=1), draws(2, 4, DZ)
    negatives = torch.tensor([3, 7]).expand(*target.shape, -1)

    def measure(out, sampled):
        logits = scores(out)
        return (
            logits,
            averaged(scores(sampled)),
            ranks(logits, target),
            ranks(logits, target, batch["qry_w"][:, -1]),
            binary_loss(out, target, negatives),
            *out.prior,
        )

    def measured(model, params):
        inputs = tuple(batch[k] for k in INPUTS)
        return measure(functional_call(model, params, inputs), functional_call(model, params, (*inputs, eps)))

    together = vmap(partial(measured, models[0]))(cohort)
    for i, model in enumerate(models):
        for a, b in zip(together, measured(model, dict(model.named_parameters())), strict=True):
            torch.testing.assert_close(a[i], b)


def test_what_stays_local_and_what_may():
    stateless = Stateless(small(), lambda batch: tuple(batch[k] for k in INPUTS))
    assert {name for name in stateless.shared if name.startswith("user.")} == {"user.E_u"}
    assert stateless.head == {"head.W_out.weight", "head.W_out.bias", "head.b"}
    assert len(stateless.norms) == 8
    batch = batch_of(*histories(dtype=torch.float32))
    features, out = stateless.embed(stateless.initial(), batch)
    assert features.shape == (4, 8, 2 * D)
    close(out.output.detach(), stateless.module.head.W_out(features).detach(), 1e-6)


def test_a_user_without_a_row_is_one_of_a_model_without_the_table():
    model, without = scrambled(small()), small(users=None).double().eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k != "user.E_u"})
    batch = batch_of(*histories())
    new = {**batch, "user": torch.full((4,), -1)}
    torch.testing.assert_close(scores(call(model, new)), scores(call(without, batch)))
    assert (scores(call(model, batch)) - scores(call(model, new)))[..., 1:].abs().max() > 1e-3
    out = call(model, new)
    assert (torch.autograd.grad(out.output.sum(), model.user.E_u)[0] == 0).all()


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: must be 1 or more, got 0"),
        ({"users": 0}, "users: must be 1 or more, got 0"),
        ({"window": 0}, "window: must be 1 or more, got 0"),
        ({"width": 0}, "width: must be 1 or more, got 0"),
        ({"latent": -1}, "latent: must be 1 or more, got -1"),
        ({"heads": 0}, "heads: must be 1 or more, got 0"),
        ({"width": 10}, "width: must be a multiple of heads=4, got 10; 12 would do"),
        ({"dilations": (1, 0)}, "dilations[1]: must be 1 or more, got 0"),
        ({"frequencies": ()}, "frequencies: must be one or more finite numbers, got []"),
        (
            {"frequencies": (1.0, math.inf)},
            "frequencies: must be one or more finite numbers, got [1.0, inf]",
        ),
        ({"dropout": 1.0}, "dropout: must be 0 or more and below 1, got 1.0"),
        ({"user_dropout": -0.1}, "user_dropout: must be 0 or more and below 1, got -0.1"),
        ({"dropout": math.nan}, "dropout: must be 0 or more and below 1, got nan"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(ClientError) as caught:
        IDNP(**{"items": 3, **options})
    assert str(caught.value) == message


def refused(function, *args, **options):
    with pytest.raises(ClientError) as caught:
        function(*args, **options)
    return str(caught.value)


def test_data_that_do_not_fit_are_refused_in_one_line():
    model, batch = small(), batch_of(*histories(dtype=torch.float32))
    for k in ("ctx_w", "qry_w"):
        message = "window: the model is made for 3 events, but is given windows of shape (4, 8, 2)"
        assert refused(call, model, {**batch, k: batch[k][..., 1:]}) == message
    message = "mask: must be of shape (4, 8, 8), for users, queries and observations, got (4, 8)"
    assert refused(call, model, {**batch, "mask": batch["mask"][:, 0]}) == message
    out, target = call(model, batch), batch["ctx_y"]
    assert refused(objective, out, target, kind="js") == "divergence: must be one of w2, kl, got 'js'"
    assert refused(objective, out, target, strength=-1) == "strength: must be 0 or more, got -1"
    history, times = histories(events=2)
    assert refused(observations, history, times, 3, 2) == "history: must have more than 2 events, got 2"
    assert refused(observations, history, times, 0) == "window: must be 1 or more, got 0"
    assert refused(observations, history, times, 3, 0) == "targets: must be 1 or more, got 0"


# --- the specification's synthetic problem ---------------------------------------------------------


def popularity(n, exponent):
    weight = np.arange(1, n + 1) ** -exponent
    return weight / weight.sum()


def g1(users, seed, categories=8, styles=3, each=10, own=3, kappa=3.0, eps=0.1):
    """25 events of each user, whose interests rotate; and the best scores that the last event can have."""
    rng = np.random.default_rng(seed)
    V = categories * styles * each
    noise_items = rng.permutation(V) + 1
    of_category, of_index, of_noise = (popularity(*x) for x in ((categories, 0.7), (each, 0.5), (V, 1.0)))
    items, times = np.empty((users, 25), dtype=np.int64), np.empty((users, 25))
    best = np.zeros((users, V + 1))
    for user in range(users):
        mine = rng.choice(categories, own, replace=False, p=of_category)
        start = (mine * styles + rng.integers(styles, size=own)) * each + 1
        gaps = np.where(np.arange(25) % 4 == 0, rng.uniform(0.15, 0.75, 25), rng.uniform(0, 0.01, 25))
        gaps[0] = rng.uniform(0, 3)
        t, phase = gaps.cumsum(), rng.random()
        w = np.exp(kappa * np.cos(2 * np.pi * (t[:, None] - phase - np.arange(own) / own)))
        w /= w.sum(1, keepdims=True)
        k = (rng.random((25, 1)) > w.cumsum(1)).sum(1).clip(max=own - 1)
        item = start[k] + rng.choice(each, 25, p=of_index)
        items[user] = np.where(rng.random(25) < eps, rng.choice(noise_items, 25, p=of_noise), item)
        times[user] = t
        best[user, noise_items] = eps * of_noise
        for i in range(own):
            best[user, start[i] : start[i] + each] += (1 - eps) * w[-1, i] * of_index
    return torch.from_numpy(items), torch.from_numpy(times).float(), torch.from_numpy(best[:, None])


def hits(logits, target):
    """HR@10 and NDCG@10 of scores (users, 1, V + 1), of which id 0 has none."""
    logits = logits.clone()
    logits[..., 0] = -math.inf
    rank = ranks(logits, target[:, None])
    hit = rank < 10
    return hit.double().mean().item(), (hit / (rank + 2).log2()).mean().item()


def counted(items):
    """How often each user had each item in training."""
    return torch.zeros(len(items), 241).scatter_add_(1, items[:, :20], torch.ones(len(items), 20))[:, None]


class Nothing(torch.nn.Module):
    """In place of a part: zeros."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, *inputs):
        return inputs[0].new_zeros(self.shape(*inputs))


def without_lag(model):
    model.aie.lag = Nothing(lambda g: (*g.shape, 32))
    return model


def without_deterministic_path(model):
    model.deterministic = Nothing(lambda q, *_: (*q.shape[:2], 32))
    return model


def trained(items, times, seed, epochs=24, change=lambda model: model, **options):
    """Test HR@10 and NDCG@10 at the epoch of the best validation HR@10."""
    torch.manual_seed(seed)
    users = len(items)
    model = change(IDNP(240, users, width=32, latent=32, **options))
    train = observations(items[:, :20], times[:, :20])
    whole = observations(items, times)
    mask = visible(train.position, train.position)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-5)
    steps = epochs * -(-users // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def measure(first, last):
        """Of the observation ``last``, from those in between."""
        one = tuple(x[:, last : last + 1] for x in whole[:3])
        context = tuple(x[:, first:last] for x in whole[:4])
        with torch.no_grad():
            out = model.eval()(
                torch.arange(users), *context, torch.ones(users, 1, last - first, dtype=torch.bool), *one
            )
        model.train()
        return hits(scores(out), whole.y[:, last])

    best = (-1.0, (0.0, 0.0))
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(users).split(64):
            w, g, tau, y = (x[rows] for x in train[:4])
            optimizer.zero_grad()
            out = model(rows, w, g, tau, y, mask.expand(len(rows), -1, -1), w, g, tau)
            objective(out, y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        if epoch % 4 == 0:
            best = max(best, (measure(0, 19)[0], measure(0, 23)))
    assert (model.items.E[0] == 0).all()
    return best[1]


def test_a_little_training_beats_popularity():
    items, times, _ = g1(300, seed=0)
    popular, _ = hits(counted(items).sum(0, keepdim=True).expand(300, -1, -1), items[:, 24])
    found, _ = trained(items, times, 0, epochs=12)
    assert found >= popular + 0.05


@pytest.mark.slow
def test_synthetic_problem():
    items, times, best = g1(1000, seed=2)
    own = counted(items)
    popular, _ = hits(own.sum(0, keepdim=True).expand(1000, -1, -1), items[:, 24])
    mine, _ = hits(own + own.sum(0) / own.sum(), items[:, 24])
    oracle, _ = hits(best, items[:, 24])
    hit, ndcg = trained(items, times, 2)
    print(popular, mine, oracle, hit, ndcg)
    assert oracle == pytest.approx(0.805, abs=0.03)
    assert hit >= 0.55
    assert hit >= popular + 0.40
    assert hit >= mine + 0.20
    assert hit < oracle
