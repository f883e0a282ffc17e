import shutil
from pathlib import Path

import numpy as np
import pytest

from scenarios.datasets.office_caltech10 import CLASSES, DOMAINS, OfficeCaltech10
from scenarios.federation import ScenarioError

COUNTS = {"amazon": 958, "caltech": 1123, "dslr": 157, "webcam": 295}


def test_surf(data_root: Path) -> None:
    data = OfficeCaltech10(root=data_root).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((2533, 800), np.float32, True)
    assert dict(zip(data.domains, np.bincount(data.domain).tolist(), strict=True)) == COUNTS
    assert np.array_equal(np.unique(y), np.arange(10))
    assert np.allclose(x.mean(axis=1), 1, atol=1e-5)
    counts = OfficeCaltech10(normalise=False, root=data_root).load().arrays["x"]
    assert np.array_equal(counts, counts.round())
    assert counts.max() == 115
    assert np.allclose(x * counts.sum(axis=1, keepdims=True), counts * 800, rtol=1e-4)


def test_googlenet_lacks_caltech(data_root: Path) -> None:
    data = OfficeCaltech10(features="googlenet", root=data_root).load()
    assert (data.arrays["x"].shape, data.arrays["x"].dtype) == ((1410, 1024), np.float32)
    assert data.domains == ("amazon", "dslr", "webcam")
    assert np.bincount(data.domain).tolist() == [958, 157, 295]
    assert data.meta.shape == (1024,)


def test_images_have_the_labels_of_the_features(data_root: Path) -> None:
    images = OfficeCaltech10(features="images", size=24, root=data_root).load()
    surf = OfficeCaltech10(root=data_root).load()
    assert (images.arrays["x"].shape, images.arrays["x"].dtype) == ((2533, 3, 24, 24), np.uint8)
    assert images.domains == surf.domains == DOMAINS
    assert images.meta.classes == surf.meta.classes == CLASSES
    for data in (images, surf):
        assert np.bincount(data.arrays["y"][data.domain == 2]).tolist() == [
            12,
            21,
            12,
            13,
            10,
            24,
            22,
            12,
            8,
            23,
        ]
    cells = [data.domain * 10 + data.arrays["y"] for data in (images, surf)]
    assert np.array_equal(np.bincount(cells[0]), np.bincount(cells[1]))


def test_missing_and_damaged_files_are_named(tmp_path: Path, data_root: Path) -> None:
    for features, name in (("surf", "surf/amazon_SURF_L10.mat"), ("images", "images_96.zip")):
        with pytest.raises(ScenarioError, match="Geodesic Flow Kernel") as missing:
            OfficeCaltech10(features=features, root=tmp_path).load()
        assert str(tmp_path / "office_caltech10" / name) in str(missing.value)
    (tmp_path / "office_caltech10/surf").mkdir(parents=True)
    for file in (data_root / "office_caltech10/surf").iterdir():
        shutil.copyfile(file, tmp_path / "office_caltech10/surf" / file.name)
    path = tmp_path / "office_caltech10/surf/dslr_SURF_L10.mat"
    whole = path.read_bytes()
    for size in (0, 100, 9000, len(whole) - 50):
        path.write_bytes(whole[:size])
        with pytest.raises(ScenarioError, match=r"not a whole MATLAB file|holds no variable") as error:
            OfficeCaltech10(root=tmp_path).load()
        assert str(error.value).startswith(str(path))
    path.write_bytes((data_root / "office_caltech10/googlenet1024/dslr.mat").read_bytes())
    with pytest.raises(ScenarioError, match=r"shape \(157, 1024\), not \(rows, 800\)"):
        OfficeCaltech10(root=tmp_path).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "googlnet"}, r"features: unknown, got 'googlnet'; use .*; did you mean 'googlenet'\?"),
        ({"normalise": "yes"}, "normalise: neither yes nor no, got 'yes'; use true or false"),
        ({"size": 0}, "size: not a possible number, got 0"),
    ],
)
def test_options_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        OfficeCaltech10(**options)  # type: ignore[arg-type]
