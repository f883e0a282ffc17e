"""Synthetic electricity markets: the embedded data of forecasting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.datasets.options import check_whole
from scenarios.datasets.series import Series, SeriesDataset, Values, Windows, spans

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Markets(Windows):
    """Hourly prices that follow a load at once and the wind six hours later, a market a domain.

    Markets share their dynamics: a load with a daily and a weekly rhythm, wind that wanders, and

    ``price[t] = 0.6 price[t-1] + 0.8 load[t] - w wind[t-6] + 0.1 noise``.

    They differ in how far wind moves the price (``w`` from 0.2 to 0.8; 0.5 in the first), in the hour of the
    peak, and in level and unit of the price. A model that looks at load and wind has half the error of one
    that does not.

    Parameters
    ----------
    seq_len, pred_len, levels, scaler, stride
        As in :class:`scenarios.datasets.series.Windows`; two days and half a day by default.
    markets : int
        Number of domains.
    hours : int
        Length of every series, of which 70 % are for training and the last 20 % for test.
    seed : int
        Of the noise. The first market is the same whatever the number of markets.
    """

    seq_len: int = 48
    pred_len: int = 12
    markets: int = 5
    hours: int = 2400
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("markets", self.markets, 1)
        check_whole("hours", self.hours, 1)
        check_whole("seed", self.seed, 0)

    def load(self) -> SeriesDataset:
        """Draw the series; columns are load, wind and price.

        Raises
        ------
        ScenarioError
            Where there are too few hours for a window in every span.
        """
        times = np.datetime64("2024-01-01", "s") + np.arange(self.hours) * np.timedelta64(3600, "s")
        series = [
            Series(f"market_{m}", self._market(m), times, spans(self.hours, 0.7, 0.2))
            for m in range(self.markets)
        ]
        return self.cut("markets", series)

    def _market(self, number: int) -> Values:
        from scipy.signal import lfilter  # slow to import, so only here

        rng = np.random.default_rng([self.seed, number] if number else self.seed)
        t = np.arange(self.hours) + 24 * number / self.markets
        load_noise = rng.standard_normal(self.hours)
        wind_noise = rng.standard_normal(self.hours - 1)
        price_noise = rng.standard_normal(self.hours)
        load = np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168) + 0.1 * load_noise
        wind = lfilter([0.3], [1, -0.95], np.concatenate([[0.0], wind_noise]))
        pull = 0.2 + 0.6 * ((0.5 + GOLDEN * number) % 1)
        late = np.concatenate([np.zeros(6), wind])[: self.hours]
        drive = 0.8 * load - pull * late + 0.1 * price_noise
        price = lfilter([1.0], [1, -0.6], drive)
        return np.stack([load, wind, price * (1 + number) + 10.0 * number], axis=1)
