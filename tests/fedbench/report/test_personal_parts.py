"""What reports say of clients' own models, of new clients and of calibration."""

import json

import pytest
from scipy import stats

from fedbench.report.gain_table import gain, gain_table
from fedbench.report.html import personal
from fedbench.report.html.gather import gather

BINS = {"rows": [9, 0, 20], "confidence": [0.2, None, 0.9], "accuracy": [0.4, None, 0.8]}


def own(run, gains, seed=0):
    """A run whose clients' own models gain so much over the global one, and that has new clients."""
    clients = dict(zip(run["final"]["clients"], (0.5, 0.6, 0.7, 0.8), strict=True))
    run["final"]["global"] = {"clients": clients, "mean_client": 0.65}
    run["final"]["clients"] = {k: v + g for (k, v), g in zip(clients.items(), gains, strict=True)}
    run["final"]["mean_client"] = 0.65 + sum(gains) / 4
    run["final"]["reliability"] = BINS
    run["final"]["new_clients"] = {
        k: {"accuracy": 0.3 + int(k) / 100 + seed / 10, "loss": 1.5, "ece": 0.1, "reliability": BINS}
        for k in ("0", "5")
    }
    run["diagnostics"] = {"niw_clip_fraction": 0.25 + seed / 2}
    return run | {"personal": True}


@pytest.fixture
def runs(made_up):
    first, second = [0.1, 0.2, -0.05, 0.01], [0.3, 0.0, 0.02, 0.04]
    return [own(made_up("niw", 0), first), own(made_up("niw", 1), second, seed=1), made_up("fedavg", 0)]


def test_gains_pair_every_client_of_every_seed(runs):
    found = gain(runs[:2])
    assert found.n == 8
    assert found.difference.mean == pytest.approx((0.26 + 0.36) / 8)
    assert found.superiority == pytest.approx((6 + 0.5) / 8)
    differences = [0.1, 0.2, -0.05, 0.01, 0.3, 0.0, 0.02, 0.04]
    exact = stats.permutation_test(
        (differences,),
        lambda d: sum(r * (1 if x > 0 else 0.5 if x == 0 else 0) for r, x in zip(ranks(d), d, strict=True)),
        permutation_type="samples",
        n_resamples=float("inf"),
    )
    assert found.wilcoxon_p == pytest.approx(exact.pvalue)
    assert gain(runs[2:]) is None


def ranks(d):
    return stats.rankdata([abs(x) for x in d])


def test_the_terminal_shows_methods_with_both_models(runs):
    table = gain_table(runs)
    columns = {c.header: list(c.cells) for c in table.columns}
    assert columns["method"] == ["niw"]
    assert columns["global"] == ["65.00"]
    assert columns["own"] == ["72.75"]
    assert columns["gain"] == ["+7.75"]
    assert columns["better"] == ["81%"]
    assert gain_table(runs[2:]) is None


def test_where_lower_is_better_a_client_gains_by_losing(runs):
    for run in runs:
        run |= {"headline": "mse", "higher_is_better": False}
    (better,) = (list(c.cells) for c in gain_table(runs).columns if c.header == "better")
    assert better == ["19%"]


def page_parts(write, runs):
    material = gather([write(*runs)])
    (section,) = material.sections
    return section, section.settings[0], material


def test_the_page_has_tables_of_gains_new_clients_and_diagnostics(write, runs):
    html = personal.tables(*page_parts(write, runs))
    assert "What clients" in html
    assert 'data-v="7.75"' in html
    assert "New clients, accuracy in %" in html
    assert 'data-v="40" data-s="7.07106781187"' in html  # 0.35 and 0.45 with 5 rows
    assert "<td>0.5</td>" in html  # mean of the clipped shares
    assert html.count("<table") == 3


def test_runs_without_any_of_it_add_nothing(write, runs):
    parts = page_parts(write, runs[2:])
    assert personal.tables(*parts) == ""
    assert personal.figures(*parts) == []


def test_figures_are_gains_new_clients_and_reliability(write, runs):
    parts = page_parts(write, runs)
    figures = {f["id"]: f for f in personal.figures(*parts)}
    assert list(figures) == ["gain", "newcomers", "reliability"]
    (bars,) = figures["gain"]["variants"][0]["traces"]
    assert bars["x"] == ["0", "1", "2", "3"]
    assert bars["y"] == pytest.approx([20, 10, -1.5, 2.5])
    assert [v["name"] for v in figures["newcomers"]["variants"]] == [
        "accuracy in %",
        "negative log-likelihood",
        "expected calibration error",
    ]
    (line,) = figures["newcomers"]["variants"][0]["traces"]
    assert (line["x"], line["y"]) == ([0, 5], [35, 40])
    diagram = figures["reliability"]
    assert [v["name"] for v in diagram["variants"]] == [
        "test rows",
        "new clients, 0 rows",
        "new clients, 5 rows",
    ]
    curve, diagonal = diagram["variants"][0]["traces"]
    assert (curve["x"], curve["y"], curve["n"]) == ([0.9], [0.8], [20])  # 9 rows are too few to be shown
    assert diagonal["method"] is None
    json.dumps(figures, allow_nan=False)
