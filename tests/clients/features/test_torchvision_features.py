import numpy as np
import pytest
import torch
from torchvision import models

from clients.errors import ClientError
from clients.features.base import cached_features
from clients.features.torchvision import IMAGENET_MEAN, IMAGENET_STD, TorchvisionFeatures

X = np.random.default_rng(0).integers(0, 256, size=(3, 3, 20, 24), dtype=np.uint8)


def save(path, name, seed=0):
    torch.manual_seed(seed)
    network = models.get_model(name, weights=None)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    return path, save(path, "resnet18")


def standardised(x, size):
    images = torch.nn.functional.interpolate(
        torch.from_numpy(x).float() / 255, (size, size), mode="bilinear", antialias=True
    )
    images = images.expand(-1, 3, -1, -1)
    return (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def test_features_are_the_input_of_the_last_linear_layer(resnet):
    path, network = resnet
    got = TorchvisionFeatures(weights=str(path), size=32).extract(X)
    with torch.no_grad():
        want = torch.nn.Sequential(*list(network.children())[:-1])(standardised(X, 32)).flatten(1)
    assert got.shape == (3, 512)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_a_classifier_of_several_layers_loses_the_last_one(tmp_path):
    network = save(tmp_path / "w.pt", "mobilenet_v3_small")
    got = TorchvisionFeatures("mobilenet_v3_small", str(tmp_path / "w.pt"), size=32).extract(X)
    with torch.no_grad():
        hidden = network.avgpool(network.features(standardised(X, 32))).flatten(1)
        want = network.classifier[:-1](hidden)
    assert got.shape == (3, 1024)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_grey_images_are_taken_as_colour(resnet):
    extractor = TorchvisionFeatures(weights=str(resnet[0]), size=32)
    grey = X[:, :1]
    np.testing.assert_allclose(extractor.extract(grey), extractor.extract(grey.repeat(3, axis=1)), atol=1e-6)


def test_features_of_a_row_do_not_depend_on_the_others(resnet):
    extractor = TorchvisionFeatures(weights=str(resnet[0]), size=16)
    x = np.random.default_rng(1).integers(0, 256, size=(70, 1, 4, 4), dtype=np.uint8)
    np.testing.assert_allclose(
        extractor.extract(x)[[0, 64, 69]], extractor.extract(x[[0, 64, 69]]), atol=1e-5
    )


def test_other_weights_under_the_same_name_are_extracted_anew(tmp_path):
    path = tmp_path / "w.pt"
    extractor = TorchvisionFeatures(weights=str(path), size=16, normalise="l2")
    save(path, "resnet18", seed=0)
    first = np.array(cached_features(extractor, X, "data", tmp_path))
    save(path, "resnet18", seed=1)
    second = cached_features(extractor, X, "data", tmp_path)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", {"other.weight": torch.zeros(2)}, [1, 2], torch.zeros(3)],
    ids=["empty", "text", "other names", "list", "tensor"],
)
def test_a_file_that_is_no_state_dict_of_the_model_is_named(content, tmp_path):
    path = tmp_path / "wrong.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ClientError) as caught:
        TorchvisionFeatures(weights=str(path)).extract(X)
    message = str(caught.value)
    assert message.startswith(f"features.weights: '{path}' is not a state dict of this model (")
    assert "\n" not in message


def test_weights_of_another_model_are_refused(resnet):
    with pytest.raises(ClientError, match="is not a state dict of this model"):
        TorchvisionFeatures("resnet50", str(resnet[0])).extract(X)


def test_weights_that_are_neither_file_nor_name_are_refused(tmp_path):
    missing = str(tmp_path / "missing.pt")
    with pytest.raises(ClientError, match=r"missing\.pt' is no file and could not be downloaded"):
        TorchvisionFeatures(weights=missing).extract(X)


def test_an_unknown_model_is_refused():
    with pytest.raises(
        ClientError, match=r"^features\.model: torchvision has no classification .*'resnet17'"
    ):
        TorchvisionFeatures(model="resnet17").extract(X)


def test_a_model_without_a_linear_layer_is_refused(tmp_path):
    save(tmp_path / "w.pt", "squeezenet1_1")
    with pytest.raises(ClientError, match=r"^features\.model: 'squeezenet1_1' has no linear layer"):
        TorchvisionFeatures("squeezenet1_1", str(tmp_path / "w.pt")).extract(X)


def test_vectors_are_refused():
    with pytest.raises(ClientError, match=r"^features 'torchvision' needs images .*\(7,\)"):
        TorchvisionFeatures().extract(np.zeros((2, 7), np.float32))
