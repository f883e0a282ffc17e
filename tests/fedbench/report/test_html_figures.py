"""Figures of the report as data: means and bands, what clients a heat map holds, fronts and ranks."""

import json
import statistics

import pytest

from fedbench.report.html.figures import MOST_CLIENTS, clients, critical_difference, curves, domains, pareto
from fedbench.report.html.gather import gather
from fedbench.report.statistics import friedman


def only(path):
    """Material, its section and its setting, where there is one of each."""
    material = gather([path])
    (section,) = material.sections
    (setting,) = section.settings
    return section, setting, material


def test_curves_hold_mean_and_deviation_by_round_megabytes_and_seconds(write, made_up):
    figure = curves(*only(write(*[made_up("fedavg", s, (0.5 + s / 10, 0.7 + s / 10)) for s in (0, 1)])))
    rounds, megabytes, seconds = (v["traces"][0] for v in figure["variants"])
    assert rounds["x"] == (1, 2, 3, 4)
    assert rounds["y"] == pytest.approx((35, 45, 55, 65))
    assert rounds["e"] == pytest.approx([statistics.stdev([0, 10])] * 4)
    assert rounds["n"] == (2, 2, 2, 2)
    assert megabytes["x"] == pytest.approx((3, 4, 5, 6))  # 2 MB before round 1
    assert seconds["x"] == pytest.approx((2, 3, 4, 5))  # a second before it


def test_a_systems_clock_is_taken_where_there_is_one(write, made_up):
    run = made_up("fedavg", virtual_seconds=40.0)
    for point in run["history"]:
        point["virtual_seconds"] = 10.0 * point["round"]
    figure = curves(*only(write(run)))
    assert figure["variants"][2]["name"] == "virtual seconds"
    assert figure["variants"][2]["traces"][0]["x"] == (10, 20, 30, 40)


def test_points_without_a_number_are_gaps(write, made_up):
    run = made_up("fedavg")
    run["history"][1]["avg"] = float("nan")
    figure = curves(*only(write(run)))
    assert figure["variants"][0]["traces"][0]["y"][1] is None
    assert figure["variants"][0]["traces"][0]["e"] == (None,) * 4
    json.dumps(figure, allow_nan=False)


def test_bars_are_of_both_points(write, made_up):
    run = made_up("fedavg")
    run["best_validation"]["domains"] = {"d0": 0.1, "d1": 0.2}
    figure = domains(*only(write(run)))
    assert [v["traces"][0]["y"] for v in figure["variants"]] == [[50, 70], [10, 20]]
    assert domains(*only(write_one(write, made_up("moon", domains=(0.5,))))) is None


def write_one(write, run):
    """A second folder of runs beside the first."""
    base = write().parent / "more"
    base.mkdir(exist_ok=True)
    (base / "summary.json").write_text(json.dumps(run))
    return base


def test_heat_map_is_the_mean_over_seeds_ordered_by_domain(write, made_up):
    runs = [made_up("fedavg", s, (0.5 + s / 10, 0.7)) for s in (0, 1)]
    for run in runs:
        run["split"] = [{"domain": d, "rows": 5} for d in ("d1", "d0", "d1", "d0")]
    figure = clients(*only(write(*runs, made_up("moon"))))
    (heat,) = figure["variants"][0]["traces"]
    assert heat["x"] == ["1 d0", "3 d0", "0 d1", "2 d1"]
    assert heat["methods"] == [0, 1]
    assert heat["z"][0] == pytest.approx([57, 72, 55, 70])  # clients 1, 3, 0, 2


def test_many_clients_are_counted(write, made_up):
    run = made_up("fedavg", split={"clients": 1000, "domains": {}})
    run["final"]["clients"] = {str(i): i / 1000 for i in range(MOST_CLIENTS + 1)}
    figure = clients(*only(write(run)))
    (step,) = figure["variants"][0]["traces"]
    assert step["kind"] == "step"
    assert sum(step["y"]) == pytest.approx(100)
    assert len(step["x"]) == len(step["y"]) + 1


def test_pareto_points_are_means_of_whole_runs(write, made_up):
    figure = pareto(*only(write(made_up("fedavg"), made_up("moon", domains=(0.4, 0.5)))))
    assert figure["front"] == "max"
    assert [(t["x"], t["y"]) for t in figure["variants"][0]["traces"]] == [([6], [60]), ([6], [45])]
    assert [t["x"] for t in figure["variants"][1]["traces"]] == [[5], [5]]


def test_critical_difference_puts_the_better_half_left(write, made_up):
    material = gather([write(*[made_up(m) for m in ("fedavg", "moon", "ditto", "krum")])])
    means = {"fedavg": 1, "moon": 2, "ditto": 3, "krum": 4}
    table = {m: {s: v + s for s in range(12)} for m, v in means.items()}
    ranking = friedman(table, higher_is_better=True)
    figure = critical_difference(ranking, material, "s0")
    paths = [t for t in figure["variants"][0]["traces"] if t["role"] == "method"]
    assert [material.methods[t["method"]] for t in paths] == ["krum", "ditto", "moon", "fedavg"]
    assert [t["side"] for t in paths] == ["left", "left", "right", "right"]
    assert [t["x"][0] for t in paths] == [1, 2, 3, 4]
    bars = [t["label"] for t in figure["variants"][0]["traces"] if t["role"] == "group"]
    assert bars == ["krum, ditto", "ditto, moon", "moon, fedavg"]
    (ruler,) = (t for t in figure["variants"][0]["traces"] if t["role"] == "cd")
    assert ruler["x"][-1] - ruler["x"][0] == pytest.approx(ranking.critical_difference)
