import numpy as np
import pytest
from PIL import Image

from fedbench.report.forecast_picture import Forecast, forecast_picture

S, T = 12, 4


@pytest.mark.parametrize("panels", [1, 3])
def test_a_picture_has_a_panel_for_each_forecast(tmp_path, panels):
    series = np.random.default_rng(0).normal(50, 9, S + T).astype(np.float32)
    past, truth = series[:S], series[S:]
    repeated = {"last_day": past[-T:], "last_week": past[:T]}
    shown = Forecast("client 0 (a market)", past, truth, np.full(T, 50, dtype=np.float32), repeated)
    forecast_picture([shown] * panels, tmp_path / "f.png", "forecasts")
    with Image.open(tmp_path / "f.png") as image:
        width, height = image.size
        assert width == 1200
        assert height == pytest.approx(150 * (0.6 + 2.1 * panels), abs=1)
        blue = (np.asarray(image.convert("RGB")) == (0x00, 0x72, 0xB2)).all(axis=2)
    assert blue.any(axis=1).sum() > 0
