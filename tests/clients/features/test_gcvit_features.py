import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clients.errors import ClientError
from clients.features.gcvit import GCViTFeatures
from clients.models.gcvit import GCViT

X = np.random.default_rng(0).integers(0, 256, size=(3, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GCViT((3, 32, 32), 5).eval()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_features_are_what_the_head_is_given(network, tmp_path, name):
    path = tmp_path / name
    save_file(network.state_dict(), path) if name == "w.safetensors" else torch.save(
        network.state_dict(), path
    )
    got = GCViTFeatures(str(path), size=32).extract(X)
    with torch.no_grad():
        want = network.features(torch.from_numpy(X).float() / 255)
    assert got.dtype == np.float32
    assert got.shape == (3, 8 * 16)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_the_key_follows_the_content_of_the_file(network, tmp_path):
    path = tmp_path / "w.safetensors"
    keys = set()
    for scale in (1.0, 2.0):
        save_file({k: scale * v for k, v in network.state_dict().items()}, path)
        keys.add(GCViTFeatures(str(path)).key())
    assert len(keys) == 2


def test_mistakes_are_one_line(network, tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(ClientError, match=r"features.weights: no file '.*w.pt'; train one"):
        GCViTFeatures(str(path)).extract(X)
    path.write_bytes(b"no weights at all")
    with pytest.raises(ClientError, match=r"^features.weights: '.*w.pt' holds no weights \(.*\)$"):
        GCViTFeatures(str(path)).extract(X)
    torch.save({"other.weight": torch.zeros(2)}, path)
    with pytest.raises(ClientError, match=r"holds no GC ViT \(it has no head.weight\)"):
        GCViTFeatures(str(path)).extract(X)
    torch.save(network.state_dict(), path)
    with pytest.raises(ClientError, match="is not of variant 'xxt'"):
        GCViTFeatures(str(path), "xxt", size=32).extract(X)
    with pytest.raises(ClientError, match="features 'gcvit' needs images"):
        GCViTFeatures(str(path)).extract(X[:, 0, 0])
