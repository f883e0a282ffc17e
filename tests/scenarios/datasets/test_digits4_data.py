import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from scenarios.datasets.digits4 import DOMAINS, Digits4
from scenarios.federation import ScenarioError

OFFICIAL = {
    "mnist": (60_000, 10_000),
    "usps": (7291, 2007),
    "mnist_m": (3500, 1500),
    "optdigits": (3823, 1797),
}


def test_official_rows_of_all_sources(data_root: Path) -> None:
    data = Digits4(limit=None, test_limit=None, size=8, root=data_root).load()
    assert data.domains == DOMAINS == tuple(OFFICIAL)
    held_out = np.zeros(len(data), dtype=bool)
    held_out[data.test] = True
    for index, name in enumerate(DOMAINS):
        own = data.domain == index
        assert ((own & ~held_out).sum(), (own & held_out).sum()) == OFFICIAL[name]
        assert np.array_equal(np.unique(data.arrays["y"][own]), np.arange(10))


def test_limits_are_balanced_and_nested(data_root: Path) -> None:
    large = Digits4(limit=2000, test_limit=500, root=data_root).load()
    small = Digits4(limit=1000, test_limit=500, root=data_root).load()
    x, y = large.arrays["x"], large.arrays["y"]
    assert (x.shape, x.dtype, y.dtype) == ((10_000, 1, 16, 16), np.uint8, np.int64)
    assert large.test is not None
    assert len(large.test) == 2000
    assert (np.bincount(large.domain * 10 + y) == 250).all()
    held_out = np.isin(np.arange(len(large)), large.test)
    assert (np.bincount(y[held_out]) == 200).all()
    seen = {row.tobytes() for row in x[~held_out]}
    assert small.test is not None
    rows = np.setdiff1d(np.arange(len(small)), small.test)
    assert all(small.arrays["x"][row].tobytes() in seen for row in rows)
    again = Digits4(limit=1000, test_limit=500, root=data_root).load()
    assert small.fingerprint() == again.fingerprint()
    other = Digits4(limit=1000, test_limit=500, seed=1, root=data_root).load()
    assert small.fingerprint() != other.fingerprint()


def test_colour(data_root: Path) -> None:
    grey = Digits4(limit=100, test_limit=10, size=20, root=data_root).load()
    colour = Digits4(limit=100, test_limit=10, size=20, channels=3, root=data_root).load()
    assert colour.arrays["x"].shape == (440, 3, 20, 20)
    plain = colour.domain != DOMAINS.index("mnist_m")
    assert np.ptp(colour.arrays["x"][plain], axis=1).max() == 0
    assert np.ptp(colour.arrays["x"][~plain], axis=1).max() > 50
    assert np.array_equal(colour.arrays["x"][plain][:, :1], grey.arrays["x"][plain])
    luma = np.tensordot(colour.arrays["x"], [0.299, 0.587, 0.114], axes=([1], [0]))
    assert np.abs(luma - grey.arrays["x"][:, 0]).max() < 2


@pytest.fixture
def copy(tmp_path: Path, data_root: Path) -> Path:
    for name in DOMAINS:
        (tmp_path / name).mkdir()
        for file in (data_root / name).iterdir():
            if name == "mnist":
                (tmp_path / name / file.name).symlink_to(file)
            else:
                shutil.copyfile(file, tmp_path / name / file.name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("usps/usps.h5", (0, 5000, 2_000_000)),
        ("mnist_m/mnist_m_subset.npz", (0, 10, 3_000_000)),
        ("optdigits/optdigits.tra", (200, 100_000)),
        ("optdigits/optdigits.tes", (100_000,)),
    ],
)
def test_damaged_files_are_named(copy: Path, name: str, sizes: tuple[int, ...]) -> None:
    path = copy / name
    whole = path.read_bytes()
    for size in sizes:
        path.write_bytes(whole[:size])
        with pytest.raises(ScenarioError, match="fetch the file again") as error:
            Digits4(limit=10, test_limit=10, root=copy).load()
        assert str(error.value).startswith(str(path))
    path.unlink()
    with pytest.raises(ScenarioError, match="is published by") as error:
        Digits4(root=copy).load()
    assert str(path) in str(error.value)


def test_files_of_another_content_are_named(copy: Path) -> None:
    np.savez(copy / "mnist_m/mnist_m_subset.npz", x_train=np.zeros((3, 2)), y_train=np.zeros(3))
    with pytest.raises(ScenarioError, match=r"npz: lacks an array \(.*x_test"):
        Digits4(root=copy).load()
    path = copy / "usps/usps.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/data"], file[f"{split}/target"] = np.zeros((3, 256)), np.zeros(2)
    with pytest.raises(ScenarioError, match=r"usps\.h5: holds 3 examples and labels of shape \(2,\)"):
        Digits4(root=copy).load()
    with h5py.File(path, "w") as file:
        file["train/data"] = np.zeros((3, 256))
    with pytest.raises(ScenarioError, match=r"usps\.h5: lacks a group or array"):
        Digits4(root=copy).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "channels: unknown, got 4; use 1 or 3"),
        ({"limit": 0}, "limit: .*got 0; use a whole number of at least 1, or null for all rows"),
        ({"test_limit": "all"}, "test_limit: .*got 'all'; use a whole"),
        ({"size": None}, "size: .*got None"),
        ({"seed": -1}, "seed: .*got -1"),
    ],
)
def test_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Digits4(**options)  # type: ignore[arg-type]
