"""Electricity transformers: oil temperature of two stations, and the loads that drive it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.files import find
from scenarios.datasets.options import check_choices
from scenarios.datasets.series import Series, SeriesDataset, Windows, read_series

SOURCE = "ETT is published by Zhou et al. (2021); github.com/zhouhaoyi/ETDataset has its files in ETT-small."
STATIONS = ("ETTh1", "ETTh2")
ENDS = (8_640, 11_520, 14_400)
"""Twelve, four and four months of thirty days; what comes after is not used."""


@dataclass(frozen=True)
class Ett(Windows):
    """Hourly oil temperature (the target) and six loads, a station a domain.

    Parameters
    ----------
    seq_len, pred_len, levels, scaler, stride
        As in :class:`scenarios.datasets.series.Windows`; four days each by default.
    stations : sequence of str
        Which ones.
    root : str, Path or None
        Data folder; its folder ``ett`` holds ``ETTh1.csv.gz`` and ``ETTh2.csv.gz``.
    """

    seq_len: int = 96
    pred_len: int = 96
    stations: Sequence[str] = STATIONS
    root: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("stations", self.stations, STATIONS)

    def load(self) -> SeriesDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        series = []
        for station in self.stations:
            values, times, _ = read_series(find("ett", self.root, f"ett/{station}.csv.gz", SOURCE), "OT")
            series.append(Series(station, values, times, ENDS))
        return self.cut("ett", series)
