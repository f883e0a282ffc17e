import numpy as np
import pytest
import torch

from clients.errors import ClientError
from clients.tasks.forecasting import Forecasting

S, T, N, M = 12, 5, 3, 4
STARTS, SCALERS = np.array([0, 7, 30]), np.array([0, 1, 0])


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "start": STARTS,
        "scaler": SCALERS,
        "series": rng.normal(3, 2, (60, N)).astype(np.float32),
        "marks": rng.random((60, M)).astype(np.float32),
        "mean": rng.normal(size=(2, N)).astype(np.float32),
        "std": rng.uniform(0.5, 4, (2, N)).astype(np.float32),
    }


@pytest.fixture
def task():
    return Forecasting((S, N), T, day=4, week=12)


def batch_of(task, arrays, weight=(1.0, 1.0, 1.0)):
    return task.gather(arrays, slice(None)) | {"weight": torch.tensor(weight)}


def test_windows_are_cut_where_they_start_and_scaled_by_their_own_scaler(arrays, task):
    rows = np.array([2, 1])
    batch = task.gather(arrays, rows)
    for i, row in enumerate(rows):
        start, scaler = STARTS[row], SCALERS[row]
        for t in range(S + T):
            raw = arrays["series"][start + t]
            want = (raw - arrays["mean"][scaler]) / arrays["std"][scaler]
            got = batch["x"][i, t] if t < S else batch["future"][i, t - S]
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)
        np.testing.assert_array_equal(batch["marks"][i].numpy(), arrays["marks"][start : start + S])
        np.testing.assert_array_equal(batch["unit"][i].numpy(), arrays["std"][scaler])
    assert all(value.dtype == torch.float32 for value in batch.values())


@pytest.mark.parametrize("series", [1, N])
def test_errors_are_those_of_the_series_that_are_forecast(arrays, task, series):
    weight = (1.0, 0.0, 1.0)  # the second row is padding
    batch = batch_of(task, arrays, weight)
    output = torch.randn(3, T, series, generator=torch.Generator().manual_seed(1))
    sums = {k: float(v) for k, v in task.metrics(output, batch).items()}
    assert set(sums) == set(task.sums)
    squared, absolute, squared_units, absolute_units = [], [], [], []
    for row in (0, 2):
        for t in range(T):
            for n in range(N - series, N):
                error = float(output[row, t, n - N + series] - batch["future"][row, t, n])
                unit = float(arrays["std"][SCALERS[row], n])
                squared.append(error**2)
                absolute.append(abs(error))
                squared_units.append((error * unit) ** 2)
                absolute_units.append(abs(error * unit))
    scores = task.scores(sums)
    assert scores["mse"] == pytest.approx(np.mean(squared), rel=1e-5)
    assert scores["mae"] == pytest.approx(np.mean(absolute), rel=1e-5)
    assert scores["mse_units"] == pytest.approx(np.mean(squared_units), rel=1e-5)
    assert scores["mae_units"] == pytest.approx(np.mean(absolute_units), rel=1e-5)
    assert scores["loss"] == scores["mse"]
    assert float(task.loss(output, batch)) == pytest.approx(scores["mse"], rel=1e-6)


def test_sums_add_up_over_batches(arrays, task):
    output = torch.randn(3, T, 1, generator=torch.Generator().manual_seed(1))
    batch = batch_of(task, arrays)
    whole = task.metrics(output, batch)
    parts = [task.metrics(output[i : i + 1], {k: v[i : i + 1] for k, v in batch.items()}) for i in range(3)]
    for key in task.sums:
        torch.testing.assert_close(sum(part[key] for part in parts), whole[key])


def test_seasons_are_repeated_until_the_horizon_ends(arrays, task):
    """A day of 4 steps and a horizon of 5: the fifth step repeats the first of the last day."""
    x = task.gather(arrays, slice(None))["x"]
    day = task.repeated(x, 4)
    for t in range(T):
        assert torch.equal(day[:, t], x[:, S - 4 + t % 4])
    assert torch.equal(task.repeated(x, 12), x[:, :T])


def test_a_series_that_repeats_itself_is_forecast_without_error():
    t = np.arange(60)
    series = np.stack([np.sin(2 * np.pi * t / 4)] * N, axis=1).astype(np.float32)
    arrays = {
        "start": STARTS,
        "scaler": np.zeros(3, dtype=int),
        "series": series,
        "marks": np.zeros((60, M), dtype=np.float32),
        "mean": np.zeros((1, N), dtype=np.float32),
        "std": np.ones((1, N), dtype=np.float32),
    }
    task = Forecasting((S, N), T, day=4, week=7)
    sums = {k: float(v) for k, v in task.metrics(torch.zeros(3, T, 1), batch_of(task, arrays)).items()}
    scores = task.scores(sums)
    assert scores["last_day_mse"] == pytest.approx(0, abs=1e-10)
    assert scores["last_week_mse"] > 0.1
    assert scores["mse"] > 0.1


def test_seasons_longer_than_the_past_are_left_out():
    task = Forecasting((S, N), T, day=12, week=13)
    assert list(task.seasons) == ["last_day"]
    assert not any(key.startswith("last_week") for key in task.sums)


def test_seasons_of_no_steps_are_refused():
    with pytest.raises(ClientError, match="week: must be 1 step or more, got 0"):
        Forecasting((S, N), T, week=0)


def test_the_window_of_middling_error_is_shown_in_the_targets_own_units():
    rng, windows = np.random.default_rng(0), 40
    arrays = {
        "start": np.arange(windows),
        "scaler": np.zeros(windows, dtype=int),
        "series": rng.normal(50, 9, (windows + S + T, 2)).astype(np.float32),
        "marks": np.zeros((windows + S + T, 1), dtype=np.float32),
        "mean": np.array([[0.0, 50.0]], dtype=np.float32),
        "std": np.array([[1.0, 9.0]], dtype=np.float32),
    }
    rows = np.arange(1, windows, 3)
    task = Forecasting((S, 2), T, day=4, week=12)
    shown, repeated = task.typical(lambda batch: torch.zeros(len(batch["x"]), T, 1), arrays, rows)
    target = arrays["series"][:, 1]
    errors = {row: np.mean((target[row + S : row + S + T] - 50) ** 2) for row in rows}
    middling = sorted(errors, key=errors.get)[len(rows) // 2]
    np.testing.assert_allclose(shown["past"], target[middling : middling + S], rtol=1e-5)
    np.testing.assert_allclose(shown["truth"], target[middling + S : middling + S + T], rtol=1e-5)
    np.testing.assert_allclose(shown["forecast"], 50)
    last_day = [float(shown["past"][S - 4 + t % 4]) for t in range(T)]
    np.testing.assert_allclose(repeated["last_day"], last_day, rtol=1e-5)
    np.testing.assert_allclose(repeated["last_week"], shown["past"][:T], rtol=1e-5)
