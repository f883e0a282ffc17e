from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets.hub import Hub
from scenarios.federation import ScenarioError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("flwr_datasets.common.telemetry.FLWR_TELEMETRY_ENABLED", "0")


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (12, 10), (20 * number, 0, 0)) for number in range(count)]


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["dog", "cat", "bird"]),
        style=datasets.Value("string"),
        year=datasets.Value("int64"),
    )
    (tmp_path / "animals").mkdir()
    for split, styles in (("train", "pqpqqp"), ("test", "qp")):
        columns: dict[str, list[Any]] = {
            "image": pictures(len(styles)),
            "label": [number % 2 for number in range(len(styles))],
            "style": list(styles),
            "year": [1900 + 10 * (number % 3) for number in range(len(styles))],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(tmp_path / "animals" / f"{split}.parquet")
    return str(tmp_path / "animals")


def test_parquet_with_domains_and_test_rows(parquet: str) -> None:
    data = Hub(parquet, domain_column="style", test_split="test", size=8).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype, y.dtype) == ((8, 3, 8, 8), np.uint8, np.int64)
    assert x[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100, 0, 20]
    assert y.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert data.meta.classes == ("dog", "cat", "bird")
    assert data.domains == ("p", "q")
    assert data.domain.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    assert data.test is not None
    assert data.test.tolist() == [6, 7]


def test_one_domain_and_no_test_rows(parquet: str) -> None:
    data = Hub(parquet, label_column="year", channels=1).load()
    assert data.arrays["x"].shape == (6, 1, 64, 64)
    assert data.arrays["y"].tolist() == [0, 1, 2, 0, 1, 2]
    assert data.meta.classes == ("1900", "1910", "1920")
    assert data.domains == ("animals",)
    assert data.test is None


def test_a_folder_of_images(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / "train" / label).mkdir(parents=True)
        for number, image in enumerate(pictures(2)):
            image.save(tmp_path / "pets" / "train" / label / f"{number}.png")
    data = Hub(str(tmp_path / "pets"), size=10).load()
    assert data.arrays["x"].shape == (4, 3, 10, 10)
    assert data.meta.classes == ("cat", "dog")
    assert sorted(data.arrays["y"].tolist()) == [0, 0, 1, 1]
    broken = tmp_path / "pets/train/dog/1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(ScenarioError, match="split 'train', row 3: not a readable image"):
        Hub(str(tmp_path / "pets"), size=10).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_column": "lable"},
            r"no column 'lable' \(data\.label_column\); it has image, label, style, year",
        ),
        ({"domain_column": "domain"}, r"no column 'domain' \(data\.domain_column\); it has image"),
        ({"image_column": "style"}, r"column 'style' \(data\.image_column\) holds .*string.*, not images"),
        ({"train_split": "trian"}, r"'trian' is not present.*'train', 'test'"),
        ({"test_split": "validation"}, r"'validation' is not present"),
    ],
)
def test_wrong_names_are_answered_with_the_right_ones(
    parquet: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        Hub(parquet, **options).load()  # type: ignore[arg-type]


def test_no_such_data_set(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere': cannot be loaded .*local folder"):
        Hub(str(tmp_path / "nowhere")).load()
    with pytest.raises(ScenarioError, match=r"'someone/something': cannot be loaded .*needs a network"):
        Hub("someone/something").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": ""}, "dataset: not a name, got ''; use the name of a data set"),
        ({"dataset": "a", "label_column": None}, "label_column: not a name, got None"),
        ({"dataset": "a", "channels": 2}, "channels: unknown, got 2"),
        ({"dataset": "a", "size": 0}, "size: .*got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Hub(**options)
