"""ResNet-18, torchvision's, with the two changes that federated work makes to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from .shapes import image_shape


class ResNet18(nn.Module):
    """torchvision's ResNet-18 from scratch.

    Parameters
    ----------
    shape : sequence of int
        ``(channels, height, width)``.
    classes : int
        Number of classes.
    norm : {"group", "batch"}
        GroupNorm with two groups a layer (Hsieh, Phanishayee, Mutlu and Gibbons, ICML 2020), or
        BatchNorm, whose running statistics are averaged over clients as parameters are.
    small_images : bool
        3x3 stem without pooling, for images of 32 pixels or fewer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        norm: Literal["group", "batch"] = "group",
        small_images: bool = True,
    ) -> None:
        super().__init__()
        from torchvision.models import resnet18

        channels, _, _ = image_shape("resnet18", shape)
        layer = partial(nn.GroupNorm, 2) if norm == "group" else nn.BatchNorm2d
        self.net = resnet18(num_classes=classes, norm_layer=layer)
        kernel, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        self.net.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small_images:
            self.net.maxpool = nn.Identity()
        self.head, self.net.fc = self.net.fc, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        return self.head(self.net(x))
