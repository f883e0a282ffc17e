"""Statistics of comparisons: against scipy, by hand, against published examples, and by simulation."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedbench.report.statistics import (
    MOST_SEEDS,
    against,
    friedman,
    holm,
    interval,
    over_settings,
    paired,
    pairwise,
    seeds_needed,
    sentence,
)

NAN = float("nan")
BASE = {0: 70.1, 1: 69.4, 2: 71.0, 3: 70.3, 4: 68.9}


def plus(*shifts, base=BASE):
    """The baseline's results, each shifted by one number."""
    return {seed: base[seed] + shift for seed, shift in enumerate(shifts)}


# --- interval ----------------------------------------------------------------------------------------


def test_interval_is_students():
    values = [71.2, 69.9, 70.4, 72.0]
    found = interval(values, 0.9)
    assert found.bounds == pytest.approx(
        stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values)), rel=1e-12
    )
    assert found.std == pytest.approx(np.std(values, ddof=1))


def test_interval_counts_what_is_no_number():
    found = interval([None, 2.0, NAN, math.inf, 4.0])
    assert (found.n, found.missing, found.mean) == (2, 3, 3.0)


def test_one_value_has_no_interval():
    found = interval([3.0, NAN])
    assert (found.mean, found.std, found.half_width, found.bounds) == (3.0, None, None, None)
    assert interval([]).mean is None


def test_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(5, 2, (1500, 4))
    covered = [low <= 5 <= high for low, high in (interval(row, 0.9).bounds for row in draws)]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.025)  # three standard errors


# --- paired ------------------------------------------------------------------------------------------


def test_paired_agrees_with_scipy():
    rng = np.random.default_rng(1)
    for n in (3, 8, 20):
        a, b = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
        found = paired(dict(enumerate(a)), dict(enumerate(b)))
        t = stats.ttest_rel(a, b)
        assert found.t_p == pytest.approx(t.pvalue, rel=1e-8)
        assert found.difference.bounds == pytest.approx(t.confidence_interval(), rel=1e-8)
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-8)
        assert found.superiority == np.mean(a > b)


@pytest.mark.parametrize("d", [[1, 2, 0, -3, 2], [1, 1, 1, -1, 2, 2, 0, 0], [-5, 1], [0, 0, 2, 3, 3]])
def test_signed_ranks_are_exact_with_ties_and_zeros(d):
    ranks = stats.rankdata(np.abs(d))
    observed = abs(sum(ranks * np.sign(d)))
    every = [abs(sum(ranks * np.abs(np.sign(d)) * signs)) for signs in product([-1, 1], repeat=len(d))]
    found = paired(dict(enumerate(d)), dict.fromkeys(range(len(d)), 0))
    assert found.wilcoxon_p == pytest.approx(np.mean(np.array(every) >= observed - 1e-9))


def test_many_pairs_take_the_normal_approximation():
    d = np.random.default_rng(2).normal(0.2, 1, 60)
    found = paired(dict(enumerate(d)), dict.fromkeys(range(60), 0.0))
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(d, method="approx").pvalue)


def test_effect_sizes_by_hand():
    # Differences 1, 2, 3, 0: mean 1.5, variance 5/3. The factor for 3 degrees of freedom is
    # Gamma(3/2) / (sqrt(3/2) Gamma(1)) = sqrt(pi) / 2 / sqrt(3/2).
    found = paired({0: 1, 1: 2, 2: 3, 3: 5}, {0: 0, 1: 0, 2: 0, 3: 5})
    assert found.cohen_d == pytest.approx(1.5 / math.sqrt(5 / 3))
    assert found.hedges_g == pytest.approx(found.cohen_d * math.sqrt(math.pi) / 2 / math.sqrt(1.5))
    assert found.superiority == 3.5 / 4


def test_missing_runs_are_left_out_on_either_side():
    a = {("iid", 0): 1.0, ("iid", 1): 2.0, ("skew", 0): NAN, ("skew", 1): 4.0}
    b = {("iid", 1): 1.5, ("iid", 0): 0.0, ("skew", 0): 3.0, ("skew", 2): 9.0}
    found = paired(a, b)
    assert found.differences == {("iid", 0): 1.0, ("iid", 1): 0.5}
    assert (found.n, found.left_out) == (2, 3)


def test_equal_results_have_p_one():
    found = paired(BASE, dict(BASE))
    assert (found.t_p, found.wilcoxon_p, found.cohen_d, found.superiority) == (1, 1, 0, 0.5)
    assert found.note == "all pairs tie"


