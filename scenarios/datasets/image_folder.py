"""Any folder of images with one folder a domain and in it one folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import local_path, read_images
from scenarios.datasets.options import check_choice, check_whole
from scenarios.federation import Dataset, ScenarioError


@dataclass(frozen=True)
class ImageFolder:
    """Images laid out as domain/class/file, such as Office-Home: domains and classes are folder names.

    Parameters
    ----------
    path : str or Path
        Folder of the domains, or a zip of it; found from here, or else from ``root``.
    root : str, Path or None
        Folder of data sets.
    size : int
        Height and width of the result, pixels; images are resized, aspect not kept.
    channels : int
        3 for colour, 1 for grey.
    """

    path: str | Path
    root: str | Path | None = None
    size: int = 64
    channels: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path) or not str(self.path):
            raise ValueError(f"path: not a folder, got {self.path!r}; use one that holds DOMAIN/CLASS/FILE")
        check_whole("size", self.size, 1)
        check_choice("channels", self.channels, (1, 3))

    def load(self) -> Dataset:
        """Read the images.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (rows, channels, size, size), sorted by domain, class and file name; named
            after the folder; no official test rows.

        Raises
        ------
        ScenarioError
            Where there is no such folder, it has no domains, the classes of its domains differ, or an image
            cannot be read.
        """
        path = local_path(self.path, self.root)
        if path is None:
            also = f" nor under data.root={self.root}" if self.root else ""
            raise ScenarioError(
                f"data 'image_folder': nothing at {Path(self.path).expanduser().absolute()}{also}; data.path "
                "must name a folder that holds DOMAIN/CLASS/FILE"
            )
        return read_images(path, self.size, self.channels).dataset(path.stem)
