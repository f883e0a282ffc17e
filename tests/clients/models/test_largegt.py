"""LargeGT against numbers of its published code, in float64, and against what must hold of any such model."""

import math
from collections import Counter
from functools import partial
from itertools import combinations
from zlib import crc32

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from clients.errors import ClientError
from clients.models import largegt_sampling
from clients.models.largegt import (
    CODEBOOK,
    Codebook,
    LargeGT,
    code_counts,
    codebook_state,
    codebook_statistics,
    pool_codebooks,
)
from clients.models.largegt_sampling import hop_features, neighbour_lists, propagation, token_sequence
from strategies.cohort import alone_because
from strategies.functional import Stateless, backpropagate

# Said by torch where vmap meets fused attention on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

tiny = partial(LargeGT, (16,), 4, hidden_dim=32, global_dim=8, num_centroids=32)
still = {"dropout": 0.0, "local_dropout": 0.0}


def size(model):
    return sum(p.numel() for p in model.parameters())


def graph(edges, n, directed=False):
    source, target = np.array(edges).reshape(-1, 2).T
    if not directed:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
    return sparse.csr_array((np.ones(len(source)), (source, target)), shape=(n, n))


def same(found, expected, tolerance=2e-8):
    """Equal to the eight decimals that the numbers are given with, and the last one's rounding."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)


def double(model, seed=0):
    """In evaluation mode, with random weights, moments and counts, so that nothing passes as it is 0 or 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
        for name, b in model.named_buffers():
            if name.endswith(("running_var", "_ema_cluster_size")):
                b *= 0.5 + torch.rand_like(b)
            elif b.is_floating_point():
                b += 0.5 * torch.randn_like(b)
    return model.double().eval()


def seeds(B=6, K=5, F=16, g=8, seed=1):
    torch.manual_seed(seed)
    seq = torch.randn(B, 3 * K, F, dtype=torch.float64)
    return seq, seq[:, 0].clone(), torch.randn(B, g, dtype=torch.float64)


def buffers(model):
    return {k: b.clone() for k, b in model.named_buffers()}


# --- parameters ------------------------------------------------------------------------------------

PUBLISHED = {  # (F, d, C, g, h), variant, norm: all, with gradient
    ((100, 256, 47, 64, 2), "full", "batch"): (2_550_384, 1_892_720),
    ((100, 256, 47, 64, 2), "local", "batch"): (2_106_416, 1_356_592),
    ((100, 256, 47, 64, 2), "global", "batch"): (2_288_240, 681_583),
    ((269, 128, 5, 64, 2), "full", "batch"): (739_654, 574_662),
    ((269, 128, 5, 64, 2), "local", "batch"): (583_174, 366_854),
    ((128, 512, 172, 128, 2), "full", "batch"): (10_141_485, 7_515_437),
    ((128, 512, 172, 128, 2), "local", "batch"): (8_368_813, 5_413_037),
    ((16, 32, 4, 8, 2), "full", "batch"): (41_453, 30_925),
    ((16, 32, 4, 8, 2), "local", "batch"): (34_341, 22_149),
    ((16, 32, 4, 8, 2), "global", "batch"): (37_357, 11_244),
    ((16, 32, 4, 8, 1), "full", "none"): (20_941, 14_637),
    ((4, 8, 3, 4, 2), "full", "batch"): (3_096, None),
}


def without_memory(sizes, conv_type, norm, **options):
    F, d, C, g, h = sizes
    with torch.device("meta"):
        return LargeGT(
            (F,), C, conv_type=conv_type, hidden_dim=d, global_dim=g, heads=h, norm=norm, **options
        )


@pytest.mark.parametrize("config", PUBLISHED, ids=str)
def test_number_of_parameters_is_the_published_codes(config):
    everything, alive = PUBLISHED[config]
    assert size(without_memory(*config, dead=True)) == everything
    if alive:
        assert size(without_memory(*config)) == alive


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("conv_type", ["full", "local", "global"])
def test_number_of_parameters_has_a_closed_form(conv_type, norm):
    rng = np.random.default_rng(0)
    for _ in range(10):
        F, d, C, g, h = (int(n) for n in rng.integers(1, (40, 30, 9, 20, 4)))
        bn, t = int(norm != "none"), 1 + (conv_type == "full")
        total = 2 * (F * d + d + d**2 + d) + 2 * bn * d + 4 * (h * d**2 + h * d)
        total += d**2 + d + 2 * d + 3 * (h * d**2 + h * d) + (h**2 * d**2 + h * d) + (h * d**2 + h * d)
        total += 2 * h * d + (2 * d**2 + d) + 2 * h * d + 1
        if conv_type != "local":
            total += d * g + g + 2 * (2 * g * h * d + h * d) + (g * h * d + h * d)
        total += t * h**2 * d**2 + h * d + h * d**2 + d + bn * (2 * h * d + 2 * d) + d * C + C
        assert size(without_memory((F, d, C, g, h), conv_type, norm, dead=True)) == total


@pytest.mark.parametrize("dead", [True, False])
@pytest.mark.parametrize("conv_type", ["full", "local", "global"])
def test_only_dead_parameters_get_no_gradient(conv_type, dead):
    model = tiny(conv_type=conv_type, dead=dead).double()
    model(*seeds()).square().sum().backward()
    alive = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert alive == PUBLISHED[(16, 32, 4, 8, 2), conv_type, "batch"][1]
    assert dead or alive == size(model)


def test_weights_have_the_published_codes_names_and_shapes():
    F, d, C, g, m, n = 100, 256, 47, 64, 4096, 50
    shapes = {
        "fc_in.0": (d, F),
        "fc_in.4": (d, d),
        "fc_in_seq.0": (d, F),
        "fc_in_seq.3": (d, d),
        "ffs.0.0": (512, 1024),
        "ffs.0.4": (256, 512),
        "head": (C, d),
    }
    conv, local = "convs.0.", "convs.0.local_module."
    shapes |= {conv + name: (512, 256) for name in ("lin_key", "lin_query", "lin_value", "lin_skip")}
    shapes |= {conv + "lin_proj_g": (g, d), conv + "lin_value_g": (512, 64)}
    shapes |= {conv + "lin_key_g": (512, 128), conv + "lin_query_g": (512, 128)}
    shapes |= {local + "att_embeddings_nope": (d, d), local + "out_proj": (256, 512)}
    shapes |= {local + "attn_layer": (1, 1024), local + "layers.0.res_proj": (512, 256)}
    shapes |= {local + f"layers.0.self_attention.linear_{x}": (512, 256) for x in "qkv"}
    shapes |= {local + "layers.0.self_attention.output_layer": (512, 512)}
    vectors = {"fc_in.1": d, "ffs.0.1": 512, "ffs.0.5": d, local + "final_ln": 512}
    vectors |= {local + "layers.0.self_attention_norm": d}
    state = {f"{k}.weight": shape for k, shape in shapes.items()}
    state |= {f"{k}.bias": shape[:1] for k, shape in shapes.items()}
    state |= {f"{k}.{kind}": (width,) for k, width in vectors.items() for kind in ("weight", "bias")}
    model = without_memory((F, d, C, g, 2), "full", "batch", nodes=n, dead=True)
    assert {k: tuple(p.shape) for k, p in model.named_parameters()} == state
    floating = {f"{CODEBOOK}{k}": (m, 2 * g) for k in ("_embedding", "_embedding_output", "_ema_w")}
    floating |= {f"{CODEBOOK}_ema_cluster_size": (m,)}
    for k, width in ("fc_in.1", d), ("ffs.0.1", 512), ("ffs.0.5", d), (CODEBOOK + "bn", 2 * g):
        floating |= {f"{k}.running_mean": (width,), f"{k}.running_var": (width,)}
    found = {k: b for k, b in model.named_buffers() if "num_batches_tracked" not in k}
    assert found.pop("convs.0.c_idx").dtype == torch.int16
    assert {k: tuple(b.shape) for k, b in found.items()} == floating
    assert set(model.state_dict()) == {k for k, _ in model.named_parameters()} | set(buffers(model))


