"""The choice of normalisation layers in the small models."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["none", "batch", "layer"]


def norm_of_vectors(norm: Norm, width: int) -> nn.Module:
    """A layer that normalises vectors; ``none`` leaves them as they are and has no parameters."""
    return {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[norm](width)


def norm_of_maps(norm: Norm, channels: int) -> nn.Module:
    """As :func:`norm_of_vectors` for feature maps; ``layer`` is over channels and pixels of an example."""
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    return {"none": nn.Identity, "batch": nn.BatchNorm2d}[norm](channels)
