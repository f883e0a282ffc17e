"""CLIP image embeddings through open_clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from clients.errors import ClientError

from .base import Extractor, Normalise, file_hash
from .images import require_images, run_network


class _ImageEncoder(nn.Module):
    """``encode_image`` as a module's forward."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)


@dataclass(frozen=True)
class ClipFeatures(Extractor):
    """Image embeddings of a CLIP model, projection included, not normalised unless asked.

    Parameters
    ----------
    model : str
        Architecture known to open_clip, e.g. ``"ViT-B-16"`` (512 features).
    weights : str
        Path of a checkpoint file, or a tag of open_clip's such as ``"openai"``, which is downloaded.
    normalise : {"none", "l2"}
        Scale each vector to unit length, of training and test data alike.

    Raises
    ------
    ClientError
        If open_clip or the weights cannot be had, or the examples are no images.
    """

    model: str = "ViT-B-16"
    weights: str = "openai"
    normalise: Normalise = "none"

    def key(self) -> str:
        """Options, and the content of the checkpoint file if there is one."""
        return repr(self) + (file_hash(self.weights) if Path(self.weights).is_file() else "")

    def extract(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Features of shape (rows, embedding)."""
        require_images("clip_vit_b16", x)
        try:
            import open_clip
        except ImportError as error:
            raise ClientError(
                "features 'clip_vit_b16' needs open_clip: pip install 'fedbench[clip]'"
            ) from error
        if self.model not in open_clip.list_models():
            raise ClientError(
                f"features.model: open_clip has no model '{self.model}'; see open_clip.list_models()"
            )
        try:
            clip = open_clip.create_model(self.model, pretrained=self.weights)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ClientError(
                f"features.weights: '{self.weights}' gave no weights of {self.model} ({reason}); "
                "give the path of a checkpoint file or one of open_clip's tags"
            ) from error
        size = clip.visual.image_size
        side = size[0] if isinstance(size, tuple) else size
        return run_network(
            _ImageEncoder(clip), x, side, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        )