def test_a_branch_has_nothing_of_the_other():
    local, other = (set(tiny(conv_type=c).state_dict()) for c in ("local", "global"))
    assert not any(k.startswith(("fc_in.", CODEBOOK)) or "_g." in k for k in local)
    assert not any(k.startswith("fc_in_seq.") or "local_module" in k for k in other)
    assert "convs.0.c_idx" not in tiny().state_dict()


def test_initial_weights():
    torch.manual_seed(0)
    model = tiny(nodes=20_000, dead=True)
    for name, p in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, nn.Linear):
            assert (p == float(name.endswith("weight"))).all(), name
        elif "local_module" not in name:
            bound = 1 / math.sqrt(layer.in_features)
            assert p.abs().max() <= bound, name
            assert p.abs().max() > 0.6 * bound, name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        else:
            assert 0.015 < p.std() < 0.025, name
    c_idx = model.state_dict()["convs.0.c_idx"]
    assert c_idx.shape == (20_000,)
    assert code_counts(c_idx, 32).min() > 500
    assert code_counts(c_idx, 32).max() < 750


def test_initial_codebooks():
    for init in ("consistent", "reference"):
        state = tiny(codebook_init=init).layer.vq.state_dict()
        E, out, W = (state[k] for k in ("_embedding", "_embedding_output", "_ema_w"))
        for codes in (E, out, W):
            assert 0.9 < codes.std() < 1.1
            assert abs(codes.mean()) < 0.2
        assert torch.equal(E, out) == torch.equal(E, W) == (init == "consistent")
        assert not torch.equal(out, W) or init == "consistent"
        assert (state["_ema_cluster_size"] == float(init == "consistent")).all()
        assert len({codes.data_ptr() for codes in (E, out, W)}) == 3
    default = tiny().layer.vq.state_dict()
    assert torch.equal(default["_embedding"], default["_ema_w"])


# --- numbers of the published code -----------------------------------------------------------------

LADDER = graph([(i, i + 1) for i in range(9)] + [(0, 5), (2, 7)], 10)
CANDIDATES = {
    0: ([1, 5], [0, 2, 4, 6]),
    1: ([0, 2], [1, 3, 5, 7]),
    2: ([1, 3, 7], [0, 2, 4, 6, 8]),
    3: ([2, 4], [1, 3, 5, 7]),
    4: ([3, 5], [0, 2, 4, 6]),
    5: ([0, 4, 6], [1, 3, 5, 7]),
    6: ([5, 7], [0, 2, 4, 6, 8]),
    7: ([2, 6, 8], [1, 3, 5, 7, 9]),
    8: ([7, 9], [2, 6, 8]),
    9: ([8], [7, 9]),
}


def ladder_features():
    return np.sin(0.5 * np.arange(10)[:, None] + 0.3 * np.arange(4))


def test_hop_features_are_the_published_codes():
    X, H1, H2 = hop_features(LADDER, ladder_features()).transpose(1, 0, 2)
    assert np.array_equal(X, ladder_features())
    same(torch.tensor(H1[0]), [0.33257254, 0.43432818, 0.49728658, 0.51582385])
    same(torch.tensor(H2[0]), [0.37582339, 0.44783530, 0.47984341, 0.46898854])
    same(torch.tensor(H1[9]), [-0.79772838, -0.87210548, -0.86857999, -0.78746684])
    same(torch.tensor(H2[9]), [-0.70611385, -0.79886271, -0.82025154, -0.76836975])
    row = np.zeros(10)
    row[[0, 1, 5]] = 1 / 3, 1 / 3, 0.28867513
    same(torch.tensor(propagation(LADDER).toarray()[0]), row)


def test_propagation_on_a_directed_graph_mixes_in_and_out_degrees():
    P = propagation(graph([(0, 1), (0, 2), (1, 2)], 3, directed=True)).toarray()
    same(torch.tensor(P), [[0.57735, 0.70711, 1.0], [0, 0.5, 0.70711], [0, 0, 0.57735]], 5e-6)


def test_lists_of_few_candidates_are_the_published_codes():
    lists = neighbour_lists(LADDER, 8, 0)
    assert lists[0].tolist() == [0, 1, 5, 0, 2, 4, 6, 1]
    assert lists[3].tolist() == [3, 2, 4, 1, 3, 5, 7, 2]
    assert lists[9].tolist() == [9, 8, 7, 9, 8, 7, 9, 8]
    twenty = neighbour_lists(LADDER, 20, 0)
    for i, (first, second) in CANDIDATES.items():
        assert twenty[i].tolist() == [i, *(3 * (first + second) + 20 * (first + second))[:19]]
    # Node 2 has eight candidates for seven places.
    drawn = [neighbour_lists(LADDER, 8, seed)[2] for seed in range(20)]
    first, second = CANDIDATES[2]
    assert all(not Counter(each[1:].tolist()) - Counter(first + second) for each in drawn)
    assert len({tuple(sorted(each)) for each in drawn}) > 3


def phase(name):
    return crc32(name.encode()) % 1000


def fill(tensor, name, scale, shift=0.0):
    j = torch.arange(tensor.numel(), dtype=torch.float64)
    sine = torch.sin(2 * math.pi * phase(name) / 1000 + j * (1 + 0.01 * (j % 13)))
    tensor.copy_((scale * sine + shift).view_as(tensor))


