"""Omniglot: handwritten characters of fifty alphabets, and those of twenty that nobody trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import ARCHIVE_ERRORS, Pixels, broken, find, resize
from scenarios.datasets.options import check_choice, check_flag, check_whole
from scenarios.federation import Dataset, Meta, Rows

SOURCE = "Omniglot is published by Lake, Salakhutdinov and Tenenbaum at github.com/brendenlake/omniglot."
FILE = "omniglot/omniglot_28.npz"
CHARACTERS = {"background": 964, "evaluation": 659}
DRAWERS = 20
ARRAYS = ("x", "char", "alphabet", "drawer", "alphabet_names")


@dataclass(frozen=True)
class Omniglot:
    """Omniglot: characters of 30 alphabets (the background set), each drawn once by 20 people; ink is high.

    By alphabet, clients of ``domain_skew`` have no class in common; by drawer, all have the same classes, and
    each draws in another hand. The other 20 alphabets (the evaluation set) are for episodes of classes that
    nobody has trained on: see `characters` and `scenarios.episodes`.

    A drawer has a single image of a character. Those that are held out are test rows of the drawer's domain,
    but of no client, as clients are tested on characters that they hold.

    Parameters
    ----------
    size : int
        Height and width, pixels. The file holds 28 x 28; 14 is the usual other choice.
    by : {"alphabet", "drawer"}
        What the domains are. Drawers are numbered anew in every alphabet, so that a drawer's domain is of one
        person in each alphabet, but not of the same person in all.
    root : str, Path or None
        Data folder; its folder ``omniglot`` holds ``omniglot_28.npz``.
    """

    size: int = 28
    by: str = "alphabet"
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1)
        check_choice("by", self.by, ("alphabet", "drawer"))

    def load(self) -> Dataset:
        """Read the background set.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (19280, 1, size, size), of 964 classes; no official test rows.

        Raises
        ------
        ScenarioError
            Where the file is missing or damaged.
        """
        return self.characters("background")

    def characters(self, part: str, rotations: bool = False) -> Dataset:
        """One of the two parts of the official split, whose alphabets differ.

        Parameters
        ----------
        part : {"background", "evaluation"}
            The one to train on (964 characters), or that of new classes (659).
        rotations : bool
            Make classes of the characters turned by 90, 180 and 270 degrees too (Vinyals et al., 2016, arXiv
            1606.04080): four times the rows and classes, those as drawn first.

        Raises
        ------
        ValueError
            For an option that is not one of these.
        ScenarioError
            Where the file is missing or damaged.
        """
        check_choice("part", part, tuple(CHARACTERS))
        check_flag("rotations", rotations)
        path = find("omniglot", self.root, FILE, SOURCE)
        held = _read(path, part)
        names = [str(name) for name in held["alphabet_names"]]
        x, y = resize(held["x"][:, None], self.size), held["char"].astype(np.int64)
        alphabet = held["alphabet"].astype(np.int64)
        classes = _class_names(names, alphabet, y)
        if self.by == "alphabet":
            domain, domains = alphabet, tuple(names)
        else:
            domain = held["drawer"].astype(np.int64) - 1
            domains = tuple(f"drawer{number:02d}" for number in range(1, DRAWERS + 1))
        if rotations:
            x, y, classes = _turned(x, y, classes)
            domain = np.tile(domain, 4)
        meta = Meta("classification", (1, self.size, self.size), classes)
        return Dataset("omniglot", {"x": x, "y": y}, domain, domains, meta)


def _read(path: Path, part: str) -> dict[str, npt.NDArray[Any]]:
    """Checked arrays of one part."""
    try:
        with np.load(path) as file:
            held = {key: file[f"{part}_{key}"] for key in ARRAYS}
    except (*ARCHIVE_ERRORS, ValueError) as error:
        raise broken(path, f"not a whole npz file ({error})") from error
    except KeyError as error:
        raise broken(path, f"holds no array {error}") from error
    rows, classes = CHARACTERS[part] * DRAWERS, CHARACTERS[part]
    if held["x"].shape != (rows, 28, 28) or held["x"].dtype != np.uint8:
        raise broken(path, f"{part}: holds an array of shape {held['x'].shape}, not {(rows, 28, 28)} bytes")
    ranges = (("char", 0, classes), ("alphabet", 0, len(held["alphabet_names"])), ("drawer", 1, DRAWERS))
    for key, first, count in ranges:
        numbers, end = held[key], first + count
        if numbers.shape != (rows,) or not np.array_equal(np.unique(numbers), np.arange(first, end)):
            raise broken(path, f"{part}: array '{key}' is not of {rows} numbers {first} to {end - 1}")
    return held


def _class_names(names: list[str], alphabet: Rows, y: Rows) -> tuple[str, ...]:
    """Alphabet and, from 1 in each, the number of every character."""
    _, first = np.unique(y, return_index=True)
    of_class = alphabet[first]
    counts = np.zeros(len(names), dtype=np.int64)
    named = []
    for index in of_class:
        counts[index] += 1
        named.append(f"{names[index]}/{counts[index]:02d}")
    return tuple(named)


def _turned(x: Pixels, y: Rows, classes: tuple[str, ...]) -> tuple[Pixels, Rows, tuple[str, ...]]:
    """Rows and classes as they are, and turned by each right angle."""
    turned = np.concatenate([np.rot90(x, turns, axes=(2, 3)) for turns in range(4)])
    labels = np.concatenate([y + turns * len(classes) for turns in range(4)])
    names = [f"{name} {90 * turns} degrees" if turns else name for turns in range(4) for name in classes]
    return turned, labels, tuple(names)
