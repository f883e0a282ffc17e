import numpy as np
import pytest
import torch
from PIL import Image

from clients.tasks.forecasting import Forecasting
from fedbench.report.forecast_picture import forecast_picture, typical_forecast

S, T, WINDOWS = 12, 4, 40


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "start": np.arange(WINDOWS),
        "scaler": np.zeros(WINDOWS, dtype=int),
        "series": rng.normal(50, 9, (WINDOWS + S + T, 2)).astype(np.float32),
        "marks": np.zeros((WINDOWS + S + T, 1), dtype=np.float32),
        "mean": np.array([[0.0, 50.0]], dtype=np.float32),
        "std": np.array([[1.0, 9.0]], dtype=np.float32),
    }


def zeros(batch):
    return torch.zeros(len(batch["x"]), T, 1)


def test_the_window_of_middling_error_is_shown_in_the_targets_own_units(arrays):
    task = Forecasting((S, 2), T, day=4, week=12)
    rows = np.arange(1, WINDOWS, 3)
    shown = typical_forecast(task, zeros, arrays, rows, "mine")
    target = arrays["series"][:, 1]
    errors = {row: np.mean((target[row + S : row + S + T] - 50) ** 2) for row in rows}
    middling = sorted(errors, key=errors.get)[len(rows) // 2]
    np.testing.assert_allclose(shown.past, target[middling : middling + S], rtol=1e-5)
    np.testing.assert_allclose(shown.truth, target[middling + S : middling + S + T], rtol=1e-5)
    np.testing.assert_allclose(shown.forecast, 50)
    np.testing.assert_allclose(shown.repeated["last_day"], shown.past[-T:], rtol=1e-5)
    np.testing.assert_allclose(shown.repeated["last_week"], shown.past[:T], rtol=1e-5)


@pytest.mark.parametrize("panels", [1, 3])
def test_a_picture_has_a_panel_for_each_forecast(arrays, tmp_path, panels):
    task = Forecasting((S, 2), T, day=4, week=12)
    shown = typical_forecast(task, zeros, arrays, np.arange(WINDOWS), "client 0 (a market)")
    forecast_picture([shown] * panels, tmp_path / "f.png", "forecasts")
    with Image.open(tmp_path / "f.png") as image:
        width, height = image.size
        assert width == 1200
        assert height == pytest.approx(150 * (0.6 + 2.1 * panels), abs=1)
        blue = (np.asarray(image.convert("RGB")) == (0x00, 0x72, 0xB2)).all(axis=2)
    assert blue.any(axis=1).sum() > 0
