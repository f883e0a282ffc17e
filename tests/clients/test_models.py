from functools import partial

import pytest
import torch
from torch import nn

from clients.errors import ClientError
from clients.models.cnn import CNN
from clients.models.linear import Linear
from clients.models.mlp import MLP
from clients.models.resnet18 import ResNet18

MODELS = {
    "linear": Linear,
    "mlp": MLP,
    "mlp batch": partial(MLP, norm="batch"),
    "mlp layer": partial(MLP, norm="layer"),
    "cnn": CNN,
    "cnn batch": partial(CNN, norm="batch"),
    "cnn layer": partial(CNN, norm="layer"),
    "resnet18 group": ResNet18,
    "resnet18 batch": lambda shape, classes: ResNet18(shape, classes, norm="batch"),
    "resnet18 large": lambda shape, classes: ResNet18(shape, classes, small_images=False),
}


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 40)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_images_give_one_logit_a_class(name, shape):
    model = MODELS[name](shape, 7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("model", [Linear, MLP])
def test_vectors_give_one_logit_a_class(model):
    assert model((11,), 5)(torch.zeros(3, 11)).shape == (3, 5)


@pytest.mark.parametrize("model", [*MODELS.values()], ids=list(MODELS))
def test_shapes_may_be_lists(model):
    """As they are in configs and JSON."""
    model([1, 16, 16], 2)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (Linear((1, 28, 28), 10), 784 * 10 + 10),
        (MLP((1, 28, 28), 10), 784 * 200 + 200 + 200 * 10 + 10),
        (MLP((5,), 3, hidden=(7, 4)), 5 * 7 + 7 + 7 * 4 + 4 + 4 * 3 + 3),
        (CNN((1, 28, 28), 10), 44_426),
        # LeNet's counts on 32x32 colour images.
        (CNN((3, 32, 32), 10), 456 + 2_416 + 400 * 120 + 120 + 10_164 + 850),
    ],
)
def test_number_of_parameters(model, parameters):
    assert size(model) == parameters


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("model", [partial(MLP, hidden=(8, 6)), CNN], ids=["mlp", "cnn"])
def test_norms_are_added_to_the_same_weights(model, norm):
    """A layer before each ReLU, and every other tensor as it is without, to the bit."""

    def made(**options):
        torch.manual_seed(0)
        return model((1, 16, 16), 3, **options)

    plain, normed = made(), made(norm=norm)
    kinds = {"none": (), "batch": (nn.BatchNorm1d, nn.BatchNorm2d), "layer": (nn.LayerNorm, nn.GroupNorm)}
    norms = {k: m for k, m in normed.named_modules() if isinstance(m, kinds[norm])}
    assert len(norms) == (0 if norm == "none" else 2 if model is not CNN else 4)
    others = {k: v for k, v in normed.state_dict().items() if k.rpartition(".")[0] not in norms}
    assert [tuple(v.shape) for v in others.values()] == [tuple(v.shape) for v in plain.state_dict().values()]
    assert all(map(torch.equal, others.values(), plain.state_dict().values()))
    if norm == "none":
        assert list(others) == list(plain.state_dict())


def test_weights_of_the_small_models_have_the_names_that_they_always_had():
    layers = {MLP: ["body.0", "head"], CNN: ["conv1", "conv2", "fc1", "fc2", "head"]}
    for model, names in layers.items():
        assert list(model((1, 16, 16), 3).state_dict()) == [
            f"{n}.{k}" for n in names for k in ("weight", "bias")
        ]


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_norms_come_before_each_relu(model, norm):
    """So what a ReLU is given has mean 0 and variance 1: over the batch, or in each example."""
    torch.manual_seed(0)
    seen = []
    made = model((1, 16, 16), 3, norm=norm)
    axes = {"BatchNorm1d": 0, "BatchNorm2d": (0, 2, 3), "LayerNorm": 1, "GroupNorm": (1, 2, 3)}
    for layer in made.modules():
        if type(layer).__name__ in axes:
            axis = axes[type(layer).__name__]
            layer.register_forward_hook(lambda _, __, out, axis=axis: seen.append((out, axis)))
    made(3 + 2 * torch.randn(16, 1, 16, 16))
    for out, axis in seen:
        assert out.mean(axis).abs().max() < 1e-4
        assert (out.var(axis, unbiased=False) - 1).abs().max() < 0.01
    assert len(seen) == (1 if model is MLP else 4)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_resnet18_is_torchvisions_but_for_stem_and_norm(norm):
    from torchvision.models import resnet18

    small = ResNet18((3, 32, 32), 10, norm=norm)
    assert size(small) == size(resnet18(num_classes=10)) - 64 * 3 * (7 * 7 - 3 * 3)
    assert size(ResNet18((3, 224, 224), 10, norm=norm, small_images=False)) == size(resnet18(num_classes=10))
    layer = nn.GroupNorm if norm == "group" else nn.BatchNorm2d
    layers = [m for m in small.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]
    assert len(layers) == 20
    assert {type(m) for m in layers} == {layer}
    if norm == "group":
        assert {m.num_groups for m in layers} == {2}
        assert not list(small.buffers())


def test_small_images_keep_their_size_through_the_stem():
    seen = []
    model = ResNet18((3, 32, 32), 2)
    model.net.layer1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32)]


@pytest.mark.parametrize(("model", "name"), [(CNN, "cnn"), (ResNet18, "resnet18")])
@pytest.mark.parametrize("shape", [(512,), (28, 28)])
def test_models_of_images_refuse_other_data(model, name, shape):
    with pytest.raises(ClientError, match=rf"^client '{name}' needs images.*\({shape[0]},.*client=mlp$"):
        model(shape, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 15, 32), (3, 32, 15)])
def test_cnn_refuses_images_that_are_too_small(shape):
    _, height, width = shape
    with pytest.raises(ClientError, match=rf"at least 16x16 pixels, but the data give {height}x{width}$"):
        CNN(shape, 10)


@pytest.mark.parametrize("hidden", [(), (5, 0), (-1,)])
def test_mlp_refuses_layers_without_width(hidden):
    with pytest.raises(ValueError, match=r"^hidden: needs one width of at least 1"):
        MLP((4,), 2, hidden=hidden)


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_depend_on_the_seed_alone(name):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(MODELS[name]((1, 16, 16), 3).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_lowers_the_loss(name):
    torch.manual_seed(0)
    model = MODELS[name]((1, 16, 16), 3)
    x, y = torch.randn(6, 1, 16, 16), torch.arange(6) % 3
    before = nn.functional.cross_entropy(model(x), y)
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            assert p.grad is not None
            p -= 1e-4 * p.grad
    after = nn.functional.cross_entropy(model(x), y)
    assert after < before
