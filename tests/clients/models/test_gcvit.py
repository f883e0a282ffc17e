"""GC ViT against numbers that were measured on the authors' implementation, and against timm's.

Inputs and weights of the forward and backward numbers follow closed formulas, so that any implementation can
be given them.
"""

import math
import re
import zlib
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from clients.errors import ClientError
from clients.models import gcvit
from clients.models.gcvit import VARIANTS, Block, DropPath, GCViT, GlobalQuery, partition, reverse
from strategies.cohort import alone_because
from strategies.functional import Stateless

TINY = {"dim": 8, "heads": (2, 2, 4, 4), "drop_path": 0}


def tiny(**options):
    """The small model of the measured numbers."""
    return GCViT((3, 64, 64), 5, **TINY | options).double().eval()


def filled(model):
    """The model with its weights at the formula's values, which depend on their names."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            j = torch.arange(p.numel(), dtype=p.dtype)
            phase = 2 * math.pi * (zlib.crc32(name.encode()) % 1000) / 1000
            size = 0.1 if p.ndim == 1 else 2 / math.sqrt(p.numel() / len(p))
            value = size * torch.sin(phase + j * (1 + 0.01 * (j % 13)))
            if re.search(r"norm\d?\.weight$", name):
                value += 1
            if "gamma" in name:
                value = torch.full_like(value, 0.5)
            p.copy_(value.view_as(p))
    return model


def images(count=2):
    b, c, i, j = torch.meshgrid(*(torch.arange(n).double() for n in (count, 3, 64, 64)), indexing="ij")
    return torch.sin(0.21 * (b + 1) * i + 0.13 * j * (c + 1)) + 0.5 * torch.cos(0.05 * i * j + c + 2 * b)


def meta(*args, **options):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return GCViT(*args, **options).eval()


def size(module):
    return sum(p.numel() for p in module.parameters())


def recorded(modules):
    """Lists that outputs of modules are appended to."""
    outputs = [[] for _ in modules]
    for seen, module in zip(outputs, modules, strict=True):
        module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.detach()))
    return outputs


def close(got, want, rtol=1e-8, atol=1e-8):
    """Equal to the digits that were written down."""
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=rtol, atol=atol)


# Sizes


@pytest.mark.parametrize(
    ("variant", "side", "total", "without_head", "giga_macs", "indices"),
    [
        ("xxt", 224, 11_995_428, 11_482_428, 2.140, (12, 244_902)),
        ("xt", 224, 19_981_294, 19_468_294, 2.936, (18, 259_308)),
        ("t", 224, 28_221_974, 27_708_974, 4.791, (31, 758_716)),
        ("t2", 224, 34_535_654, 34_022_654, 6.213, (41, 1_142_876)),
        ("s", 224, 51_092_173, 50_323_173, 8.575, (31, 758_716)),
        ("s2", 224, 68_615_197, 67_846_197, 11.586, (35, 912_380)),
        ("b", 224, 90_320_836, 89_295_836, 14.877, (31, 758_716)),
        ("l", 224, 202_075_570, 200_538_570, 32.646, (31, 758_716)),
        ("l", 384, 202_860_610, None, 104.21, None),
        ("l", 512, 203_795_362, None, 202.61, None),
    ],
)
def test_published_sizes(variant, side, total, without_head, giga_macs, indices):
    model = meta((3, side, side), 1000, variant)
    assert size(model) == total
    assert without_head in (None, total - size(model.head))
    buffers = list(model.buffers())
    assert indices in (None, (len(buffers), sum(b.numel() for b in buffers)))
    assert {b.dtype for b in buffers} == {torch.int64}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        model(torch.empty(1, 3, side, side))
    # Norms and pooling, at most 0.9 % of the measured numbers, are not counted here.
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.01)


@pytest.mark.parametrize(
    ("side", "classes", "options", "total"),
    [
        (64, 5, TINY, 123_261),
        (64, 5, TINY | {"layer_scale": 1e-5}, 123_741),
        (64, 4, {}, 480_338),
        (64, 4, {"dim": 32}, 1_897_810),
        (64, 5, {"dim": 32, "heads": (2, 2, 4, 4), "layer_scale": 1e-5}, 1_899_933),
        (64, 10, {"variant": "xxt"}, 11_447_878),
        (32, 4, {"depths": (1, 2, 2, 1)}, 361_913),
    ],
)
def test_small_sizes(side, classes, options, total):
    assert size(meta((3, side, side), classes, **options)) == total


def test_sizes_of_the_parts_of_xxt():
    model = meta((3, 224, 224), 1000, "xxt")
    parts = [(size(s.blocks), size(s.downsample), size(s.q_global_gen)) for s in model.levels]
    assert size(model.patch_embed) == 45_632
    assert [size(b) for b in model.levels[0].blocks] == [42_066, 37_906]
    assert parts == [
        (79_972, 80_832, 20_160),
        (315_592, 321_408, 51_456),
        (3_788_208, 1_281_792, 100_608),
        (4_997_920, 0, 397_824),
    ]
    assert (size(model.norm), size(model.head)) == (1_024, 513_000)


@pytest.mark.parametrize(
    ("variant", "shape"),
    [("micro", (3, 224, 224)), ("micro", (4, 32, 32)), ("xxt", (1, 64, 64)), ("s", (1, 96, 96))],
)
def test_closed_form_of_the_size(variant, shape):
    v, side = VARIANTS[variant], shape[1]

    def mbconv(c):
        return 9 * c + 2 * c * (c // 4) + c**2

    want = 9 * shape[0] * v.dim + v.dim + mbconv(v.dim) + 9 * v.dim**2 + 4 * v.dim
    for i, (depth, heads, w) in enumerate(
        zip(v.depths, v.heads, [side // n for n in (32, 32, 16, 32)], strict=True)
    ):
        c = v.dim * 2**i
        hidden = int(c * v.mlp_ratio)
        block = 4 * c + (2 * w - 1) ** 2 * heads + c**2 + c + 2 * c * hidden + hidden + c
        block += 2 * c if v.layer_scale else 0
        want += depth * block + (depth + 1) // 2 * (3 * c**2 + 3 * c) + depth // 2 * (2 * c**2 + 2 * c)
        want += (3, 2, 1, 1)[i] * mbconv(c) + (mbconv(c) + 18 * c**2 + 6 * c if i < 3 else 0)
    want += 2 * c + c * 7 + 7
    assert size(meta(shape, 7, variant)) == want


def test_weight_decay_of_tensors_with_two_dimensions_takes_in_the_bias_tables():
    matrices = [p.ndim >= 2 for p in meta((3, 224, 224), 1000, "xxt").parameters()]
    assert (sum(matrices), len(matrices) - sum(matrices)) == (110, 116)


def test_names_and_shapes_of_parameters():
    """Those of the authors' checkpoints."""
    dim, heads, windows, ratio = 8, (2, 2, 4, 4), (2, 2, 4, 2), 3

    def branch(prefix, c):
        return {
            f"{prefix}.0.weight": (c, 1, 3, 3),
            f"{prefix}.2.fc.0.weight": (c // 4, c),
            f"{prefix}.2.fc.2.weight": (c, c // 4),
            f"{prefix}.3.weight": (c, c, 1, 1),
        }

    def affine(name, out, *into):
        return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}

    def reduce(name, c, out):
        both = affine(f"{name}.norm1", c) | affine(f"{name}.norm2", out)
        return branch(f"{name}.conv", c) | {f"{name}.reduction.weight": (out, c, 3, 3)} | both

    want = affine("patch_embed.proj", dim, 5, 3, 3) | reduce("patch_embed.conv_down", dim, dim)
    for i, c in enumerate([8, 16, 32, 64]):
        for k in range((3, 2, 1, 1)[i]):
            want |= branch(f"levels.{i}.q_global_gen.to_q_global.{k}.conv", c)
        for j in range(2):
            block = f"levels.{i}.blocks.{j}"
            want[f"{block}.attn.relative_position_bias_table"] = ((2 * windows[i] - 1) ** 2, heads[i])
            want |= affine(f"{block}.norm1", c) | affine(f"{block}.norm2", c)
            want |= affine(f"{block}.attn.qkv", (3 - j) * c, c) | affine(f"{block}.attn.proj", c, c)
            want |= affine(f"{block}.mlp.fc1", ratio * c, c) | affine(f"{block}.mlp.fc2", c, ratio * c)
            want |= {f"{block}.gamma1": (c,), f"{block}.gamma2": (c,)}
        if i < 3:
            want |= reduce(f"levels.{i}.downsample", c, 2 * c)
    want |= affine("norm", 64) | affine("head", 7, 64)
    model = GCViT((5, 64, 64), 7, dim=dim, heads=heads, mlp_ratio=ratio, layer_scale=0.1)
    assert {k: tuple(p.shape) for k, p in model.state_dict().items()} == want
    assert dict(model.named_buffers()).keys() == {
        f"levels.{i}.blocks.{j}.attn.relative_position_index" for i in range(4) for j in range(2)
    }


def test_shapes_on_the_way():
    model = meta((3, 224, 224), 1000, "xxt")
    seen = recorded([model.patch_embed, *(s.q_global_gen for s in model.levels), *model.levels])
    out = model(torch.empty(2, 3, 224, 224, device="meta"))
    assert [tuple(s.shape) for (s,) in seen] == [
        (2, 56, 56, 64),
        *((2, h, w**2, 32) for h, w in ((2, 7), (4, 7), (8, 14), (16, 7))),
        *((2, side, side, c) for side, c in ((28, 128), (14, 256), (7, 512), (7, 512))),
    ]
    assert out.shape == (2, 1000)


# Numbers measured on the authors' implementation, in float64


def test_forward_as_measured():
    model = filled(tiny())
    stem, query, *stages = recorded([model.patch_embed, model.levels[0].q_global_gen, *model.levels])
    logits = model(images())
    (stem,), (query,) = stem, query
    assert stem.shape == (2, 16, 16, 8)
    close(stem[0, 0, 0, :4], [0.70818852, -0.69684944, 0.01694639, 0.52012888])
    close(stem.sum(), -80.0848671)
    close(stem.square().sum(), 3893.25621)
    tokens = [
        [4.10515740, 2.78646613, 2.42256268, 3.40997433],
        [2.47993089, 2.82569885, 3.09165288, 3.21262395],
        [4.39085253, 3.32320930, 2.92245618, 3.27267862],
        [4.39085253, 3.15008886, 3.29547378, 4.49418843],
    ]
    close(query[0, 0], tokens)
    close(query.sum(), 220.329359)
    sums = [
        ((2, 8, 8, 16), -13.7285702, 2124.67105),
        ((2, 4, 4, 32), -20.2306148, 1030.92790),
        ((2, 2, 2, 64), -0.31188007, 517.354964),
        ((2, 2, 2, 64), 181.465886, 3908.78813),
    ]
    for (out,), (shape, total, squares) in zip(stages, sums, strict=True):
        assert out.shape == shape
        close(out.sum(), total)
        close(out.square().sum(), squares)
    close(model.features(images())[0, :4], [-1.01136822, -0.00063891, 0.00027610, 0.00869562])
    close(
        logits,
        [
            [0.23419054, 0.03043081, -0.26887719, -0.18268151, -0.38054001],
            [-0.24933410, -0.19069257, -1.77357475, -1.92403373, -0.42034426],
        ],
    )


def test_backward_as_measured():
    model = filled(tiny())
    loss = functional.cross_entropy(model(images()), torch.tensor([1, 3]))
    loss.backward()
    close(loss, 2.18072362)
    close(nn.utils.get_total_norm([p.grad for p in model.parameters()]), 78.4749746)
    norms = {
        "patch_embed.proj.weight": 58.63047194,
        "levels.0.q_global_gen.to_q_global.0.conv.0.weight": 0.31212066,
        "levels.0.blocks.1.attn.relative_position_bias_table": 0.22456739,
        "levels.1.blocks.1.attn.qkv.weight": 2.62740255,
        "head.weight": 4.48042067,
    }
    for name, norm in norms.items():
        close(model.get_parameter(name).grad.norm(), norm)


def test_layer_scale_as_measured():
    model = filled(tiny(layer_scale=1e-5))
    logits = model(images())
    loss = functional.cross_entropy(logits, torch.tensor([1, 3]))
    loss.backward()
    close(
        logits,
        [
            [0.66790973, 1.02806749, -0.09538643, 0.25121675, -1.59318071],
            [1.45490628, -0.08315694, -0.56980736, -0.14274391, -0.81473968],
        ],
    )
    close(loss, 1.51906634)
    close(nn.utils.get_total_norm([p.grad for p in model.parameters()]), 88.9758616)


@pytest.mark.parametrize("layer_scale", [0, 0.5])
def test_same_as_timm(layer_scale):
    """Logits and gradients; up to timm 1.0.30 windows of a batch were given other images' queries."""
    pytest.importorskip("timm", minversion="1.0.31")
    from timm.models.gcvit import GlobalContextVit

    shared = {"depths": (2, 3, 2, 2), "mlp_ratio": 2, "layer_scale": layer_scale or None}
    ours = filled(GCViT((3, 64, 64), 5, dim=32, drop_path=0, **shared).double()).eval()
    theirs = GlobalContextVit(
        num_classes=5, img_size=64, embed_dim=32, num_heads=VARIANTS["micro"].heads, **shared
    ).double()
    names = {k: in_timm(k) for k in ours.state_dict()}
    state = theirs.eval().state_dict()
    theirs.load_state_dict(
        {names[k]: v.reshape(state[names[k]].shape) for k, v in ours.state_dict().items()}, strict=True
    )
    x, y = images(3), torch.tensor([0, 3, 4])
    outputs = [model(x) for model in (ours, theirs)]
    close(*outputs, rtol=1e-12, atol=1e-12)
    for out in outputs:
        functional.cross_entropy(out, y).backward()
    for name, p in ours.named_parameters():
        close(p.grad, theirs.get_parameter(names[name]).grad.view_as(p), rtol=1e-9, atol=1e-11)


def in_timm(name):
    """timm's name of a parameter."""
    name = re.sub(r"^levels\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
    name = re.sub(
        r"^levels\.(\d)\.q_global_gen\.to_q_global\.(\d)\.conv",
        lambda m: f"stages.{m[1]}.global_block.blocks.conv{int(m[2]) + 1}",
        name,
    )
    in_mbconv = "global_block" in name or "down" in name
    for ours, theirs in (
        ("patch_embed.proj", "stem.conv1"),
        ("patch_embed.conv_down", "stem.down"),
        ("levels.", "stages."),
        (".conv.", ".conv_block."),
        ("attn.relative_position_bias_table", "attn.rel_pos.relative_position_bias_table"),
        ("gamma1", "ls1.gamma"),
        ("gamma2", "ls2.gamma"),
    ):
        name = name.replace(ours, theirs)
    if in_mbconv:
        for ours, theirs in (("2.fc.0", "se.fc1"), ("2.fc.2", "se.fc2"), ("0", "conv_dw"), ("3", "conv_pw")):
            name = re.sub(rf"(conv_block|conv\d)\.{re.escape(ours)}\.weight", rf"\1.{theirs}.weight", name)
    return re.sub(r"^head", "head.fc", re.sub(r"^norm", "stages.3.norm", name))


# What must hold for any weights


def test_an_image_does_not_depend_on_the_rest_of_its_batch():
    model, x = filled(tiny()), images(3)
    close(model(x), torch.cat([model(row[None]) for row in x]), rtol=0, atol=1e-12)


def test_windows_come_by_image_row_and_column():
    x = torch.arange(2 * 4 * 4).view(2, 4, 4, 1)
    assert partition(x, 2).squeeze(-1).tolist() == [
        [first, first + 1, first + 4, first + 5] for first in (0, 2, 8, 10, 16, 18, 24, 26)
    ]


@pytest.mark.parametrize(("side", "window"), [(12, 3), (4, 1), (6, 6), (8, 2)])
def test_reverse_undoes_partition(side, window):
    x = torch.randn(3, side, side, 5)
    windows = partition(x, window)
    assert windows.shape == (3 * (side // window) ** 2, window**2, 5)
    assert torch.equal(reverse(windows, window, side), x)


def test_relative_positions_in_windows_of_two():
    want = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert gcvit.relative_position_index(2).tolist() == want


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_relative_positions(window):
    index, last = gcvit.relative_position_index(window), (2 * window - 1) ** 2 - 1
    assert index.dtype == torch.int64
    assert set(index.diagonal().tolist()) == {last // 2}
    assert set((index + index.T).flatten().tolist()) == {last}
    assert set(index.flatten().tolist()) == set(range(last + 1))


def test_fused_attention_is_the_formula(monkeypatch):
    """With weights so large that attention is far from uniform."""

    def formula(q, k, v, attn_mask):
        return ((q * q.shape[-1] ** -0.5) @ k.mT + attn_mask).softmax(-1) @ v

    torch.manual_seed(0)
    model = filled(tiny()).float()
    x, fused = images().float(), []
    scores = functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask):
        out = scores(q, k, v, attn_mask=attn_mask)
        torch.testing.assert_close(out, formula(q, k, v, attn_mask), rtol=1e-5, atol=1e-6)
        fused.append(out)
        return out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    want = model(x)
    assert len(fused) == 8
    monkeypatch.setattr(functional, "scaled_dot_product_attention", formula)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def block(is_global, dim=8, heads=2, window=4, layer_scale=0.0, drop_path=0.0):
    made = Block(dim, heads, window, 2 * dim, layer_scale, True, drop_path, is_global)
    return filled(made.double()).eval()


def test_a_global_block_is_a_local_one_that_is_given_its_query():
    """Where one window covers the map."""
    local, glob = block(False), block(True)
    weights = local.state_dict()
    weights |= {k: weights[k][8:] for k in ("attn.qkv.weight", "attn.qkv.bias")}
    glob.load_state_dict(weights)
    x = torch.randn(3, 4, 4, 8, dtype=torch.float64)
    query, *_ = local.attn.queries_keys_values(partition(local.norm1(x), 4), None)
    close(glob(x, query), local(x, None), rtol=0, atol=1e-12)


def test_query_of_a_global_block_is_its_images():
    """Image-major, as windows are: another query for one image leaves the others' windows as they were."""
    glob = block(True, window=2)
    x, query = torch.randn(3, 4, 4, 8).double(), torch.randn(3, 2, 4, 4).double()
    before, after = glob(x, query), glob(x, query + torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1))
    assert (before != after).flatten(1).any(1).tolist() == [False, True, False]
    assert (before != after)[1].any(-1).all()


def test_a_part_of_the_image_reaches_all_windows_by_the_query_alone():
    stage = filled(tiny()).levels[0]
    x = model_input = torch.randn(1, 16, 16, 8, dtype=torch.float64)
    y = x + functional.pad(torch.randn(1, 8, 8, 8, dtype=torch.float64), (0, 0, 0, 8, 0, 8))
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[:, :8, :8] = True
    local, glob = stage.blocks
    assert torch.equal((local(x, None) != local(y, None)).any(-1), inside)
    queries = [stage.q_global_gen(v) for v in (model_input, y)]
    assert torch.equal((glob(x, queries[0]) != glob(y, queries[0])).any(-1), inside)
    assert (glob(x, queries[0]) != glob(y, queries[1])).any(-1).all()


@pytest.mark.parametrize(("side", "window", "halvings"), [(16, 2, 3), (8, 2, 2), (4, 4, 0), (12, 6, 1)])
def test_query_generator_pools_what_its_convolutions_leave(side, window, halvings):
    """Where convolutions add nothing it is max pooling; channels become heads, cells become tokens."""
    generator = filled(GlobalQuery(6, 3, side, window).double())
    for layer in generator.to_q_global:
        nn.init.zeros_(layer.conv[3].weight)
    assert len(generator.to_q_global) == max(halvings, 1)
    x = torch.randn(2, side, side, 6, dtype=torch.float64)
    pooled = x.permute(0, 3, 1, 2)
    for _ in range(halvings):
        pooled = functional.max_pool2d(pooled, 3, 2, 1)
    query = generator(x)
    assert query.shape == (2, 3, window**2, 2)
    for head in range(3):
        for cell in range(window**2):
            cells = pooled[:, 2 * head : 2 * head + 2, cell // window, cell % window]
            assert torch.equal(query[:, head, cell], cells)


def test_blocks_of_a_stage_share_one_query():
    model = tiny(depths=(4, 4, 2, 2))
    made, given = recorded([model.levels[0].q_global_gen]), []
    for b in model.levels[0].blocks:
        b.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    model(images())
    assert len(made[0]) == 1
    assert len(given) == 4
    assert all(torch.equal(q, made[0][0]) for q in given)


def test_every_stage_begins_with_a_local_block():
    model = meta((3, 64, 64), 2, depths=(3, 1, 2, 5))
    kinds = [[b.attn.is_global for b in s.blocks] for s in model.levels]
    assert kinds == [[False, True, False], [False], [False, True], [False, True, False, True, False]]


def test_query_generator_of_a_stage_with_one_block_is_there_but_of_no_use():
    model = tiny(depths=(1, 2, 2, 1))
    model(images()).sum().backward()
    idle = {k for k, p in model.named_parameters() if p.grad is None}
    assert idle == {k for k in model.state_dict() if re.match(r"levels\.[03]\.q_global_gen", k)}


def test_options_replace_those_of_the_variant():
    model = meta(
        (3, 64, 64), 2, "s", depths=[1, 1, 1, 1], windows=[4, 8, 1, 2], layer_scale=0, qkv_bias=False
    )
    assert [len(s.q_global_gen.to_q_global) for s in model.levels] == [2, 1, 2, 1]
    assert [s.blocks[0].window for s in model.levels] == [4, 8, 1, 2]
    assert not [k for k in model.state_dict() if "gamma" in k or k.endswith("qkv.bias")]
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 2)
    assert model.levels[0].blocks[0].norm1.normalized_shape == (96,)


@pytest.mark.parametrize("shape", [(1, 32, 32), [3, 96, 96], (2, 160, 160)], ids=str)
def test_images_give_one_logit_a_class(shape):
    assert GCViT(shape, 7, dim=8)(torch.zeros(2, *shape)).shape == (2, 7)


# The start


def test_initial_weights():
    torch.manual_seed(0)
    model = GCViT((3, 64, 64), 10, dim=32, layer_scale=1e-5)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15), name
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
            assert layer.eps == 1e-5
        elif isinstance(layer, nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5  # uniform, as torch has it
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        elif isinstance(layer, gcvit.WindowAttention) and layer.relative_position_bias_table.numel() > 30:
            assert layer.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.35)
    gammas = [p for k, p in model.named_parameters() if "gamma" in k]
    assert len(gammas) == 16
    assert all(torch.equal(p, torch.full_like(p, 1e-5)) for p in gammas)
    assert not any("BatchNorm" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize("variant", ["micro", "xxt"])
def test_loss_starts_near_that_of_a_guess(variant):
    """ln 1000 = 6.908; 6.89 was measured on the authors' XXT."""
    torch.manual_seed(0)
    side = 64 if variant == "micro" else 224
    model = GCViT((3, side, side), 1000, variant).eval()
    with torch.no_grad():
        loss = functional.cross_entropy(model(torch.randn(4, 3, side, side)), torch.arange(4))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.2)


def test_blocks_with_small_layer_scale_start_as_identities():
    torch.manual_seed(0)
    stage = tiny(layer_scale=1e-5).levels[0]
    x = torch.randn(2, 16, 16, 8, dtype=torch.float64)
    for b in stage.blocks:
        assert (b(x, stage.q_global_gen(x)) - x).abs().max() < 1e-5
        with torch.no_grad():
            b.gamma1.fill_(1)
        assert (b(x, stage.q_global_gen(x)) - x).abs().max() > 1e-3


def test_state_carries_a_model_over_and_holds_no_integers():
    model, other = filled(tiny()), tiny()
    state = model.state_dict()
    assert all(v.is_floating_point() for v in state.values())
    other.load_state_dict(state)
    assert torch.equal(other(images()), model(images()))


# Drop path


def test_drop_path_grows_from_block_to_block():
    rates = [b.drop_path.p for s in meta((3, 224, 224), 9, "xxt").levels for b in s.blocks]
    assert len(rates) == 12
    assert rates[:3] == pytest.approx([0, 0.0181818, 0.0363636], abs=1e-6)
    assert rates[-1] == 0.2
    steps = [b - a for a, b in pairwise(rates)]
    assert steps == pytest.approx([0.2 / 11] * 11)
    # A single block of each stage, and one rate over stages.
    few = [
        b.drop_path.p
        for s in meta((3, 64, 64), 9, depths=(1, 1, 1, 1), drop_path=0.3).levels
        for b in s.blocks
    ]
    assert few == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_takes_whole_examples():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), 1 + torch.rand(4000, 2, 2, 3)
    factor = layer(x) / x
    assert factor.flatten(1).std(1).max() < 1e-6
    dropped = (factor[:, 0, 0, 0] == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    kept = factor[factor[:, 0, 0, 0] > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3))
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
def test_drop_path_leaves_out_branches_of_a_block(layer_scale):
    """Each of the two on its own, so that an example goes one of four ways."""
    torch.manual_seed(0)
    b = block(False, layer_scale=layer_scale, drop_path=0.5)
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    scale = layer_scale or 1.0
    attended = 2 * scale * reverse(b.attn(partition(b.norm1(x), 4), None), 4, 4)
    ways = [start + m * 2 * scale * b.mlp(b.norm2(start)) for start in (x, x + attended) for m in (0, 1)]
    out = b.train()(x.expand(64, -1, -1, -1), None)
    distances = torch.stack([(out - way).flatten(1).abs().amax(1) for way in ways])
    assert distances.min(0).values.max() < 1e-12
    assert set(distances.argmin(0).tolist()) == {0, 1, 2, 3}


def test_training_without_drop_path_is_evaluation():
    model = filled(tiny())
    assert torch.equal(model.train()(images()), model.eval()(images()))


def test_clients_with_drop_path_train_one_at_a_time():
    """Each draws random numbers of its own, as with dropout."""
    assert "dropout" in alone_because(Stateless(GCViT((3, 64, 64), 2)), forced=True)
    assert alone_because(Stateless(GCViT((3, 64, 64), 2, drop_path=0)), forced=True) is None


# As a pure function, and in two parts


@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
def test_gradients_of_many_clients_together_are_those_of_each(layer_scale):
    torch.manual_seed(0)
    model = filled(tiny(layer_scale=layer_scale)).train()
    start = {k: p.detach() for k, p in model.named_parameters()}
    clients = {
        k: torch.stack([p + 0.1 * n * torch.randn_like(p) for n in range(3)]) for k, p in start.items()
    }
    x, y = torch.randn(3, 2, 3, 64, 64, dtype=torch.float64), torch.randint(5, (3, 2))

    def loss(params, x, y):
        return functional.cross_entropy(functional_call(model, params, (x,)), y)

    together = vmap(grad(loss))(clients, x, y)
    outputs = vmap(lambda params, x: functional_call(model, params, (x,)))(clients, x)
    for n in range(3):
        model.load_state_dict({k: v[n] for k, v in clients.items()})
        model.zero_grad()
        functional.cross_entropy(model(x[n]), y[n]).backward()
        close(outputs[n], model(x[n]).detach(), rtol=1e-10, atol=1e-11)
        for name, p in model.named_parameters():
            close(together[name][n], p.grad, rtol=1e-9, atol=1e-11)


def test_clients_together_may_draw_drop_path_where_that_is_asked_for():
    torch.manual_seed(0)
    model = filled(tiny(drop_path=0.5)).train()
    clients = {k: torch.stack([p.detach()] * 3) for k, p in model.named_parameters()}
    outputs = vmap(lambda p: functional_call(model, p, (images(),)), randomness="different")(clients)
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_inputs_are_left_as_they_were():
    model, x = filled(tiny()), images()
    model(x).sum().backward()
    assert torch.equal(x, images())


def test_features_are_what_the_head_is_given():
    model = filled(tiny())
    features = model.features(images())
    assert features.shape == (2, 64)
    assert torch.equal(model.head(features), model(images()))
    stateless = Stateless(model)
    seen, out = stateless.embed(stateless.initial(), {"x": images()})
    assert torch.equal(seen, features)
    assert torch.equal(out, model(images()))
    assert stateless.head == {"head.weight", "head.bias"}


# Messages


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((512,), {}, r"^client 'gcvit' needs images .*\(512,\).*client=mlp$"),
        ((1, 28, 28), {}, r"side is a multiple of 32 pixels, but the data give 28x28; nearest: 32x32$"),
        ((3, 112, 112), {}, r"multiple of 32 pixels, but the data give 112x112; nearest: 96x96 or 128x128$"),
        ((3, 64, 96), {}, r"needs square images .* give 64x96; nearest: 64x64 or 96x96$"),
        ((3, 64, 64), {"variant": "xl"}, r"no variant 'xl', only micro, xxt, xt, t, t2, s, s2, b, l$"),
        ((3, 64, 64), {"dim": 3}, r"needs dim at least 4, got 3$"),
        ((3, 64, 64), {"mlp_ratio": 0}, r"needs mlp_ratio enough for one hidden unit, got 0$"),
        ((3, 64, 64), {"drop_path": 1.0}, r"needs drop_path at least 0 and below 1, got 1\.0$"),
        ((3, 64, 64), {"drop_path": -0.1}, r"needs drop_path at least 0 and below 1, got -0\.1$"),
        ((3, 64, 64), {"layer_scale": -1}, r"needs layer_scale at least 0, got -1$"),
        (
            (3, 64, 64),
            {"depths": (2, 2, 2)},
            r"needs depths of at least 1 for each of 4 stages, got \[2, 2, 2\]$",
        ),
        ((3, 64, 64), {"depths": (2, 0, 2, 2)}, r"needs depths of at least 1 .* got \[2, 0, 2, 2\]$"),
        ((3, 64, 64), {"heads": ()}, r"needs heads of at least 1 .* got \[\]$"),
        ((3, 64, 64), {"windows": ()}, r"needs windows of at least 1 .* got \[\]$"),
        (
            (3, 64, 64),
            {"heads": (1, 3, 4, 8)},
            r"needs heads\[1\] that divide the 32 channels of the stage, got 3; nearest: 2 or 4$",
        ),
        (
            (3, 64, 64),
            {"windows": (2, 2, 3, 2)},
            r"needs windows\[2\] that are the stage's side 4 over a power of two, got 3; nearest: 2 or 4$",
        ),
        ((3, 96, 96), {"windows": (8, 3, 6, 3)}, r"windows\[0\] .*side 24.*got 8; nearest: 6 or 12$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(shape, options, message):
    with pytest.raises(ClientError, match=message) as error:
        GCViT(shape, 10, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("client 'gcvit' ")


# Training


def gratings(count, generator):
    """Images of four classes: waves in four directions, with random phase and tint, in noise."""
    y = torch.arange(count) % 4
    a, b = torch.tensor([(6, 0), (0, 6), (4, 4), (4, -4)])[y].view(-1, 2, 1, 1).unbind(1)
    i, j = torch.arange(64)[:, None], torch.arange(64)
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(2 * math.pi * (a * i + b * j) / 64 + phase)
    tint = 0.5 + torch.rand(count, 3, 1, 1, generator=generator)
    return tint * wave[:, None] + torch.randn(count, 3, 64, 64, generator=generator), y


@pytest.mark.slow
def test_learns_directions_of_gratings_in_sixty_steps():
    """Chance is 0.25. Of six seeds that were tried, two need 80 steps; this one has 0.98 after 40."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    (x, y), (test_x, test_y) = gratings(640, generator), gratings(256, generator)
    model = GCViT((3, 64, 64), 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    for chosen in torch.cat([torch.randperm(640, generator=generator) for _ in range(3)]).split(32):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        right = model.eval()(test_x).argmax(1) == test_y
    assert right.float().mean() >= 0.9
