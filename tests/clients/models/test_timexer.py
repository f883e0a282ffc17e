"""TimeXer against numbers of its published code, in float64, and against what must hold of any such model."""

import math
from functools import partial
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from clients.errors import ClientError
from clients.models.timexer import Attention, TimeXer, position_code

# Said by torch where vmap meets fused attention on a CPU; results and, at these sizes, speed are the same.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

small = partial(TimeXer, horizon=12, patch_len=12, d_model=16, n_heads=2, e_layers=2, d_ff=32, dropout=0.0)


def double(model):
    """Random weights of norms as well, so that no test passes because they are 1 and 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p += 0.1 * torch.randn_like(p)
    return model.double().eval()


def windows(batch=3, channels=3, marks=4, steps=48):
    torch.manual_seed(1)
    x = torch.randn(batch, steps, channels, dtype=torch.float64)
    return x.cumsum(1) + 5, torch.rand(batch, steps, marks, dtype=torch.float64) - 0.5


def size(model):
    return sum(p.numel() for p in model.parameters())


# --- parameters ------------------------------------------------------------------------------------

PUBLISHED = {
    ("MS", 3, 168, 24, 24, 512, 512, 8, 1): 2_828_312,
    ("MS", 3, 168, 24, 24, 512, 2048, 8, 1): 4_402_712,
    ("MS", 3, 168, 24, 24, 512, 512, 8, 2): 5_457_944,
    ("MS", 3, 168, 24, 24, 512, 2048, 8, 2): 8_606_744,
    ("MS", 3, 168, 24, 24, 512, 512, 8, 3): 8_087_576,
    ("MS", 3, 168, 24, 24, 512, 2048, 8, 3): 12_810_776,
    ("MS", 7, 96, 96, 16, 512, 512, 8, 2): 5_662_816,
    ("MS", 7, 96, 192, 16, 128, 128, 8, 2): 518_848,
    ("MS", 7, 96, 720, 16, 512, 2048, 8, 2): 11_048_656,
    ("MS", 37, 168, 72, 8, 512, 512, 8, 2): 6_162_504,
    ("M", 7, 96, 96, 16, 256, 2048, 8, 1): 1_782_112,
    ("M", 7, 96, 720, 16, 256, 1024, 8, 1): 2_375_632,
    ("M", 321, 96, 96, 16, 512, 512, 8, 4): 11_085_920,
    ("M", 862, 96, 96, 16, 512, 512, 8, 3): 8_733_280,
    ("MS", 3, 168, 24, 24, 64, 128, 4, 1): 75_096,
    ("MS", 3, 168, 24, 24, 32, 64, 4, 1): 25_272,
    ("MS", 3, 48, 12, 12, 32, 64, 4, 1): 16_812,
    ("MS", 3, 48, 12, 12, 16, 32, 2, 2): 8_684,
    ("M", 4, 168, 24, 24, 32, 64, 4, 2): 38_200,
}


def without_memory(mode, N, S, T, P, D, F, H, L):
    with torch.device("meta"):
        return TimeXer((S, N), T, mode, patch_len=P, d_model=D, d_ff=F, n_heads=H, e_layers=L)


@pytest.mark.parametrize("config", PUBLISHED, ids=str)
def test_number_of_parameters_is_the_published_codes(config):
    assert size(without_memory(*config)) == PUBLISHED[config]


def test_number_of_parameters_has_a_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(40):
        mode = ("MS", "M", "S")[rng.integers(3)]
        N = 1 if mode == "S" else int(rng.integers(1, 9))
        P, K, T, F, L, H = (int(n) for n in rng.integers(1, (20, 9, 40, 70, 4, 5)))
        S, D = P * K, 2 * H * int(rng.integers(1, 9))
        V = N if mode == "M" else 1
        layer = 8 * (D**2 + D) + (D * F + F) + (F * D + D) + 6 * D
        total = V * D + P * D + (S * D + D) + L * layer + 2 * D + D * (K + 1) * T + T
        assert size(without_memory(mode, N, S, T, P, D, F, H, L)) == total


def test_weights_have_the_published_codes_names_and_shapes():
    V, D, F, S, P, T, K = 3, 16, 32, 48, 12, 12, 4
    shapes = {
        "en_embedding.glb_token": (1, V, 1, D),
        "en_embedding.value_embedding.weight": (D, P),
        "ex_embedding.value_embedding.weight": (D, S),
        "ex_embedding.value_embedding.bias": (D,),
        "encoder.norm.weight": (D,),
        "encoder.norm.bias": (D,),
        "head.linear.weight": (T, D * (K + 1)),
        "head.linear.bias": (T,),
    }
    for i in range(2):
        layer = f"encoder.layers.{i}"
        shapes |= {f"{layer}.conv1.weight": (F, D, 1), f"{layer}.conv1.bias": (F,)}
        shapes |= {f"{layer}.conv2.weight": (D, F, 1), f"{layer}.conv2.bias": (D,)}
        for kind in ("weight", "bias"):
            shapes |= {f"{layer}.norm{j}.{kind}": (D,) for j in (1, 2, 3)}
        for attention in ("self_attention", "cross_attention"):
            for part in ("query", "key", "value", "out"):
                name = f"{layer}.{attention}.{part}_projection"
                shapes |= {f"{name}.weight": (D, D), f"{name}.bias": (D,)}
    model = small((S, V), mode="M")
    assert {k: tuple(p.shape) for k, p in model.named_parameters()} == shapes
    # No position table: nothing is sent but what is learned.
    assert set(model.state_dict()) == set(shapes)


@pytest.mark.parametrize("mode", ["MS", "M"])
def test_only_global_tokens_of_mode_m_know_the_number_of_channels(mode):
    few, many = ({k: p.shape for k, p in small((48, n), mode=mode).named_parameters()} for n in (2, 9))
    differ = {k for k in few if few[k] != many[k]}
    assert differ == ({"en_embedding.glb_token"} if mode == "M" else set())


def test_initial_weights_are_the_frameworks_defaults():
    torch.manual_seed(0)
    model = TimeXer((168, 3), 24, d_model=64, d_ff=128, n_heads=4)
    for name, p in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            assert p.abs().max() <= bound, name
            assert p.abs().max() > 0.8 * bound, name
        elif isinstance(module, nn.LayerNorm):
            assert (p == float(name.endswith("weight"))).all(), name
        else:
            assert name == "en_embedding.glb_token"
            assert 0.6 < p.std() < 1.4


def test_position_code_is_sines_and_cosines_in_turn():
    code = position_code(9, 6)
    assert code.dtype == torch.float32
    for k in range(9):
        for i in range(3):
            angle = k * 10000 ** (-2 * i / 6)
            assert code[k, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert code[k, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


# --- numbers of the published code -----------------------------------------------------------------


def phase(name):
    return crc32(name.encode()) % 1000


def oracle(mode, **options):
    """A model whose every weight is a known sine."""
    model = small((48, 3), mode=mode, **options).double().eval()
    norms = {name for name, layer in model.named_modules() if isinstance(layer, nn.LayerNorm)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            j = torch.arange(p.numel(), dtype=torch.float64)
            scale = 0.1 if p.ndim == 1 else 2 / math.sqrt(p.numel() / p.shape[0])
            filled = scale * torch.sin(2 * math.pi * phase(name) / 1000 + j * (1 + 0.01 * (j % 13)))
            layer, _, kind = name.rpartition(".")
            p.copy_(filled.view_as(p) + float(layer in norms and kind == "weight"))
    return model


def oracle_series(start, stop):
    b = torch.arange(2.0, dtype=torch.float64)[:, None, None]
    t = torch.arange(start, stop, dtype=torch.float64)[:, None]
    n = torch.arange(3.0, dtype=torch.float64)
    return torch.sin(0.1 * (t + 1) * (n + 1) + 0.7 * b) + 0.02 * t * (n + 1)


def oracle_marks():
    b = torch.arange(2.0, dtype=torch.float64)[:, None, None]
    t = torch.arange(48.0, dtype=torch.float64)[:, None]
    return 0.5 * torch.cos(0.2 * torch.arange(1.0, 5.0, dtype=torch.float64) * t + b)


def oracle_loss(model, y):
    target = oracle_series(48, 60)
    return functional.mse_loss(y, target if model.mode == "M" else target[..., -1:])


def same(found, expected, tolerance=2e-8):
    """Equal to the eight decimals that the numbers are given with, and the last one's rounding."""
    expected = torch.tensor(expected, dtype=torch.float64)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)