def oracle(**options):
    """A model whose every weight and code is a known sine."""
    model = LargeGT(
        (4,), 3, 10, hidden_dim=8, global_dim=4, heads=2, num_centroids=6, **still, **options
    ).double()
    norms = {k for k, layer in model.named_modules() if isinstance(layer, nn.BatchNorm1d | nn.LayerNorm)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.1 if p.ndim == 1 else 2 / math.sqrt(p.numel() / p.shape[0])
            layer, _, kind = name.rpartition(".")
            fill(p, name.replace("head", "fc_out"), scale, float(layer in norms and kind == "weight"))
        codebook = model.layer.vq
        for name in ("_embedding", "_embedding_output", "_ema_w"):
            fill(getattr(codebook, name), CODEBOOK + name, 1.0)
        codebook._ema_cluster_size.copy_(1 + 0.1 * torch.arange(6, dtype=torch.float64))
        model.layer.c_idx.copy_(torch.arange(10) % 5)
    return model


def oracle_inputs():
    nodes = torch.tensor([0, 3, 9, 5])
    lists = torch.tensor([[0, 1, 5, 2], [3, 2, 4, 1], [9, 8, 7, 7], [5, 0, 4, 6]])
    hops = torch.from_numpy(hop_features(LADDER, ladder_features()))
    i, k = torch.arange(10, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    return token_sequence(hops, lists), hops[nodes, 0], torch.cos(0.4 * i + 0.9 * k)[nodes], nodes


def test_phases_of_the_known_weights():
    assert phase(CODEBOOK + "_embedding") == 60
    assert phase(CODEBOOK + "_embedding_output") == 642
    assert phase(CODEBOOK + "_ema_w") == 406
    assert phase("fc_out.weight") == 453


@pytest.mark.parametrize("dead", [True, False])
def test_logits_are_the_published_codes(dead):
    model, seen = oracle(dead=dead).eval(), []
    assert not dead or size(model) == 3_096
    model.ffs[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    before = buffers(model)
    logits = model(*oracle_inputs())
    expected = [
        [-0.24679652, -0.95869593, 2.17825077],
        [1.89677695, -2.04503134, 5.36543378],
        [-0.07420620, -1.79788224, 1.41025497],
        [1.11677285, -1.56258770, 4.10525442],
    ]
    same(logits, expected)
    local = [0.21185127, -0.08341199, -0.30305212, -0.63509444, 0.39188406, 3.13676060, 2.57018878]
    local += [-1.24579946, -0.11876976, 0.53471421, -1.14653825, 2.24361238, -1.41269735, -0.18824976]
    local += [-3.00958336, -1.09336678]
    glob = [-0.02100956, 0.91582646, -0.35249073, 0.61286987, 0.90118367, -0.11644438, 1.06432384]
    glob += [0.85005617, 0.65907867, 0.20370404, 0.81416630, 0.31725511, 0.36764161, -0.25075691]
    glob += [-0.00364234, 0.57049068]
    same(seen[0][0], local + glob)
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())


def test_a_training_step_is_the_published_codes():
    """But for one gradient: there, keys' weights get theirs with codes that the update has moved already."""
    model, seen = oracle(dead=True).train(), []
    model.layer.lin_key_g.register_forward_hook(lambda _, __, keys: seen.append(keys))
    logits = model(*oracle_inputs())
    same(logits[0], [-1.66505956, 0.16895512, 0.94177610])
    same(logits[3], [0.65169436, -0.66507837, 0.55859954])
    loss = functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    same(loss, 1.39829578)
    seen[0].retain_grad()
    loss.backward()
    gradients = {k: p.grad.norm() for k, p in model.named_parameters() if p.grad is not None}
    keys = "convs.0.lin_key_g.weight"
    late = (seen[0].grad.T @ model.layer.vq._embedding_output).norm()
    assert abs(late - gradients[keys]) > 0.1
    same(torch.stack([*(gradients | {keys: late}).values()]).norm(), 36.1505562, 1e-7)
    same(torch.stack([*gradients.values()]).norm(), 36.1567206, 1e-7)
    attention = "convs.0.local_module.layers.0.self_attention."
    same(gradients["fc_in.0.weight"], 0.81995364)
    same(gradients["fc_in_seq.0.weight"], 4.23208791)
    same(gradients[attention + "linear_q.weight"], 1.92143198)
    same(gradients["convs.0.lin_proj_g.weight"], 2.06170191)
    same(gradients["convs.0.lin_query_g.weight"], 1.60888599)
    same(gradients["head.weight"], 0.97310181)

    assert model.layer.c_idx.tolist() == [1, 1, 2, 4, 4, 2, 1, 2, 3, 0]
    book = model.layer.vq
    n = [1.00000196, 1.09900117, 1.19800037, 1.28699966, 1.39599878, 1.48499806]
    same(book._ema_cluster_size, n)
    W = [0.54145812, -0.41131542, -0.96581212, -0.60402594, 0.39818751, 0.98956572, 0.50209916, -0.55665084]
    same(book._ema_w[0], W)
    same(book._embedding[0, :2], [0.54145706, -0.41131461])
    E_out = [0.52745687, -0.34034564, -0.96347516, -0.52173386, 0.39346099, 0.93525996, 0.45581042]
    same(book._embedding_output[0], [*E_out, -0.56562903])
    sums = [-0.10649359, -1.16422698, 1.28735227, -1.59901160, -0.50820474, 0.28150725]
    same(book._embedding.sum(1), sums, 4e-8)
    mean = [0.01291298, 0.05999648, -0.03359918, 0.06709803, 0.00123631, -0.02662475]
    same(book.bn.running_mean, [*mean, -0.03433674, -0.01606336])
    var = [0.90305044, 0.94734836, 0.92696168, 0.95031720, 0.97026819, 0.94483041, 0.95295221]
    same(book.bn.running_var, [*var, 0.97469941])


def test_two_steps_of_a_codebook_by_hand():
    book = Codebook(3, 2, "reference").double()
    start = torch.tensor([[-1.0, -1.2], [1.0, 0.9], [5.0, 5.0]], dtype=torch.float64)
    for codes in (book._embedding, book._ema_w):
        codes.copy_(start)
    inputs = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)

    assert book.update(inputs).tolist() == [0, 1, 0, 1]
    same(book._ema_cluster_size, [0.0199950037, 0.0199950037, 9.99250562e-6], 1e-10)
    E = [[-50.5126137, -60.1221190], [50.5126137, 45.2684083], [495371.25, 495371.25]]
    same(book._embedding[:2], E[:2], 1e-7)
    same(book._embedding[2], E[2], 0.01)
    same(book.bn.running_mean, [0.1, 0.1])
    same(book.bn.running_var, [1.03333333, 0.96666667])

    assert book.update(inputs).tolist() == [1, 1, 1, 1]
    same(book._ema_cluster_size, [0.0197975923, 0.0597825226, 1.98850862e-5], 1e-10)
    same(book._embedding[1], [16.7256224, 14.9891730], 1e-7)
    same(book.bn.running_mean, [0.19, 0.19])
    same(book.bn.running_var, [1.06333333, 0.93666667])


# --- local branch ----------------------------------------------------------------------------------


def test_only_the_first_token_has_a_place():
    model = double(tiny(conv_type="local"))
    seq, *_ = seeds()
    y = model(seq)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(14)])
    torch.testing.assert_close(model(seq[:, order]), y, rtol=0, atol=1e-13)
    swapped = model(seq[:, [1, 0, *range(2, 15)]])
    assert (swapped - y).abs().max() > 1e-3


