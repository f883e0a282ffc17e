"""Fashion-MNIST: pictures of clothes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import idx_dataset
from scenarios.federation import Dataset

SOURCE = "Fashion-MNIST is published at github.com/zalandoresearch/fashion-mnist as four files NAME-ubyte.gz."
CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: 60,000 training and 10,000 official test images of ten kinds of clothes, 28 x 28.

    Parameters
    ----------
    root : str, Path or None
        Data folder; the four gzipped IDX files lie in its folder ``fashion_mnist``.
    """

    root: str | Path | None = None

    def load(self) -> Dataset:
        """Read the files.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (70000, 1, 28, 28); training rows first; one domain, "fashion_mnist".

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        return idx_dataset("fashion_mnist", self.root, CLASSES, SOURCE)
