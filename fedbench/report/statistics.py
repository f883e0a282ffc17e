"""Whether a difference between methods is real: intervals, paired tests, ranks over settings, and words.

Methods are compared on the same federation, initial weights and batches for each seed, so their results are
paired by seed, or by (setting, seed) where there are several scenarios. What all functions hold to:

- A result that is missing, ``None``, NaN or infinite is left out and counted, never replaced. A method that
  diverges loses runs that way, so the count belongs next to the number.
- The t test is the main one, and the signed-rank test stands beside it: with 5 pairs or fewer, the latter
  cannot come below p = 0.05 whatever the data.
- Seeds of one data set share rows. Where each seed draws new test rows from the same pool, runs are not
  independent and the plain test is too sure; ``overlap`` corrects it [1]_.

References
----------
.. [1] C. Nadeau and Y. Bengio, "Inference for the generalization error", Machine Learning 52, 2003:
   the variance of a mean over n resamples is (1/n + test rows / training rows) times the sample variance.
.. [2] J. Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
.. [3] S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6, 1979.
.. [4] R. L. Iman and J. M. Davenport, "Approximations of the critical region of the Friedman statistic",
   Communications in Statistics A 9, 1980.
.. [5] M. Friedman, "The use of ranks to avoid the assumption of normality implicit in the analysis of
   variance", J. American Statistical Association 32, 1937.
.. [6] P. B. Nemenyi, "Distribution-free multiple comparisons", thesis, Princeton, 1963.
.. [7] L. V. Hedges, "Distribution theory for Glass's estimator of effect size and related estimators",
   J. Educational Statistics 6, 1981.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, TypeGuard

import numpy as np
from scipy import special, stats

Results = Mapping[Any, float | None]
"""Result of each run of a method, by seed or by (setting, seed)."""
Verdict = Literal["better", "worse", "no difference shown"]
Test = Literal["t", "wilcoxon"]

MOST_SEEDS = 10_000
"""Seeds after which `seeds_needed` stops looking."""
_EXACT = 50
"""Pairs up to which the signed-rank distribution is counted out; beyond, the normal one is close."""


# --- one method --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Mean of ``n`` values, their sample standard deviation (ddof 1), and a t interval about the mean.

    ``mean`` is None without values, ``std`` and ``half_width`` with fewer than two. ``missing`` counts what
    was no finite number.
    """

    n: int
    missing: int
    mean: float | None
    std: float | None
    half_width: float | None
    level: float

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lower and upper end, None where there is no interval."""
        if self.mean is None or self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def interval(values: Iterable[float | None], level: float = 0.95) -> Interval:
    """Mean, standard deviation and Student's t interval of the mean.

    Parameters
    ----------
    values : iterable of float or None
        One a run. None, NaN and infinite ones are dropped and counted.
    level : float
        Confidence of the interval, inside (0, 1).

    Raises
    ------
    ValueError
        If ``level`` is not inside (0, 1).
    """
    _check_share("level", level, "0.95")
    values = list(values)
    kept = [float(v) for v in values if _usable(v)]
    return _interval(kept, len(values) - len(kept), level, 0.0)


def _interval(kept: Sequence[float], missing: int, level: float, overlap: float) -> Interval:
    n = len(kept)
    if n < 2:
        return Interval(n, missing, kept[0] if kept else None, None, None, level)
    std = statistics.stdev(kept)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std * math.sqrt(1 / n + overlap)
    return Interval(n, missing, statistics.fmean(kept), std, half, level)


# --- two methods -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Two methods, a minus b, over the runs that both have.

    Parameters
    ----------
    differences : dict
        Difference of each common run, in the order of a.
    left_out : int
        Runs that one side has not, or not as a finite number.
    difference : Interval
        Mean difference; no half-width where the differences have no spread to judge from.
    t_p, wilcoxon_p : float or None
        Two-sided p values of the paired t test and of the signed-rank test; None as ``note`` says.
    cohen_d : float or None
        Cohen's d_z: mean over standard deviation of the differences.
    hedges_g : float or None
        The same without its small-sample bias; None below 3 pairs, where the correction is not defined.
    superiority : float or None
        Share of pairs in which a is above b, ties counted half.
    note : str
        What is unusual, in words; empty where nothing is.
    """

    differences: dict[Hashable, float]
    left_out: int
    difference: Interval
    t_p: float | None
    wilcoxon_p: float | None
    cohen_d: float | None
    hedges_g: float | None
    superiority: float | None
    note: str = ""

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.differences)