def test_half_of_the_readout_and_its_bias_have_no_effect():
    model, (seq, x, pos_enc) = double(tiny()), seeds()
    readout = model.layer.local_module.attn_layer
    y = model(seq, x, pos_enc)
    y.square().sum().backward()
    assert (readout.weight.grad[:, :64] == 0).all()
    assert (readout.weight.grad[:, 64:] != 0).all()
    assert readout.bias.grad.abs().max() < 1e-12
    with torch.no_grad():
        readout.weight[:, :64] = 7 * torch.randn(64)
        readout.bias += 3
        torch.testing.assert_close(model(seq, x, pos_enc), y, rtol=0, atol=1e-12)
        readout.weight[:, 64:] += 1
        assert (model(seq, x, pos_enc) - y).abs().max() > 1e-4


def test_local_branch_written_out():
    """One head after another, with the whole readout as it is in the paper's figure."""
    local = double(tiny(conv_type="local")).layer.local_module
    seq = torch.randn(3, 9, 32, dtype=torch.float64)
    layer = local.layers[0]
    t = local.att_embeddings_nope(seq)
    normed = functional.layer_norm(t, (32,), layer.self_attention_norm.weight, layer.self_attention_norm.bias)
    attention, heads = layer.self_attention, []
    for head in (slice(0, 32), slice(32, 64)):
        q, k, v = (f(normed)[..., head] for f in (attention.linear_q, attention.linear_k, attention.linear_v))
        heads.append((q @ k.mT / math.sqrt(32)).softmax(-1) @ v)
    o = local.final_ln(layer.res_proj(t) + attention.output_layer(torch.cat(heads, -1)))
    others = o[:, 1:]
    pairs = torch.cat([o[:, :1].expand_as(others), others], -1)
    shares = local.attn_layer(pairs).softmax(1)
    torch.testing.assert_close(local(seq), o[:, 0] + (shares * others).sum(1), rtol=0, atol=1e-12)


def test_a_branch_alone_knows_nothing_of_the_others_inputs():
    (seq, x, pos_enc), (seq2, x2, pos_enc2) = seeds(), seeds(seed=2)
    local, other, full = (double(tiny(conv_type=c)) for c in ("local", "global", "full"))
    assert torch.equal(local(seq, x, pos_enc), local(seq))
    assert torch.equal(local(seq, x2, pos_enc2), local(seq))
    assert torch.equal(other(seq, x, pos_enc), other(None, x, pos_enc))
    y = full(seq, x, pos_enc)
    for changed in (seq2, x, pos_enc), (seq, x2, pos_enc), (seq, x, pos_enc2):
        assert (full(*changed) - y).abs().max() > 1e-3


# --- global branch ---------------------------------------------------------------------------------


def global_branch(model, counts=None):
    _, x, pos_enc = seeds()
    return model.layer.attend_to_codes(model._queries(x, pos_enc), counts)


def test_attention_to_codes_is_attention_to_all_nodes():
    model = double(tiny(500))
    layer, (_, x, pos_enc) = model.layer, seeds()
    E = layer.vq._embedding_output[layer.c_idx.long()]
    q = layer.lin_query_g(torch.cat([layer.lin_proj_g(model.fc_in(x)), pos_enc], -1))
    k, v = layer.lin_key_g(E), layer.lin_value_g(E[:, :8])
    heads = [
        (q[:, head] @ k[:, head].mT / math.sqrt(32)).softmax(-1) @ v[:, head]
        for head in (slice(0, 32), slice(32, 64))
    ]
    torch.testing.assert_close(global_branch(model), torch.cat(heads, -1), rtol=0, atol=1e-13)


def test_a_code_of_no_node_has_no_effect():
    model = double(tiny(500))
    layer = model.layer
    layer.c_idx[layer.c_idx == 7] = 3
    y = global_branch(model)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    layer.vq._embedding_output[7] = 1e3
    assert torch.equal(global_branch(model), y)
    layer.vq._embedding_output[3] += 1
    assert (global_branch(model) - y).abs().max() > 1e-3
    layer.c_idx[:] = 7
    expected = layer.lin_value_g(layer.vq._embedding_output[7, :8])
    torch.testing.assert_close(global_branch(model), expected.expand(6, -1), rtol=0, atol=1e-9)


def test_counts_may_be_given_and_have_no_unit():
    model = double(tiny(500))
    counted = code_counts(model.layer.c_idx, 32)
    assert counted.sum() == 500
    y = global_branch(model)
    assert torch.equal(global_branch(model, counted), y)
    torch.testing.assert_close(global_branch(model, 0.01 * counted.double()), y, rtol=0, atol=1e-13)
    assert (global_branch(model, torch.arange(32)) - y).abs().max() > 1e-3
    seq, x, pos_enc = seeds()
    torch.testing.assert_close(model(seq, x, pos_enc, None, counted), model(seq, x, pos_enc))
    assert (model(seq, x, pos_enc, None, torch.arange(32)) - model(seq, x, pos_enc)).abs().max() > 1e-4


def test_without_nodes_counts_are_the_codebooks():
    model = double(tiny())
    n = model.layer.vq._ema_cluster_size
    y = global_branch(model)
    torch.testing.assert_close(global_branch(model, n + 1e-5), y, rtol=0, atol=1e-13)
    assert (global_branch(model, torch.ones(32)) - y).abs().max() > 1e-3
    # A start without counts takes all codes to be equal.
    n.zero_()
    torch.testing.assert_close(global_branch(model), global_branch(model, torch.ones(32)), rtol=0, atol=1e-13)


def test_codes_get_no_gradient_but_their_projections_do():
    model = double(tiny(500))
    model(*seeds()).square().sum().backward()
    assert not any(b.requires_grad for b in model.buffers())
    for name in ("lin_proj_g", "lin_query_g", "lin_key_g", "lin_value_g"):
        assert getattr(model.layer, name).weight.grad.abs().max() > 1e-6


# --- codebook --------------------------------------------------------------------------------------


