"""Runs side by side: means and deviations by hand, who is compared with whom, and what fits a terminal."""

import copy
import io
import statistics

import pytest
from rich.console import Console

from fedbench.errors import UserError
from fedbench.report.comparison import Cell, compare, markdown, table, verdict


def summary(label="fedavg", seed=0, domains=(0.5, 0.7), **changes):
    """What a run leaves, with scores in 0..1."""
    point = {
        "domains": {f"d{i}": v for i, v in enumerate(domains)},
        "avg": statistics.fmean(domains),
        "std": statistics.pstdev(domains),
        "worst_client": min(domains),
    }
    whole = {
        "status": "completed",
        "label": label,
        "seed": seed,
        "choices": {"strategy": label, "scenario": "iid", "engine": "ray"},
        "settings": {"rounds": 3, "client.lr": 0.1, "data.seed": "${seed}"},
        "headline": "accuracy",
        "higher_is_better": True,
        "rounds": 3,
        "final": point,
        "last_5": point,
        "best_validation": point,
        "bytes": {
            "train": {"down": 3_000_000, "up": 1_500_000},
            "query.statistics": {"down": 0, "up": 500_000},
            "evaluate": {"down": 7_000_000, "up": 7},
        },
        "timing": {"start": 0.5, "total": 2.5},
    }
    return whole | changes


def setting(base, **settings):
    return base | {"settings": base["settings"] | settings}


def printed(comparison, width=None, title=""):
    """Lines as a terminal of that width shows them."""
    out = Console(width=width or 200, file=io.StringIO())
    out.print(table(comparison, title, width))
    return out.file.getvalue().splitlines()


def words(*args):
    """The same without line breaks."""
    return " ".join(" ".join(printed(*args)).split())


# --- numbers -----------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_over_seeds():
    runs = [summary(seed=s, domains=(a, b)) for s, (a, b) in enumerate([(0.5, 0.7), (0.6, 0.8), (0.4, 0.9)])]
    (row,) = compare(runs).rows
    assert row.seeds == [0, 1, 2]
    assert row.cells["d0"].mean == pytest.approx(50)
    assert row.cells["d0"].std == pytest.approx(10)  # of 50, 60 and 40 with n - 1 = 2
    assert row.cells["d1"] == Cell(pytest.approx(80), pytest.approx(10))
    assert row.cells["AVG"] == Cell(pytest.approx(65), pytest.approx(5))  # 60, 70 and 65
    assert row.cells["worst"] == Cell(pytest.approx(50), pytest.approx(10))
    assert row.cells["STD"].mean == pytest.approx((10 + 10 + 25) / 3)
    assert row.cells["MB"] == Cell(
        pytest.approx(5.0), pytest.approx(0.0)
    )  # training and what precedes it, evaluation not
    assert row.cells["s"] == Cell(2.0, 0.0)


def test_one_seed_has_no_deviation():
    (row,) = compare([summary()]).rows
    assert row.cells["AVG"] == Cell(pytest.approx(60), None)
    assert "±" not in markdown(compare([summary()]))


def test_only_accuracy_is_in_percent():
    errors = [summary(headline="mse", higher_is_better=False, domains=(0.5, 0.7))]
    assert compare(errors).rows[0].cells["d1"].mean == 0.7


def test_the_round_asked_for_is_shown():
    run = summary() | {"best_validation": summary(domains=(0.9, 0.9))["final"]}
    assert compare([run]).rows[0].cells["AVG"].mean == pytest.approx(60)
    assert compare([run], "best_validation").rows[0].cells["AVG"].mean == pytest.approx(90)
    assert "best round on validation rows" in words(compare([run], "best_validation"))


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="run 'fedavg' seed 3 has no 'best_validation' result: no val"):
        compare([summary(), summary(seed=3, best_validation=None)], "best_validation")
    with pytest.raises(UserError, match="none of these runs got as far as an evaluation"):
        compare([summary(final=None)])
    with pytest.raises(UserError, match=r"measure different things \(accuracy, mse\)"):
        compare([summary(), summary(headline="mse")])
    run = summary()
    run["final"] = run["final"] | {"worst_client": None}
    assert "worst" not in compare([run]).rows[0].cells
    assert " - |" in markdown(compare([run]))


