"""A multilayer perceptron on flattened inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .norms import Norm, norm_of_vectors


class MLP(nn.Module):
    """Fully connected layers with ReLU, then a linear head.

    Parameters
    ----------
    shape : sequence of int
        Shape of one example.
    classes : int
        Number of classes.
    hidden : sequence of int
        Width of each hidden layer.
    norm : {"none", "batch", "layer"}
        Normalisation before each ReLU. Running statistics of BatchNorm are averaged over clients as
        parameters are, unless the method keeps them local.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, hidden: Sequence[int] = (200,), norm: Norm = "none"
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(
                f"hidden: needs one width of at least 1 for each hidden layer, got {list(hidden)}"
            )
        widths = [math.prod(shape), *hidden]
        layers: list[nn.Module] = []
        for width, next_width in zip(widths, hidden, strict=False):
            normalised = [] if norm == "none" else [norm_of_vectors(norm, next_width)]
            layers += [nn.Linear(width, next_width), *normalised, nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        return self.head(self.body(x.flatten(1)))