def test_an_update_written_out():
    book = double(tiny()).layer.vq.train()
    before = {k: b.clone() for k, b in book.named_buffers()}
    u = 3 * torch.randn(50, 16, dtype=torch.float64) + 1
    assigned = book.update(u)

    normed = (u - u.mean(0)) / (u.var(0, correction=0) + 1e-5).sqrt()
    distance = (normed[:, None] - before["_embedding"]).square().sum(-1)
    assert torch.equal(assigned, distance.argmin(1))
    one_hot = functional.one_hot(assigned, 32).double()
    n = 0.99 * before["_ema_cluster_size"] + 0.01 * one_hot.sum(0)
    smoothed = (n + 1e-5) / (n.sum() + 32e-5) * n.sum()
    W = 0.99 * before["_ema_w"] + 0.01 * one_hot.T @ normed
    mean = 0.9 * before["bn.running_mean"] + 0.1 * u.mean(0)
    var = 0.9 * before["bn.running_var"] + 0.1 * u.var(0)
    E = W / smoothed[:, None]
    expected = {
        "_ema_cluster_size": smoothed,
        "_ema_w": W,
        "_embedding": E,
        "_embedding_output": E * (var + 1e-5).sqrt() + mean,
        "bn.running_mean": mean,
        "bn.running_var": var,
    }
    for name, value in expected.items():
        torch.testing.assert_close(book.get_buffer(name), value, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(book._ema_cluster_size.sum(), n.sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(book._embedding * book._ema_cluster_size[:, None], book._ema_w)


def test_the_first_of_equally_near_codes_wins():
    book = Codebook(4, 2, "consistent")
    book._embedding.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    assert book.nearest(torch.tensor([[0.0, 5.0], [0.5, 0.0], [-0.5, 0.0], [9.0, 8.0]])).tolist() == [
        1,
        1,
        3,
        0,
    ]


def test_running_counts_tend_to_the_batch():
    torch.manual_seed(0)
    book = Codebook(16, 4, "reference")
    total = []
    for _ in range(1200):
        book.update(torch.randn(1024, 4))
        total.append(book._ema_cluster_size.sum().item())
    assert total[0] == pytest.approx(10.24, rel=1e-5)
    assert total[49] == pytest.approx(1024 * (1 - 0.99**50), rel=1e-4)
    assert round(total[49]) == 404
    assert total[-1] == pytest.approx(1024, rel=1e-4)


def test_the_reference_start_collapses_and_the_consistent_one_does_not():
    used = {}
    for init in ("reference", "consistent"):
        torch.manual_seed(0)
        book = Codebook(32, 16, init)
        centers = 2 * torch.randn(8, 16)
        used[init] = []
        for _ in range(40):
            u = centers[torch.randint(8, (64,))] + torch.randn(64, 16)
            used[init].append(len(book.update(u).unique()))
    assert set(used["reference"][5:]) == {1}
    assert min(used["consistent"]) >= 8
    assert used["consistent"][0] >= 12


def test_attention_sees_codes_from_before_the_update():
    """Without norms and dropout, training gives what evaluation does, and changes the state after that."""
    model, inputs = double(tiny(500, norm="none", **still)), seeds()
    y, before = model(*inputs), buffers(model)
    batch_idx = torch.tensor([3, 499, 17, 0, 250, 77])
    trained = model.train()(*inputs, batch_idx)
    torch.testing.assert_close(trained, y, rtol=0, atol=1e-12)
    trained.sum().backward()  # nothing that it needs was overwritten
    after = buffers(model)
    assert all(not torch.equal(after[k], before[k]) for k in after)
    kept = torch.ones(500, dtype=torch.bool)
    kept[batch_idx] = False
    assert torch.equal(after["convs.0.c_idx"][kept], before["convs.0.c_idx"][kept])
    u = model._queries(*inputs[1:])
    normed = functional.batch_norm(u, None, None, training=True)
    distance = (normed[:, None] - before[CODEBOOK + "_embedding"]).square().sum(-1)
    assert torch.equal(after["convs.0.c_idx"][batch_idx].long(), distance.argmin(1))
    assert model.layer.counts().sum() == 500
    assert (model.eval()(*inputs) - y).abs().max() > 1e-4


def test_evaluation_changes_nothing():
    model = double(tiny(500))
    before = buffers(model)
    together = model(*seeds(), torch.arange(6))
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())
    # One seed is a batch, too.
    for i in range(6):
        alone = model(*(each[i : i + 1] for each in seeds()))
        assert alone.shape == (1, 4)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("conv_type", ["full", "local", "global"])
def test_one_seed_is_a_batch_in_evaluation(conv_type):
    assert double(tiny(conv_type=conv_type))(*seeds(B=1)).shape == (1, 4)


def test_nodes_can_be_assigned_at_once():
    model, (_, x, pos_enc) = double(tiny()).train(), seeds(40)
    before = buffers(model)
    codes = model.assign(x, pos_enc)
    assert model.training
    assert all(layer.training for layer in model.modules())
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())
    assert codes.dtype == torch.int16
    model.eval()
    u = torch.cat([model.layer.lin_proj_g(model.fc_in(x)), pos_enc], -1)
    book = model.layer.vq
    normed = (u - book.bn.running_mean) / (book.bn.running_var + 1e-5).sqrt()
    assert torch.equal(codes.long(), (normed[:, None] - book._embedding).square().sum(-1).argmin(1))
    assert len(codes.unique()) > 3
    assert not model.training
    assert torch.equal(code_counts(codes, 32), torch.bincount(codes.long(), minlength=32))


# --- pooled codebooks ------------------------------------------------------------------------------


def trained_states(clients=3, steps=15):
    torch.manual_seed(0)
    start = tiny()
    states = []
    for client in range(clients):
        model = tiny()
        model.load_state_dict(start.state_dict())
        for step in range(steps):
            seq, x, pos_enc = (each.float() + client for each in seeds(20, seed=10 * client + step))
            model.train()(seq, x, pos_enc)
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    return states


def test_a_pooled_codebook_is_of_pooled_sums():
    states, weights = trained_states(), [10, 30, 60]
    pooled = pool_codebooks(states, weights)
    each = [{k: s[CODEBOOK + k].double() for k in pooled_names()} for s in states]

    def mean(name):
        return sum(w / 100 * s[name] for w, s in zip(weights, each, strict=True))

    n, W, center = mean("_ema_cluster_size"), mean("_ema_w"), mean("bn.running_mean")
    within = mean("bn.running_var")
    between = sum(w / 100 * (s["bn.running_mean"] - center) ** 2 for w, s in zip(weights, each, strict=True))
    expected = {
        "_ema_cluster_size": n,
        "_ema_w": W,
        "_embedding": W / n[:, None],
        "_embedding_output": W / n[:, None] * (within + between + 1e-5).sqrt() + center,
        "bn.running_mean": center,
        "bn.running_var": within + between,
    }
    assert set(pooled) == {CODEBOOK + k for k in expected}
    for name, value in expected.items():
        assert pooled[CODEBOOK + name].dtype == torch.float32
        torch.testing.assert_close(pooled[CODEBOOK + name].double(), value, rtol=2e-6, atol=2e-6)
    assert between.max() > 1e-2
    assert (pooled[CODEBOOK + "_embedding"] - mean("_embedding")).abs().max() > 1e-3
    # It fits the model, and only ratios of weights matter.
    tiny().load_state_dict(states[0] | pooled)
    again = pool_codebooks(states, [0.1, 0.3, 0.6])
    for name, value in pooled.items():
        torch.testing.assert_close(again[name], value)


