"""Checks that say, in one line, which data a model needs."""

from __future__ import annotations

from collections.abc import Sequence

from clients.errors import ClientError


def image_shape(model: str, shape: Sequence[int], minimum: int = 1) -> tuple[int, int, int]:
    """``(channels, height, width)`` of image data.

    Raises
    ------
    ClientError
        If the examples are no images, or smaller than ``minimum`` pixels a side.
    """
    if len(shape) != 3:
        raise ClientError(
            f"client '{model}' needs images (channels, height, width), but the data give examples of shape "
            f"{tuple(shape)}; choose image data with features=none, or client=mlp"
        )
    channels, height, width = shape
    if min(height, width) < minimum:
        raise ClientError(
            f"client '{model}' needs images of at least {minimum}x{minimum} pixels, "
            f"but the data give {height}x{width}"
        )
    return channels, height, width
