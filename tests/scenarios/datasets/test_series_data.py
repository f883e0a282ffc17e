"""Windows of series: where they lie, what scales them, and what is said of files that cannot be used."""

import gzip

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.csv_series import CsvSeries
from scenarios.datasets.ett import Ett
from scenarios.datasets.markets import Markets
from scenarios.datasets.series import Series, Windows, calendar_marks, spans
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_skew import LabelSkew
from scenarios.skews.quantity_skew import QuantitySkew

S, T, STEPS = 6, 2, 100
ENDS = (70, 80, 100)
SKEWS = [DomainSkew(2), LabelSkew(5, 0.3), QuantitySkew(4, 0.5), Iid(3)]


def two_series(seed=0, change=None):
    rng = np.random.default_rng(seed)
    times = np.datetime64("2024-02-27", "s") + np.arange(STEPS) * np.timedelta64(3600, "s")
    made = []
    for name, scale in (("a", 1.0), ("b", 500.0)):
        values = scale * rng.normal(3, 1, (STEPS, 2)).cumsum(axis=0)
        if change is not None:
            values[ENDS[0] :] += change
        made.append(Series(name, values, times, ENDS))
    return made


def dataset(change=None, **options):
    given = {"seq_len": S, "pred_len": T, "levels": 4, **options}
    return Windows(**given).cut("toy", two_series(change=change))


def kinds(data):
    kind = np.zeros(len(data), dtype=int)
    kind[data.val], kind[data.test] = 1, 2
    return kind


# --- where windows lie ----------------------------------------------------------------------------------


def test_every_span_is_forecast_whole_and_by_its_own_windows_alone():
    data = dataset()
    kind = kinds(data)
    for index in range(2):
        for which, (begin, end) in enumerate(((S, 70), (70, 80), (80, 100))):
            starts = data.arrays["start"][(kind == which) & (data.domain == index)] - STEPS * index
            forecast = {start + S + t for start in starts for t in range(T)}
            assert forecast == set(range(begin, end))
            assert starts.min() >= 0


def test_training_windows_may_be_every_third():
    starts = [dataset(stride=k) for k in (1, 3)]
    every, third = (d.arrays["start"][(kinds(d) == 0) & (d.domain == 0)] for d in starts)
    assert np.array_equal(third, every[::3])
    assert np.array_equal(
        starts[0].arrays["start"][starts[0].test], starts[1].arrays["start"][starts[1].test]
    )


def test_strata_are_quarters_of_training_windows_by_the_mean_of_the_horizon():
    data = dataset()
    kind = kinds(data)
    series = data.shared["series"][:, -1].astype(float)
    for index in range(2):
        mine = (kind == 0) & (data.domain == index)
        means = np.array([series[s + S : s + S + T].mean() for s in data.arrays["start"][mine]])
        strata = data.arrays["y"][mine]
        assert abs(np.bincount(strata, minlength=4) - len(strata) / 4).max() <= 1
        assert all(means[strata == k].max() <= means[strata == k + 1].min() for k in range(3))
    assert data.meta.strata == ("0-25 %", "25-50 %", "50-75 %", "75-100 %")
    assert data.meta.labels == data.meta.strata
    assert data.meta.classes == ()


def test_a_span_too_short_for_a_window_is_refused():
    with pytest.raises(
        ScenarioError, match=r"series 'a': its training span is too short .*\(100 steps in all\)"
    ):
        dataset(seq_len=69)


@pytest.mark.parametrize("option", [{"seq_len": 0}, {"scaler": "clients"}, {"levels": 0}, {"stride": -1}])
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=rf"^{next(iter(option))}: "):
        Windows(**option)


# --- what scales them -----------------------------------------------------------------------------------


