import numpy as np
import pytest
import torch

from clients.tasks.forecasting import Forecasting
from scenarios import build_federation
from scenarios.datasets.epf import MARKETS, Epf
from scenarios.skews.domain_skew import DomainSkew

MEANS = {
    "NP": (43985.4584, 1443.3365, 29.01906),
    "PJM": (91147.5743, 11402.3414, 31.53734),
    "BE": (60778.8102, 54901.7387, 46.12776),
    "FR": (60778.8102, 54901.7387, 43.47794),
    "DE": (936.0514, 21526.3721, 35.71007),
}
STDS = {
    "NP": (8709.1843, 1114.3224, 9.487516),
    "PJM": (16180.8348, 2180.3074, 21.828909),
    "BE": (10842.2224, 12540.7831, 22.520385),
    "FR": (10842.2224, 12540.7831, 23.945902),
    "DE": (1017.5393, 3817.7131, 15.901344),
}
NAIVE = {
    "NP": (0.4405, 0.3672, 0.7750, 0.5313),
    "PJM": (0.1273, 0.2242, 0.2845, 0.3215),
    "BE": (0.5850, 0.3612, 0.9666, 0.4061),
    "FR": (0.5524, 0.3024, 0.6730, 0.3232),
    "DE": (0.9362, 0.6205, 1.3369, 0.7313),
}


@pytest.fixture(scope="module")
def epf(data_root):
    return Epf(root=data_root).load()


def test_windows_are_as_many_as_the_papers_pipeline_makes(epf):
    kind = np.zeros(len(epf), dtype=int)
    kind[epf.val], kind[epf.test] = 1, 2
    for index in range(5):
        assert np.bincount(kind[epf.domain == index]).tolist() == [36_500, 5_219, 10_460]
    assert epf.domains == MARKETS
    assert epf.meta.shape == (168, 3)
    assert epf.meta.horizon == 24


@pytest.mark.parametrize("local", [False, True], ids=["series", "client"])
def test_scalers_are_those_of_the_training_hours(epf, local):
    """A client that holds a whole market has the market's own scaler."""
    table = epf
    if local:
        table = build_federation(epf, DomainSkew(), 0).dataset
        assert set(table.arrays["scaler"]) == {5, 6, 7, 8, 9}
    for index, market in enumerate(MARKETS):
        row = index + 5 * local
        np.testing.assert_allclose(table.shared["mean"][row], MEANS[market], rtol=2e-6)
        np.testing.assert_allclose(table.shared["std"][row], STDS[market], rtol=2e-6)


def test_repeating_a_day_and_a_week_errs_as_published(epf):
    task, arrays = Forecasting(epf.meta.shape, 24), {**epf.arrays, **epf.shared}
    for index, market in enumerate(MARKETS):
        rows = epf.test[epf.domain[epf.test] == index]
        batch = task.gather(arrays, rows) | {"weight": torch.ones(len(rows))}
        sums = task.metrics(torch.zeros(len(rows), 24, 1), batch)
        scores = task.scores({k: float(v) for k, v in sums.items()})
        names = ("last_day_mse", "last_day_mae", "last_week_mse", "last_week_mae")
        assert [scores[name] for name in names] == pytest.approx(NAIVE[market], abs=6e-5)


def test_some_markets_can_be_chosen(data_root):
    assert Epf(markets=["DE", "NP"], root=data_root, stride=100).load().domains == ("DE", "NP")
    with pytest.raises(ValueError, match=r"^markets: unknown, got 'FI'; use NP or PJM or BE or FR or DE"):
        Epf(markets=["FI"])
    with pytest.raises(ValueError, match=r"^markets: none are named"):
        Epf(markets=[])
