import zipfile
from pathlib import Path

import numpy as np
import pytest

from scenarios.datasets.cifar10 import Cifar10
from scenarios.federation import ScenarioError


def test_all_images_of_the_zip(data_root: Path) -> None:
    data = Cifar10(root=data_root).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype) == ((18_000, 3, 32, 32), np.uint8)
    assert data.test is not None
    assert len(data.test) == 3000
    assert (np.bincount(y) == 1800).all()
    assert (np.bincount(y[data.test]) == 300).all()
    assert data.meta.classes[:2] == ("airplane", "automobile")
    assert data.domains == ("cifar10",)
    # The sky is bluer than a frog.
    blue = x[:, 2].mean(axis=(1, 2)) - x[:, 0].mean(axis=(1, 2))
    assert blue[y == 0].mean() > blue[y == 6].mean() + 10


def test_an_unpacked_folder_does_too(tmp_path: Path, data_root: Path) -> None:
    folder = tmp_path / "cifar10_jpg"
    with zipfile.ZipFile(data_root / "cifar10_jpg/cifar10_subset.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(("0001.jpg", "0002.jpg"))]
        archive.extractall(folder, names)
    data = Cifar10(root=tmp_path).load()
    assert len(data) == len(names)
    assert data.test is not None
    assert len(data.test) == sum(name.startswith("test/") for name in names)
    assert set(data.arrays["y"].tolist()) == set(range(10))
    for file in (folder / "test/ship").iterdir():
        file.unlink()
    with pytest.raises(ScenarioError, match="'test' has no images of ship"):
        Cifar10(root=tmp_path).load()


def test_missing_and_damaged_zips_are_named(tmp_path: Path, data_root: Path) -> None:
    with pytest.raises(ScenarioError, match=r"Krizhevsky.*train/CLASS/FILE") as error:
        Cifar10(root=tmp_path).load()
    path = tmp_path / "cifar10_jpg/cifar10_subset.zip"
    assert str(path) in str(error.value)
    path.parent.mkdir()
    with (data_root / "cifar10_jpg/cifar10_subset.zip").open("rb") as file:
        path.write_bytes(file.read(1_000_000))
    with pytest.raises(ScenarioError, match="cannot be read whole") as error:
        Cifar10(root=tmp_path).load()
    assert str(path) in str(error.value)
