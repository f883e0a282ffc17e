"""The small convolutional network of the non-IID benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .norms import Norm, norm_of_maps, norm_of_vectors
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
    norm : {"none", "batch", "layer"}
        Normalisation before each ReLU, as in FedBN's network for digits. Running statistics of BatchNorm
        are averaged over clients as parameters are, unless the method keeps them local.
    """

    def __init__(self, shape: Sequence[int], classes: int, norm: Norm = "none") -> None:
        super().__init__()
        channels, height, width = image_shape("cnn", shape, minimum=16)
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        pooled = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        self.fc1 = nn.Linear(16 * pooled[0] * pooled[1], 120)
        self.fc2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, classes)
        self.norm1, self.norm2 = norm_of_maps(norm, 6), norm_of_maps(norm, 16)
        self.norm3, self.norm4 = norm_of_vectors(norm, 120), norm_of_vectors(norm, 84)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        x = functional.relu(self.norm3(self.fc1(x.flatten(1))))
        return self.head(functional.relu(self.norm4(self.fc2(x))))
