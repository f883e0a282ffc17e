"""Handwritten digits of four sources: MNIST, USPS, MNIST-M and Optdigits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import ARCHIVE_ERRORS, Pixels, broken, check_rows, find, read_idx_split, resize
from scenarios.datasets.mnist import SOURCE as MNIST_SOURCE
from scenarios.datasets.options import check_choice, check_whole
from scenarios.federation import Dataset, Meta, Rows

DOMAINS = ("mnist", "usps", "mnist_m", "optdigits")
USPS_SOURCE = "USPS is published by Hull (1994); this is its usual HDF5 form with groups train and test."
MNIST_M_SOURCE = "MNIST-M is published by Ganin et al. (2016); arrays x_train, y_train, x_test and y_test."
OPTDIGITS_SOURCE = "Optdigits is published by the UCI repository as optdigits.tra and optdigits.tes."
OPTDIGITS_ROWS = {"tra": 3823, "tes": 1797}
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)

# Images, shape (rows, channels, height, width), and labels.
Part = tuple[Pixels, Rows]


@dataclass(frozen=True)
class Digits4:
    """Ten handwritten digits from four sources at one size, with the official training and test rows.

    MNIST-M is MNIST on coloured photographs: its test images come from MNIST's test images, so no digit
    that is trained on is tested on. USPS are American postcodes, Optdigits is from Turkey and 8 x 8.

    Parameters
    ----------
    size : int
        Height and width of the result, pixels.
    channels : int
        1 for grey, 3 for colour (which only MNIST-M has).
    limit, test_limit : int or None
        Most training and test rows of a domain, equally many of each class as far as there are enough;
        ``None`` keeps all.
    seed : int
        Of the choice of rows; a smaller limit chooses some of the rows of a larger one.
    root : str, Path or None
        Data folder with ``mnist/*.gz``, ``usps/usps.h5``, ``mnist_m/mnist_m_subset.npz`` and
        ``optdigits/optdigits.tra`` and ``.tes``.
    """

    size: int = 16
    channels: int = 1
    limit: int | None = 4000
    test_limit: int | None = 2000
    seed: int = 0
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1)
        check_choice("channels", self.channels, (1, 3))
        check_whole("limit", self.limit, 1, none="all rows")
        check_whole("test_limit", self.test_limit, 1, none="all rows")
        check_whole("seed", self.seed, 0)

    def load(self) -> Dataset:
        """Read the four sources.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (rows, channels, size, size), domain after domain, training rows first.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        rngs = iter(np.random.SeedSequence(self.seed).spawn(2 * len(DOMAINS)))
        limits = (self.limit, self.test_limit)
        xs, ys, domain, held_out = [], [], [], []
        for index, read in enumerate((self._mnist, self._usps, self._mnist_m, self._optdigits)):
            for official, ((x, y), limit) in enumerate(zip(read(), limits, strict=True)):
                rows = _choose(y, limit, np.random.default_rng(next(rngs)))
                xs.append(self._convert(x[rows]))
                ys.append(y[rows])
                domain.append(np.full(len(rows), index, dtype=np.int64))
                held_out.append(np.full(len(rows), official == 1))
        return Dataset(
            name="digits4",
            arrays={"x": np.concatenate(xs), "y": np.concatenate(ys)},
            domain=np.concatenate(domain),
            domains=DOMAINS,
            meta=Meta("classification", (self.channels, self.size, self.size), tuple("0123456789")),
            test=np.flatnonzero(np.concatenate(held_out)),
        )

    def _convert(self, x: Pixels) -> Pixels:
        if x.shape[1] > self.channels:
            x = np.round((x * LUMA).sum(axis=1, keepdims=True)).astype(np.uint8)
        x = resize(x, self.size)
        return x if x.shape[1] == self.channels else np.repeat(x, self.channels, axis=1)

    def _mnist(self) -> Iterator[Part]:
        for split in ("train", "t10k"):
            yield read_idx_split("mnist", self.root, split, MNIST_SOURCE)

    def _usps(self) -> Iterator[Part]:
        import h5py

        path = find("usps", self.root, "usps/usps.h5", USPS_SOURCE)
        try:
            with h5py.File(path, "r") as file:
                parts = [(file[split]["data"][:], file[split]["target"][:]) for split in ("train", "test")]
        except (OSError, RuntimeError, TypeError) as error:
            raise broken(path, f"not a whole HDF5 file ({error})") from error
        except KeyError as error:
            raise broken(path, f"lacks a group or array ({error})") from error
        for x, y in parts:
            if x.shape[1:] != (256,):
                raise broken(path, f"holds an array of shape {x.shape}, not (rows, 256)")
            check_rows(path, x, y, 10)
            yield np.round(x * 255).astype(np.uint8).reshape(-1, 1, 16, 16), y.astype(np.int64)

    def _mnist_m(self) -> Iterator[Part]:
        path = find("mnist_m", self.root, "mnist_m/mnist_m_subset.npz", MNIST_M_SOURCE)
        try:
            with np.load(path) as file:
                parts = [(file[f"x_{split}"], file[f"y_{split}"]) for split in ("train", "test")]
        except (*ARCHIVE_ERRORS, ValueError) as error:
            raise broken(path, f"not a whole npz file ({error})") from error
        except KeyError as error:
            raise broken(path, f"lacks an array ({error})") from error
        for x, y in parts:
            if x.ndim != 4 or x.shape[3] != 3 or x.dtype != np.uint8:
                raise broken(path, f"holds {x.dtype} of shape {x.shape}, not uint8 (rows, height, width, 3)")
            check_rows(path, x, y, 10)
            yield x.transpose(0, 3, 1, 2), y.astype(np.int64)

    def _optdigits(self) -> Iterator[Part]:
        for suffix, expected in OPTDIGITS_ROWS.items():
            path = find("optdigits", self.root, f"optdigits/optdigits.{suffix}", OPTDIGITS_SOURCE)
            try:
                table = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
            except (OSError, ValueError) as error:
                raise broken(path, f"not a table of whole numbers ({error})") from error
            if table.shape != (expected, 65):
                raise broken(path, f"holds a table of shape {table.shape}, not ({expected}, 65)")
            x, y = table[:, :64], table[:, 64]
            check_rows(path, x, y, 10)
            # Optdigits counts ink from 0 to 16.
            yield np.round(x * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8), y


def _choose(y: Rows, limit: int | None, rng: np.random.Generator) -> Rows:
    """At most ``limit`` rows at random, the classes filled in turn; sorted."""
    order = rng.permutation(len(y))
    if limit is None or limit >= len(y):
        return np.sort(order)
    turn = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        of_class = order[y[order] == label]
        turn[of_class] = np.arange(len(of_class))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])