# --- groups and labels -------------------------------------------------------------------------------


def labels(*runs):
    return [(row.label, row.seeds) for row in compare(runs).rows]


def test_runs_that_differ_by_their_seed_alone_are_one_row():
    runs = [summary(seed=s) for s in (2, 0, 1)] + [summary("fedprox", seed=0)]
    assert labels(*runs) == [("fedavg", [0, 1, 2]), ("fedprox", [0])]


def test_the_same_run_twice_is_no_second_seed_and_a_run_without_results_no_run():
    runs = [summary(), summary(domains=(0.6, 0.8)), summary("fedprox"), summary("broken", final=None)]
    comparison = compare(runs)
    assert [(r.label, r.seeds) for r in comparison.rows] == [("fedavg", [0]), ("fedprox", [0])]
    assert comparison.rows[0].cells["AVG"].mean == pytest.approx(70)  # of the later one
    assert comparison.left_out == ["1 never evaluated left out", "1 repeated left out"]
    assert "1 repeated left out" in words(comparison)


def test_runs_on_another_engine_are_the_same_row():
    other = summary(seed=1)
    other["choices"] = other["choices"] | {"engine": "serial"}
    assert labels(summary(), other) == [("fedavg", [0, 1])]


def test_labels_show_the_settings_that_differ_and_only_those():
    base = summary()
    assert labels(base, setting(base, **{"client.lr": 0.2})) == [
        ("fedavg (client.lr=0.1)", [0]),
        ("fedavg (client.lr=0.2)", [0]),
    ]
    fixed = setting(base, **{"data.seed": 4})
    assert labels(base, fixed) == [("fedavg (data.seed=${seed})", [0]), ("fedavg (data.seed=4)", [0])]
    # Another method with other settings needs no explanation: its name tells it apart.
    assert labels(base, setting(summary("fedprox"), mu=1)) == [("fedavg", [0]), ("fedprox", [0])]


def test_labels_show_the_choices_that_differ_and_not_what_follows_from_them():
    base = summary()
    skewed = setting(base, **{"scenario.alpha": 0.5, "scenario._target_": "x"})
    skewed["choices"] = skewed["choices"] | {"scenario": "label_skew"}
    milder = setting(skewed, **{"scenario.alpha": 5.0})
    assert [label for label, _ in labels(base, skewed, milder)] == [
        "fedavg (scenario=iid)",
        "fedavg (scenario=label_skew scenario.alpha=0.5)",
        "fedavg (scenario=label_skew scenario.alpha=5.0)",
    ]


def test_a_run_that_was_stopped_is_not_averaged_with_whole_ones():
    stopped = summary(seed=2, status="failed", rounds=2)
    assert labels(summary(seed=0), summary(seed=1), stopped) == [
        ("fedavg", [0, 1]),
        ("fedavg, stopped in round 2", [2]),
    ]


# --- what is printed ---------------------------------------------------------------------------------


def test_the_best_of_every_score_is_bold():
    runs = [summary("one", domains=(0.9, 0.2)), summary("two", domains=(0.5, 0.8))]

    def bold(comparison):
        columns = {c.header: list(c.cells) for c in table(comparison).columns}
        return {
            name: [str(cell) for cell in cells if getattr(cell, "style", "") == "bold"]
            for name, cells in columns.items()
        }

    assert bold(compare(runs)) == {
        "method": [], "d0": ["90.00"], "d1": ["80.00"], "AVG": ["65.00"], "worst": ["50.00"],
        "STD": [], "MB": [], "s": [],
    }  # fmt: skip
    errors = [r | {"headline": "mse", "higher_is_better": False} for r in runs]
    assert {k: v for k, v in bold(compare(errors)).items() if v} == {
        "d0": ["0.500"], "d1": ["0.200"], "AVG": ["0.550"], "worst": ["0.200"],
    }  # fmt: skip
    assert not any(bold(compare(runs[:1])).values())


