from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets.pacs import DOMAINS, Pacs
from scenarios.federation import ScenarioError


def test_all_images_of_the_zip(data_root: Path) -> None:
    data = Pacs(root=data_root).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype) == ((9991, 3, 64, 64), np.uint8)
    assert dict(zip(data.domains, np.bincount(data.domain).tolist(), strict=True)) == {
        "art_painting": 2048,
        "cartoon": 2344,
        "photo": 1670,
        "sketch": 3929,
    }
    assert data.meta.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    sketches = y[data.domain == 3]
    assert np.bincount(sketches).tolist() == [772, 740, 753, 608, 816, 80, 160]
    assert data.test is None


def folder_of(root: Path, size: int = 80) -> None:
    for number, domain in enumerate(DOMAINS):
        for label in ("dog", "house"):
            (root / "pacs" / domain / label).mkdir(parents=True)
            Image.new("RGB", (size, size), (50 * number, 0, 0)).save(root / "pacs" / domain / label / "1.png")


def test_an_unpacked_folder_does_too_and_size_counts(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "pacs/splits").mkdir()
    data = Pacs(size=32, root=tmp_path).load()
    assert data.arrays["x"].shape == (8, 3, 32, 32)
    assert data.arrays["x"][:, 0, 0, 0].tolist() == [0, 0, 50, 50, 100, 100, 150, 150]
    (tmp_path / "pacs/photo/dog/1.png").unlink()
    with pytest.raises(ScenarioError, match="'photo' has no images of dog"):
        Pacs(root=tmp_path).load()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nothing at .*pacs_64\.zip.*Li et al"):
        Pacs(root=tmp_path).load()
    with pytest.raises(ScenarioError, match="no data folder is set"):
        Pacs().load()
    with pytest.raises(ValueError, match=r"^size: .*got 0; use a whole number"):
        Pacs(size=0)
