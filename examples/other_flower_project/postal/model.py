"""The model, on which no method asks more than that its last layer is called ``head``."""

from __future__ import annotations

from torch import Tensor, nn

PIXELS, DIGITS = 64, 10


class Reader(nn.Module):
    """One hidden layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU())
        self.head = nn.Linear(width, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the digits."""
        return self.head(self.body(x))
