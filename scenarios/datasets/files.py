"""Finding and reading data files; every failure names the file and says what is wrong with it."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.federation import Dataset, Meta, Rows, ScenarioError

Pixels = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
# What a truncated or foreign archive makes the standard library raise; RuntimeError is what zipfile says of
# an encrypted or unknown packing.
ARCHIVE_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def find(data: str, root: str | Path | None, relative: str, source: str) -> Path:
    """Path of ``relative`` under the data folder.

    Parameters
    ----------
    data : str
        Name of the data set.
    root : str, Path or None
        Data folder; ``None`` where none is set.
    relative : str
        File or folder below it.
    source : str
        One sentence: where the data are published.

    Raises
    ------
    ScenarioError
        Where it does not exist; says the path looked for and how to get the data.
    """
    remedy = f"{source} Put it under a data folder as {relative}"
    setting = "data.root=FOLDER or the environment variable FEDBENCH_DATA"
    if root is None:
        raise ScenarioError(
            f"data '{data}': needs files, and no data folder is set. {remedy}, and name that folder "
            f"by {setting}."
        )
    path = Path(root).expanduser() / relative
    if not path.exists():
        raise ScenarioError(
            f"data '{data}': nothing at {path.absolute()}. {remedy}; the data folder is named by {setting}."
        )
    return path


def broken(path: str | Path, problem: object) -> ScenarioError:
    """Error for a file that is there but cannot be used."""
    return ScenarioError(f"{path}: {problem}; fetch the file again")


def check_rows(path: str | Path, x: npt.NDArray[Any], y: npt.NDArray[Any], classes: int) -> None:
    """Raise ScenarioError unless there are rows, as many labels, and every label is below ``classes``."""
    if not len(x) or y.shape != (len(x),):
        raise broken(path, f"holds {len(x)} examples and labels of shape {y.shape}")
    if y.min() < 0 or y.max() >= classes:
        raise broken(path, f"holds labels {y.min()} to {y.max()}, not 0 to {classes - 1}")


def read_idx(path: Path) -> Pixels:
    """Array of bytes in a gzipped IDX file (the format of MNIST), in the shape that its header gives.

    Raises
    ------
    ScenarioError
        Where the file is no whole gzip file, no IDX file of bytes, or ends early.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except ARCHIVE_ERRORS as error:
        raise broken(path, f"not a whole gzip file ({error})") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise broken(path, f"not an IDX file of bytes (it starts with {content[:4].hex()})")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise broken(path, f"holds {len(content) - start} bytes of data, its header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_split(data: str, root: str | Path | None, split: str, source: str) -> tuple[Pixels, Rows]:
    """Images, shape (rows, 1, 28, 28), and labels of ``split`` ("train" or "t10k") in folder ``data``."""
    images = find(data, root, f"{data}/{split}-images-idx3-ubyte.gz", source)
    labels = find(data, root, f"{data}/{split}-labels-idx1-ubyte.gz", source)
    x, y = read_idx(images), read_idx(labels).astype(np.int64)
    if x.shape[1:] != (28, 28):
        raise broken(images, f"holds an array of shape {x.shape}, not images of 28 x 28")
    check_rows(labels, x, y, 10)
    return x[:, None], y


def idx_dataset(data: str, root: str | Path | None, classes: tuple[str, ...], source: str) -> Dataset:
    """Ten-class data set of four IDX files in folder ``data``, with the official test rows."""
    x, y = read_idx_split(data, root, "train", source)
    test_x, test_y = read_idx_split(data, root, "t10k", source)
    rows = len(y) + len(test_y)
    return Dataset(
        name=data,
        arrays={"x": np.concatenate([x, test_x]), "y": np.concatenate([y, test_y])},
        domain=np.zeros(rows, dtype=np.int64),
        domains=(data,),
        meta=Meta("classification", (1, 28, 28), classes),
        test=np.arange(len(y), rows, dtype=np.int64),
    )


def resize(x: Pixels, size: int) -> Pixels:
    """Images, shape (rows, channels, height, width), brought to ``size`` x ``size`` without aliasing."""
    if x.shape[2:] == (size, size):
        return x
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.ascontiguousarray(x)).float()
    resized = interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8).numpy()


