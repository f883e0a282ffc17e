"""Classification: logits in, cross-entropy and accuracy out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from strategies.client import weighted_cross_entropy
from strategies.functional import Batch

from .base import Arrays, Rows, Task

_BINS = 15
"""Of confidence, as is usual for the expected calibration error."""


class Classification(Task):
    """Single-label classification with cross-entropy on logits.

    Parameters
    ----------
    calibration : bool
        Also measure ``ece``, the expected calibration error (Guo et al., ICML 2017, equation 3): the mean
        distance between confidence, the largest probability, and accuracy over 15 equal bins of confidence.
        Clients then report three numbers more for each bin.
    """

    kind = "classification"
    headline = "accuracy"
    higher_is_better = True

    def __init__(self, calibration: bool = False) -> None:
        self.calibration = calibration
        bins = (f"{what}_{b}" for b in range(_BINS) for what in ("rows", "confidence", "hits"))
        self.sums = ("loss", "correct", "count", *(bins if calibration else ()))

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
            confidence = output.softmax(dim=-1).amax(dim=-1).to(weight.dtype)
            # Bins are open below, as in the paper: (0, 1/15], (1/15, 2/15], ...
            where = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
            for name, values in (
                ("rows", weight),
                ("confidence", confidence * weight),
                ("hits", hits * weight),
            ):
                binned = weight.new_zeros(_BINS).index_add(0, where, values)
                sums |= {f"{name}_{b}": binned[b] for b in range(_BINS)}
        return sums

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy in 0..1, mean cross-entropy (negative log-likelihood) in nats, and calibration error."""
        scores = {"accuracy": sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}
        if self.calibration:
            gaps = (abs(sums[f"confidence_{b}"] - sums[f"hits_{b}"]) for b in range(_BINS))
            scores["ece"] = sum(gaps) / sums["count"]
        return scores