def pooled_names():
    names = ("_embedding", "_embedding_output", "_ema_cluster_size", "_ema_w")
    return (*names, "bn.running_mean", "bn.running_var")


def test_pooling_one_client_or_equal_ones_changes_nothing():
    state, other = trained_states(2)
    for pooled in (pool_codebooks([state], [5]), pool_codebooks([state] * 3, [1, 2, 3])):
        for name, value in pooled.items():
            torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-5)
    pooled, alone = pool_codebooks([other, state], [0, 1]), pool_codebooks([state], [1])
    assert all(torch.equal(pooled[name], alone[name]) for name in alone)


def test_statistics_are_averaged_by_any_means():
    """Whoever averages them, secure aggregation say, has the pooled codebook."""
    states = trained_states(2)
    one, other = (codebook_statistics(s) for s in states)
    average = type(one)(*(0.25 * a + 0.75 * b for a, b in zip(one, other, strict=True)))
    for name, value in codebook_state(average).items():
        torch.testing.assert_close(value, pool_codebooks(states, [1, 3])[name])


def test_codes_that_were_never_counted_give_numbers():
    model = tiny(codebook_init="reference")
    pooled = pool_codebooks([model.state_dict()] * 2, [1, 1])
    assert all(v.isfinite().all() for v in pooled.values())
    torch.testing.assert_close(pooled[CODEBOOK + "_embedding"], model.layer.vq._ema_w)


# --- in a federation -------------------------------------------------------------------------------


def stateless(model):
    return Stateless(model, lambda b: (b["seq"], b["x"], b["pos_enc"], b.get("node")))


def test_what_a_federation_averages_and_what_it_does_not():
    model = Stateless(tiny(nodes=100))
    assert {CODEBOOK + k for k in pooled_names()} <= set(model.shared)
    assert "convs.0.c_idx" not in model.shared
    assert model.head == {"head.weight", "head.bias"}
    # FedBN keeps the norms of the networks, and not the codebook's.
    assert {"fc_in.1.running_mean", "ffs.0.1.weight", "ffs.0.5.running_var"} <= model.norms
    assert not any(k.startswith(CODEBOOK) for k in model.norms)
    assert model.has_batch_norm
    assert "BatchNorm" in alone_because(model)


def test_a_step_as_a_function_of_its_state_moves_the_codebook():
    torch.manual_seed(0)
    model = stateless(tiny(**still))
    seq, x, pos_enc = (each.float() for each in seeds())
    batch, received = {"seq": seq, "x": x, "pos_enc": pos_enc}, model.initial()
    params = {k: v.clone() for k, v in received.items()}
    moving = {k: params[k] for k in model.trainable}
    resting = {k: v for k, v in params.items() if k not in moving}
    grads, loss = backpropagate(lambda p: model({**resting, **p}, batch).square().mean(), moving)

    alone = model.module
    before = {k: v.clone() for k, v in alone.state_dict().items()}
    assert all(torch.equal(before[k], received[k]) for k in received)
    y = alone(seq, x, pos_enc).square().mean()
    y.backward()
    torch.testing.assert_close(loss, y.detach())
    for name, p in alone.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    for name in resting:
        torch.testing.assert_close(params[name], alone.state_dict()[name])
        assert not torch.equal(params[name], received[name]), name
    features, output = model.embed(params, batch)
    assert features.shape == (6, 32)
    assert output.shape == (6, 4)
    # As a teacher it is in evaluation mode.
    copies = {k: v.clone() for k, v in params.items()}
    model.frozen(params, batch)
    assert all(torch.equal(params[k], copies[k]) for k in params)


def test_cohorts_may_train_its_local_branch():
    """Without BatchNorm and dropout, as a codebook has a BatchNorm of its own."""
    torch.manual_seed(0)
    local = partial(tiny, conv_type="local", **still)
    assert alone_because(Stateless(local(norm="layer"))) is None
    assert "dropout" in alone_because(Stateless(tiny(conv_type="local", norm="layer")))
    assert "BatchNorm" in alone_because(Stateless(tiny(norm="layer", **still)))
    models = [double(local(norm="layer"), seed) for seed in range(3)]
    params = {k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}
    seq = seeds(12)[0].view(3, 4, 15, 16)

    def loss(params, seq):
        return functional_call(models[0], params, (seq,)).square().mean()

    together = vmap(grad(loss))(params, seq)
    for i, model in enumerate(models):
        model(seq[i]).square().mean().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(together[name][i], p.grad, rtol=1e-9, atol=1e-12)


# --- training --------------------------------------------------------------------------------------


def test_dropout_has_two_rates_in_seven_places(monkeypatch):
    """Two in the output network, one in each input network, two on the attention and the residual."""
    rates, codes = [], []
    original = functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, dropout_p=0.0):
        codes.append(dropout_p)
        return original(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    model = tiny(attn_dropout=0.2).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda layer, *_: rates.append(layer.p))
    model(*seeds())
    assert sorted(rates) == [0.3, 0.3, 0.5, 0.5, 0.5, 0.5]
    assert codes == [0.0, 0.2]
    model.eval()
    y = model(*seeds())
    assert codes[2:] == [0.0, 0.0]
    assert torch.equal(model(*seeds()), y)


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_norm_is_of_the_seeds_network_and_the_last_one(norm, kind):
    model = tiny(norm=norm)
    for layer in (model.fc_in[1], model.ffs[0][1], model.ffs[0][5]):
        assert type(layer) is kind
    assert not any(isinstance(layer, kind) for layer in model.fc_in_seq)


# --- neighbour lists -------------------------------------------------------------------------------


def random_graph(n=60, edges=120, seed=0):
    pairs = np.random.default_rng(seed).integers(n - 5, size=(edges, 2))  # the last five are isolated
    return graph(pairs, n, directed=True)


def candidates(adjacency, i):
    A = adjacency.toarray() != 0
    two = (A.astype(int) @ A.astype(int)) > 0
    return [*np.flatnonzero(A[i]).tolist(), *np.flatnonzero(two[i]).tolist()]


@pytest.mark.parametrize("length", [1, 2, 4, 7, 20])
def test_lists_are_of_the_first_two_hops(length):
    adjacency = random_graph()
    lists = neighbour_lists(adjacency, length, 3)
    assert lists.shape == (60, length)
    assert lists.dtype == np.int64
    assert (lists[:, 0] == np.arange(60)).all()
    sampled = 0
    for i in range(60):
        others, pool = lists[i, 1:].tolist(), candidates(adjacency, i)
        if not pool:
            assert len(set(others)) == length - 1
        elif len(pool) < length - 1:
            assert others == (pool * length)[: length - 1]
        else:
            sampled += 1
            assert not Counter(others) - Counter(pool)
    assert sampled > 0
    assert any(not candidates(adjacency, i) for i in range(60))


