import shutil
from pathlib import Path

import numpy as np
import pytest

from scenarios.datasets.fashion_mnist import FashionMnist
from scenarios.datasets.mnist import Mnist
from scenarios.federation import ScenarioError


@pytest.mark.parametrize("kind", [Mnist, FashionMnist])
def test_all_rows_of_both_splits(kind: type[Mnist | FashionMnist], data_root: Path) -> None:
    data = kind(data_root).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype, y.dtype) == ((70_000, 1, 28, 28), np.uint8, np.int64)
    assert np.array_equal(data.test, np.arange(60_000, 70_000))
    assert np.array_equal(np.unique(y), np.arange(10))
    assert data.domains == (data.name,)
    assert not data.domain.any()
    assert len(data.meta.classes) == 10
    assert x.flags.writeable
    if kind is FashionMnist:
        assert (np.bincount(y) == 7000).all()
    assert kind(str(data_root)).load().fingerprint() == data.fingerprint()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as missing:
        Mnist(tmp_path).load()
    assert str(tmp_path / "mnist/train-images-idx3-ubyte.gz") in str(missing.value)
    assert "LeCun" in str(missing.value)
    with pytest.raises(ScenarioError, match=r"'fashion_mnist': needs files.*zalandoresearch"):
        FashionMnist().load()


def test_damaged_files_are_named(tmp_path: Path, data_root: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for source in (data_root / "mnist").glob("t10k-*"):
        shutil.copyfile(source, folder / source.name)
        shutil.copyfile(source, folder / source.name.replace("t10k", "train"))
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:100_000])
    with pytest.raises(ScenarioError, match="not a whole gzip file") as error:
        Mnist(tmp_path).load()
    assert str(images) in str(error.value)
    images.write_bytes(whole)
    labels = folder / "train-labels-idx1-ubyte.gz"
    shutil.copyfile(data_root / "fashion_mnist/train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ScenarioError, match=r"holds 10000 examples and labels of shape \(60000,\)") as error:
        Mnist(tmp_path).load()
    assert str(labels) in str(error.value)
    shutil.copyfile(labels, images)
    with pytest.raises(ScenarioError, match="not images of 28 x 28"):
        Mnist(tmp_path).load()
