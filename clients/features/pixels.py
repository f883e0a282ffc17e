"""Pixels as features: the extractor that needs no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Extractor, Normalise
from .images import as_tensor, require_images


@dataclass(frozen=True)
class Pixels(Extractor):
    """Flattened pixels in 0..1; vectors pass through unchanged.

    Parameters
    ----------
    size : int or None
        Side to resize images to, with antialiasing; ``None`` keeps theirs.
    normalise : {"none", "l2"}
        Scale each vector to unit length.
    """

    size: int | None = None
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: must be 1 or more, got {self.size}")

    def key(self) -> str:
        """Options."""
        return repr(self)

    def extract(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Features of shape (rows, pixels x channels)."""
        if x.ndim == 2 and self.size is None:
            return x.astype(np.float32, copy=False)
        require_images("pixels", x)
        return as_tensor(x, self.size).flatten(1).numpy()