def norm_of(*gradients):
    return torch.cat([g.flatten() for g in gradients]).norm()


def test_phases_of_the_known_weights():
    assert phase("en_embedding.glb_token") == 233
    assert phase("head.linear.bias") == 505
    assert phase("encoder.layers.0.conv1.weight") == 990


def test_forecast_of_the_target_is_the_published_codes():
    model, seen = oracle("MS"), {}
    for name in ("en_embedding", "ex_embedding", "encoder"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output, f"{name} input": inputs[0]})
        )
    x = oracle_series(0, 48)
    y = model(x, oracle_marks())

    target, exogenous = seen["en_embedding input"], seen["ex_embedding input"]
    mean = torch.tensor([0.64956922, 1.14423283, 1.50688911], dtype=torch.float64)
    scale = torch.tensor([0.49996323, 0.85724283, 1.05021064], dtype=torch.float64)
    normalised = torch.cat([exogenous[0, :2], target[0]])
    same(normalised * scale[:, None] + mean[:, None], x[0].T.tolist(), 1e-7)
    assert torch.equal(exogenous[:, 2:], oracle_marks().mT)

    tokens, variates, encoded = seen["en_embedding"][:, 0], seen["ex_embedding"], seen["encoder"][:, 0]
    assert tokens.shape == encoded.shape == (2, 5, 16)
    assert variates.shape == (2, 6, 16)
    same(tokens[0, 0, :4], [-0.24125943, -0.00223747, -0.92957641, 0.82882604])
    same(tokens[0, -1, :4], [0.49715040, 0.30955563, -0.17725479, -0.49373993])
    same(variates[0, 0, :4], [0.45737394, 0.57262558, -0.36488604, -0.82108629])
    same(variates[0, -1, :4], [0.24054567, -0.01054158, 0.14371155, 0.18922615])
    same(encoded[0, 0, :4], [1.05332181, -0.11485660, 0.50938459, 0.56250908])
    same(encoded[0, -1, :4], [0.86317717, 0.22811977, -0.31666618, -0.54483781])

    first = [1.93360319, 3.00826129, 1.08309404, 0.88345610, 0.24949690, 2.86024009]
    first += [1.03872982, 2.50519346, 1.42602525, 0.72528018, 1.19144361, 0.37405882]
    second = [2.16784675, 2.14654630, 0.65720913, 1.62601294, 0.06261226, 3.79474091]
    second += [1.25986102, 3.37871863, 0.73569067, 1.22726113, -0.04353978, 0.16986645]
    same(y[..., 0], [first, second])
    same(y.sum(), 34.4617092, 1e-7)
    same(y.square().sum(), 76.3274497, 1e-7)


