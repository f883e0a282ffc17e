from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets.image_folder import ImageFolder
from scenarios.federation import ScenarioError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    root = tmp_path / "office_home"
    for number, domain in enumerate(("Art", "Real World")):
        for label, suffix in (("Bed", "jpg"), ("Alarm_Clock", "png"), ("Lamp", "JPEG")):
            (root / domain / label).mkdir(parents=True)
            for copy in range(2):
                image = Image.new("RGB", (20, 30), (100 * number, 100 * copy, 0))
                image.save(root / domain / label / f"{copy}.{suffix}")
    (root / "ImageInfo.csv").write_text("not an image")
    (root / ".cache").mkdir()
    return root


def test_names_come_from_the_folders(home: Path) -> None:
    data = ImageFolder(str(home), size=16).load()
    assert data.name == "office_home"
    assert data.arrays["x"].shape == (12, 3, 16, 16)
    assert data.domains == ("Art", "Real World")
    assert data.meta.classes == ("Alarm_Clock", "Bed", "Lamp")
    assert data.arrays["y"].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert data.domain.tolist() == [0] * 6 + [1] * 6
    red, green = data.arrays["x"][:, 0, 8, 8].astype(int), data.arrays["x"][:, 1, 8, 8].astype(int)
    assert np.abs(red - 100 * data.domain).max() < 8
    assert np.abs(green - 100 * (np.arange(12) % 2)).max() < 8
    assert data.test is None
    assert data.fingerprint() == ImageFolder(home, size=16).load().fingerprint()
    assert ImageFolder(home, channels=1).load().meta.shape == (1, 64, 64)


def test_mistakes_are_named(home: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nothing at .*/nowhere; .*DOMAIN/CLASS/FILE"):
        ImageFolder(home / "nowhere").load()
    with pytest.raises(ScenarioError, match="no images laid out as"):
        ImageFolder(home / "Art").load()
    (home / "empty").mkdir()
    with pytest.raises(ScenarioError, match="'empty' has no images of Alarm_Clock, Bed, Lamp"):
        ImageFolder(home).load()
    (home / "empty").rmdir()
    broken = home / "Art/Bed/1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ScenarioError, match="not a readable image") as error:
        ImageFolder(home).load()
    assert str(broken) in str(error.value)
    for copy in range(2):
        (home / f"Art/Bed/{copy}.jpg").unlink()
    with pytest.raises(ScenarioError, match="'Art' has no images of Bed, which others have"):
        ImageFolder(home).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path: not a folder, got ''; use one"),
        ({"path": None}, "path: not a folder, got None; use one"),
        ({"path": "a", "size": -1}, "size: not a possible number, got -1; use a whole"),
        ({"path": "a", "channels": 2}, "channels: unknown, got 2; use 1 or 3"),
    ],
)
def test_options_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ImageFolder(**options)  # type: ignore[arg-type]


def test_a_relative_path_is_found_under_the_root(tmp_path):
    for domain in ("art", "photo"):
        folder = tmp_path / "home" / domain / "mug"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "1.png")
    assert ImageFolder("home", root=tmp_path, size=8).load().domains == ("art", "photo")
    with pytest.raises(ScenarioError, match=r"nor under data\.root="):
        ImageFolder("nowhere", root=tmp_path).load()
