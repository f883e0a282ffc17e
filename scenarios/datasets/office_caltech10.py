"""Office-Caltech-10: ten kinds of office things from a shop, two cameras and Caltech-256."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import ARCHIVE_ERRORS, broken, check_rows, find, find_images, read_images
from scenarios.datasets.options import check_choice, check_flag, check_whole
from scenarios.federation import Dataset, Meta, Rows

SOURCE = "Office-Caltech-10 is published by Gong et al. (2012), 'Geodesic Flow Kernel'."
CLASSES = (
    "backpack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop",
    "monitor",
    "mouse",
    "mug",
    "projector",
)
DOMAINS = ("amazon", "caltech", "dslr", "webcam")
IMAGE_FOLDERS = ("amazon", "caltech10", "dslr", "webcam")
# Folder, length of a row, and the file of each domain.
VECTORS = {
    "surf": (
        "surf",
        800,
        dict(
            zip(
                DOMAINS,
                ("amazon_SURF_L10", "Caltech10_SURF_L10", "dslr_SURF_L10", "webcam_SURF_L10"),
                strict=True,
            )
        ),
    ),
    "googlenet": ("googlenet1024", 1024, {name: name for name in ("amazon", "dslr", "webcam")}),
}


@dataclass(frozen=True)
class OfficeCaltech10:
    """Office-Caltech-10: 2,533 examples, ten classes, domains amazon, caltech, dslr and webcam.

    Parameters
    ----------
    features : {"surf", "googlenet", "images"}
        Histograms of 800 SURF words; 1,024 GoogLeNet activations, which are easy and lack caltech; or
        colour images.
    normalise : bool
        For ``surf``: divide each histogram by its sum and multiply it by 800, so that its mean is 1. It uses
        no other row. The common further step, a z-score of each column over a whole domain, is left out: it
        would look at test rows and take part of the domain skew away.
    size : int
        For ``images``: height and width, pixels. The zip holds images of 96 x 96.
    root : str, Path or None
        Data folder; its folder ``office_caltech10`` holds ``surf/*.mat``, ``googlenet1024/*.mat`` and
        ``images_96.zip`` (or the images unpacked, domain/class/file).
    """

    features: str = "surf"
    normalise: bool = True
    size: int = 96
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_choice("features", self.features, (*VECTORS, "images"))
        check_flag("normalise", self.normalise)
        check_whole("size", self.size, 1)

    def load(self) -> Dataset:
        """Read the files.

        Returns
        -------
        Dataset
            ``x`` float32, shape (2533, 800) or (1410, 1024), or uint8, shape (2533, 3, size, size); no
            official test rows.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        if self.features == "images":
            archive = "office_caltech10/images_96.zip"
            path = find_images("office_caltech10", self.root, archive, IMAGE_FOLDERS, SOURCE)
            tree = read_images(path, self.size, 3, IMAGE_FOLDERS)
            return replace(tree, outers=DOMAINS).dataset("office_caltech10")

        folder, width, files = VECTORS[self.features]
        parts = []
        for name in files.values():
            relative = f"office_caltech10/{folder}/{name}.mat"
            parts.append(_read(find("office_caltech10", self.root, relative, SOURCE), width))
        x = np.concatenate([x for x, _ in parts])
        if self.features == "surf" and self.normalise:
            # A histogram without any word stays zero.
            x *= width / np.maximum(x.sum(axis=1, keepdims=True), 1.0)
        return Dataset(
            name="office_caltech10",
            arrays={"x": x, "y": np.concatenate([y for _, y in parts])},
            domain=np.repeat(np.arange(len(parts), dtype=np.int64), [len(y) for _, y in parts]),
            domains=tuple(files),
            meta=Meta("classification", (width,), CLASSES),
        )


def _read(path: Path, width: int) -> tuple[npt.NDArray[np.float32], Rows]:
    """Features and labels from 0 of one MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=["fts", "labels"])
        x, y = content["fts"].astype(np.float32, order="C"), content["labels"].ravel().astype(np.int64) - 1
    except (*ARCHIVE_ERRORS, MatReadError, ValueError, TypeError, IndexError) as error:
        raise broken(path, f"not a whole MATLAB file ({error})") from error
    except KeyError as error:
        raise broken(path, f"holds no variable {error}") from error
    if x.ndim != 2 or x.shape[1] != width:
        raise broken(path, f"holds features of shape {x.shape}, not (rows, {width})")
    check_rows(path, x, y, len(CLASSES))
    return x, y
