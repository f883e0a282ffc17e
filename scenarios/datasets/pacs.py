"""PACS: photographs, art paintings, cartoons and sketches of the same seven things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import find_images, read_images
from scenarios.datasets.options import check_whole
from scenarios.federation import Dataset

SOURCE = "PACS is published by Li et al. (2017), 'Deeper, Broader and Artier Domain Generalization'."
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


@dataclass(frozen=True)
class Pacs:
    """PACS: 9,991 colour images, four domains, seven classes; the mix of classes differs by domain.

    Parameters
    ----------
    size : int
        Height and width of the result, pixels.
    root : str, Path or None
        Data folder; its folder ``pacs`` holds ``pacs_64.zip`` (images of 64 x 64), or one folder a domain,
        each with one folder of images a class, which may be larger.
    """

    size: int = 64
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1)

    def load(self) -> Dataset:
        """Read the images.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (rows, 3, size, size); no official test rows.

        Raises
        ------
        ScenarioError
            Where the files are missing, damaged, or lack a class.
        """
        path = find_images("pacs", self.root, "pacs/pacs_64.zip", DOMAINS, SOURCE)
        return read_images(path, self.size, 3, DOMAINS).dataset("pacs")
