"""Features of a GC ViT that was trained before: its pooled last map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clients.errors import ClientError, first_line
from clients.models.gcvit import GCViT

from .base import Extractor, Normalise, file_hash
from .images import require_images, run_network


@dataclass(frozen=True)
class GCViTFeatures(Extractor):
    """What the head of a trained GC ViT is given, frozen.

    Parameters
    ----------
    weights : str
        Path of the weights: a ``.safetensors`` file, such as the checkpoint that a run of ``client=gcvit``
        leaves, or a state-dict file (read without pickle's code).
    variant : str
        Of the model that was trained.
    size : int
        Side that images are resized to, as in training.
    normalise : {"none", "l2"}
        Scale each vector to unit length.

    Raises
    ------
    ClientError
        If the file is missing or holds no such model, or the examples are no images.
    """

    weights: str
    variant: str = "micro"
    size: int = 64
    normalise: Normalise = "none"

    def key(self) -> str:
        """Options, and the content of the weights file."""
        return repr(self) + (file_hash(self.weights) if Path(self.weights).is_file() else "")

    def extract(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Features of shape (rows, channels of the last stage)."""
        require_images("gcvit", x)
        return run_network(self._network(), x, self.size, (0.0,) * 3, (1.0,) * 3)

    def _network(self) -> nn.Module:
        state = self._state()
        if "head.weight" not in state:
            raise ClientError(f"features.weights: '{self.weights}' holds no GC ViT (it has no head.weight)")
        network = GCViT((3, self.size, self.size), len(state["head.weight"]), self.variant)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ClientError(
                f"features.weights: '{self.weights}' is not of variant '{self.variant}' for images of three "
                f"channels and {self.size} pixels ({first_line(error)})"
            ) from error
        network.head = nn.Identity()  # type: ignore[assignment]
        return network

    def _state(self) -> dict[str, Tensor]:
        path = Path(self.weights)
        if not path.is_file():
            raise ClientError(f"features.weights: no file '{path}'; train one with client=gcvit first")
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file of another kind raises whatever its bytes lead to
            raise ClientError(f"features.weights: '{path}' holds no weights ({first_line(error)})") from error
        return state
