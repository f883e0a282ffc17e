"""Features of any torchvision classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clients.errors import ClientError, first_line

from .base import Extractor, Normalise, file_hash
from .images import require_images, run_network

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TorchvisionFeatures(Extractor):
    """Input of the last linear layer of a torchvision classifier, frozen.

    Parameters
    ----------
    model : str
        Name of a torchvision classification model.
    weights : str
        Path of a state-dict file (read without pickle's code), or the name of torchvision weights such as
        ``"DEFAULT"``, which are downloaded.
    size : int
        Side that images are resized to.
    normalise : {"none", "l2"}
        Scale each vector to unit length.

    Raises
    ------
    ClientError
        If the model or its weights cannot be had, or the examples are no images.
    """

    model: str = "resnet18"
    weights: str = "DEFAULT"
    size: int = 224
    normalise: Normalise = "none"

    def key(self) -> str:
        """Options, and the content of the weights file if there is one."""
        return repr(self) + (file_hash(self.weights) if Path(self.weights).is_file() else "")

    def extract(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Features of shape (rows, width of the penultimate layer)."""
        require_images("torchvision", x)
        return run_network(self._network(), x, self.size, IMAGENET_MEAN, IMAGENET_STD)

    def _network(self) -> nn.Module:
        from torchvision import models

        if self.model not in models.list_models(models):
            raise ClientError(
                f"features.model: torchvision has no classification model '{self.model}'; "
                f"e.g. {', '.join(models.list_models(models)[:6])}"
            )
        local = Path(self.weights)
        if local.is_file():
            network = models.get_model(self.model, weights=None)
            load_state(network, local)
        else:
            try:
                network = models.get_model(self.model, weights=self.weights)
            except (OSError, ValueError, KeyError) as error:
                raise ClientError(
                    f"features.weights: '{self.weights}' is no file and could not be downloaded ({error}); "
                    "give the path of a state-dict file or 'DEFAULT'"
                ) from error
        linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise ClientError(f"features.model: '{self.model}' has no linear layer to read the input of")
        parent, _, child = linear[-1].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        return network


def load_state(network: nn.Module, path: Path) -> None:
    """Load a state-dict file into a network, or say what does not fit."""
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a file of another kind raises whatever its bytes lead to
        raise ClientError(
            f"features.weights: '{path}' is not a state dict of this model ({first_line(error)})"
        ) from error