def test_gradients_are_the_published_codes():
    model = oracle("MS")
    loss = oracle_loss(model, model(oracle_series(0, 48), oracle_marks()))
    same(loss, 3.19521744)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    same(norm_of(*gradients.values()), 31.899981, 1e-6)
    expected = {
        "en_embedding.glb_token": 1.94656686,
        "en_embedding.value_embedding.weight": 17.76898202,
        "ex_embedding.value_embedding.weight": 10.81430099,
        "encoder.layers.0.self_attention.query_projection.weight": 3.22639491,
        "encoder.layers.1.cross_attention.value_projection.weight": 1.07940425,
        "head.linear.weight": 9.66540608,
    }
    for name, value in expected.items():
        same(norm_of(gradients[name]), value)


def test_forecast_without_normalisation_is_the_published_codes():
    model = oracle("MS", use_norm=False)
    y = model(oracle_series(0, 48), oracle_marks())
    first = [-0.04246212, 0.78099009, -0.00753323, -0.21054443, -0.19917990, 1.19504847]
    first += [-1.43379452, 1.73292818, 1.11850330, -0.34249386, 0.79255078, -2.31298365]
    same(y[0, :, 0], first)
    same(oracle_loss(model, y), 9.17867683)


def test_forecast_of_all_channels_is_the_published_codes():
    model = oracle("M")
    y = model(oracle_series(0, 48), oracle_marks())
    assert y.shape == (2, 12, 3)
    first = [1.36051068, 0.68227348, 0.61863252, 1.31435757, 0.51496506, 0.85050064]
    first += [-0.06310138, 1.36242720, 1.05205781, 0.66601334, 0.43983373, 0.02288337]
    last = [2.55907982, 2.21589773, 0.83652019, -0.14542552, 1.05278681, 1.60341624]
    last += [1.14640917, 2.63580280, -0.04299687, 0.81419341, 1.64901847, 0.80956227]
    same(y[0, :, 0], first)
    same(y[0, :, 2], last)
    same(y.sum(), 60.7027071, 1e-7)
    same(y.square().sum(), 97.3055017, 1e-7)
    loss = oracle_loss(model, y)
    same(loss, 1.72904154)
    same(norm_of(*torch.autograd.grad(loss, list(model.parameters()))), 9.33475790)