def paired(a: Results, b: Results, *, level: float = 0.95, overlap: float = 0.0) -> Paired:
    """Compare two methods run by run.

    Differences are rounded to 12 digits of the larger results, so that 71.2 - 70.8 and 60.4 - 60.0 tie as
    they should. With keys (setting, seed) the pairs are pooled: what is tested is the mean over *these*
    settings, for which the spread between settings makes the test careful. A claim on settings in general
    needs one pair a setting: give it two rows of `over_settings`.

    The signed-rank test splits the ranks of zero differences evenly (``zsplit``) and is exact up to 50
    pairs, ties and zeros included: all signs of the other differences are held equally likely. Beyond, it is
    scipy's normal approximation.

    Parameters
    ----------
    a, b : mapping
        Seed, or (setting, seed), to result.
    level : float
        Confidence of the interval of the mean difference.
    overlap : float
        Test rows over training rows where every seed draws both anew from one pool (0.3 of the rows held
        out: 0.3 / 0.7); 0 leaves the t test and its interval uncorrected [1]_.

    Raises
    ------
    ValueError
        If ``level`` is not inside (0, 1), or ``overlap`` is negative or not finite.
    """
    _check_share("level", level, "0.95")
    _check_overlap(overlap)
    kept = {key: _minus(x, y) for key, x in a.items() if _usable(x) and _usable(y := b.get(key))}
    d = list(kept.values())
    n, left_out = len(d), len({*a, *b}) - len(d)
    mean = _interval(d, 0, level, overlap)
    above = sum(1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in d) / n if n else None
    if mean.mean is None or mean.std is None:
        note = "one pair: no test" if n else "no run in common: nothing to compare"
        return Paired(kept, left_out, mean, None, None, None, None, above, note)
    if not any(d):
        return Paired(kept, left_out, mean, 1.0, 1.0, 0.0, None if n < 3 else 0.0, above, "all pairs tie")
    signed = _wilcoxon(d)
    if mean.std == 0:
        note = "all differences are equal: no spread for a t test"
        return Paired(kept, left_out, replace(mean, half_width=None), None, signed, None, None, above, note)
    effect = mean.mean / mean.std
    t = effect / math.sqrt(1 / n + overlap)
    p = 2 * float(stats.t.sf(abs(t), n - 1))
    hedges = effect * _unbiasing(n - 1) if n > 2 else None
    return Paired(kept, left_out, mean, p, signed, effect, hedges, above)


def _minus(a: float, b: float) -> float:
    scale = max(abs(a), abs(b))
    return round(float(a) - float(b), 11 - math.floor(math.log10(scale))) if scale else 0.0


def _wilcoxon(d: Sequence[float]) -> float:
    """Two-sided p value of the signed-rank test; not all differences are zero."""
    if len(d) > _EXACT:
        return float(stats.wilcoxon(d, zero_method="zsplit").pvalue)
    # Twice the mid-ranks are whole; counts[s]: in how many ways of signs the positive ones sum to s.
    ranks = np.rint(2 * stats.rankdata(np.abs(d))).astype(int)
    positive = int(sum(r for r, x in zip(ranks, d, strict=True) if x > 0))
    counts = np.ones(1)
    for r, x in zip(ranks, d, strict=True):
        if x:
            counts = np.pad(counts, (0, r)) + np.pad(counts, (r, 0))
    tail = min(positive, len(counts) - 1 - positive)
    return min(1.0, 2 * float(counts[: tail + 1].sum() / counts.sum()))


def _unbiasing(freedom: int) -> float:
    """Hedges' exact factor, about 1 - 3 / (4 freedom - 1) (Hedges [7]_)."""
    half = freedom / 2
    return math.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / math.sqrt(half)


