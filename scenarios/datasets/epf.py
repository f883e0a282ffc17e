"""Electricity prices of five markets, each with two forecasts that were known a day before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import find
from scenarios.datasets.options import check_choices
from scenarios.datasets.series import Series, SeriesDataset, Windows, read_series, spans

SOURCE = (
    "EPF is the benchmark of Lago et al. (2021); github.com/thuml/TimeXer has its five files in dataset/EPF."
)
MARKETS = ("NP", "PJM", "BE", "FR", "DE")


@dataclass(frozen=True)
class Epf(Windows):
    """Hourly day-ahead prices, a market a domain: 52,416 hours each of price and two other series.

    Nord Pool (NP: load, wind), Pennsylvania-New Jersey-Maryland (PJM: system and zonal load), Belgium and
    France (BE, FR: generation, load; the same two series in both), Germany (DE: wind, load).

    Parameters
    ----------
    seq_len, pred_len, levels, scaler, stride
        As in :class:`scenarios.datasets.series.Windows`; a week and a day by default.
    markets : sequence of str
        Which ones.
    root : str, Path or None
        Data folder; its folder ``epf`` holds ``NP.csv.gz`` and so on.

    Notes
    -----
    70 % of a market's hours are for training, the last 20 % for test, as in TimeXer (arXiv 2402.19072).
    """

    seq_len: int = 168
    pred_len: int = 24
    markets: Sequence[str] = MARKETS
    root: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("markets", self.markets, MARKETS)

    def load(self) -> SeriesDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        series = []
        for market in self.markets:
            values, times, _ = read_series(find("epf", self.root, f"epf/{market}.csv.gz", SOURCE), "OT")
            series.append(Series(market, values, times, spans(len(values), 0.7, 0.2)))
        return self.cut("epf", series)