def test_markdown():
    runs = [summary(seed=0), summary(seed=1, domains=(0.6, 0.8)), summary("fedprox", domains=(0.1, 1.0))]
    assert markdown(compare(runs)).splitlines() == [
        "| method | seeds | d0 | d1 | AVG | worst | STD | MB | s |",
        "|---|---|---|---|---|---|---|---|---|",
        "| fedavg | 2 | 55.00 ± 7.07 | 75.00 ± 7.07 | 65.00 ± 7.07 | 55.00 ± 7.07 | 10.00 ± 0.00 | 5.0 ± 0.0 "
        "| 2.0 ± 0.0 |",
        "| fedprox | 1 | 10.00 | 100.00 | 55.00 | 10.00 | 45.00 | 5.0 | 2.0 |",
    ]


def test_the_caption_says_what_few_seeds_cannot_tell():
    def said(*methods):
        return words(compare([summary(m, seed=s) for m, seeds in methods for s in range(seeds)]))

    assert "over 2 seeds; 2 seeds cannot tell small differences from chance" in said(("a", 2), ("b", 2))
    assert "over 1 to 3 seeds; 1 seed cannot tell small differences from chance" in said(("a", 3), ("b", 1))
    assert said(("a", 3), ("b", 3)).endswith("mean ± standard deviation over 3 seeds")
    assert "seed" not in said(("a", 1))


def test_labels_are_printed_as_they_are():
    base = summary()
    odd = [setting(base, hidden="[red]"), setting(base, hidden="[/red]")]
    assert sum("(hidden=[red])" in line or "(hidden=[/red])" in line for line in printed(compare(odd))) == 2


NAMES = ["mnist", "usps", "mnist_m", "optdigits"]


def four_domains(names, seeds, labels=("fedavg", "fedprox+ggeur", "ggeur")):
    runs = []
    for i, label in enumerate(labels):
        for seed in range(seeds):
            run = copy.deepcopy(summary(label, seed, (1.0, 0.8765 - i / 50, 0.5 + seed / 10, 0.0123)))
            run["final"]["domains"] = dict(zip(names, run["final"]["domains"].values(), strict=True))
            run["bytes"]["train"]["down"] = 123_456_789_012
            run["timing"]["total"] = 12_345.678
            runs.append(run)
    return compare(runs)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    "names", [NAMES, ["photo", "art_painting", "cartoon", "sketch"], ["Art", "Clipart", "P", "R"]]
)
@pytest.mark.parametrize(
    "labels", [("fedavg", "ggeur"), ("fedavg (scenario.alpha=0.05)", "fedprox+ggeur_linear")]
)
def test_eighty_columns_cut_no_number(names, seeds, labels):
    comparison = four_domains(names, seeds, labels)
    lines = printed(comparison, 80, "a title")
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    columns = comparison.columns if names[0] in text else ["AVG", "worst", "STD", "MB", "s"]
    for row in comparison.rows:
        for column in columns:
            digits = 1 if column in ("MB", "s") else 2
            assert f"{row.cells[column].mean:.{digits}f}" in text
            if seeds > 1:
                assert f"±{row.cells[column].std:.{digits}f}" in text.replace("± ", "±")


def test_a_wide_terminal_has_one_line_a_method_and_a_narrow_one_says_what_it_leaves_out():
    comparison = four_domains(NAMES, 3)
    wide = printed(comparison, 160)
    assert any(line.split()[:4] == ["fedavg", "100.00", "±", "0.00"] for line in wide)
    assert "too narrow" not in words(comparison, 160)
    narrow = printed(comparison, 60)
    assert max(map(len, narrow)) <= 60
    assert "optdigits" not in words(comparison, 60)
    assert "too narrow for the domains, --markdown shows them" in words(comparison, 60)


# --- the verdict -------------------------------------------------------------------------------------


def three(label, *averages):
    return [summary(label, seed, (a, a)) for seed, a in enumerate(averages)]


def test_the_verdict_weighs_the_gap_against_the_spread_over_seeds():
    good, bad = three("good", 0.80, 0.82, 0.84), three("bad", 0.60, 0.61, 0.62)
    assert (
        verdict(compare(bad + good))
        == "good is ahead of bad by 21.00 in AVG, more than the spread over seeds (2.00)."
    )
    near = three("near", 0.79, 0.81, 0.83)
    assert verdict(compare(near + bad + good)) == (
        "good is ahead of near by 1.00 in AVG, less than the spread over seeds (2.00)."
    )


