import json
import sys

import numpy as np
import pytest
import torch

from clients.errors import ClientError
from clients.features.base import cached_features
from clients.features.clip import ClipFeatures

X = np.random.default_rng(0).integers(0, 256, size=(3, 3, 40, 28), dtype=np.uint8)
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'fedbench[clip]'")


@pytest.fixture(scope="module")
def tiny(open_clip, tmp_path_factory):
    """A small CLIP that open_clip knows by name, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    clip = open_clip.create_model("tiny-clip")
    torch.save(clip.state_dict(), folder / "tiny.pt")
    return clip.eval(), str(folder / "tiny.pt")


def standardised(x, open_clip):
    images = torch.nn.functional.interpolate(
        torch.from_numpy(x).float() / 255, (32, 32), mode="bilinear", antialias=True
    )
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (images - mean) / std


def test_features_are_image_embeddings_with_projection(tiny, open_clip):
    clip, path = tiny
    got = ClipFeatures("tiny-clip", path).extract(X)
    with torch.no_grad():
        want = clip.encode_image(standardised(X, open_clip)).numpy()
    assert got.shape == (3, 12)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_l2_gives_unit_vectors(tiny, tmp_path):
    path = tiny[1]
    raw = ClipFeatures("tiny-clip", path).extract(X)
    unit = cached_features(ClipFeatures("tiny-clip", path, normalise="l2"), X, "data", tmp_path)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)


def test_the_key_follows_the_content_of_the_checkpoint(tiny, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    key = ClipFeatures("tiny-clip", str(path)).key()
    assert key == ClipFeatures("tiny-clip", str(path)).key()
    path.write_bytes(b"two")
    assert key != ClipFeatures("tiny-clip", str(path)).key()


@pytest.mark.parametrize(
    ("tag", "quick"), [("openai", True), ("laion2b_s34b_b88k", False)], ids=["openai", "laion"]
)
def test_a_tag_brings_the_activation_that_its_weights_were_trained_with(
    tag, quick, tiny, open_clip, monkeypatch
):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return tiny[0]

    monkeypatch.setattr(open_clip, "create_model", create_model)
    ClipFeatures("ViT-B-16", tag).extract(X)
    assert asked == {"name": "ViT-B-16", "pretrained": tag, "force_quick_gelu": quick}


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", {"other": torch.zeros(2)}, [1, 2]],
    ids=["empty", "text", "other", "list"],
)
def test_a_file_that_is_no_checkpoint_of_the_model_is_named(content, tiny, tmp_path):
    path = tmp_path / "wrong.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ClientError) as caught:
        ClipFeatures("tiny-clip", str(path)).extract(X)
    message = str(caught.value)
    assert message.startswith(f"features.weights: '{path}' gave no weights of tiny-clip (")
    assert "\n" not in message


def test_weights_that_are_neither_file_nor_tag_are_refused(tiny, tmp_path):
    with pytest.raises(ClientError, match=r"missing\.pt' gave no weights of tiny-clip"):
        ClipFeatures("tiny-clip", str(tmp_path / "missing.pt")).extract(X)


def test_an_unknown_model_is_refused(open_clip):
    with pytest.raises(ClientError, match=r"^features\.model: open_clip has no model 'ViT-B-17'"):
        ClipFeatures("ViT-B-17").extract(X)


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ClientError, match=r"pip install 'fedbench\[clip\]'$"):
        ClipFeatures().extract(X)


def test_vectors_are_refused():
    with pytest.raises(ClientError, match=r"^features 'clip_vit_b16' needs images .*\(7,\)"):
        ClipFeatures().extract(np.zeros((2, 7), np.float32))
