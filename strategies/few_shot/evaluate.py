"""How good predictions on new trials are, and how far their probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from ..calibration import BINS, by_confidence, calibration_error
from ..errors import StrategyError
from .trial import Trial


@dataclass(frozen=True)
class Scores:
    """Over all queries of a number of trials.

    Parameters
    ----------
    accuracy : float
        Share of queries whose most probable class is right.
    interval : float
        Half the width of the 95 % interval of the accuracy over trials; NaN for a single one.
    nll : float
        Mean negative log-likelihood, nats.
    ece : float
        `expected_calibration_error` of all queries together.
    """

    accuracy: float
    interval: float
    nll: float
    ece: float


def expected_calibration_error(probabilities: Tensor, y: Tensor, bins: int = BINS) -> float:
    """Mean gap of confidence and accuracy over bins, weighted by their rows; see `calibration_error`.

    Raises
    ------
    ValueError
        For fewer than one bin.
    StrategyError
        Where there are no rows.
    """
    if not len(y):
        raise StrategyError("calibration: there are no rows to judge")
    weight = torch.ones(len(y), dtype=torch.float64, device=y.device)
    return float(calibration_error(by_confidence(probabilities.double(), y, weight, bins)))


def evaluate(predict: Callable[[Trial], Tensor], trials: Iterable[Trial], bins: int = BINS) -> Scores:
    """Scores of predictions on trials.

    Parameters
    ----------
    predict : callable
        From a trial to logarithms of its queries' class probabilities, (queries, ways). It must not look at
        the queries' labels.
    bins : int
        As in `expected_calibration_error`.

    Raises
    ------
    StrategyError
        Where there are no trials.
    """
    kept = [(predict(trial).detach(), trial.query["y"]) for trial in trials]
    if not kept:
        raise StrategyError("trials: there are none to judge")
    each = torch.stack([(log_p.argmax(1) == y).double().mean() for log_p, y in kept])
    log_p, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
    right = (log_p.argmax(1) == y).double().mean()
    interval = 1.96 * float(each.std()) / len(each) ** 0.5 if len(each) > 1 else math.nan
    return Scores(
        float(right),
        interval,
        float(nll_loss(log_p.double(), y)),
        expected_calibration_error(log_p.double().exp(), y, bins),
    )