def test_one_pair_and_none_have_no_p():
    one, none = paired({0: 2.0}, {0: 1.0}), paired({0: 2.0}, {1: 1.0})
    assert (one.t_p, one.wilcoxon_p, one.difference.mean) == (None, None, 1.0)
    assert one.note.startswith("one pair")
    assert (none.n, none.left_out, none.difference.mean, none.superiority) == (0, 2, None, None)
    assert none.note


def test_equal_differences_leave_the_signed_ranks_alone():
    # As floats 71.2 - 70.8 and 60.4 - 60.0 are unequal in the last digits, which is no spread.
    found = paired({0: 71.2, 1: 60.4, 2: 0.7}, {0: 70.8, 1: 60.0, 2: 0.3})
    assert (found.t_p, found.cohen_d, found.difference.bounds) == (None, None, None)
    assert found.wilcoxon_p == 2 / 2**3
    assert "no spread" in found.note


def test_overlap_widens_the_test_as_nadeau_and_bengio_say():
    a, n, ratio = plus(0.5, 1.0, 0.2, 0.9, 0.4), 5, 3 / 7
    plain, corrected = paired(a, BASE), paired(a, BASE, overlap=ratio)
    t = plain.difference.mean / plain.difference.std / math.sqrt(1 / n + ratio)
    assert corrected.t_p == pytest.approx(2 * stats.t.sf(t, n - 1))
    widened = corrected.difference.half_width / plain.difference.half_width
    assert widened == pytest.approx(math.sqrt(1 + n * ratio))


# --- several methods ---------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, made monotone.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p_values: not a probability, got nan"):
        holm([NAN])


def test_against_gives_each_method_a_verdict():
    methods = {
        "base": BASE,
        "up": plus(2.0, 2.1, 1.9, 2.2, 2.0),
        "down": plus(-2.0, -2.1, -1.9, -2.2, -2.0),
        "noise": plus(1.0, -1.0, 0.5, -0.6, 0.3),
        "single": {0: 90.0},
    }
    found = {c.method: c for c in against("base", methods, higher_is_better=True)}
    assert {m: c.verdict for m, c in found.items()} == {
        "up": "better",
        "down": "worse",
        "noise": "no difference shown",
        "single": "no difference shown",
    }
    assert found["single"].p_holm is None
    assert all(c.tests == 3 for c in found.values())
    assert found["up"].p_holm == pytest.approx(3 * found["up"].p)
    lower = {c.method: c.verdict for c in against("base", methods, higher_is_better=False)}
    assert (lower["up"], lower["down"]) == ("worse", "better")


def test_against_corrects_what_alone_would_be_shown():
    methods = {"base": BASE, "a": plus(0.1, 0.9, 0.4, 0.6, 0.2)}
    (alone,) = against("base", methods, higher_is_better=True)
    others = {f"m{i}": plus(1.0, -1.0, 0.5, -0.6, 0.3) for i in range(4)}
    among = against("base", methods | others, higher_is_better=True)[0]
    assert (alone.verdict, among.verdict) == ("better", "no difference shown")


def test_against_can_judge_by_signed_ranks():
    methods = {"base": BASE, "up": plus(2.0, 2.1, 1.9, 2.2, 2.0)}
    (found,) = against("base", methods, higher_is_better=True, test="wilcoxon")
    assert (found.p, found.verdict) == (2 / 2**5, "no difference shown")


def test_signed_ranks_without_a_mean_difference_give_no_direction():
    methods = {"base": dict.fromkeys(range(13), 0), "up": dict(enumerate([*[1] * 12, -12]))}
    (found,) = against("base", methods, higher_is_better=True, test="wilcoxon")
    assert found.p < 0.05
    assert found.verdict == "no difference shown"


def test_pairwise_rarely_calls_a_winner_among_equals():
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(200):
        methods = {f"m{i}": dict(enumerate(rng.normal(0, 1, 5))) for i in range(4)}
        called += any(c.verdict != "no difference shown" for c in pairwise(methods, higher_is_better=True))
    assert called / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


# --- many settings -----------------------------------------------------------------------------------

# Demšar 2006, table 6: ranks of C4.5, +m, +cf, +m+cf on 14 data sets.
DEMSAR = np.array(
    [
        [4, 3, 2, 1],
        [1, 2, 3, 4],
        [4, 1, 2, 3],
        [4, 1, 3, 2],
        [4, 2, 3, 1],
        [1, 2.5, 4, 2.5],
        [3, 2, 4, 1],
        [2.5, 2.5, 4, 1],
        [4, 3, 2, 1],
        [2.5, 2.5, 2.5, 2.5],
        [4, 2.5, 1, 2.5],
        [3, 2, 4, 1],
        [4, 1, 2, 3],
        [3, 1, 4, 2],
    ]
)


