import numpy as np
import pytest
import torch

from clients.errors import ClientError
from clients.features.base import cached_features
from clients.features.pixels import Pixels

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, size=(5, 3, 8, 6), dtype=np.uint8)


def test_bytes_become_0_to_1():
    features = Pixels().extract(BYTES)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, BYTES.reshape(5, -1) / 255, rtol=1e-6)


def test_floats_are_taken_as_they_are():
    x = RNG.normal(size=(2, 1, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(Pixels().extract(x), x.reshape(2, -1))


def test_vectors_pass_through_unchanged():
    x = RNG.normal(size=(4, 7)).astype(np.float32)
    np.testing.assert_array_equal(Pixels().extract(x), x)
    wide = x.astype(np.float64)
    assert Pixels().extract(wide).dtype == np.float32


def test_size_resizes_with_antialiasing():
    got = Pixels(size=4).extract(BYTES)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(BYTES).float() / 255, (4, 4), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(got, want.flatten(1).numpy(), atol=1e-6)
    # A flat image stays flat, whatever the size.
    flat = np.full((1, 1, 9, 9), 51, np.uint8)
    np.testing.assert_allclose(Pixels(size=2).extract(flat), 0.2, rtol=1e-5)


def test_images_of_that_size_are_not_resized():
    square = BYTES[:, :, :6]
    np.testing.assert_array_equal(Pixels(size=6).extract(square), Pixels().extract(square))


def test_the_examples_are_not_changed():
    before = BYTES.copy()
    Pixels(size=4).extract(BYTES)
    np.testing.assert_array_equal(BYTES, before)


def test_l2_gives_unit_vectors(tmp_path):
    features = cached_features(Pixels(normalise="l2"), BYTES, "data", tmp_path)
    raw = Pixels().extract(BYTES)
    np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)


def test_options_are_part_of_the_key():
    assert len({Pixels().key(), Pixels(size=4).key(), Pixels(normalise="l2").key()}) == 3
    assert Pixels(size=4).key() == Pixels(size=4).key()


@pytest.mark.parametrize(
    ("extractor", "shape"), [(Pixels(size=4), (2, 9)), (Pixels(), (2, 5, 4, 4)), (Pixels(), (2, 3, 4))]
)
def test_what_is_no_image_is_refused(extractor, shape):
    with pytest.raises(ClientError, match=r"^features 'pixels' needs images .* shape \(\d"):
        extractor.extract(np.zeros(shape, np.float32))


def test_size_has_to_be_positive():
    with pytest.raises(ValueError, match=r"^size: must be 1 or more, got 0$"):
        Pixels(size=0)
