"""Windows of time series: what all forecasting data sets share."""

from __future__ import annotations

import difflib
import gzip
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import ARCHIVE_ERRORS
from scenarios.datasets.options import check_choice, check_whole
from scenarios.federation import ClientSplits, Dataset, Meta, Parts, Rows, ScenarioError

Values = npt.NDArray[np.float64]
SCALERS = ("client", "series", "all")


@dataclass(frozen=True)
class Series:
    """A target series with others beside it.

    Parameters
    ----------
    name : str
        Domain that it becomes.
    values : ndarray, shape (steps, series)
        In original units; the target is the last column.
    times : ndarray of datetime64, shape (steps,)
        Increasing.
    ends : tuple of int
        Steps at which the spans of training, validation and test end; each begins where the one before ends.
    """

    name: str
    values: Values
    times: npt.NDArray[np.datetime64]
    ends: tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """How series are cut into examples; base of the data sets, whose options these are.

    Parameters
    ----------
    seq_len, pred_len : int
        Steps of a window that a model sees, and steps after them that it forecasts. Windows of validation and
        test begin ``seq_len`` steps before their span, so that all of its steps are forecast.
    levels : int
        Strata: equally many training windows of a series each, by the mean of the target over the horizon.
        They are what a skew of labels divides.
    scaler : {"client", "series", "all"}
        What series are standardised by: each client's own training steps of each series, all training steps
        of a series, or those of all series together.
    stride : int
        Every how many steps a training window begins; those of validation and test begin at every step.
    """

    seq_len: int = 96
    pred_len: int = 24
    levels: int = 10
    scaler: str = "client"
    stride: int = 1

    def __post_init__(self) -> None:
        for field in ("seq_len", "pred_len", "levels", "stride"):
            check_whole(field, getattr(self, field), 1)
        check_choice("scaler", self.scaler, SCALERS)

    def cut(self, name: str, series: Sequence[Series]) -> SeriesDataset:
        """Cut series into windows.

        Parameters
        ----------
        name : str
            Of the data set.
        series : sequence of Series
            With the same number of columns; one becomes one domain.

        Raises
        ------
        ScenarioError
            If a span is too short for a window, or two series have one name.
        """
        names = sorted(each.name for each in series)
        for one, other in itertools.pairwise(names):
            if one == other:
                raise ScenarioError(f"data '{name}': two series are named '{one}'; use each once")
        length = self.seq_len + self.pred_len
        starts, kinds, levels = [], [], []
        begin = 0
        for each in series:
            spans = _starts(each.ends, self.seq_len, self.pred_len)
            for what, span in zip(("training", "validation", "test"), spans, strict=True):
                if not len(span):
                    raise ScenarioError(
                        f"data '{name}', series '{each.name}': its {what} span is too short for seq_len="
                        f"{self.seq_len} and pred_len={self.pred_len} ({len(each.values)} steps in all); "
                        "shorten one of the two or use more data"
                    )
            spans[0] = spans[0][:: self.stride]
            sums = np.concatenate([[0.0], np.cumsum(each.values[:, -1])])
            ahead = [(sums[s + length] - sums[s + self.seq_len]) / self.pred_len for s in spans]
            edges = np.quantile(ahead[0], np.arange(1, self.levels) / self.levels)
            levels += [np.searchsorted(edges, means, side="right") for means in ahead]
            starts += [begin + span for span in spans]
            kinds += [np.full(len(span), kind) for kind, span in enumerate(spans)]
            begin += len(each.values)
        start, kind = np.concatenate(starts), np.concatenate(kinds)
        domain = np.repeat(
            np.arange(len(series)), [sum(map(len, starts[3 * i : 3 * i + 3])) for i in range(len(series))]
        )
        mean, std = self._scalers(series)
        shares = np.linspace(0, 100, self.levels + 1).round().astype(int)
        strata = tuple(f"{a}-{b} %" for a, b in itertools.pairwise(shares))
        return SeriesDataset(
            name=name,
            arrays={
                "start": start,
                "y": np.concatenate(levels).astype(np.int64),
                "scaler": domain.copy(),
            },
            domain=domain,
            domains=tuple(each.name for each in series),
            meta=Meta("forecasting", (self.seq_len, series[0].values.shape[1]), (), strata, self.pred_len),
            test=np.flatnonzero(kind == 2),
            val=np.flatnonzero(kind == 1),
            shared={
                "series": np.concatenate([each.values for each in series]).astype(np.float32),
                "marks": np.concatenate([calendar_marks(each.times) for each in series]),
                "mean": mean,
                "std": std,
            },
            own_scalers=self.scaler == "client",
        )

    def _scalers(self, series: Sequence[Series]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and standard deviation for each series, shape (series, columns)."""
        spans = [each.values[: each.ends[0]] for each in series]
        if self.scaler == "all":
            spans = [np.concatenate(spans)] * len(spans)
        mean, std = (np.stack([f(span, axis=0) for span in spans]) for f in (np.mean, np.std))
        return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


@dataclass(frozen=True)
class SeriesDataset(Dataset):
    """A data set whose rows are windows.

    ``arrays`` has ``start``, the position of a window's first step in ``shared["series"]`` (all series one
    after the other), its stratum ``y``, and ``scaler``, a row of ``shared["mean"]`` and ``shared["std"]``.

    Parameters
    ----------
    own_scalers : bool
        Whether clients scale by statistics of their own training steps.
    """

    own_scalers: bool = False

    def localised(self, clients: ClientSplits) -> SeriesDataset:
        """With a scaler for each series of each client, of the steps that its training windows cover.

        Rows that nobody holds keep the scaler of their whole series, and so do a client's test and validation
        rows of a series that it has no training window of. Scalers of an earlier division are dropped.
        """
        if not self.own_scalers:
            return self
        own, length = len(self.domains), self.meta.shape[0] + self.meta.horizon

        def pairs(parts: Parts) -> Rows:
            return parts.owner * own + self.domain[parts.rows]

        rows, key = clients.train.rows, pairs(clients.train)
        order = np.lexsort((self.arrays["start"][rows], key))
        start, key = self.arrays["start"][rows][order], key[order]
        known, first = np.unique(key, return_index=True)
        # Of windows that overlap, each adds the steps after the end of the one before.
        covered_before = np.roll(start, 1) + length
        covered_before[first] = 0
        tables = self._fit(np.maximum(start, covered_before), start + length, first, known % own)

        scaler = self.domain.copy()
        for parts in (clients.train, clients.val, clients.test):
            wanted = pairs(parts)
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            has = known[at] == wanted
            scaler[parts.rows[has]] = own + at[has]
        shared = {
            name: np.concatenate([self.shared[name][:own], table]).astype(np.float32)
            for name, table in tables.items()
        }
        return replace(self, arrays={**self.arrays, "scaler": scaler}, shared={**self.shared, **shared})

    def _fit(self, begin: Rows, end: Rows, first: Rows, domain: Rows) -> dict[str, Values]:
        """Mean and standard deviation of sets of steps.

        Parameters
        ----------
        begin, end : ndarray of int64, shape (pieces,)
            Steps from ``begin`` to before ``end``; the pieces of a set do not overlap.
        first : ndarray of int64, shape (sets,)
            First piece of every set; its last one is that before the next set's first.
        domain : ndarray of int64, shape (sets,)
            Series that a set lies in.

        Returns
        -------
        dict of ndarray
            ``mean`` and ``std``, shape (sets, columns); ``std`` is 1 where a column has one value only.
        """
        series, own = self.shared["series"], len(self.domains)
        used = np.zeros(len(series) + 1, dtype=np.int64)
        np.add.at(used, begin, 1)
        np.add.at(used, end, -1)
        first_step = np.full(own, len(series))
        np.minimum.at(first_step, self.domain, self.arrays["start"])
        which = np.searchsorted(first_step, np.arange(len(series)), side="right") - 1
        # Sums run over all series, so each is brought to its own centre and unit, lest large ones take the
        # digits of small ones; steps in no set leave no trace, not even in the last digit.
        centre, unit = (self.shared[name][:own].astype(np.float64) for name in ("mean", "std"))
        scaled = (series - centre[which]) / unit[which]
        scaled[np.cumsum(used[:-1]) == 0] = 0
        steps = np.add.reduceat(end - begin, first)[:, None]
        moments = []
        for power in (1, 2):
            sums = np.concatenate([np.zeros((1, series.shape[1])), np.cumsum(scaled**power, axis=0)])
            moments.append(np.add.reduceat(sums[end] - sums[begin], first, axis=0) / steps)
        spread = np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 1e-12))
        # Whether a column stands still is lost in rounding above, so its changes are counted.
        changes = np.cumsum(np.diff(series, axis=0, prepend=series[:1]) != 0, axis=0)
        inside = np.add.reduceat(changes[end - 1] - changes[begin], first, axis=0)
        lowest, highest = (f.reduceat(series[begin], first, axis=0) for f in (np.minimum, np.maximum))
        still = (inside == 0) & (lowest == highest)
        return {
            "mean": np.where(still, lowest, centre[domain] + unit[domain] * moments[0]),
            "std": np.where(still, 1, unit[domain] * spread),
        }


def _starts(ends: tuple[int, int, int], seq_len: int, pred_len: int) -> list[Rows]:
    """First steps of the windows whose horizons lie in each span."""
    begins = (seq_len, ends[0], ends[1])
    return [
        np.arange(begin - seq_len, max(end - seq_len - pred_len + 1, begin - seq_len))
        for begin, end in zip(begins, ends, strict=True)
    ]


def spans(steps: int, train: float, test: float) -> tuple[int, int, int]:
    """Ends of the three spans where training and test are given as shares, both rounded down."""
    return int(train * steps), steps - int(test * steps), steps


def calendar_marks(times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.float32]:
    """Hour, weekday (Monday first), day of month and day of year, each from -0.5 to 0.5; shape (steps, 4)."""
    day = times.astype("datetime64[D]")
    hour = (times - day) // np.timedelta64(1, "h")
    weekday = (day.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    of_month = (day - times.astype("datetime64[M]")).astype(np.int64)
    of_year = (day - times.astype("datetime64[Y]")).astype(np.int64)
    marks = [hour.astype(float) / 23, weekday / 6, of_month / 30, of_year / 365]
    return (np.stack(marks, axis=1) - 0.5).astype(np.float32)


def read_series(
    path: Path, target: str, exogenous: Sequence[str] | None = None, time: str = "date"
) -> tuple[Values, npt.NDArray[np.datetime64], list[str]]:
    """Columns of a CSV file, the target last.

    Parameters
    ----------
    path : Path
        A ``.csv`` file, or such a file as ``.gz``.
    target, time : str
        Columns of the target and of the time.
    exogenous : sequence of str or None
        Further columns in this order; ``None`` takes all others.

    Returns
    -------
    values : ndarray, shape (steps, columns)
    times : ndarray of datetime64
        Those with an offset from UTC are brought to UTC.
    names : list of str
        Of the columns of ``values``.

    Raises
    ------
    ScenarioError
        Where the file cannot be read, a column is missing, or a value is no number or no later time.
    """
    import pandas as pd  # type: ignore[import-untyped]  # slow to import, so only here

    try:
        table = pd.read_csv(path, skipinitialspace=True, dtype=str, keep_default_na=False)
    except (*ARCHIVE_ERRORS, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ScenarioError(f"{path}: cannot be read as CSV ({reason})") from error
    others = [c for c in table.columns if c not in (time, target)]
    names = [*(others if exogenous is None else exogenous), target]
    for column in (time, *names):
        if column not in table.columns:
            near = difflib.get_close_matches(column, list(table.columns), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(table.columns)}"
            raise ScenarioError(f"{path}: has no column '{column}'{hint}")

    def check(column: str, wrong: Any, what: str) -> None:
        if wrong.any():
            at = int(np.argmax(wrong.to_numpy()))
            got = table[column].iloc[at]
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                written = [number for number, line in enumerate(file, 1) if line.strip()]
            raise ScenarioError(f"{path}, line {written[at + 1]}, column '{column}': {what}, got '{got}'")

    values = []
    for column in names:
        numbers = pd.to_numeric(table[column], errors="coerce")
        check(column, ~np.isfinite(numbers), "must be a number; fill gaps before")
        values.append(numbers.to_numpy(dtype=np.float64))
    times = pd.to_datetime(table[time], errors="coerce", format="mixed", utc=True)
    check(time, times.isna(), "must be a time such as 2024-01-31 18:00")
    check(time, times.diff() <= pd.Timedelta(0), "must be later than on the line before")
    return np.stack(values, axis=1), times.dt.tz_localize(None).to_numpy().astype("datetime64[s]"), names