def seeds_needed(
    differences: Iterable[float | None],
    power: float = 0.8,
    level: float = 0.05,
    *,
    overlap: float = 0.0,
    most: int = MOST_SEEDS,
) -> int | None:
    """Fewest paired seeds with which a two-sided t test would show the mean difference that was observed.

    The power is exact (noncentral t). Mean and spread are taken as the truth though they are estimates,
    poor ones from few seeds: the answer is an order of size for planning, and says nothing on whether the
    difference is real.

    Parameters
    ----------
    differences : iterable of float or None
        Paired differences; what is no finite number is dropped.
    power : float
        Wanted chance of a p value below ``level``.
    level : float
        Level of the test; divide it by the number of comparisons where there are several.
    overlap : float
        As for `paired`; the spread of a mean then has a floor that no number of seeds goes below.
    most : int
        Largest number tried.

    Returns
    -------
    int or None
        At least 2. None where there are fewer than two differences, where they do not spread, where their
        mean is 0, and where ``most`` seeds are not enough.

    Raises
    ------
    ValueError
        If ``power`` or ``level`` is not inside (0, 1), ``overlap`` is negative, or ``most`` is below 2.
    """
    _check_share("power", power, "0.8")
    _check_share("level", level, "0.05")
    _check_overlap(overlap)
    if most < 2:
        raise ValueError(f"most: a paired test needs 2 seeds, got {most}; use at least 2")
    d = [float(x) for x in differences if _usable(x)]
    if len(d) < 2 or not (std := statistics.stdev(d)) or not (mean := statistics.fmean(d)):
        return None
    effect = abs(mean) / std
    if _power(effect, most, level, overlap) < power:
        return None
    low, high = 1, most  # power grows with n: too few at low, enough at high
    while high - low > 1:
        middle = (low + high) // 2
        if _power(effect, middle, level, overlap) < power:
            low = middle
        else:
            high = middle
    return high


def _power(effect: float, n: int, level: float, overlap: float) -> float:
    shift = effect / math.sqrt(1 / n + overlap)
    critical = stats.t.ppf(1 - level / 2, n - 1)
    tails = stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift)
    # scipy gives NaN for a far tail that is as good as empty.
    return float(np.nan_to_num(tails).sum())