def test_draws_are_uniform_and_a_node_of_both_hops_counts_twice():
    """In a triangle with a tail, node 0 has candidates 1, 2 | 0, 1, 2, 3."""
    adjacency = graph([(0, 1), (1, 2), (2, 0), (2, 3)], 4)
    n = 30_000
    assert candidates(adjacency, 0) == [1, 2, 0, 1, 2, 3]
    copies = sparse.csr_array(sparse.kron(sparse.eye_array(n), adjacency))
    drawn = neighbour_lists(copies, 3, 0, nodes=4 * np.arange(n))[:, 1:] % 4
    found = Counter(tuple(sorted(pair)) for pair in drawn.tolist())
    expected = Counter(tuple(sorted(pair)) for pair in combinations([1, 2, 0, 1, 2, 3], 2))
    assert set(found) == set(expected)
    for pair, ways in expected.items():
        p = ways / 15
        assert abs(found[pair] / n - p) < 5 * math.sqrt(p * (1 - p) / n), pair


def test_isolated_nodes_get_distinct_ones_of_the_whole_graph():
    empty = sparse.csr_array((2000, 2000))
    lists = neighbour_lists(empty, 6, 0)
    assert all(len(set(row)) == 5 for row in lists[:, 1:].tolist())
    each = np.bincount(lists[:, 1:].ravel(), minlength=2000)
    assert each.sum() == 10_000
    assert each.max() < 20
    assert (each == 0).mean() == pytest.approx(math.exp(-5), abs=0.01)
    x = np.random.default_rng(0).normal(size=(2000, 3))
    assert np.allclose(hop_features(empty, x), x[:, None])
    # Of a graph with too few nodes, all in turn.
    assert neighbour_lists(sparse.csr_array((2, 2)), 6, 0).tolist() == [
        [0, 0, 1, 0, 1, 0],
        [1, 0, 1, 0, 1, 0],
    ]


def test_a_nodes_draw_does_not_depend_on_who_draws_with_it(monkeypatch):
    adjacency = random_graph(60, 400)
    lists = neighbour_lists(adjacency, 6, 3)
    chosen = np.array([41, 3, 58, 3])
    assert np.array_equal(neighbour_lists(adjacency, 6, 3, nodes=chosen), lists[chosen])
    assert neighbour_lists(adjacency, 6, 3, nodes=np.array([], dtype=int)).shape == (0, 6)
    assert np.array_equal(neighbour_lists(adjacency, 6, 3, ids=np.arange(60)), lists)
    for other in (neighbour_lists(adjacency, 6, 4), neighbour_lists(adjacency, 6, 3, ids=np.arange(9, 69))):
        assert (other != lists).any(1).mean() > 0.8
    for paths, rows in (1, 100), (50, 100), (10**9, 7):
        monkeypatch.setattr(largegt_sampling, "_PATHS", paths)
        monkeypatch.setattr(largegt_sampling, "_ROWS", rows)
        assert np.array_equal(neighbour_lists(adjacency, 6, 3), lists)


def test_a_graph_is_where_its_entries_are():
    adjacency = random_graph()
    rows, columns = adjacency.nonzero()
    # Twice, in another order, with other values, and with entries that are 0.
    order = np.random.default_rng(0).permutation(2 * len(rows))
    r, c = np.tile(rows, 2)[order], np.tile(columns, 2)[order]
    values = np.concatenate([np.full(len(r), 0.5), [0.0, 0.0]])
    other = sparse.coo_matrix((values, (np.append(r, [0, 59]), np.append(c, [59, 0]))), shape=(60, 60))
    assert np.array_equal(neighbour_lists(other, 6, 3), neighbour_lists(adjacency, 6, 3))
    assert np.array_equal(propagation(other).toarray(), propagation(adjacency).toarray())
    # What was given stays as it is, however it is stored.
    stored = [1.0, 0.0, 2.0], [3, 2, 0], [0, 2, 3, 3, 3]
    messy = sparse.csr_array(tuple(map(np.array, stored)), shape=(4, 4))
    assert neighbour_lists(messy, 3, 0)[:2].tolist() == [[0, 3, 3], [1, 0, 3]]
    assert [messy.data.tolist(), messy.indices.tolist(), messy.indptr.tolist()] == [*stored]


def test_many_paths_to_one_node_are_one_candidate():
    """256 of them, as a count of 8 bits would be 0."""
    star = graph([(i, j) for i in (0, 257) for j in range(1, 257)], 258)
    lists = neighbour_lists(star, 300, 0, nodes=np.array([0]))
    assert lists[0, 1:].tolist() == [*range(1, 257), 0, 257, *range(1, 42)]


def test_propagation_of_an_undirected_graph():
    pairs = np.random.default_rng(0).integers(40, size=(90, 2))
    P = propagation(graph(pairs[pairs[:, 0] != pairs[:, 1]], 40)).toarray()
    assert np.allclose(P, P.T, rtol=0, atol=1e-15)
    assert np.abs(np.linalg.eigvalsh(P)).max() == pytest.approx(1, abs=1e-12)
    ring = graph([(i, (i + 1) % 12) for i in range(12)], 12)
    constant = np.full((12, 2), 3.7)
    assert np.allclose(hop_features(ring, constant), 3.7, rtol=0, atol=1e-14)


def test_hop_features_keep_their_type():
    x = np.random.default_rng(0).normal(size=(60, 3))
    exact, P = hop_features(random_graph(), x), propagation(random_graph()).toarray()
    assert np.allclose(exact, np.stack([x, P @ x, P @ P @ x], 1), rtol=0, atol=1e-13)
    single = hop_features(random_graph(), x.astype(np.float32))
    assert single.dtype == np.float32
    assert single.shape == (60, 3, 3)
    assert np.allclose(single, exact, rtol=0, atol=1e-5)


def test_tokens_of_a_seed_are_its_nodes_one_after_another():
    hops = torch.arange(5 * 3 * 2.0).view(5, 3, 2)
    seq = token_sequence(hops, torch.tensor([[4, 0, 0], [1, 2, 3]]))
    assert seq.shape == (2, 9, 2)
    assert torch.equal(seq[0], torch.cat([hops[4], hops[0], hops[0]]))
    assert torch.equal(seq[1], hops[1:4].flatten(0, 1))


