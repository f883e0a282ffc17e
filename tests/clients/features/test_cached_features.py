from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from clients.features.base import Extractor, cached_features, file_hash


@dataclass
class Counting(Extractor):
    """The first columns, and a count of how often they were asked for."""

    width: int = 2
    normalise: Any = "none"
    calls: list = field(default_factory=list)

    def key(self):
        return f"counting {self.width} {self.normalise}"

    def extract(self, x):
        self.calls.append(len(x))
        return x[:, : self.width]


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def files(folder):
    return sorted(p.name for p in (folder / "features").glob("*"))


def test_features_are_computed_once(x, tmp_path):
    extractor = Counting()
    first = cached_features(extractor, x, "data", tmp_path)
    second = cached_features(extractor, x, "data", tmp_path)
    assert extractor.calls == [6]
    assert np.array_equal(first, x[:, :2])
    assert np.array_equal(second, first)
    assert len(files(tmp_path)) == 1


def test_features_are_memory_mapped_and_read_only(x, tmp_path):
    for _ in range(2):
        features = cached_features(Counting(), x, "data", tmp_path)
        assert isinstance(features, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            features[0] = 0


def test_other_data_options_or_normalisation_have_a_file_of_their_own(x, tmp_path):
    cached_features(Counting(), x, "data", tmp_path)
    for extractor, fingerprint in (
        (Counting(), "other data"),
        (Counting(width=3), "data"),
        (Counting(normalise="l2"), "data"),
    ):
        cached_features(extractor, x, fingerprint, tmp_path)
        assert extractor.calls == [6]
    assert len(files(tmp_path)) == 4


def test_l2_makes_unit_vectors_and_leaves_zeros(x, tmp_path):
    x[2] = 0
    features = cached_features(Counting(width=4, normalise="l2"), x, "data", tmp_path)
    lengths = np.linalg.norm(features, axis=1)
    assert lengths[2] == 0
    np.testing.assert_allclose(np.delete(lengths, 2), 1, rtol=1e-6)
    np.testing.assert_allclose(features[0], x[0] / np.linalg.norm(x[0]), rtol=1e-6)


def test_features_are_float32(tmp_path):
    features = cached_features(Counting(), np.ones((2, 3), np.float64), "data", tmp_path)
    assert features.dtype == np.float32


def test_a_failed_extraction_leaves_no_file(x, tmp_path):
    class Failing(Counting):
        def extract(self, x):
            raise MemoryError(len(x))

    with pytest.raises(MemoryError):
        cached_features(Failing(), x, "data", tmp_path)
    assert files(tmp_path) == []
    assert np.array_equal(cached_features(Counting(), x, "data", tmp_path), x[:, :2])


def test_a_failed_write_leaves_no_file(x, tmp_path, monkeypatch):
    def half(file, array):
        file.write(b"\x93NUMPY")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(OSError, match="disk full"):
            cached_features(Counting(), x, "data", tmp_path)
    assert files(tmp_path) == []
    assert np.array_equal(cached_features(Counting(), x, "data", tmp_path), x[:, :2])


def test_file_hash_is_of_the_content(tmp_path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_hash(tmp_path / name) for name in "abc")
    assert a == b != c
