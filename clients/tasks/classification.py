"""Classification: logits in, cross-entropy and accuracy out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from strategies.calibration import BINS, by_confidence, calibration_error
from strategies.client import weighted_cross_entropy
from strategies.functional import Batch

from .base import Arrays, Reliability, Rows, Task

_BINNED = ("rows", "confidence", "hits")
"""What is summed over each bin of confidence."""


class Classification(Task):
    """Single-label classification with cross-entropy on logits.

    Parameters
    ----------
    calibration : bool
        Also measure ``ece``, the expected calibration error over 15 bins of confidence, and what a
        reliability diagram shows; see :mod:`strategies.calibration`. Clients report three numbers a bin more.
    """

    kind = "classification"
    headline = "accuracy"
    higher_is_better = True

    def __init__(self, calibration: bool = False) -> None:
        self.calibration = calibration
        self.bins = tuple(f"{what}_{b}" for what in _BINNED for b in range(BINS)) if calibration else ()
        self.sums = ("loss", "correct", "count", *self.bins)

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
            binned = by_confidence(output.softmax(dim=-1), batch["y"], weight)
            sums |= dict(zip(self.bins, binned.flatten().unbind(), strict=True))
        return sums

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy in 0..1, mean cross-entropy (negative log-likelihood) in nats, and calibration error."""
        scores = {"accuracy": sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}
        if self.calibration:
            scores["ece"] = float(calibration_error(self._binned(sums)))
        return scores

    def reliability(self, sums: Mapping[str, float]) -> Reliability | None:
        """Rows of each bin of confidence, and the mean confidence and accuracy there, if measured."""
        if not self.calibration:
            return None
        rows, confidence, hits = self._binned(sums)
        means = {"confidence": confidence / rows, "accuracy": hits / rows}
        return {"rows": rows.tolist()} | {
            name: [None if v.isnan() else float(v) for v in values] for name, values in means.items()
        }

    def _binned(self, sums: Mapping[str, float]) -> Tensor:
        return torch.tensor([sums[name] for name in self.bins], dtype=torch.float64).reshape(-1, BINS)