def decode_image(content: bytes, size: int, channels: int, where: str | Path) -> Pixels:
    """Decode an image file to shape (channels, size, size); ``channels`` is 1 (grey) or 3 (RGB).

    Raises
    ------
    ScenarioError
        Where the bytes are no whole image; names ``where``.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise broken(where, f"not a readable image ({error})") from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)


@dataclass(frozen=True)
class ImageTree:
    """Images laid out as outer/class/file, e.g. domain/class/file, sorted by these names.

    Parameters
    ----------
    x : ndarray of uint8, shape (rows, channels, size, size)
        Pixels.
    y, outer : ndarray of int64, shape (rows,)
        Index into ``classes`` and into ``outers``.
    classes, outers : tuple of str
        Names; every outer folder holds all of the classes.
    """

    x: Pixels
    y: Rows
    outer: Rows
    classes: tuple[str, ...]
    outers: tuple[str, ...]

    def dataset(self, name: str) -> Dataset:
        """Make a data set whose domains are the outer folders."""
        meta = Meta("classification", self.x.shape[1:], self.classes)
        return Dataset(name, {"x": self.x, "y": self.y}, self.outer, self.outers, meta)


def find_images(data: str, root: str | Path | None, archive: str, outers: Sequence[str], source: str) -> Path:
    """Path of a zip of images, or of the folder it lies in where that holds the images unpacked."""
    if root is not None:
        folder = (Path(root).expanduser() / archive).parent
        if any((folder / outer).is_dir() for outer in outers):
            return folder
    return find(data, root, archive, f"{source} The zip holds {outers[0]}/CLASS/FILE; a folder works too.")


def read_images(path: Path, size: int, channels: int, outers: Sequence[str] = ()) -> ImageTree:
    """Read all images of a folder or zip laid out as outer/class/file.

    Parameters
    ----------
    path : Path
        Folder, or zip file.
    size, channels : int
        Of the result; images of another size are resized, aspect not kept.
    outers : sequence of str
        The outer folders that must be there; without it, all that are.

    Raises
    ------
    ScenarioError
        Where there are no images, an outer folder or one of its classes is missing, or a file does not
        decode.
    """
    try:
        if path.is_dir():
            outers = outers or sorted(
                each.name for each in path.iterdir() if each.is_dir() and _shown(each.name)
            )
            names = [file.relative_to(path).parts for file in path.glob("*/*/*") if file.is_file()]
            return _tree(path, names, lambda name: path.joinpath(*name).read_bytes(), size, channels, outers)
        with zipfile.ZipFile(path) as archive:
            names = [tuple(name.split("/")) for name in archive.namelist()]
            return _tree(path, names, lambda name: archive.read("/".join(name)), size, channels, outers)
    except ARCHIVE_ERRORS as error:
        raise broken(path, f"cannot be read whole ({error})") from error


def _shown(name: str) -> bool:
    """Whether a name is not one of those that file managers and archivers leave behind."""
    return not name.startswith((".", "__"))


def _tree(
    path: Path,
    names: list[tuple[str, ...]],
    read: Callable[[tuple[str, ...]], bytes],
    size: int,
    channels: int,
    outers: Sequence[str],
) -> ImageTree:
    names = sorted(
        name
        for name in names
        if len(name) == 3
        and name[2].lower().endswith(IMAGE_SUFFIXES)
        and all(map(_shown, name))
        and (not outers or name[0] in outers)
    )
    if not names:
        layout = f"{outers[0] if outers else 'DOMAIN'}/CLASS/FILE"
        raise ScenarioError(f"{path}: no images laid out as {layout} with one of {', '.join(IMAGE_SUFFIXES)}")
    found = tuple(outers) or tuple(sorted({name[0] for name in names}))
    classes = tuple(sorted({name[1] for name in names}))
    for outer in found:
        missing = sorted(set(classes) - {name[1] for name in names if name[0] == outer})
        if missing:
            raise ScenarioError(
                f"{path}: '{outer}' has no images of {', '.join(missing)}, which others have; "
                "each needs the same class folders"
            )
    x = np.empty((len(names), channels, size, size), dtype=np.uint8)
    for row, name in enumerate(names):
        x[row] = decode_image(read(name), size, channels, path.joinpath(*name))
    y = np.array([classes.index(name[1]) for name in names], dtype=np.int64)
    outer_index = np.array([found.index(name[0]) for name in names], dtype=np.int64)
    return ImageTree(x, y, outer_index, classes, found)


def local_path(name: str | Path, root: str | Path | None) -> Path | None:
    """Existing file or folder of this name, here or else under ``root``; ``None`` where there is none."""
    here = Path(name).expanduser()
    candidates = [here, *([Path(root).expanduser() / name] if root else [])]
    return next((path for path in candidates if path.exists()), None)