@pytest.mark.slow
def test_a_large_graph_can_be_prepared():
    """A tenth of a million nodes with a heavy tail: hubs have thousands of neighbours."""
    rng = np.random.default_rng(0)
    n = 100_000
    source, target = rng.integers(n, size=500_000), (n * rng.random(500_000) ** 3).astype(int)
    adjacency = graph(np.stack([source, target], 1), n)
    lists = neighbour_lists(adjacency, 50, 0)
    assert (lists[:, 0] == np.arange(n)).all()
    for i in rng.integers(n, size=20):
        first = adjacency[[i]]
        assert np.isin(lists[i, 1:], (first + first @ adjacency).indices).all()


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 28, 28), {}, r"client 'largegt' needs nodes with feature vectors .*\(3, 28, 28\); choose .*"),
        ((0,), {}, r"shape: must be 1 or more, got 0"),
        ((16,), {"nodes": 0}, r"nodes: must be 1 or more, got 0"),
        ((16,), {"hidden_dim": 0}, r"hidden_dim: must be 1 or more, got 0"),
        ((16,), {"heads": 0}, r"heads: must be 1 or more, got 0"),
        ((16,), {"global_dim": -3}, r"global_dim: must be 1 or more, got -3"),
        ((16,), {"num_centroids": 0}, r"num_centroids: must be 1 or more, got 0"),
        ((16,), {"num_centroids": 32768}, r"num_centroids: must be 32767 or less, got 32768"),
        ((16,), {"dropout": 1.0}, r"dropout: must be at least 0 and below 1, got 1.0"),
        ((16,), {"local_dropout": -0.1}, r"local_dropout: must be at least 0 and below 1, got -0.1"),
        ((16,), {"attn_dropout": 2}, r"attn_dropout: must be at least 0 and below 1, got 2"),
        ((16,), {"conv_type": "both"}, r"conv_type: must be one of local, global, full, got 'both'"),
        ((16,), {"norm": "bn"}, r"norm: must be one of none, batch, layer, got 'bn'"),
        (
            (16,),
            {"codebook_init": "zero"},
            r"codebook_init: must be one of consistent, reference, got 'zero'",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(shape, options, message):
    with pytest.raises(ClientError, match=f"^{message}$") as told:
        LargeGT(shape, 4, **options)
    assert "\n" not in str(told.value)


def test_mistakes_in_a_batch_are_told_in_one_line():
    seq, x, pos_enc = seeds()
    model = tiny(nodes=10).double()
    for inputs, message in (
        ((None, x, pos_enc), r"seq: conv_type=full needs token sequences .*, got none"),
        ((seq,), r"x: conv_type=full needs it for every seed, got none"),
        ((seq, x), r"pos_enc: conv_type=full needs it for every seed, got none"),
        ((seq, x, pos_enc[:, :5]), r"pos_enc: must have global_dim=8 columns, got 5; set global_dim .*"),
        ((seq, x, pos_enc), r"batch_idx: a model with nodes needs .* in training, got none"),
    ):
        with pytest.raises(ClientError, match=f"^{message}$"):
            model(*inputs)
    with pytest.raises(ClientError, match=r"^conv_type: a local model has no codes .* full or global$"):
        tiny(conv_type="local").assign(x, pos_enc)


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        (0, [], r"weights: must be one for each of 0 codebooks, got 0"),
        (2, [1], r"weights: must be one for each of 2 codebooks, got 1"),
        (2, [1, -1], r"weights: must not be negative, .* got \[1, -1\]"),
        (2, [0, 0], r"weights: .* have a sum above 0, got \[0, 0\]"),
        (2, [1, math.nan], r"weights: .* have a sum above 0, got \[1, nan\]"),
    ],
)
def test_mistakes_in_pooling_are_told_in_one_line(states, weights, message):
    with pytest.raises(ClientError, match=f"^{message}$"):
        pool_codebooks([tiny().state_dict()] * states, weights)


def test_mistakes_about_a_graph_are_told_in_one_line():
    def lists(**options):
        return lambda: neighbour_lists(**{"adjacency": LADDER, "length": 4, "seed": 0} | options)

    for call, message in (
        (lists(adjacency=LADDER.toarray()), r"adjacency: must be a sparse matrix .*, got ndarray"),
        (lists(adjacency=LADDER[:4]), r"adjacency: must be .* with a row a node, got shape \(4, 10\)"),
        (lists(length=0), r"length: .* 1 node or more, got 0"),
        (lists(nodes=np.array([0, 10])), r"nodes: must be numbers of the graph's 10 nodes, 0 to 9, .*"),
        (lists(nodes=np.array([-1])), r"nodes: must be numbers .*"),
        (lists(ids=np.arange(9)), r"ids: must be one for each of the graph's 10 nodes, .* shape \(9,\)"),
        (lists(ids=np.arange(10) - 1), r"ids: must be .* not negative, .*"),
        (lambda: hop_features(LADDER, np.ones((9, 4))), r"x: must be .* 10 nodes, .* shape \(9, 4\)"),
        (
            lambda: hop_features(LADDER, np.ones((10, 4), int)),
            r"x: must be floating features .* got int64 .*",
        ),
    ):
        with pytest.raises(ClientError, match=f"^{message}$") as told:
            call()
        assert "\n" not in str(told.value)


# --- learning --------------------------------------------------------------------------------------


def communities(n=2000):
    """A graph of four blocks with noisy features: hop features, lists, encodings and labels."""
    rng = np.random.default_rng(0)
    label = rng.integers(4, size=n)
    source = rng.integers(n, size=n * 5)
    members = [np.flatnonzero(label == c) for c in range(4)]
    inside = np.array([rng.choice(members[label[s]]) for s in source])
    target = np.where(rng.random(len(source)) < 0.7, inside, rng.integers(n, size=len(source)))
    keep = source != target
    adjacency = graph(np.stack([source[keep], target[keep]], 1), n)
    adjacency.sum_duplicates()
    adjacency.data[:] = 1
    x = rng.normal(size=(4, 16))[label] + 2 * rng.normal(size=(n, 16))
    scale = sparse.diags_array(np.maximum(adjacency.sum(0), 1) ** -0.5)
    _, vectors = sparse.linalg.eigsh(scale @ adjacency @ scale, k=9, which="LA", v0=np.ones(n))
    return (
        torch.from_numpy(hop_features(adjacency, x.astype(np.float32))),
        torch.from_numpy(neighbour_lists(adjacency, 16, 0)),
        torch.from_numpy((vectors[:, :-1] * math.sqrt(n)).astype(np.float32)),
        torch.from_numpy(label),
        torch.from_numpy(rng.permutation(n)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("counting", ["nodes", "running counts"])
def test_it_finds_the_communities_of_a_graph(counting):
    hops, lists, encodings, label, order = communities()
    train, test = order[:1000], order[1500:]
    torch.manual_seed(1)
    model = tiny(nodes=2000 if counting == "nodes" else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def logits(rows):
        return model(token_sequence(hops, lists[rows]), hops[rows, 0], encodings[rows], rows)

    for _ in range(5):
        for rows in train[torch.randperm(1000)].split(128):
            optimizer.zero_grad()
            functional.cross_entropy(logits(rows), label[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (logits(test).argmax(1) == label[test]).float().mean() >= 0.93
    assert len(model.assign(hops[:, 0], encodings).unique()) > 10
