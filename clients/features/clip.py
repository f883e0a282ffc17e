"""CLIP image embeddings through open_clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from clients.errors import ClientError, first_line

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
        Path of a checkpoint file, or a tag of open_clip's such as ``"openai"``, which is downloaded. A tag
        says whether its weights were trained with QuickGELU, and that is then used; a file does not:
        OpenAI's weights as a file need ``model="ViT-B-16-quickgelu"``.
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
            tag = open_clip.get_pretrained_cfg(self.model, self.weights)
            quick = bool(tag.get("quick_gelu"))
            clip = open_clip.create_model(self.model, pretrained=self.weights, force_quick_gelu=quick)
        except Exception as error:  # a file of another kind raises whatever its bytes lead to
            raise ClientError(
                f"features.weights: '{self.weights}' gave no weights of {self.model} ({first_line(error)}); "
                "give the path of a checkpoint file or one of open_clip's tags"
            ) from error
        tower = clip.visual
        side = tower.image_size[0] if isinstance(tower.image_size, tuple) else tower.image_size
        return run_network(_ImageEncoder(clip), x, side, tower.image_mean, tower.image_std)
