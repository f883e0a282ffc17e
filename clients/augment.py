"""Random changes of training images, made on the worker anew in every round."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .errors import ClientError

Augmentation = Literal["none", "crop_flip", "rand_augment"]


def augment(images: Tensor, kind: Augmentation) -> Tensor:
    """Images changed independently of each other, with draws from torch's global generator.

    Parameters
    ----------
    images : Tensor, shape (rows, channels, height, width)
        Values in 0..1.
    kind : {"none", "crop_flip", "rand_augment"}
        ``crop_flip``: shifted by up to an eighth of a side, the border mirrored, and every other image turned
        left to right. ``rand_augment``: two operations of RandAugment (Cubuk et al., 2020) before that, and
        a random rectangle erased in every fourth image.

    Returns
    -------
    Tensor, shape (rows, channels, height, width)

    Raises
    ------
    ClientError
        If the examples are no images.
    """
    if kind == "none":
        return images
    if images.ndim != 4:
        raise ClientError(
            f"augment={kind} changes images, but the data give examples of shape {tuple(images.shape[1:])}; "
            "set client.augment=none"
        )
    from torchvision.transforms import v2

    height, width = images.shape[-2:]
    padding = (width // 8, height // 8)
    moves = [
        v2.RandomCrop((height, width), padding=padding, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
    ]
    if kind == "rand_augment":
        moves = [v2.RandAugment(), *moves, v2.RandomErasing(0.25)]
    transform = v2.Compose(moves)
    # One by one: on a batch, a transform draws once for all.
    return torch.stack([transform(image) for image in images]).clamp(0, 1)