def test_the_verdict_on_one_seed_asks_for_more():
    assert verdict(compare([summary("a"), summary("b", domains=(0.9, 0.9))])) == (
        "b is ahead of a by 30.00 in AVG, on one seed; add -m seed=0,1,2 to learn whether that holds."
    )


def test_the_verdict_knows_the_direction_a_tie_and_when_to_be_silent():
    errors = [
        summary(m, domains=(v,), headline="mse", higher_is_better=False) for m, v in (("a", 0.5), ("b", 2.0))
    ]
    assert verdict(compare(errors)).startswith("a is ahead of b by 1.500 in d0")
    assert verdict(compare([summary("a"), summary("b")])) == "a and b are level in AVG."
    assert verdict(compare([summary("a")])) == ""


# --- personal methods --------------------------------------------------------------------------------


def with_clients(label, mean, personal=False, **more):
    made = summary(label, **more)
    for at in ("final", "last_5", "best_validation"):
        made[at] = made[at] | {"mean_client": mean}
    return made | {"personal": personal}


def test_a_personal_method_is_marked_and_compared_by_the_mean_over_clients():
    comparison = compare(
        [
            with_clients("fedavg", 0.6, domains=(0.5, 0.7)),
            with_clients("ditto", 0.8, True, domains=(0.9, 0.9)),
        ]
    )
    assert [row.label for row in comparison.rows] == ["fedavg", "ditto †"]
    assert comparison.columns == ["d0", "d1", "AVG", "clients", "worst", "STD", "MB", "s"]
    assert [row.cells["clients"].mean for row in comparison.rows] == [60, 80]
    assert "†: models of the clients' own, each on its own test rows" in words(comparison)
    assert verdict(comparison).startswith("ditto † is ahead of fedavg by 20.00 in clients")


def test_scores_on_other_rows_are_never_the_best_of_a_domain():
    comparison = compare([with_clients("fedavg", 0.6), with_clients("ditto", 0.8, True, domains=(0.9, 0.9))])
    bold = {
        str(column.header): [cell.style for cell in column._cells]
        for column in table(comparison).columns
        if column.header != "method"
    }
    assert bold["d0"] == bold["AVG"] == ["bold", ""]
    assert bold["clients"] == bold["worst"] == ["", "bold"]


def test_without_a_personal_method_the_table_stays_as_it_is():
    assert "clients" not in compare([with_clients("fedavg", 0.6)]).columns


# --- forecasts that need no training --------------------------------------------------------------------


def forecasting(label="fedavg", seed=0, day=(0.9, 1.1), domains=(0.5, 0.7)):
    run = summary(label, seed, domains, headline="mse", higher_is_better=False)
    references = {"last_day": {f"d{i}": v for i, v in enumerate(day)}}
    return run | {"final": run["final"] | {"references": references}}


def test_references_are_rows_of_their_own_with_the_mean_over_seeds():
    comparison = compare([forecasting(seed=0), forecasting(seed=1, day=(0.7, 1.3)), forecasting("fedprox")])
    *methods, day = comparison.rows
    assert [row.label for row in methods] == ["fedavg", "fedprox"]
    assert day.label == "last day"
    assert day.cells["d0"].mean == pytest.approx(0.8)
    assert day.cells["AVG"] == Cell(pytest.approx(1.0), pytest.approx(0))
    assert "MB" not in day.cells
    assert "last day | 2 | 0.800 ± 0.141" in markdown(comparison)


@pytest.mark.parametrize("day", [(0.1, 0.1), (9.0, 9.0)])
def test_references_neither_win_nor_lose(day):
    comparison = compare([forecasting(day=day), forecasting("fedprox", day=day, domains=(0.4, 0.6))])
    assert verdict(comparison).startswith("fedprox is ahead of fedavg by 0.100 in AVG")
    assert verdict(compare([forecasting(day=day)])) == ""


def test_lower_errors_are_better_and_have_three_digits():
    lines = words(compare([forecasting(), forecasting("fedprox", domains=(0.4, 0.6))]))
    assert "0.500" in lines
    assert "predictors without training" in lines
