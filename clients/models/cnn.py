"""The small convolutional network of the non-IID benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .shapes import image_shape


class CNN(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels) with max pooling, then 120-84-classes.

    The LeNet variant of NIID-Bench (Li, Diao, Chen and He, ICDE 2022, arXiv 2102.02079) and of Flower's
    baseline of that name: 44,426 parameters on 28x28 grey images.

    Parameters
    ----------
    shape : sequence of int
        ``(channels, height, width)``, at least 16x16.
    classes : int
        Number of classes.
    """

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape("cnn", shape, minimum=16)
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        pooled = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        self.fc1 = nn.Linear(16 * pooled[0] * pooled[1], 120)
        self.fc2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.head(functional.relu(self.fc2(x)))
