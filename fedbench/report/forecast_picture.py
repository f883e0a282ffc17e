"""A picture of forecasts: what was known, what came, and what the model and a repeated day said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .split_picture import COLOURS

Values = npt.NDArray[np.float32]
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
    repeated : mapping of ndarray, shape (horizon,)
        Forecasts that need no training, by name.
    """

    title: str
    past: Values
    truth: Values
    forecast: Values
    repeated: Mapping[str, Values]


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