def by_loop(data, starts, domain):
    """Mean and deviation of all steps that windows cover, each counted once."""
    covered = sorted({s + t for s in starts for t in range(S + T)})
    values = data.shared["series"][covered].astype(float)
    assert all(step // STEPS == domain for step in covered)
    return values.mean(axis=0), values.std(axis=0)


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
def test_a_client_scales_each_series_by_the_steps_that_it_trains_on(skew):
    federation = build_federation(dataset(), skew, 0)
    data = federation.dataset
    for client in federation.clients:
        for domain in range(2):
            mine = client.train[data.domain[client.train] == domain]
            held = np.concatenate([client.val, client.test])
            other = held[data.domain[held] == domain]
            if not len(mine):
                assert (data.arrays["scaler"][other] == domain).all()
                continue
            (scaler,) = set(data.arrays["scaler"][np.concatenate([mine, other])])
            mean, std = by_loop(data, data.arrays["start"][mine], domain)
            np.testing.assert_allclose(data.shared["mean"][scaler], mean, rtol=1e-5)
            np.testing.assert_allclose(data.shared["std"][scaler], std, rtol=1e-5)


@pytest.mark.parametrize("skew", SKEWS, ids=repr)
@pytest.mark.parametrize("scaler", ["client", "series", "all"])
def test_what_comes_after_training_scales_nothing(skew, scaler):
    plain, changed = (build_federation(dataset(change, scaler=scaler), skew, 0) for change in (None, 1e6))
    for name in ("mean", "std"):
        np.testing.assert_array_equal(plain.dataset.shared[name], changed.dataset.shared[name])


def test_scalers_may_be_the_series_own_or_one_for_all():
    one, same = dataset(scaler="series"), dataset(scaler="all")
    a, b = (each.values[: ENDS[0]] for each in two_series())
    np.testing.assert_allclose(one.shared["mean"], [a.mean(axis=0), b.mean(axis=0)], rtol=1e-6)
    both = np.concatenate([a, b])
    np.testing.assert_allclose(same.shared["std"], [both.std(axis=0)] * 2, rtol=1e-6)
    assert build_federation(same, Iid(3), 0).dataset is same


def test_a_series_that_stands_still_is_divided_by_one():
    still = [Series(s.name, np.full_like(s.values, 7.0), s.times, s.ends) for s in two_series()]
    data = build_federation(Windows(S, T).cut("still", still), Iid(2), 0).dataset
    assert (data.shared["std"] == 1).all()
    np.testing.assert_allclose(data.shared["mean"], 7)


# --- the calendar, and data sets ------------------------------------------------------------------------


def test_marks_of_known_days():
    times = np.array(["2013-01-01T00", "2024-02-29T23", "2023-12-31T12"], dtype="datetime64[s]")
    want = [(-0.5, 1 / 6 - 0.5, -0.5, -0.5), (0.5, 0.0, 28 / 30 - 0.5, 59 / 365 - 0.5)]
    want.append((12 / 23 - 0.5, 0.5, 0.5, 364 / 365 - 0.5))
    np.testing.assert_allclose(calendar_marks(times), want, atol=1e-6)


def test_the_first_market_is_the_generator_of_the_specification():
    n, rng = 300, np.random.default_rng(3)
    load_noise, wind_noise, price_noise = rng.normal(size=n), rng.normal(size=n - 1), rng.normal(size=n)
    load, wind, price = np.zeros(n), np.zeros(n), np.zeros(n)
    for t in range(n):
        load[t] = np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168) + 0.1 * load_noise[t]
        if t:
            wind[t] = 0.95 * wind[t - 1] + 0.3 * wind_noise[t - 1]
        before, gust = (price[t - 1] if t else 0.0), (wind[t - 6] if t >= 6 else 0.0)
        price[t] = 0.6 * before + 0.8 * load[t] - 0.5 * gust + 0.1 * price_noise[t]
    for markets in (1, 3):
        data = Markets(hours=n, markets=markets, seed=3).load()
        np.testing.assert_allclose(data.shared["series"][:n], np.stack([load, wind, price], 1), atol=1e-5)
    assert data.domains == ("market_0", "market_1", "market_2")
    assert not np.allclose(data.shared["series"][n : 2 * n, 1], wind, atol=0.1)


def test_ett_has_the_windows_of_its_benchmark(data_root):
    data = Ett(root=data_root).load()
    for index in range(2):
        assert np.bincount(kinds(data)[data.domain == index]).tolist() == [8449, 2785, 2785]
    assert data.meta.shape == (96, 7)


# --- files of one's own ---------------------------------------------------------------------------------


def write(folder, name="one", header="date,load,price", lines=None, hours=40):
    lines = lines or [f"2024-01-{1 + h // 24:02} {h % 24:02}:00,{h},{h * h}" for h in range(hours)]
    text = "\n".join([header, *lines]) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.csv").write_text(text)
    return lines


def csv(folder, **options):
    given = {"seq_len": 3, "pred_len": 1, "target": "price", "levels": 2}
    return CsvSeries(path=str(folder), **{**given, **options}).load()


def test_a_folder_of_files_is_a_domain_each_with_the_target_last(tmp_path):
    write(
        tmp_path / "d",
        "north",
        header="price,date,load",
        lines=[f"{h},2024-01-01 {h}:00,{-h}" for h in range(24)],
    )
    (tmp_path / "d" / "south.csv.gz").write_bytes(gzip.compress((tmp_path / "d" / "north.csv").read_bytes()))
    data = csv(tmp_path / "d")
    assert data.domains == ("north", "south")
    np.testing.assert_array_equal(data.shared["series"][:24], [(-h, h) for h in range(24)])
    assert spans(24, 0.7, 0.2) == (16, 20, 24)
    assert csv(tmp_path / "d", exogenous=[]).meta.shape == (3, 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"target": "prize"}, r"one.csv: has no column 'prize'; did you mean 'price'\?$"),
        ({}, {"time": "when"}, r"has no column 'when'; it has date, load, price$"),
        ({"at": 4, "line": "2024-01-01 04:00,,16"}, {}, r"line 6, column 'load': must be a number.* ''$"),
        ({"at": 4, "line": "2024-01-01 04:00,x,16"}, {}, r"line 6, column 'load': .*got 'x'$"),
        ({"at": 4, "line": "soon,4,16"}, {}, r"line 6, column 'date': must be a time .*got 'soon'$"),
        ({"at": 4, "line": "2024-01-01 02:00,4,16"}, {}, r"line 6, column 'date': must be later .*02:00'$"),
        ({"hours": 5}, {}, r"series 'one': its training span is too short"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named_with_the_line(tmp_path, change, options, message):
    lines = write(tmp_path, hours=change.get("hours", 40))
    if "at" in change:
        lines[change["at"]] = change["line"]
        write(tmp_path, lines=lines)
    with pytest.raises(ScenarioError, match=message):
        csv(tmp_path, **options)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ScenarioError, match=r"no folder ''; set data.path to one with CSV files"):
        CsvSeries().load()
    with pytest.raises(ScenarioError, match=r"no folder .*nowhere"):
        csv(tmp_path / "nowhere")
    with pytest.raises(ScenarioError, match=r"no \.csv or \.csv\.gz file in"):
        csv(tmp_path)
    write(tmp_path, "a")
    write(tmp_path, "b", header="date,wind,price")
    with pytest.raises(ScenarioError, match=r"b.csv: has the columns wind, price, but a.csv has load, price"):
        csv(tmp_path)
    with pytest.raises(ValueError, match=r"^train_fraction: 0.8 and test_fraction=0.2 leave nothing"):
        CsvSeries(train_fraction=0.8)
