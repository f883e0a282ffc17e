"""A picture of forecasts: what was known, what came, and what the model and a repeated day said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clients.tasks.base import Arrays
from clients.tasks.forecasting import Forecasting

from .split_picture import COLOURS

Values = npt.NDArray[np.float32]
_LOOKED_AT = 500
"""Windows of a client among which the one of middling error is chosen."""
_SHOWN = 2
"""Horizons of history that are drawn."""


@dataclass(frozen=True)
class Forecast:
    """One window of a client's test rows, in the target's own units.

    Parameters
    ----------
    title : str
        Whose it is.
    past : ndarray, shape (seq_len,)
    truth, forecast : ndarray, shape (horizon,)
    repeated : dict of ndarray, shape (horizon,)
        Forecasts that need no training, by name.
    """

    title: str
    past: Values
    truth: Values
    forecast: Values
    repeated: dict[str, Values]


def typical_forecast(
    task: Forecasting,
    predict: Callable[[dict[str, Tensor]], Tensor],
    arrays: Arrays,
    rows: npt.NDArray[np.int64],
    title: str,
) -> Forecast:
    """The forecast whose squared error is the median of a client's.

    Parameters
    ----------
    task : Forecasting
        What windows mean.
    predict : callable
        ``predict(batch) -> output``.
    arrays : mapping of ndarray
        The data set's.
    rows : ndarray of int64
        Test windows of the client; of many, some hundred spread evenly.
    title : str
        Whose they are.
    """
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(int)]
    with torch.no_grad():
        batch = task.gather(arrays, rows)
        output = predict(batch)[..., -1]
        errors = ((output - batch["future"][..., -1]) ** 2).mean(dim=1)
        window = int(errors.argsort()[len(errors) // 2])
        repeated = {name: task.repeated(batch["x"], season) for name, season in task.seasons.items()}
    unit = batch["unit"][window, -1]
    mean = torch.from_numpy(arrays["mean"][arrays["scaler"][rows[window]], -1:])

    def own_units(values: Tensor) -> Values:
        return (values * unit + mean).numpy()

    return Forecast(
        title,
        own_units(batch["x"][window, :, -1]),
        own_units(batch["future"][window, :, -1]),
        own_units(output[window]),
        {name: own_units(values[window, :, -1]) for name, values in repeated.items()},
    )


def forecast_picture(forecasts: Sequence[Forecast], path: str | Path, title: str) -> None:
    """Write a PNG with one panel a forecast; of the history, the last few horizons are shown.

    Parameters
    ----------
    forecasts : sequence of Forecast
        Drawn from top to bottom.
    path : str or Path
        Where the picture goes; the folder must exist.
    title : str
        Headline.
    """
    from matplotlib.figure import Figure  # slow to import, so only here

    figure = Figure(figsize=(8, 0.6 + 2.1 * len(forecasts)), dpi=150, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels: Any = figure.subplots(len(forecasts), 1, squeeze=False)[:, 0]
    for axes, shown in zip(panels, forecasts, strict=True):
        horizon = len(shown.truth)
        past = shown.past[-_SHOWN * horizon :]
        ahead = np.arange(horizon)
        axes.plot(np.arange(-len(past), 0), past, color="#4D4D4D", linewidth=1.2, label="history")
        joined = np.concatenate([past[-1:], shown.truth])  # no gap between what was and what came
        axes.plot(
            np.arange(-1, horizon), joined, color="#4D4D4D", linewidth=1.2, linestyle=":", label="truth"
        )
        for (name, values), colour in zip(shown.repeated.items(), COLOURS[1:], strict=False):
            label = f"{name.replace('_', ' ')} repeated"
            axes.plot(ahead, values, color=colour, linewidth=1.0, linestyle="--", label=label)
        axes.plot(ahead, shown.forecast, color=COLOURS[0], linewidth=1.8, label="forecast")
        axes.axvline(-0.5, color="#BBBBBB", linewidth=0.8)
        axes.set_title(shown.title, fontsize=9, loc="left")
        axes.set_xlim(-len(past), horizon - 1)
        axes.tick_params(labelsize=8)
        axes.grid(color="#ECECEC", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("steps from the forecast on", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 5, "frameon": False, "fontsize": 8}
    figure.legend(handles, labels, **place)
    figure.savefig(path)