# --- what must hold with any weights ---------------------------------------------------------------


@pytest.mark.parametrize("marks", [0, 1, 4, None])
@pytest.mark.parametrize(
    ("mode", "channels", "series"), [("MS", 3, 1), ("M", 3, 3), ("S", 1, 1), ("MS", 1, 1)]
)
def test_shape_of_the_forecast(mode, channels, series, marks):
    """Even where there is nothing exogenous at all."""
    x, m = windows(2, channels, marks or 0)
    y = double(small((48, channels), mode=mode))(x, None if marks is None else m)
    assert y.shape == (2, 12, series)
    assert y.isfinite().all()


def test_the_same_weights_serve_any_number_of_exogenous_channels():
    model = double(small([48, 3]))
    x, marks = windows(2, 11)
    y = [model(x[..., -1 - count :], marks) for count in range(11)]
    assert all(each.shape == (2, 12, 1) for each in y)
    # And each makes a difference.
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(y))


def test_mode_s_is_mode_ms_with_marks_alone():
    x, marks = windows(channels=1)
    one, other = (double(small((48, n), mode=mode)) for mode, n in (("S", 1), ("MS", 5)))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x, marks), other(x, marks))


@pytest.mark.parametrize("mode", ["MS", "M"])
def test_no_marks_are_marks_of_no_columns(mode):
    x, marks = windows()
    model = double(small((48, 3), mode=mode))
    assert torch.equal(model(x), model(x, marks[..., :0]))
    assert (model(x) - model(x, marks)).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["MS", "M"])
def test_the_targets_scale_and_level_are_the_forecasts(mode):
    x, marks = windows()
    model = double(small((48, 3), mode=mode))
    y = model(x, marks)
    a, b = torch.tensor([1.0, 1.0, 7.0]), torch.tensor([0.0, 0.0, -30.0])
    torch.testing.assert_close(
        model(a * x + b, marks), y * a[3 - y.shape[-1] :] + b[3 - y.shape[-1] :], rtol=0, atol=1e-4
    )


def test_scale_and_level_of_an_exogenous_channel_change_nothing():
    x, marks = windows()
    model = double(small((48, 3)))
    scaled = x * torch.tensor([5.0, 0.3, 1.0]) + torch.tensor([-9.0, 2.0, 0.0])
    y, other = model(x, marks), model(scaled, marks)
    torch.testing.assert_close(other, y, rtol=0, atol=1e-4)
    # Turned upside down, it is another series.
    assert (model(x * torch.tensor([-1.0, 1.0, 1.0]), marks) - y).abs().max() > 1e-3


def test_order_of_exogenous_channels_and_marks_changes_nothing():
    x, marks = windows(channels=6)
    model = double(small((48, 6)))
    permuted = model(x[..., [3, 0, 4, 2, 1, 5]], marks[..., [2, 3, 0, 1]])
    torch.testing.assert_close(permuted, model(x, marks), rtol=0, atol=1e-13)


