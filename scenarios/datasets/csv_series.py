"""Any folder of CSV files with time series, a file a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarios.datasets.options import check_number, check_text
from scenarios.datasets.series import Series, SeriesDataset, Windows, read_series, spans
from scenarios.federation import ScenarioError


@dataclass(frozen=True)
class CsvSeries(Windows):
    """One series with others beside it in each file, with the same columns in all files.

    Parameters
    ----------
    seq_len, pred_len, levels, scaler, stride
        As in :class:`scenarios.datasets.series.Windows`.
    path : str or Path
        Folder with ``.csv`` or ``.csv.gz`` files; a file's name names its domain.
    target, time : str
        Columns of what is forecast and of the time, which must increase from line to line;
        times with an offset from UTC are brought to UTC.
    exogenous : sequence of str or None
        Columns of the other series; ``None`` takes all that are left.
    train_fraction, test_fraction : float
        Shares of a file's lines that are trained on, from the first, and tested on, up to the last; what is
        between them is for validation.
    """

    path: str | Path = ""
    target: str = "OT"
    time: str = "date"
    exogenous: Sequence[str] | None = None
    train_fraction: float = 0.7
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("target", self.target, "the column that is forecast")
        check_text("time", self.time, "the column with the times")
        self._check_columns()
        check_number("train_fraction", self.train_fraction, 0, 1)
        check_number("test_fraction", self.test_fraction, 0, 1)
        if not self.train_fraction + self.test_fraction < 1:
            raise ValueError(
                f"train_fraction: {self.train_fraction} and test_fraction={self.test_fraction} leave nothing "
                "for validation; use less than 1 together"
            )

    def _check_columns(self) -> None:
        """Refuse a column that is named twice."""
        if self.time == self.target:
            raise ValueError(f"time: '{self.time}' is the target; use the column with the times")
        if isinstance(self.exogenous, str) or not isinstance(self.exogenous, Sequence | None):
            raise ValueError(  # noqa: TRY004
                f"exogenous: not a list of columns, got {self.exogenous!r}; use [{self.exogenous!r}]"
            )
        taken = {self.target: "is the target", self.time: "is the time"}
        for column in self.exogenous or ():
            if column in taken:
                raise ValueError(f"exogenous: '{column}' {taken[column]}; name each other column once")
            taken[column] = "is named twice"

    def load(self) -> SeriesDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where the folder, a file or a column is missing, files have one name (``a.csv`` and ``a.csv.gz``)
            or differ in their columns, or a value is no number or no later time; says in which line.
        """
        folder = Path(self.path).expanduser()
        if not self.path or not folder.is_dir():
            raise ScenarioError(
                f"data 'csv_series': no folder '{self.path}'; set data.path to one with CSV files"
            )
        files = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
        if not files:
            raise ScenarioError(f"data 'csv_series': no .csv or .csv.gz file in {folder}")
        series, names = [], []
        for file in files:
            values, times, columns = read_series(file, self.target, self.exogenous, self.time)
            names.append(columns)
            if columns != names[0]:
                raise ScenarioError(
                    f"{file}: has the columns {', '.join(columns)}, but {files[0].name} has "
                    f"{', '.join(names[0])}; name those that all files have in data.exogenous"
                )
            ends = spans(len(values), self.train_fraction, self.test_fraction)
            name = file.name.removesuffix(".gz").removesuffix(".csv")
            series.append(Series(name, values, times, ends))
        return self.cut("csv_series", series)
