"""Scalers of clients in awkward cases, and what a data set of windows weighs."""

import pickle

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.epf import Epf
from scenarios.datasets.series import Series, Windows
from scenarios.federation import ClientSplit, ClientSplits
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_skew import LabelSkew

S, T, STEPS = 6, 2, 20_000
ENDS = (14_000, 16_000, STEPS)
TIMES = np.datetime64("2020-01-01", "s") + np.arange(STEPS) * np.timedelta64(3600, "s")


def windows(*values, **options):
    series = [Series(f"series_{i}", each, TIMES, ENDS) for i, each in enumerate(values)]
    return Windows(**{"seq_len": S, "pred_len": T, **options}).cut("toy", series)


def covered(data, rows):
    """Values of all steps that windows cover, each once."""
    steps = np.unique(data.arrays["start"][rows][:, None] + np.arange(S + T))
    return data.shared["series"][steps].astype(float)


def test_a_series_in_watts_spoils_no_scaler_of_one_in_megawatts():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (2, STEPS, 2)) * np.array([1e6, 1.0])[:, None, None]
    federation = build_federation(windows(*values), LabelSkew(200, 0.3), 0)
    data, seen = federation.dataset, 0
    for client in federation.clients:
        for domain in range(2):
            mine = client.train[data.domain[client.train] == domain]
            if len(mine):
                scaler, held = data.arrays["scaler"][mine[0]], covered(data, mine)
                np.testing.assert_allclose(data.shared["mean"][scaler], held.mean(axis=0), rtol=1e-5)
                np.testing.assert_allclose(data.shared["std"][scaler], held.std(axis=0), rtol=1e-4)
                seen += 1
    assert seen > 300


def test_a_column_that_a_client_sees_at_one_value_only_is_divided_by_one():
    """Such as sunlight by night, among days of others with sums that leave no digits for the night."""
    rng = np.random.default_rng(0)
    sun = 800 * np.maximum(0, np.sin(2 * np.pi * np.arange(STEPS) / 24)) * rng.uniform(0.3, 1, STEPS)
    sun[9000:9100] = 7.1
    sun[9100:9200] = 7.2
    data = windows(np.stack([sun, rng.normal(5, 1, STEPS)], axis=1))
    nights = np.arange(13, ENDS[0] - S - T, 24)
    nights = nights[(nights < 8900) | (nights > 9200)]
    moving = np.array([9050, 9150])  # still in each of its two windows, but not at one value
    others = np.setdiff1d(np.arange(ENDS[0] - S - T + 1), np.concatenate([nights, moving]))
    none = np.empty(0, dtype=np.int64)
    clients = [ClientSplit(np.atleast_1d(rows), none, none, 0) for rows in (*nights, moving, others)]
    local = data.localised(ClientSplits.of(clients))
    tables = [local.shared[name][local.arrays["scaler"]] for name in ("mean", "std")]
    assert len(nights) > 500
    assert (tables[1][nights, 0] == 1).all()
    assert np.array_equal(tables[0][nights, 0], data.shared["series"][nights, 0])
    for rows in (moving, others):
        np.testing.assert_allclose(tables[1][rows[0]], covered(data, rows).std(axis=0), rtol=1e-4)
    want = [covered(data, [night])[:, 1].std() for night in nights]
    np.testing.assert_allclose(tables[1][nights, 1], want, rtol=1e-5)


def test_windows_that_are_divided_anew_are_scaled_anew():
    values = np.random.default_rng(0).normal([3, 8], 1, (STEPS, 2)).cumsum(axis=0)
    data = windows(values, 50 + 2 * values, stride=7)
    once = build_federation(data, DomainSkew(), 0).dataset
    again = build_federation(build_federation(data, Iid(3), 0).dataset, DomainSkew(), 0).dataset
    np.testing.assert_array_equal(again.arrays["scaler"], once.arrays["scaler"])
    for name in ("mean", "std"):
        np.testing.assert_array_equal(again.shared[name], once.shared[name])


def test_a_data_set_weighs_what_its_arrays_weigh(data_root):
    data = build_federation(Epf(markets=["NP", "DE"], root=data_root).load(), Iid(50), 0).dataset
    arrays = [*data.arrays.values(), *data.shared.values(), data.domain, data.val, data.test]
    held = sum(array.nbytes for array in arrays)
    assert len(pickle.dumps(data, pickle.HIGHEST_PROTOCOL)) < held + 4096
    of_a_window = sum(array[:1].nbytes for array in data.arrays.values())
    assert of_a_window == 24


def test_two_series_of_one_name_are_refused(data_root):
    with pytest.raises(ScenarioError, match=r"^data 'epf': two series are named 'DE'"):
        Epf(markets=["DE", "NP", "DE"], root=data_root).load()