def as_table(values, names="abcdefgh"):
    return {names[m]: dict(enumerate(column)) for m, column in enumerate(np.asarray(values).T)}


def test_friedman_on_demsars_worked_example():
    found = friedman(as_table(DEMSAR), higher_is_better=False)
    assert {m: round(r, 3) for m, r in found.ranks.items()} == {"d": 1.964, "b": 2.0, "c": 2.893, "a": 3.143}
    # The paper's 9.28 does not correct for ties (78 = 6 + 6 + 60 + 6 of 840); ours does, as scipy.
    assert found.chi2 * (1 - 78 / 840) == pytest.approx(9.28, abs=0.005)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert found.groups == (("d", "b", "c", "a"),)  # 1.18 apart at most, and 1.25 were needed
    # At level 0.10 the difference is 1.12, and C4.5 is worse than +m and +m+cf.
    loose = friedman(as_table(DEMSAR), higher_is_better=False, level=0.1)
    assert loose.critical_difference == pytest.approx(1.12, abs=0.005)
    assert loose.groups == (("d", "b", "c"), ("c", "a"))


def test_friedman_agrees_with_scipy_with_ties():
    values = np.random.default_rng(4).integers(0, 5, (9, 5)) + np.arange(5)
    found = friedman(as_table(values), higher_is_better=True)
    reference = stats.friedmanchisquare(*values.T)
    assert (found.chi2, found.chi2_p) == pytest.approx((reference.statistic, reference.pvalue))
    # Iman and Davenport's F is that of a two-way analysis of variance on the ranks.
    ranks = stats.rankdata(-values, axis=1)
    methods = 9 * ((ranks.mean(axis=0) - 3) ** 2).sum()
    rest = ((ranks - 3) ** 2).sum() - methods
    f = (methods / 4) / (rest / (4 * 8))
    assert (found.f, found.f_p) == pytest.approx((f, stats.f.sf(f, 4, 32)))


def test_friedman_leaves_out_settings_that_lack_a_method():
    whole = as_table(DEMSAR)
    spoiled = {m: dict(results) for m, results in whole.items()}
    spoiled["a"][14], spoiled["b"][14] = 1.0, NAN
    found = friedman(spoiled, higher_is_better=False)
    assert (found.settings, found.left_out) == (14, 1)
    assert found.chi2 == friedman(whole, higher_is_better=False).chi2


def test_friedman_where_all_settings_rank_alike():
    found = friedman(as_table([[1, 2, 3]] * 4), higher_is_better=True)
    assert found.ranks == {"c": 1, "b": 2, "a": 3}
    assert (found.f, found.f_p) == (math.inf, pytest.approx(1 / 6**3))
    tied = friedman(as_table([[1, 1, 1]] * 4), higher_is_better=True)
    assert (tied.chi2, tied.chi2_p, tied.f_p, tied.groups) == (0, 1, 1, (("a", "b", "c"),))


def test_groups_are_maximal_and_may_overlap():
    # Ranks 1, 2, 3, 4, 5 in 20 settings: the critical difference is 2.728 sqrt(5 * 6 / 120) = 1.36.
    found = friedman(as_table([[5, 4, 3, 2, 1]] * 20), higher_is_better=True)
    assert found.groups == (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))
    # In 80 settings it is 0.68, and all five are told apart.
    assert friedman(as_table([[5, 4, 3, 2, 1]] * 80), higher_is_better=True).groups == ()


def test_no_two_methods_differ_where_friedmans_test_finds_nothing():
    values = [[4, 0, 5, 3, 2, 1], [5, 1, 2, 3, 0, 4], [5, 0, 3, 2, 4, 1], [4, 1, 0, 3, 2, 5]]
    found = friedman(as_table(values), higher_is_better=True)
    assert found.ranks["b"] - found.ranks["a"] > found.critical_difference
    assert found.f_p > 0.05
    assert found.groups == (tuple(found.ranks),)


def test_friedman_refuses_too_little():
    with pytest.raises(ValueError, match="table: Friedman's test ranks 3 methods or more, got 2"):
        friedman(as_table([[1, 2]] * 5), higher_is_better=True)
    with pytest.raises(ValueError, match=r"needs 2 settings .* got 1 \(1 lack a method"):
        friedman(as_table([[1, 2, 3], [1, NAN, 3]]), higher_is_better=True)


