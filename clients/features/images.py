"""What extractors of images share: channels, size, scale and batches through a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.errors import ClientError


def require_images(name: str, x: npt.NDArray[Any]) -> None:
    """Refuse anything but images of 1 or 3 channels."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ClientError(
            f"features '{name}' needs images (rows, 1 or 3 channels, height, width), but the data give "
            f"examples of shape {tuple(x.shape[1:])}; choose features=pixels or features=none"
        )


def as_tensor(x: npt.NDArray[Any], size: int | None) -> Tensor:
    """Images as float32 in 0..1, resized to a square if asked."""
    images = torch.from_numpy(np.ascontiguousarray(x)).float()
    if x.dtype == np.uint8:
        images /= 255
    if size is not None and images.shape[-2:] != (size, size):
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images


def run_network(
    network: nn.Module,
    x: npt.NDArray[Any],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
) -> npt.NDArray[np.float32]:
    """Outputs of a frozen network on images, standardised as it was trained, batch by batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.eval().to(device)
    centre = torch.tensor(mean).view(1, 3, 1, 1)
    spread = torch.tensor(std).view(1, 3, 1, 1)
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            images = as_tensor(x[start : start + batch_size], size).expand(-1, 3, -1, -1)
            parts.append(network(((images - centre) / spread).to(device)).flatten(1).cpu().numpy())
    return np.concatenate(parts)