def test_in_mode_m_channels_differ_by_their_global_token_alone():
    x, marks = windows()
    model = double(small((48, 3), mode="M"))
    order = [2, 0, 1]
    y = model(x, marks)[..., order]
    assert (model(x[..., order], marks) - y).abs().max() > 1e-3
    with torch.no_grad():
        model.en_embedding.glb_token.copy_(model.en_embedding.glb_token[:, order])
    torch.testing.assert_close(model(x[..., order], marks), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
def test_exogenous_series_reach_patches_in_the_second_layer_only(layers):
    model, seen = double(small((48, 3), e_layers=layers)), []
    model.encoder.register_forward_hook(lambda _, __, output: seen.append(output[:, 0]))
    x, marks = windows()
    model(x, marks)
    model(torch.cat([x[..., :2].flip(1), x[..., 2:]], -1), marks)
    change = (seen[0] - seen[1]).abs().amax((0, 2))
    assert change[-1] > 1e-3
    assert (change[:-1] == 0).all() if layers == 1 else (change[:-1] > 1e-5).all()


def test_exogenous_series_reach_the_forecast_through_cross_attention_alone():
    model = double(small((48, 3)))
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.cross_attention.out_projection.weight.zero_()
            layer.cross_attention.out_projection.bias.zero_()
    x, marks = windows()
    other = torch.cat([x[..., :2].flip(1), x[..., 2:]], -1)
    assert torch.equal(model(x, marks), model(other, 1 - marks))


def test_constant_channels_give_numbers():
    x, marks = windows()
    x[0, :, 0], x[1, :, 2], x[2] = 4.0, -3.0, 0.0
    model = double(small((48, 3)))
    y = model(x, marks)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # A constant target has the scale sqrt(1e-5), and so its forecast hardly leaves it.
    assert (y[1] + 3).abs().max() < 0.05


@pytest.mark.parametrize("mode", ["MS", "M"])
def test_examples_know_nothing_of_each_other(mode):
    x, marks = windows(4)
    model = double(small((48, 3), mode=mode))
    together = model(x, marks)
    for i in range(4):
        torch.testing.assert_close(
            model(x[i : i + 1], marks[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-13
        )


def test_inputs_stay_as_they_are():
    x, marks = windows()
    before = x.clone(), marks.clone()
    double(small((48, 3)))(x, marks)
    assert torch.equal(x, before[0])
    assert torch.equal(marks, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_attention_is_the_softmax_written_out(dtype):
    torch.manual_seed(0)
    attention = Attention(24, 3, 0.0).to(dtype)
    queries, memory = 3 * torch.randn(2, 7, 24, dtype=dtype), 3 * torch.randn(2, 5, 24, dtype=dtype)
    q, k, v = (
        layer(tokens).view(2, -1, 3, 8)
        for layer, tokens in (
            (attention.query_projection, queries),
            (attention.key_projection, memory),
            (attention.value_projection, memory),
        )
    )
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(8)).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 7, 24)
    torch.testing.assert_close(
        attention(queries, memory), attention.out_projection(mixed), rtol=1e-6, atol=1e-6
    )


# --- training --------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone():
    x, marks = windows()
    model = double(small((48, 3), e_layers=1, dropout=0.5))
    assert torch.equal(model(x, marks), model(x, marks))
    model.train()
    assert not torch.equal(model(x, marks), model(x, marks))
    # On the values forecast: half of them are the window's mean, which is 0 in normalised units.
    forecast = torch.cat([model(x, marks) for _ in range(20)])
    dropped = (forecast - x[:, :, -1:].mean(1, keepdim=True).repeat(20, 1, 1)).abs() < 1e-12
    assert 0.4 < dropped.double().mean() < 0.6


def test_dropout_has_one_rate_in_nine_places(monkeypatch):
    """Two embeddings, the forecast; and a layer's attention weights, attentions, hidden units and output."""
    rates = []

    def watched(q, k, v, dropout_p=0.0):
        rates.append(dropout_p)
        return original(q, k, v, dropout_p=dropout_p)

    original = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    model = double(small((48, 3), e_layers=1, dropout=0.3))
    model(*windows())
    assert rates == [0.0, 0.0]
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda layer, *_: rates.append(layer.p))
    rates.clear()
    model.train()(*windows())
    assert rates == [0.3] * 9


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["MS", "M"])
def test_stacked_models_give_the_gradients_of_each(mode, training):
    """As cohorts are trained: ``vmap`` over parameters and data of several clients."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(small((48, 3), mode=mode, dropout=0.0 if training else 0.1).double().train(training))
    params = {k: torch.stack([m.state_dict()[k] for m in models]) for k in models[0].state_dict()}
    x, marks = windows(6, 3)
    x, marks = x.view(3, 2, 48, 3), marks.view(3, 2, 48, 4)
    target = x[:, :, :12, -1:] if mode == "MS" else x[:, :, :12]

    def loss(params, x, marks, target):
        return functional.mse_loss(functional_call(models[0], params, (x, marks)), target)

    together = vmap(grad(loss))(params, x, marks, target)
    for i, model in enumerate(models):
        functional.mse_loss(model(x[i], marks[i]), target[i]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(together[name][i], p.grad, rtol=1e-9, atol=1e-12)
            assert p.grad.abs().max() > 0 or "key_projection.bias" in name


def test_cohorts_may_train_it():
    """Without dropout; nothing else in it is refused, on a CPU either."""
    from strategies.cohort import alone_because
    from strategies.functional import Stateless

    assert alone_because(Stateless(small((48, 3)))) is None
    assert "dropout" in alone_because(Stateless(TimeXer((168, 3), 24, d_model=16)))
    model = Stateless(small((48, 3)))
    assert model.head == {"head.linear.weight", "head.linear.bias"}
    assert model.shared == tuple(k for k, _ in model.module.named_parameters())
    assert len(model.norms) == 2 * (3 * 2 + 1)
    x, marks = (each.float() for each in windows())
    features, y = Stateless(small((48, 3)), lambda batch: (batch["x"], batch["marks"])).embed(
        model.initial(), {"x": x, "marks": marks}
    )
    assert features.shape == (3, 1, 16 * 5)
    assert y.shape == (3, 12, 1)


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (3, 28, 28),
            {},
            r"client 'timexer' needs series \(seq_len, channels\), but .*\(3, 28, 28\); choose .*",
        ),
        ((168,), {}, r"client 'timexer' needs series .*shape \(168,\); .*"),
        ((168, 3), {"patch_len": 25}, r"patch_len: must divide the look-back of 168 steps, got 25; .* is 24"),
        ((168, 3), {"patch_len": 0}, r"patch_len: must divide .* got 0; .* is 1"),
        ((96, 3), {"patch_len": 200}, r"patch_len: must divide .* 96 steps, got 200; .* is 96"),
        ((168, 3), {"d_model": 33, "n_heads": 3}, r"d_model: must be even.*n_heads=3, got 33; 36 would do"),
        ((168, 3), {"d_model": 100}, r"d_model: .* multiple of n_heads=8, got 100; 104 would do"),
        ((168, 3), {"d_model": 0}, r"d_model: .* got 0; 8 would do"),
        ((168, 3), {"n_heads": 0}, r"n_heads: must be 1 or more, got 0"),
        ((168, 3), {"mode": "ms"}, r"mode: must be one of MS, M, S, got 'ms'"),
        (
            (168, 3),
            {"mode": "S"},
            r"mode: S is for data of a single channel, but these have 3; choose MS .* M .*",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(shape, options, message):
    with pytest.raises(ClientError, match=f"^{message}$") as told:
        TimeXer(shape, 24, **options)
    assert "\n" not in str(told.value)


# --- learning --------------------------------------------------------------------------------------


def made_up_market(seed, n=2400):
    """(load, wind, price) by the hour; the price follows the load, and the wind of six hours before."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    load = np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168) + 0.1 * rng.normal(size=n)
    wind, price = np.zeros(n), np.zeros(n)
    for i in range(1, n):
        wind[i] = 0.95 * wind[i - 1] + 0.3 * rng.normal()
    noise = rng.normal(size=n)
    for i in range(n):
        before = 0.6 * price[i - 1] if i else 0.0
        price[i] = before + 0.8 * load[i] - 0.5 * (wind[i - 6] if i >= 6 else 0.0) + 0.1 * noise[i]
    return np.stack([load, wind, price], 1)


@pytest.mark.slow
def test_exogenous_series_help_where_they_drive_the_target():
    series = made_up_market(0)
    train, past, horizon = 1680, 48, 12
    series = torch.tensor((series - series[:train].mean(0)) / series[:train].std(0), dtype=torch.float32)

    def error(keep):
        def cut(rows):
            pieces = rows.unfold(0, past + horizon, 1).transpose(1, 2)
            return pieces[:, :past] * torch.tensor([keep, keep, 1.0]), pieces[:, past:, -1:]

        (x, y), (x_test, y_test) = cut(series[:train]), cut(series[-480 - past :])
        torch.manual_seed(0)
        model = TimeXer((past, 3), horizon, patch_len=12, d_model=32, d_ff=64, n_heads=4, e_layers=1)
        assert size(model) == 16_812
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(6):
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                functional.mse_loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            return functional.mse_loss(model.eval()(x_test), y_test).item()

    informed, blind = error(1.0), error(0.0)
    assert informed < 0.16
    assert informed < 0.75 * blind