def test_settings_are_averaged_over_common_seeds():
    a = {("iid", 0): 1.0, ("iid", 1): 3.0, ("skew", 0): 5.0, ("drift", 0): NAN}
    b = {("iid", 1): 2.0, ("iid", 2): 8.0, ("skew", 1): 6.0, ("drift", 0): 4.0}
    assert over_settings({"a": a, "b": b}) == {
        "a": {"iid": 3.0, "skew": None, "drift": None},
        "b": {"iid": 2.0, "skew": None, "drift": 4.0},
    }
    with pytest.raises(ValueError, match=r"methods: 'a' has the key 0; use \(setting, seed\)"):
        over_settings({"a": {0: 1.0}})


# --- seeds that would do -----------------------------------------------------------------------------


def with_effect(d):
    """Differences of mean d and standard deviation 1."""
    return [d - math.sqrt(0.5), d + math.sqrt(0.5)]


@pytest.mark.parametrize(("d", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_power_tables(d, n):
    assert seeds_needed(with_effect(d)) == n
    assert seeds_needed(with_effect(-d)) == n


def test_seeds_needed_have_the_power_they_promise():
    n = seeds_needed(with_effect(1.2))
    rng = np.random.default_rng(5)
    shown = [
        np.mean(stats.ttest_1samp(rng.normal(1.2, 1, (20_000, size)), 0, axis=1).pvalue < 0.05)
        for size in (n, n - 1)
    ]
    assert shown[0] > 0.8 - 0.006
    assert shown[1] < 0.8 + 0.006


def test_seeds_needed_where_no_number_can_be_given():
    assert seeds_needed([1.0, -1.0]) is None
    assert seeds_needed([1.0, NAN]) is None
    assert seeds_needed([1.0, 1.0, 1.0]) is None
    assert seeds_needed(with_effect(0.2), most=198) is None
    # The mean of overlapping runs keeps a spread of sqrt(0.4), so 0.5 is never shown.
    assert seeds_needed(with_effect(0.5), overlap=0.4) is None
    assert seeds_needed(with_effect(1e6)) == 2


# --- words -------------------------------------------------------------------------------------------


def test_a_shown_difference_is_said_with_its_certainty():
    methods = {"FedAvg": BASE, "FedProx": plus(0.8, 0.9, 0.7, 1.0, 0.6)}
    expected = "(95% interval 0.60 to 1.00, p < 0.001, 5 seeds)."
    said = sentence(methods, True, "FedAvg", unit="points")
    assert said == f"FedProx is better than FedAvg by 0.80 points {expected}"
    assert (
        sentence(methods, True, unit="points") == f"FedProx is best, 0.80 points ahead of FedAvg {expected}"
    )
    # Where lower is better, the same numbers speak for the other side.
    assert sentence(methods, False, unit="points").startswith("FedAvg is best, 0.80 points ahead of FedProx")
    said = sentence(methods, False, "FedAvg", unit="points")
    assert said == f"FedProx is 0.80 points behind FedAvg {expected}"


def test_too_few_seeds_are_told_how_many_would_do():
    shifts = (0.2, 1.6, 0.6)
    methods = {"FedAvg": plus(0, 0, 0), "FedProx": plus(*shifts)}
    needed = seeds_needed(shifts)
    assert needed > 3
    advice = f"3 seeds cannot show a difference of 0.80 points (p = 0.19); about {needed} would."
    said = sentence(methods, True, "FedAvg", unit="points")
    assert said == f"FedProx is 0.80 points ahead of FedAvg, but {advice}"
    said = sentence(methods, True, unit="points")
    assert said == f"FedProx has the best mean, 0.80 points ahead of FedAvg, but {advice}"
    said = sentence({"a": plus(0, 0, 0), "b": plus(1.0, -1.0, 0.001)}, True)
    assert said.endswith(f"difference of less than 0.01 (p = 1.00); nor would {MOST_SEEDS}.")


def test_needed_seeds_are_more_than_there_are():
    rng = np.random.default_rng(6)
    for n, overlap in product((2, 3, 5, 9), (0.0, 0.1)):
        for _ in range(30):
            d = rng.normal(1, 1, n)
            if paired(dict(enumerate(d)), dict.fromkeys(range(n), 0.0), overlap=overlap).t_p > 0.05:
                needed = seeds_needed(d, overlap=overlap)
                assert needed is None or needed > n


def test_equal_differences_need_what_signed_ranks_need():
    said = sentence({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}}, True, "a")
    assert (
        said
        == "b is 1.00 ahead of a, but 2 seeds cannot show a difference of 1.00 (p = 0.50); about 6 would."
    )
    many = {s: float(s) for s in range(6)}
    said = sentence({"a": many, "b": {s: v + 1 for s, v in many.items()}}, True, "a")
    assert said == "b is better than a by 1.00 (p = 0.031, 6 seeds)."


def test_several_comparisons_need_more_seeds():
    shifts = (0.1, 0.9, 0.4, 0.6, 0.2)
    methods = {"base": BASE, "a": plus(*shifts)} | {f"m{i}": plus(0.1, -1, 0.5, -0.6, 0.3) for i in range(4)}
    assert seeds_needed(shifts) < seeds_needed(shifts, level=0.01)
    assert f"; about {seeds_needed(shifts, level=0.01)} would." in sentence(methods, True, "base")


def test_several_methods_against_a_baseline():
    methods = {
        "base": BASE,
        "up": plus(2.0, 2.1, 1.9, 2.2, 2.0),
        "wild": plus(9.0, -3.0, 4.0, 3.0, 2.0),
        "down": plus(-2.0, -2.1, -1.9, -2.2, -2.0),
        "gone": {0: NAN},
    }
    said = sentence(methods, True, "base")
    assert said.startswith("up is better than base by 2.04 (95% interval ")
    assert "while wild is further ahead, by 3.00, but 5 seeds cannot show" in said
    assert said.endswith(
        ". Of the 3 methods held against base: 1 better, 1 worse, 1 not shown to differ; no result from gone."
    )
    del methods["up"], methods["wild"]
    assert sentence(methods, True, "base").startswith("down is 2.04 behind base (95% interval ")


def test_a_leader_is_tested_as_one_pair_of_all():
    methods = {"a": BASE, "b": plus(0.3, -0.2, 0.1, 0.2, -0.1), "c": plus(9.0, 9.3, 8.8, 9.1, 9.2)}
    said = sentence(methods, True)
    assert said.startswith("c is best, 9.02 ahead of b (")
    assert "corrected for 3 tests" in said
    assert said.endswith("It is shown to be better than all 2 others.")


def test_words_for_the_little_there_may_be():
    one, two = {0: 1.0}, {0: 2.0}
    assert sentence({}, True) == "No method has a result."
    assert (
        sentence({"a": one}, True) == "a alone has results, 1.00 over 1 seed, and nothing to be held against."
    )
    said = sentence({"a": one, "b": two}, True)
    assert said == (
        "b has the best mean, 1.00 ahead of a, but that is one seed; "
        "add -m seed=0,1,2,3,4 to learn whether it holds."
    )
    assert sentence({"a": one, "b": one}, True) == "a and b are equal over 1 seed."
    assert "no result, so nothing" in sentence({"a": {0: NAN}, "b": one}, True, "a")
    assert sentence({"a": one, "b": {1: 1.0}}, True).startswith("There is no run that all methods have")
    assert sentence({"a": one, "b": {1: 1.0}}, True, "a").startswith("No method has a run in common with a")
    with pytest.raises(ValueError, match="baseline: no method 'x'; use one of a"):
        sentence({"a": one}, True, "x")


def test_left_out_runs_are_said():
    methods = {"a": plus(0, 0, 0), "b": plus(2.0, 2.1, NAN, 2.05)}
    end = "left out: 2 seeds that {} have."
    assert sentence(methods, True, "a").endswith("L" + end.format("b and a do not both")[1:])
    assert sentence(methods, True).endswith("L" + end.format("not every method")[1:].replace("have.", "has."))
    by_setting = {m: {("iid", seed): v for seed, v in results.items()} for m, results in methods.items()}
    assert "2 runs)" in sentence(by_setting, True)


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([1.0], 95), "level: not inside 0 to 1, got 95"),
        (lambda: paired(BASE, BASE, overlap=-1), "overlap: not a ratio"),
        (lambda: seeds_needed([1.0], power=1), "power: not inside 0 to 1"),
        (lambda: seeds_needed([1.0], most=1), "most: a paired test needs 2 seeds"),
        (lambda: pairwise({"a": BASE}, True, alpha=5), "alpha: not inside 0 to 1, got 5"),
        (lambda: against("a", {"a": BASE}, True, test="z"), "test: no test 'z'"),
        (lambda: friedman({}, True, level=0), "level: not inside 0 to 1, got 0"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
