"""Classification: logits in, cross-entropy and accuracy out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from strategies.calibration import BINS, calibration_gaps
from strategies.client import weighted_cross_entropy
from strategies.functional import Batch

from .base import Arrays, Rows, Task


class Classification(Task):
    """Single-label classification with cross-entropy on logits.

    Parameters
    ----------
    calibration : bool
        Also measure ``ece``, the expected calibration error: the mean distance between confidence and
        accuracy over 15 bins; see :mod:`strategies.calibration`. Clients report a number more for each.
    """

    kind = "classification"
    headline = "accuracy"
    higher_is_better = True

    def __init__(self, calibration: bool = False) -> None:
        self.calibration = calibration
        self.gaps = tuple(f"gap_{b}" for b in range(BINS)) if calibration else ()
        self.sums = ("loss", "correct", "count", *self.gaps)

    def gather(self, arrays: Arrays, rows: Rows) -> Batch:
        """``x`` as float32 (uint8 images scaled to 0..1) and ``y`` as int64."""
        x = torch.from_numpy(arrays["x"][rows])
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return {"x": x, "y": torch.from_numpy(arrays["y"][rows]).long()}

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The examples."""
        return (batch["x"],)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over the real rows."""
        return weighted_cross_entropy(output, batch)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums of loss, hits and rows."""
        weight = batch["weight"]
        losses = functional.cross_entropy(output, batch["y"], reduction="none")
        hits = (output.argmax(dim=-1) == batch["y"]).to(weight.dtype)
        sums = {
            "loss": (losses * weight).sum(),
            "correct": (hits * weight).sum(),
            "count": weight.sum(),
        }
        if self.calibration:
            gaps = calibration_gaps(output.softmax(dim=-1), batch["y"], weight)
            sums |= dict(zip(self.gaps, gaps.unbind(), strict=True))
        return sums

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy in 0..1, mean cross-entropy (negative log-likelihood) in nats, and calibration error."""
        scores = {"accuracy": sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}
        if self.calibration:
            scores["ece"] = sum(abs(sums[name]) for name in self.gaps) / sums["count"]
        return scores
