"""Any image data set of the Hugging Face Hub, or a local folder in one of its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.datasets.files import decode_image, local_path
from scenarios.datasets.options import check_choice, check_text, check_whole
from scenarios.federation import Dataset, Meta, Rows, ScenarioError


@dataclass(frozen=True)
class Hub:
    """An image classification data set loaded with flwr-datasets.

    Parameters
    ----------
    dataset : str
        Name on the Hub, e.g. ``flwrlabs/pacs``, which needs a network unless it is in the cache; or a local
        folder of parquet files or images, found from here or else from ``root``.
    root : str, Path or None
        Folder of data sets.
    subset : str or None
        Configuration of the data set, where it has several.
    image_column, label_column : str
        Columns of the images and of the class.
    domain_column : str or None
        Column of the domain; ``None`` for a single domain.
    train_split : str
        Split to train on.
    test_split : str or None
        Split of the official test rows; ``None`` holds rows of the training split out.
    size : int
        Height and width of the result, pixels.
    channels : int
        3 for colour, 1 for grey.
    """

    dataset: str
    root: str | Path | None = None
    subset: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    domain_column: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    size: int = 64
    channels: int = 3

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset, "the name of a data set on the Hub or a local folder")
        for field in ("image_column", "label_column", "train_split"):
            check_text(field, getattr(self, field), "text")
        for field in ("subset", "domain_column", "test_split"):
            check_text(field, getattr(self, field), "text, or null", none=True)
        check_whole("size", self.size, 1)
        check_choice("channels", self.channels, (1, 3))

    def load(self) -> Dataset:
        """Fetch and decode the images.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (rows, channels, size, size), in the order of the source, training rows first.

        Raises
        ------
        ScenarioError
            Where the data set, a split or a column is not there, or an image cannot be decoded.
        """
        names = [self.train_split] + ([self.test_split] if self.test_split else [])
        splits = self._fetch(names)
        sizes = [len(split) for split in splits]
        if not min(sizes):
            raise ScenarioError(f"data '{self.dataset}': split '{names[sizes.index(0)]}' has no rows")
        x = np.empty((sum(sizes), self.channels, self.size, self.size), dtype=np.uint8)
        for offset, name, split in zip(np.cumsum([0, *sizes]), names, splits, strict=False):
            for row, image in enumerate(split[self.image_column]):
                x[offset + row] = self._decode(image, f"{self.dataset}, split '{name}', row {row}")
        y, classes = self._codes(splits, self.label_column)
        if self.domain_column:
            domain, domains = self._codes(splits, self.domain_column)
        else:
            domain, domains = np.zeros_like(y), (Path(self.dataset).name,)
        test = np.arange(sizes[0], len(y), dtype=np.int64) if self.test_split else None
        meta = Meta("classification", x.shape[1:], classes)
        return Dataset(self.dataset, {"x": x, "y": y}, domain, domains, meta, test)

    def _fetch(self, names: Sequence[str]) -> list[Any]:
        """Load splits by name; the images are left undecoded."""
        from datasets import Image
        from datasets.exceptions import DatasetsError
        from flwr_datasets import FederatedDataset

        name = str(local_path(self.dataset, self.root) or self.dataset)
        source = FederatedDataset(dataset=name, subset=self.subset, partitioners={}, shuffle=False)
        try:
            splits = [source.load_split(name) for name in names]
        except ValueError as error:  # an unknown split or configuration; the message lists those there are
            raise ScenarioError(f"data '{self.dataset}': {error}") from error
        except (OSError, DatasetsError) as error:
            raise ScenarioError(
                f"data '{self.dataset}': cannot be loaded ({error}); data.dataset is the name of a data set "
                "on huggingface.co, which needs a network, or a local folder of parquet files or images"
            ) from error
        wanted = {"image_column": self.image_column, "label_column": self.label_column}
        if self.domain_column:
            wanted["domain_column"] = self.domain_column
        for name, split in zip(names, splits, strict=True):
            for field, column in wanted.items():
                if column not in split.column_names:
                    raise ScenarioError(
                        f"data '{self.dataset}': split '{name}' has no column '{column}' (data.{field}); "
                        f"it has {', '.join(split.column_names)}"
                    )
            feature = split.features[self.image_column]
            if not isinstance(feature, Image):
                raise ScenarioError(
                    f"data '{self.dataset}': column '{self.image_column}' (data.image_column) holds "
                    f"{feature}, not images; the columns are {', '.join(split.column_names)}"
                )
        return [split.cast_column(self.image_column, Image(decode=False)) for split in splits]

    def _decode(self, image: dict[str, Any] | None, where: str) -> Any:
        if image is None:
            raise ScenarioError(f"data {where}: there is no image")
        try:
            content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        except OSError as error:
            raise ScenarioError(f"data {where}: the image file cannot be read ({error})") from error
        return decode_image(content, self.size, self.channels, f"data {where}")

    def _codes(self, splits: Sequence[Any], column: str) -> tuple[Rows, tuple[str, ...]]:
        """Index of every row's value, and the names of the values, the same for all splits."""
        from datasets import ClassLabel

        feature = splits[0].features[column]
        values = [value for split in splits for value in split[column]]
        if not all(isinstance(value, str | int) for value in values):
            raise ScenarioError(
                f"data '{self.dataset}': column '{column}' has rows whose value is no name or whole number"
            )
        if isinstance(feature, ClassLabel):
            if min(values) < 0:
                raise ScenarioError(f"data '{self.dataset}': column '{column}' has rows without a value")
            names = feature.names
            return np.array(values, dtype=np.int64), tuple(names)
        found, codes = np.unique(np.array(values), return_inverse=True)
        return codes.astype(np.int64), tuple(map(str, found.tolist()))
