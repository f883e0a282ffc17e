"""MNIST: handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import idx_dataset
from scenarios.federation import Dataset

SOURCE = "MNIST is published by LeCun, Cortes and Burges as four files NAME-ubyte.gz."


@dataclass(frozen=True)
class Mnist:
    """MNIST: 60,000 training and 10,000 official test images of ten digits, grey, 28 x 28.

    Parameters
    ----------
    root : str, Path or None
        Data folder; the four gzipped IDX files lie in its folder ``mnist``.
    """

    root: str | Path | None = None

    def load(self) -> Dataset:
        """Read the files.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (70000, 1, 28, 28); training rows first; one domain, "mnist".

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        return idx_dataset("mnist", self.root, tuple("0123456789"), SOURCE)