# --- several methods ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """One method against another, among ``tests`` such tests.

    ``p`` is of the test that was asked for, ``p_holm`` corrected for all tests; both None where there is no
    p. ``verdict`` says what ``method`` is in comparison with ``other``.
    """

    method: str
    other: str
    paired: Paired
    p: float | None
    p_holm: float | None
    tests: int
    verdict: Verdict


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction [3]_; None stays None and counts for no test.

    The i-th smallest of m p values is multiplied by m - i + 1, then none may be below the one before it, or
    above 1.

    Raises
    ------
    ValueError
        If a p value is not inside [0, 1].
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p_values: not a probability, got {p!r}; use numbers from 0 to 1")
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for step, (p, i) in enumerate(order):
        floor = corrected[i] = max(floor, min(1.0, (len(order) - step) * p))
    return corrected


def against(
    baseline: str,
    methods: Mapping[str, Results],
    higher_is_better: bool,
    *,
    alpha: float = 0.05,
    test: Test = "t",
    overlap: float = 0.0,
) -> list[Contrast]:
    """Every other method against a baseline that was chosen before the results were seen.

    Parameters
    ----------
    baseline : str
        A key of ``methods``.
    methods : mapping
        Method to results; each pair of methods is compared on the runs that these two have.
    higher_is_better : bool
        Direction of the metric.
    alpha : float
        Chance of any false "better" or "worse" among all contrasts; intervals are of level 1 - alpha each.
    test : {"t", "wilcoxon"}
        Whose p values are corrected and judged. Where equal differences leave no t test, the signed-rank
        test takes its place.
    overlap : float
        As for `paired`; the t test only.

    Returns
    -------
    list of Contrast
        In the order of ``methods``; differences are method minus baseline.

    Raises
    ------
    ValueError
        If the baseline is not among the methods, or an option is out of range.
    """
    if baseline not in methods:
        raise ValueError(f"baseline: no method '{baseline}'; use one of {', '.join(methods) or '(none)'}")
    pairs = [(m, baseline) for m in methods if m != baseline]
    return _contrasts(pairs, methods, higher_is_better, alpha, test, overlap)


def pairwise(
    methods: Mapping[str, Results],
    higher_is_better: bool,
    *,
    alpha: float = 0.05,
    test: Test = "t",
    overlap: float = 0.0,
) -> list[Contrast]:
    """Every method against every other, for when none was chosen beforehand; options as for `against`.

    A method that is picked for its high mean must stand this larger correction: the pick saw the results.
    """
    return _contrasts(list(combinations(methods, 2)), methods, higher_is_better, alpha, test, overlap)


def _contrasts(
    pairs: Sequence[tuple[str, str]],
    methods: Mapping[str, Results],
    higher_is_better: bool,
    alpha: float,
    test: Test,
    overlap: float,
) -> list[Contrast]:
    _check_share("alpha", alpha, "0.05")
    if test not in ("t", "wilcoxon"):
        raise ValueError(f"test: no test {test!r}; use 't' or 'wilcoxon'")
    found = [paired(methods[m], methods[o], level=1 - alpha, overlap=overlap) for m, o in pairs]
    p_values = [x.wilcoxon_p if test == "wilcoxon" or x.t_p is None else x.t_p for x in found]
    tests = len(pairs) - p_values.count(None)
    result = []
    for (method, other), x, p, p_holm in zip(pairs, found, p_values, holm(p_values), strict=True):
        verdict: Verdict = "no difference shown"
        # With many ties the signed-rank test can speak where means are equal; no direction then.
        if p_holm is not None and p_holm <= alpha and x.difference.mean:
            verdict = "better" if (x.difference.mean > 0) == higher_is_better else "worse"
        result.append(Contrast(method, other, x, p, p_holm, tests, verdict))
    return result


# --- many settings -----------------------------------------------------------------------------------


def over_settings(methods: Mapping[str, Results]) -> dict[str, dict[Hashable, float | None]]:
    """Mean over seeds in each setting, the table that `friedman` ranks.

    In each setting the seeds count that all methods with a result there have in common, so that no method
    is held to easier seeds than another. Where a method has no result, or no seed is common, stands None,
    which `friedman` and `paired` count as left out.

    Parameters
    ----------
    methods : mapping
        Method to results by (setting, seed).

    Raises
    ------
    ValueError
        If a key is not a pair.
    """
    runs: dict[Hashable, dict[str, dict[Hashable, float]]] = {}
    for method, results in methods.items():
        for key, value in results.items():
            if not isinstance(key, tuple) or len(key) != 2:
                raise ValueError(f"methods: '{method}' has the key {key!r}; use (setting, seed)")
            held = runs.setdefault(key[0], {})
            if _usable(value):
                held.setdefault(method, {})[key[1]] = float(value)
    table: dict[str, dict[Hashable, float | None]] = {method: dict.fromkeys(runs) for method in methods}
    for setting, held in runs.items():
        seeds = set.intersection(*map(set, held.values())) if held else set()
        for method, by_seed in held.items() if seeds else ():
            table[method][setting] = statistics.fmean(by_seed[seed] for seed in seeds)
    return table


@dataclass(frozen=True)
class Friedman:
    """Methods ranked over settings.

    Parameters
    ----------
    ranks : dict
        Average rank of each method over the settings, the best (lowest) first.
    settings : int
        Settings in which every method has a result.
    left_out : int
        Settings in which some method has none.
    chi2, chi2_p : float
        Friedman's statistic [5]_, corrected for ties, and its p value with k - 1 degrees of freedom.
    f, f_p : float
        Iman and Davenport's [4]_, with k - 1 and (k - 1)(N - 1) degrees of freedom; less timid, prefer it.
        Where all settings rank alike, ``f`` is infinite and ``f_p`` the exact chance of that.
    critical_difference : float
        Nemenyi's [6]_: average ranks that are at least this far apart differ.
    groups : tuple of tuple of str
        Maximal runs of at least two methods that do not differ, in the order of ranks: the bars of a
        critical-difference diagram. One group of all where ``f_p`` is not below the level, as then no two
        methods may be told apart.
    level : float
        Level of the test and of the critical difference.
    """

    ranks: dict[str, float]
    settings: int
    left_out: int
    chi2: float
    chi2_p: float
    f: float
    f_p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    level: float


def friedman(table: Mapping[str, Results], higher_is_better: bool, level: float = 0.05) -> Friedman:
    """Rank methods over settings, and say which of them differ (Demšar [2]_, section 3.2.2).

    The p values of few settings are approximate: trust them from about 10 settings and 5 methods.

    Parameters
    ----------
    table : mapping
        Method to {setting: result}, as `over_settings` gives it; one number for each setting.
    higher_is_better : bool
        Direction of the metric; rank 1 is the best, ties get the mean of their ranks.
    level : float
        Level of the tests.

    Raises
    ------
    ValueError
        If there are fewer than 3 methods, or fewer than 2 settings in which all have a result.
    """
    _check_share("level", level, "0.05")
    names = list(table)
    k = len(names)
    if k < 3:
        raise ValueError(
            f"table: Friedman's test ranks 3 methods or more, got {k}; use the paired test for 2"
        )
    every = dict.fromkeys(setting for results in table.values() for setting in results)
    held = [{s: float(v) for s, v in table[m].items() if _usable(v)} for m in names]
    whole = [s for s in every if all(s in results for results in held)]
    n, left_out = len(whole), len(every) - len(whole)
    if n < 2:
        missing = f" ({left_out} lack a method and are left out)" if left_out else ""
        raise ValueError(
            f"table: Friedman's test needs 2 settings in which every method has a result, got {n}{missing}; "
            "add settings, or leave out the method that lacks results"
        )
    values = np.array([[results[s] for results in held] for s in whole])
    per_setting = stats.rankdata(-values if higher_is_better else values, axis=1)
    average = per_setting.mean(axis=0)
    ties = [np.unique(row, return_counts=True)[1] for row in per_setting]
    untied = 1 - sum(int((t**3 - t).sum()) for t in ties) / (n * (k**3 - k))
    chi2, f, f_p = 0.0, 0.0, 1.0
    if untied > 0:
        most = n * (k - 1)
        chi2 = min(12 * n / (k * (k + 1)) * float(((average - (k + 1) / 2) ** 2).sum()) / untied, most)
        if most - chi2 > 1e-9 * most:
            f = (n - 1) * chi2 / (most - chi2)
            f_p = float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
        else:
            # All settings alike: each but the first hit one arrangement among k! / (ties' own) by chance.
            ways = math.factorial(k) // math.prod(math.factorial(int(t)) for t in ties[0])
            f, f_p = math.inf, float(ways) ** (1 - n)
    # Demšar 2006, section 3.2.2: quantiles of the studentized range over sqrt(2), infinite freedom.
    quantile = float(stats.studentized_range.ppf(1 - level, k, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(k * (k + 1) / (6 * n))
    ranks = {names[i]: float(average[i]) for i in np.argsort(average, kind="stable")}
    groups = _cliques(ranks, critical) if f_p < level else (tuple(ranks),)
    return Friedman(
        ranks, n, left_out, chi2, float(stats.chi2.sf(chi2, k - 1)), f, f_p, critical, groups, level
    )


def _cliques(ranks: Mapping[str, float], critical: float) -> tuple[tuple[str, ...], ...]:
    """Maximal runs, of at least two, of methods whose ranks are less than ``critical`` apart."""
    names, values = list(ranks), list(ranks.values())
    groups: list[tuple[str, ...]] = []
    reached = 0
    for i, rank in enumerate(values):
        end = next((j for j in range(i, len(values)) if values[j] - rank >= critical), len(values))
        if end - i > 1 and end > reached:
            groups.append(tuple(names[i:end]))
            reached = end
    return tuple(groups)


# --- words -------------------------------------------------------------------------------------------


def sentence(
    methods: Mapping[str, Results],
    higher_is_better: bool,
    baseline: str | None = None,
    *,
    unit: str = "",
    digits: int = 2,
    alpha: float = 0.05,
    overlap: float = 0.0,
) -> str:
    """What a reader may conclude, in one or two sentences.

    With a baseline: which method is better than it, by how much and how sure. Without: whether the method
    with the best mean is ahead of the next, tested as one pair among all. Where the seeds are too few, about
    how many would do.

    Parameters
    ----------
    methods : mapping
        Method to results by seed or (setting, seed).
    higher_is_better : bool
        Direction of the metric.
    baseline : str, optional
        Method that the others are held against.
    unit : str
        Said after a difference: ``points``, ``GB``.
    digits : int
        Digits after the point.
    alpha, overlap : float
        As for `against`.

    Raises
    ------
    ValueError
        If the baseline is not among the methods, or an option is out of range.
    """
    _check_share("alpha", alpha, "0.05")
    _check_overlap(overlap)
    if baseline is not None and baseline not in methods:
        raise ValueError(f"baseline: no method '{baseline}'; use one of {', '.join(methods) or '(none)'}")
    held = {m: {key: v for key, v in results.items() if _usable(v)} for m, results in methods.items()}
    empty = [m for m, results in held.items() if not results]
    held = {m: results for m, results in held.items() if results}
    words = _Words(unit, digits, alpha, overlap, 1 if higher_is_better else -1)
    if not held:
        return "No method has a result."
    if baseline in empty:
        return f"{baseline}, the baseline, has no result, so nothing can be held against it."
    absent = [f"no result from {', '.join(empty)}"] if empty else []
    # Runs as they were given: what became no number is to be counted as left out.
    given = {m: methods[m] for m in held}
    more: list[str] = []
    if len(held) == 1:
        said = words.alone(*next(iter(given.items())))
    elif baseline is not None:
        contrasts = against(baseline, given, higher_is_better, alpha=alpha, overlap=overlap)
        said, more = words.held_against(baseline, contrasts)
    else:
        # One set of runs for all, or means would be of different seeds.
        keys = dict.fromkeys(key for results in given.values() for key in results)
        shared = [key for key in keys if all(key in results for results in held.values())]
        if not shared:
            return "There is no run that all methods have, so they cannot be compared."
        same = {m: {key: results[key] for key in shared} for m, results in held.items()}
        said, more = words.leader(same, pairwise(same, higher_is_better, alpha=alpha, overlap=overlap))
        if len(keys) > len(shared):
            more.append(f"left out: {_runs(keys, len(keys) - len(shared))} that not every method has")
    tail = "; ".join(more + absent)
    return f"{said}. {tail[0].upper()}{tail[1:]}." if tail else f"{said}."


@dataclass(frozen=True)
class _Words:
    """Phrases of a comparison; ``sign`` is 1 where higher is better, else -1."""

    unit: str
    digits: int
    alpha: float
    overlap: float
    sign: int

    def alone(self, method: str, results: Results) -> str:
        found = interval(results.values(), 1 - self.alpha)
        value = f"{found.mean:.{self.digits}f}" + (f" {self.unit}" if self.unit else "")
        runs = _runs(results, found.n)
        span = f" ({self._span(*found.bounds)})" if found.bounds else ""
        lost = f", {found.missing} without a number" if found.missing else ""
        return f"{method} alone has results, {value} over {runs}{span}{lost}, and nothing to be held against"

    def held_against(self, baseline: str, contrasts: Sequence[Contrast]) -> tuple[str, list[str]]:
        apart = [c.method for c in contrasts if not c.paired.n]
        ranked = sorted((c for c in contrasts if c.paired.n), key=self._lead, reverse=True)
        more = [f"no run in common with {', '.join(apart)}"] if apart else []
        if not ranked:
            return f"No method has a run in common with {baseline}, so they cannot be compared", []
        best = ranked[0]
        better = [c for c in ranked if c.verdict == "better"]
        worse = [c for c in ranked if c.verdict == "worse"]
        told = better[0] if better else best
        if better:
            said = f"{told.method} is better than {baseline} by {self._amount(told)} {self._sure(told)}"
            if told is not best:
                ahead = f"{best.method} is further ahead, by {self._amount(best)}"
                said += f", while {ahead}, but {self._too_few(best)}"
        elif self._lead(best) > 0:
            said = f"{best.method} is {self._amount(best)} ahead of {baseline}, but {self._too_few(best)}"
        elif self._lead(best) == 0:
            said = self._level(best)
        else:
            said = f"{best.method} is {self._amount(best)} behind {baseline}"
            if len(ranked) > 1:
                said = f"No method is ahead of {baseline}, and {said}"
            said += f" {self._sure(best)}" if best.verdict == "worse" else f", but {self._too_few(best)}"
        if len(ranked) > 1:
            rest = len(ranked) - len(better) - len(worse)
            counts = [(len(better), "better"), (len(worse), "worse"), (rest, "not shown to differ")]
            parts = ", ".join(f"{number} {what}" for number, what in counts if number)
            more.insert(0, f"of the {len(ranked)} methods held against {baseline}: {parts}")
        if told.paired.left_out:
            runs = _runs(told.paired.differences, told.paired.left_out)
            more.append(f"left out: {runs} that {told.method} and {baseline} do not both have")
        return said, more

    def leader(
        self, methods: Mapping[str, Mapping[Any, float]], contrasts: Sequence[Contrast]
    ) -> tuple[str, list[str]]:
        means = {m: statistics.fmean(results.values()) for m, results in methods.items()}
        first, second = sorted(means, key=lambda m: self.sign * means[m], reverse=True)[:2]
        of_first = [c for c in contrasts if first in (c.method, c.other)]
        told = next(c for c in of_first if second in (c.method, c.other))
        beaten = sum(c.verdict != "no difference shown" for c in of_first)
        if told.verdict != "no difference shown":
            said = f"{first} is best, {self._amount(told)} ahead of {second} {self._sure(told)}"
        elif not told.paired.difference.mean:
            said = self._level(told)
        else:
            said = f"{first} has the best mean, {self._amount(told)} ahead of {second}"
            said += f", but {self._too_few(told)}"
        if not beaten or len(of_first) == 1:
            return said, []
        count = f"all {beaten}" if beaten == len(of_first) else f"{beaten} of the {len(of_first)}"
        return said, [f"it is shown to be better than {count} others"]

    def _lead(self, contrast: Contrast) -> float:
        return self.sign * (contrast.paired.difference.mean or 0.0)

    def _level(self, contrast: Contrast) -> str:
        pair = contrast.paired
        runs = _runs(pair.differences, pair.n)
        how = "level on average" if any(pair.differences.values()) else "equal"
        return f"{contrast.method} and {contrast.other} are {how} over {runs}"

    def _amount(self, contrast: Contrast) -> str:
        size = abs(contrast.paired.difference.mean or 0.0)
        least = 10.0**-self.digits
        text = f"{size:.{self.digits}f}" if size >= least / 2 else f"less than {least:.{self.digits}f}"
        return f"{text} {self.unit}" if self.unit else text

    def _span(self, low: float, high: float) -> str:
        return f"{100 * (1 - self.alpha):g}% interval {low:.{self.digits}f} to {high:.{self.digits}f}"

    def _p(self, contrast: Contrast) -> str:
        p = contrast.p_holm or 0.0
        text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
        return text + (f" corrected for {contrast.tests} tests" if contrast.tests > 1 else "")

    def _sure(self, contrast: Contrast) -> str:
        pair, span = contrast.paired, ""
        if pair.difference.bounds:
            low, high = sorted(abs(b) for b in pair.difference.bounds)  # both on the same side of 0
            span = f"{self._span(low, high)}, "
        return f"({span}{self._p(contrast)}, {_runs(pair.differences, pair.n)})"

    def _too_few(self, contrast: Contrast) -> str:
        """That the runs do not show the difference, and how many would."""
        pair, n = contrast.paired, contrast.paired.n
        if n == 1:
            what = "seed; add -m seed=0,1,2,3,4" if _seeds(pair.differences) else "run; add seeds"
            return f"that is one {what} to learn whether it holds"
        level = self.alpha / max(contrast.tests, 1)  # Bonferroni's, on the side of more seeds than Holm's
        if pair.t_p is None:  # equal differences: the signed-rank test's smallest p is 2 / 2^n
            needed: int | None = math.ceil(math.log2(2 / level))
        else:
            needed = seeds_needed(pair.differences.values(), level=level, overlap=self.overlap)
        said = f"{_runs(pair.differences, n)} cannot show a difference of {self._amount(contrast)}"
        would = f"about {needed} would" if needed else f"nor would {MOST_SEEDS}"
        return f"{said} ({self._p(contrast)}); {would}"


def _seeds(keys: Iterable[Hashable]) -> bool:
    return not any(isinstance(key, tuple) for key in keys)


def _runs(keys: Iterable[Hashable], count: int) -> str:
    """``3 seeds``, or ``12 runs`` where keys are of setting and seed."""
    return f"{count} {'seed' if _seeds(keys) else 'run'}{'s' if count != 1 else ''}"


# --- checks ------------------------------------------------------------------------------------------


def _usable(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _check_share(name: str, value: float, example: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: not inside 0 to 1, got {value!r}; use for example {example}")


def _check_overlap(value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(
            f"overlap: not a ratio of test to training rows, got {value!r}; use 0 for none, "
            "or for example 0.43 where 0.3 of the rows are held out"
        )
