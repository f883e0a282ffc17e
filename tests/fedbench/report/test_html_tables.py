"""Tables of the report: numbers by hand, who contends for the best, and what an honest cell says."""

import re

import pytest

from fedbench.report.html.gather import gather
from fedbench.report.html.tables import (
    Cell,
    Column,
    Row,
    by_setting,
    contrasts,
    cost,
    differences,
    failures,
    fairness,
    number,
    pooled_results,
    reached,
    results,
    table,
    target,
)


def cells(html, label):
    """Shown cells of a row by column name; tags are dropped."""
    head = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", html)
    row = re.search(rf'<th scope="row">{re.escape(label)}</th>(.*?)</tr>', html)[1]
    texts = [re.sub("<.*?>", "", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", row)]
    return dict(zip(head[1:], texts, strict=True))


def best(html, label):
    """Columns in which a row is marked as the best."""
    head = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", html)[1:]
    row = re.search(rf'<th scope="row">{re.escape(label)}</th>(.*?)</tr>', html)[1]
    marks = ['class="best"' in c for c in re.findall(r"<td([^>]*)>", row)]
    return {name for name, mark in zip(head, marks, strict=True) if mark}


def only(path, baseline=None):
    """Material, its section and its setting, where there is one of each."""
    material = gather([path], baseline)
    (section,) = material.sections
    (setting,) = section.settings
    return material, section, setting


def test_fairness_by_hand():
    found = fairness([0.2, 0.4, 0.6, 0.8], higher_is_better=True)
    assert found == pytest.approx({"worst": 0.2, "decile": 0.2, "variance": 0.05, "jain": 4 / (4 * 1.2)})
    twenty = fairness([i / 20 for i in range(20)], higher_is_better=False)
    assert (twenty["worst"], twenty["decile"]) == pytest.approx((0.95, 0.925))
    assert fairness([float("nan"), None], True) == {}
    assert "jain" not in fairness([0.0, 0.0], True)


def test_results_are_means_over_seeds(write, made_up):
    runs = [made_up("fedavg", s, (0.5, 0.7 + s / 10)) for s in (0, 1)]
    material, section, setting = only(write(*runs, made_up("moon", 0, (0.4, 0.9))))
    html = results(section, setting, material)
    shown = cells(html, "fedavg")
    assert shown["d0"] == "50.00 ± 0.00"
    assert shown["d1"] == "75.00 ± 7.07"
    assert shown["AVG"] == "62.50 ± 3.54"
    assert shown["STD"] == "12.50 ± 3.54"
    assert shown["worst client"] == "50.00 ± 0.00"
    assert shown["variance"] == "163.50 ± 88.39"  # 101 of 50, 52, 70, 72, and 226 of 50, 52, 80, 82
    assert cells(html, "moon")["AVG"] == "65.00"
    assert best(html, "moon") == {"d1", "AVG", "clients"}
    assert 'data-v="62.5"' in html


def test_personal_methods_contend_on_their_clients_rows_only(write, made_up):
    runs = [made_up("fedavg"), made_up("ditto", domains=(0.8, 0.9), personal=True), made_up("moon")]
    material, section, setting = only(write(*runs))
    assert section.verdict_on == "mean_client"
    html = results(section, setting, material)
    assert {"clients", "worst client"} <= best(html, "ditto †")
    assert not {"d0", "AVG"} & best(html, "ditto †")
    assert best(html, "fedavg") >= {"d0", "AVG"}


def test_predictors_without_training_stand_below_and_win_nothing(write, made_up):
    run = made_up("fedavg", headline="mse", higher_is_better=False)
    run["final"]["references"] = {"last_day": {"d0": 0.1, "d1": 0.3}}
    material, section, setting = only(write(run, made_up("moon", headline="mse", higher_is_better=False)))
    html = results(section, setting, material)
    assert cells(html, "last day")["AVG"] == "0.200"
    assert cells(html, "last day")["clients"] == "–"
    assert "AVG" in best(html, "fedavg")


def test_numbers_that_are_none_are_counted(write, made_up):
    bad = made_up("fedavg", 1)
    bad["final"]["avg"] = float("nan")
    material, section, setting = only(write(made_up("fedavg", 0), bad))
    assert cells(results(section, setting, material), "fedavg")["AVG"] == "60.00 (1 missing)"


@pytest.mark.parametrize(("goal", "when"), [(57.0, 4), (45.0, 3), (99.0, None)])
def test_reached_at_the_first_round_that_is_as_good(write, made_up, goal, when):
    _, section, setting = only(write(made_up("fedavg")))  # AVG 30, 40, 50, 60
    found = reached(section, setting.groups["fedavg"].first, goal)
    if when is None:
        assert found is None
    else:  # 2 MB and a second go before round 1; rounds take 1 MB and a second each
        assert found == pytest.approx((when, 2 + when, 1 + when))


def test_cost_marks_methods_that_always_arrive(write, made_up):
    runs = [made_up("fedavg", s, (0.5 - 0.2 * s, 0.7)) for s in (0, 1)]
    runs += [made_up("moon", s, (0.5, 0.7)) for s in (0, 1)]
    material, section, setting = only(write(*runs))
    assert target(section, setting, 0.95) == pytest.approx(57.0)
    html = cost(section, setting, material, 0.95)
    assert cells(html, "fedavg")["reached"] == "1 of 2"
    assert cells(html, "fedavg")["rounds to target"] == "4.0"
    assert "rounds to target" not in best(html, "fedavg")


def test_target_where_lower_is_better(write, made_up):
    _, section, setting = only(write(made_up("fedavg", headline="mse", higher_is_better=False)))
    assert target(section, setting, 0.8) == pytest.approx(0.6 / 0.8)
    run = setting.groups["fedavg"].first
    assert reached(section, run, 0.45)[0] == 1


def test_contrasts_say_how_many_seeds_would_do(write, made_up):
    shifts = {"moon": (0.01, 0.03, 0.0), "scaffold": (0.2, 0.21, 0.19)}
    runs = [made_up("fedavg", s) for s in range(3)]
    runs += [made_up(m, s, (0.5 + d, 0.7 + d)) for m, ds in shifts.items() for s, d in enumerate(ds)]
    material, section, setting = only(write(*runs))
    html = contrasts(section, section.results(setting), "fedavg", material)
    unsure, sure = cells(html, "moon"), cells(html, "scaffold")
    assert unsure["verdict"] == "not shown"
    assert re.fullmatch(r"about \d+", unsure["seeds needed"])
    assert sure["verdict"] == "better"
    assert sure["seeds needed"] == "–"
    assert sure["difference"] == "20.00"
    assert float(sure["p (Holm)"]) == pytest.approx(2 * float(sure["p (t)"]), abs=1e-4)
    assert "cannot come below p = 0.25" in html
    assert cells(html, "fedavg")["verdict"] == "baseline"


def test_means_over_settings_need_all_of_them(write, made_up, sweep):
    runs = sweep(made_up(), ["fedavg", "moon"], ["iid", "label_skew"], 2)
    kept = [r for r in runs if r["label"] == "fedavg" or r["choices"]["scenario"] == "iid"]
    material = gather([write(*kept)])
    (section,) = material.sections
    html = by_setting(section, material, None)
    assert cells(html, "moon")["mean"] == "–"
    assert cells(html, "moon")["digits, label_skew"] == "–"
    assert float(cells(html, "fedavg")["mean"]) > 0
    pooled = contrasts(section, pooled_results(section), "fedavg", material)
    assert cells(pooled, "moon")["pairs"] == "2 (2 left out)"
    assert section.axis not in cells(pooled, "moon")


def test_zero_has_no_sign():
    assert [number(v, 2) for v in (-0.001, -1.0, 0.5)] == ["0.00", "−1.00", "0.50"]


def test_one_seed_is_called_one(write, made_up):
    material, section, setting = only(write(made_up("fedavg"), made_up("moon", domains=(0.6, 0.8))))
    html = contrasts(section, section.results(setting), "fedavg", material)
    assert "One seed: no test is possible" in html
    assert cells(html, "moon")["p (t)"] == "–"


def test_differences_are_apart_for_settings_and_methods(write, made_up):
    runs = []
    for scenario, clients in (("iid", 4), ("label_skew", 10)):
        for method, lr in (("fedavg", 0.1), ("moon", 0.2)):
            run = made_up(method)
            run["choices"]["scenario"] = scenario
            run["settings"] |= {"scenario.clients": clients, "client.lr": lr, "client._target_": method}
            runs.append(run)
    material = gather([write(*runs)])
    between_settings, between_methods = differences(material.sections[0], material).split(
        "Between methods", 1
    )
    assert cells(between_settings, "scenario.clients") == {"digits, iid": "4", "digits, label_skew": "10"}
    assert "client.lr" not in between_settings
    assert "client.lr" in between_methods
    assert "scenario" not in between_methods
    assert "_target_" not in between_methods


def test_lost_clients_are_counted_over_seeds(write, made_up):
    runs = [
        made_up("fedavg", s, failures=1, lost={"dropout": 2, "deadline": 0, "surplus": 0}) for s in (0, 1)
    ]
    html = failures(gather([write(*runs)]))
    assert cells(html, "fedavg, digits, iid") == {
        "errors": "2",
        "dropout": "4",
        "deadline": "0",
        "surplus": "0",
    }


def test_text_is_escaped():
    html = table("<b>", [Column("<i>", about='"x"')], [Row(0, "<script>", [Cell(text="a & b")])], note="<u>")
    assert not re.search("<(b|i|u|script)>", html)
    assert "a &amp; b" in html
    assert 'title="&quot;x&quot;"' in html
