"""Forecasting: windows of time series in, the steps after them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clients.errors import ClientError
from strategies.functional import Batch, weighted_mean

from .base import Arrays, Rows, Task

FORECAST = "forecast"
"""Name of the query that asks a client for a forecast to show."""

_LOOKED_AT = 500
"""Windows among which the one of middling error is chosen."""
_ERRORS = ("mse", "mae", "mse_units", "mae_units")


class Forecasting(Task):
    """Forecasts of the next steps, scored by squared and absolute error.

    Every example is a window: ``start`` says where in ``series`` (steps, series; the target is the last) it
    begins, and ``scaler`` which row of ``mean`` and ``std`` scales it. Errors are those of scaled series,
    as is usual in the field, and beside them those in the target's own units. Two forecasts that need no
    training are scored on the same windows: the target of a day, and of a week, before.

    Parameters
    ----------
    shape : tuple of int
        Steps that a model sees, and series.
    horizon : int
        Steps that it forecasts.
    day, week : int
        Steps after which the target is repeated. One that is longer than what a model sees is left out.

    Notes
    -----
    A model that gives one series forecasts the target; one that gives all, all.
    """

    kind = "forecasting"
    headline = "mse"
    higher_is_better = False
    references: ClassVar[tuple[str, ...]] = ("last_day", "last_week")

    def __init__(self, shape: tuple[int, int], horizon: int, day: int = 24, week: int = 168) -> None:
        for name, value in (("day", day), ("week", week)):
            if value < 1:
                raise ClientError(f"{name}: must be 1 step or more, got {value}")
        self.seq_len, self.horizon = shape[0], horizon
        seasons = zip(self.references, (day, week), strict=True)
        self.seasons = {name: season for name, season in seasons if season <= self.seq_len}
        self.sums = ("count", *_ERRORS, *(f"{name}_{e}" for name in self.seasons for e in ("mse", "mae")))

    def gather(self, arrays: Arrays, rows: Rows) -> Batch:
        """Windows as tensors.

        Returns
        -------
        dict of Tensor
            ``x`` (rows, seq_len, series) and ``future`` (rows, horizon, series), scaled; ``marks`` (rows,
            seq_len, marks); ``unit`` (rows, series), what 1 is worth in the series' own units.
        """
        start, scaler = arrays["start"][rows], arrays["scaler"][rows]
        mean, std = arrays["mean"][scaler], arrays["std"][scaler]
        past = start[:, None] + np.arange(self.seq_len)
        window = start[:, None] + np.arange(self.seq_len + self.horizon)
        scaled = (arrays["series"][window] - mean[:, None]) / std[:, None]
        return {
            "x": torch.from_numpy(scaled[:, : self.seq_len]),
            "future": torch.from_numpy(scaled[:, self.seq_len :]),
            "marks": torch.from_numpy(arrays["marks"][past]),
            "unit": torch.from_numpy(std),
        }

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The past of all series, and the calendar's."""
        return batch["x"], batch["marks"]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of scaled series."""
        error = output - self._target(output, batch)
        return weighted_mean((error**2).mean(dim=(-2, -1)), batch)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over windows of each window's mean errors, the model's and those of repeated seasons."""
        weight, future = batch["weight"], self._target(output, batch)
        unit = batch["unit"][:, None, -output.shape[-1] :]
        sums = {"count": weight.sum()}

        def add(prefix: str, error: Tensor, suffix: str = "") -> None:
            for name, values in (("mse", error**2), ("mae", error.abs())):
                sums[f"{prefix}{name}{suffix}"] = (values.mean(dim=(-2, -1)) * weight).sum()

        add("", output - future)
        add("", (output - future) * unit, "_units")
        for name, season in self.seasons.items():
            add(f"{name}_", self.repeated(batch["x"], season)[..., -output.shape[-1] :] - future)
        return sums

    def scores(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean errors. ``loss`` is ``mse``; ``*_units`` are in the target's units, squared for ``mse``."""
        means = {key: sums[key] / sums["count"] for key in self.sums if key != "count"}
        return {**means, "loss": means["mse"]}

    def repeated(self, past: Tensor, season: int) -> Tensor:
        """The forecast that the last ``season`` steps repeat; shape (rows, horizon, series)."""
        last = past[:, past.shape[1] - season :]
        return last[:, torch.arange(self.horizon, device=past.device) % season]

    def typical(
        self, predict: Callable[[Batch], Tensor], arrays: Arrays, rows: npt.NDArray[np.int64]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The window whose squared error is the median, in the target's own units.

        Parameters
        ----------
        predict : callable
            ``predict(batch) -> output``, on the CPU as the batch is.
        arrays : mapping of ndarray
            The data set's.
        rows : ndarray of int64
            Windows, at least one; of many, some hundred spread evenly are looked at.

        Returns
        -------
        window : dict of Tensor
            ``past`` (seq_len,), ``truth`` and ``forecast`` (horizon,).
        repeated : dict of Tensor
            The forecast that each season repeats (horizon,), by the season's name.
        """
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(int)]
        batch = self.gather(arrays, rows)
        with torch.no_grad():
            output = predict(batch)[..., -1]
        errors = ((output - batch["future"][..., -1]) ** 2).mean(dim=1)
        window = int(errors.argsort()[len(errors) // 2])
        mean = torch.from_numpy(arrays["mean"][arrays["scaler"][rows[window]], -1:])

        def own_units(scaled: Tensor) -> Tensor:
            return scaled[window] * batch["unit"][window, -1] + mean

        past, future = batch["x"], batch["future"]
        repeated = {name: self.repeated(past, season)[..., -1] for name, season in self.seasons.items()}
        shown = {"past": past[..., -1], "truth": future[..., -1], "forecast": output}
        return (
            {name: own_units(values) for name, values in shown.items()},
            {name: own_units(values) for name, values in repeated.items()},
        )

    def _target(self, output: Tensor, batch: Batch) -> Tensor:
        return batch["future"][..., -output.shape[-1] :]
