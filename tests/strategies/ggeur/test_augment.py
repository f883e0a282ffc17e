from collections import Counter
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from strategies.ggeur.augment import (
    Allocation,
    Augmented,
    GeometryPack,
    Policy,
    PolicyName,
    RngFor,
    Scale,
    augment,
    noise,
    seed_multiplicities,
)
from strategies.ggeur.geometry import Geometry, eigen_geometry
from strategies.ggeur.moments import class_moments
from strategies.seeding import generator

Array = npt.NDArray[Any]
DOMAINS = ("a", "b", "c", "d")
FLOAT64: Any = np.float64


def shape_of(spectrum: Array, d: int | None = None, count: int = 1000) -> Geometry:
    """Geometry with a random basis and the given positive eigenvalues."""
    d = d or len(spectrum)
    basis = np.linalg.qr(np.random.default_rng(d).standard_normal((d, d)))[0]
    return Geometry(np.asarray(spectrum, float), basis[:, : len(spectrum)], count)


def matrix(shape: Geometry, power: int = 1) -> Array:
    return (shape.vectors * shape.values**power) @ shape.vectors.T


def covariance(x: Array) -> Array:
    return np.cov(x.T, bias=True)


def error(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def streams(client: int = 0, seed: int = 0) -> RngFor:
    return lambda label, stage: generator(seed, f"ggeur {stage}", client, label)


CLIP_LIKE = shape_of(np.geomspace(4, 0.01, 64))  # effective rank about 21


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [10**3, 10**4, 10**5])
@pytest.mark.parametrize(("scale", "power"), [("sqrt", 1), ("linear", 2), ("gauss", 1)])
def test_v6_v7_noise_has_the_stated_covariance(scale: Scale, power: int, m: int) -> None:
    target = matrix(CLIP_LIKE, power)
    trace = np.trace(target)
    predicted = np.sqrt((trace**2 / np.sum(target**2) + 1) / m)
    x = np.full(64, 3.0)
    drawn = x + noise(CLIP_LIKE, m, np.random.default_rng(m), scale, dtype=FLOAT64)
    assert np.linalg.norm(drawn.mean(axis=0) - x) <= 4 * np.sqrt(trace / m)
    assert predicted / 1.5 <= error(covariance(drawn), target) <= predicted * 1.5


def test_v7_linear_is_not_sqrt_except_for_a_projector() -> None:
    linear = noise(CLIP_LIKE, 10**4, np.random.default_rng(0), "linear")
    assert error(covariance(linear), matrix(CLIP_LIKE)) > 0.3
    projector = shape_of(np.ones(5), d=9)
    a, b = (noise(projector, 50, np.random.default_rng(0), scale) for scale in ("sqrt", "linear"))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("factor", [2.0, 10.0, 0.3])
@pytest.mark.parametrize(("scale", "power"), [("sqrt", 1), ("linear", 2)])
def test_v8_noise_scales_with_the_embeddings(scale: Scale, power: int, factor: float) -> None:
    x = np.random.default_rng(0).standard_normal((40, 12))
    labels = np.zeros(40, np.int64)
    small, large = (
        noise(
            eigen_geometry(class_moments(x * s, labels)[0]),
            30,
            np.random.default_rng(1),
            scale,
            dtype=FLOAT64,
        )
        for s in (1.0, factor)
    )
    assert error(large, small * factor**power) <= 1e-6


def test_v10_noise_stays_in_the_span() -> None:
    shape = shape_of(np.geomspace(5, 0.1, 7), d=30)
    for scale in ("sqrt", "linear"):
        delta = noise(shape, 200, np.random.default_rng(0), scale)
        outside = delta - delta @ shape.vectors @ shape.vectors.T
        assert (np.linalg.norm(outside, axis=1) <= 1e-5 * np.linalg.norm(delta, axis=1)).all()
    spread = noise(shape, 200, np.random.default_rng(0), "sqrt", jitter=0.01)
    outside = spread - spread @ shape.vectors @ shape.vectors.T
    assert np.square(outside).mean() * 30 / 23 == pytest.approx(0.01, rel=0.1)


def test_iso_has_the_same_trace_in_all_directions() -> None:
    shape = shape_of(np.array([4.0, 1.0]), d=5)
    delta = noise(shape, 10**5, np.random.default_rng(0), "iso", dtype=FLOAT64)
    assert error(covariance(delta), np.eye(5)) < 0.02


@pytest.mark.parametrize(("jitter", "variance"), [(0.0, 1e-6), (1e-8, 1e-6), (0.5, 0.5)])
def test_code_noise_has_at_least_its_jitter(jitter: float, variance: float) -> None:
    flat = shape_of(np.zeros(0), d=20)
    delta = noise(flat, 2000, np.random.default_rng(0), "sqrt_code_md", jitter)
    assert np.square(delta).mean() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_keeps_shape_and_dtype(scale: Scale, dtype: Any) -> None:
    for shape in (CLIP_LIKE, shape_of(np.zeros(0), d=64)):
        for m in (0, 3):
            delta = noise(shape, m, np.random.default_rng(0), scale, 0.1, dtype)
            assert delta.shape == (m, 64)
            assert delta.dtype == dtype
            assert (scale == "none") == (not delta.any()) or m == 0


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", get_args(Allocation))
@pytest.mark.parametrize(
    ("n", "m"), [(1, 0), (1, 7), (3, 2), (3, 3), (3, 10), (9, 491), (10, 35), (10, 490), (0, 0)]
)
def test_multiplicities_add_up(how: Allocation, n: int, m: int) -> None:
    times = seed_multiplicities(n, m, np.random.default_rng(0), how)
    assert times.shape == (n,)
    assert times.sum() == m
    assert (times >= 0).all()
    if how == "balanced" or n >= m:
        assert times.max(initial=0) - times.min(initial=m) <= 1


def test_balanced_ties_are_broken_at_random() -> None:
    rng = np.random.default_rng(0)
    extra = np.sum([seed_multiplicities(5, 12, rng) - 2 for _ in range(1000)], axis=0)
    assert extra.sum() == 2000
    assert stats.chisquare(extra).pvalue > 0.01


# R by hand: below ten originals R = T, from ten on T / 10, where T = n + m.
@pytest.mark.parametrize(("n", "m", "spawned"), [(3, 9, 12), (9, 21, 30), (10, 20, 3), (12, 28, 4)])
def test_v19_cheap_allocation_equals_pool_and_pick(n: int, m: int, spawned: int) -> None:
    rng = np.random.default_rng(4)
    pool = np.repeat(np.arange(n), spawned)

    def histogram(draw: Any) -> Array:
        counts = np.concatenate([draw() for _ in range(1500)])
        return np.bincount(counts, minlength=m + 1)

    def pvalue(other: Array) -> float:
        both = np.stack([brute, other])
        common = both.sum(axis=0) >= 20
        table = np.column_stack([both[:, common], both[:, ~common].sum(axis=1)])
        return float(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)

    brute = histogram(lambda: np.bincount(rng.choice(pool, m, replace=False), minlength=n))
    assert pvalue(histogram(lambda: seed_multiplicities(n, m, rng, "pool"))) > 0.01
    # the test can tell: neither the balanced rule nor drawing with replacement passes
    assert pvalue(histogram(lambda: seed_multiplicities(n, m, rng, "balanced"))) < 1e-6
    if spawned < 10:
        assert pvalue(histogram(lambda: rng.multinomial(m, np.full(n, 1 / n)))) < 1e-6


# --- policies ------------------------------------------------------------------------------------


def client(sizes: list[int], foreign: tuple[str, ...] = DOMAINS) -> tuple[Array, Array, GeometryPack]:
    """Rows of class i: first coordinate i, second its number in the class. Prototypes: -1, domain."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    x = np.zeros((len(y), 3), np.float32)
    x[:, 0] = y
    x[:, 2] = 1
    for i, n in enumerate(sizes):
        x[y == i, 1] = np.arange(n)
    shape = Geometry(np.array([0.5, 0.1]), np.eye(3)[:, 1:], 300)
    prototypes = {(q, i): np.array([-1.0, ord(q), i]) for q in foreign for i in range(len(sizes))}
    return x, y, GeometryPack(dict.fromkeys(range(len(sizes)), shape), prototypes)


def run(sizes: list[int], policy: Policy, foreign: tuple[str, ...] = DOMAINS, **options: Any) -> Augmented:
    x, y, pack = client(sizes, foreign)
    return augment(x, y, pack, policy, domain="b", rng_for=streams(), **options)


def seeds_by_origin(result: Augmented, label: int) -> Counter[str]:
    """Count the synthetic rows of a class by origin; needs scale "none", where rows are their seeds."""
    rows = result.x[result.is_synthetic & (result.y == label)]
    return Counter("own" if r[0] >= 0 else chr(int(r[1])) for r in rows)


SINGLE, MULTI = Policy.of("single", own=100), Policy.of("multi", own=60, foreign=30)
CASES = [
    # policy, other domains, T, then (n, total) by hand
    (SINGLE, 3, [(0, 0), (1, 100), (9, 100), (10, 100), (49, 100), (50, 100), (100, 100), (101, 101)]),
    (Policy.of("single"), 3, [(0, 0), (1, 300), (50, 300), (150, 300), (300, 300), (301, 301)]),
    (
        MULTI,
        3,
        [(0, 90), (1, 150), (9, 150), (10, 150), (30, 150), (49, 150), (50, 150), (60, 150), (61, 151)],
    ),
    (MULTI, 1, [(0, 30), (1, 90), (60, 90), (61, 91)]),
    (MULTI, 0, [(0, 0), (1, 60), (60, 60), (61, 61)]),
    (Policy.of("multi"), 3, [(0, 1500), (1, 2000), (250, 2000), (500, 2000), (501, 2001)]),
    (Policy.of("multi", foreign=0), 3, [(0, 0), (1, 500), (501, 501)]),
    (
        Policy.of("code_digits"),
        3,
        [(0, 1500), *((n, 2000) for n in (1, 9, 10, 41, 42, 49, 50, 1000, 2000)), (2001, 2001)],
    ),
    (Policy.of("code_digits"), 0, [(0, 0), (1, 501), (1499, 1999), (1600, 2000)]),
    (
        Policy.of("code_lds"),
        3,
        [(0, 50), (1, 50), (9, 50), (10, 50), (25, 50), (49, 50), (50, 50), (51, 50), (120, 50)],
    ),
    (Policy.of("code_lds"), 1, [(0, 50), (1, 50), (49, 50), (50, 50), (51, 50)]),
    (Policy.of("code_lds"), 0, [(0, 0), (1, 50), (49, 50), (50, 50), (51, 50)]),
    (Policy.of("none"), 3, [(0, 0), (1, 1), (50, 50), (500, 500)]),
]


@pytest.mark.parametrize("allocation", get_args(Allocation))
@pytest.mark.parametrize(("policy", "others", "cells"), CASES)
def test_v11_policies_give_exact_totals(
    policy: Policy, others: int, cells: list[tuple[int, int]], allocation: Allocation
) -> None:
    sizes = [n for n, _ in cells]
    foreign = ("b", "a", "c", "d")[: others + 1]
    x, y, pack = client(sizes, foreign)
    result = augment(x, y, pack, policy, domain="b", rng_for=streams(), allocation=allocation)
    assert [int((result.y == i).sum()) for i in range(len(sizes))] == [total for _, total in cells]
    assert (result.x.dtype, result.y.dtype) == (np.float32, np.int32)
    assert len(result.x) == len(result.y) == len(result.is_synthetic)
    assert np.isfinite(result.x).all()
    originals = ~result.is_synthetic
    assert not originals[np.argmin(originals) :].any() or originals.all()  # originals come first
    if policy.name == "code_lds":
        keep = {(r[0], r[1]) for r in result.x[originals]}
        x, y = (a[[(r[0], r[1]) in keep for r in x]] for a in (x, y))
        assert [int((y == i).sum()) for i in range(len(sizes))] == [min(n, 50) for n in sizes]
    assert np.array_equal(result.x[originals], x)
    assert np.array_equal(result.y[originals], y)
    assert (np.diff(result.y[result.is_synthetic]) >= 0).all()  # synthetics class by class


def test_v11_originals_are_bit_identical() -> None:
    x, y, pack = client([5, 0, 7])
    x += np.float32(0.1)
    result = augment(x, y, pack, MULTI, domain="b", rng_for=streams())
    assert result.x[: len(x)].tobytes() == x.tobytes()
    wide = augment(x.astype(np.float64), y, pack, MULTI, domain="b", rng_for=streams())
    assert wide.x.dtype == np.float64
    assert len(np.unique(result.x[result.is_synthetic], axis=0)) == result.is_synthetic.sum()


def test_v11_multi_splits_by_origin_and_skips_its_own_domain() -> None:
    result = run([0, 5, 60, 70], MULTI, scale="none")
    foreign = {"a": 30, "c": 30, "d": 30}
    assert seeds_by_origin(result, 0) == foreign
    assert seeds_by_origin(result, 1) == {"own": 55, **foreign}
    assert seeds_by_origin(result, 2) == seeds_by_origin(result, 3) == foreign
    rows = result.x[result.is_synthetic & (result.y == 1)]
    assert (rows[:55, 0] == 1).all()  # own first
    assert Counter(rows[:55, 1].tolist()) == dict.fromkeys(map(float, range(5)), 11)
    x, y, pack = client([0])
    mixed = augment(x, y, pack, MULTI, domain="mixed", rng_for=streams(), scale="none")
    assert seeds_by_origin(mixed, 0) == {"b": 30, **foreign}


def test_v11_code_digits_draws_from_all_pools_alike() -> None:
    result = run([1500] * 40 + [1], Policy.of("code_digits"), scale="none")
    origins = [seeds_by_origin(result, i) for i in range(40)]
    for origin in ("own", "a", "c", "d"):
        counts = [o[origin] for o in origins]
        assert np.mean(counts) == pytest.approx(125, abs=5)
        assert np.std(counts) == pytest.approx(np.sqrt(500 * 0.25 * 0.75 * 0.75), rel=0.3)
    few = seeds_by_origin(result, 40)
    assert few.total() == 1999
    assert max(few.values()) <= 500


def test_v11_code_lds_draws_evenly_for_an_absent_class() -> None:
    result = run([0, 20, 50], Policy.of("code_lds"), scale="none")
    assert sorted(seeds_by_origin(result, 0).items())[0][0] == "a"
    assert sorted(seeds_by_origin(result, 0).values()) == [16, 17, 17]
    assert sum(seeds_by_origin(result, 1).values()) == 30
    assert set(seeds_by_origin(result, 1)) == {"own", "a", "c", "d"}
    assert not seeds_by_origin(result, 2)


def test_v11_code_lds_drops_a_random_subset() -> None:
    x, y, pack = client([100])
    kept = []
    for seed in range(30):
        result = augment(x, y, pack, Policy.of("code_lds"), domain="b", rng_for=streams(seed=seed))
        assert (np.diff(result.x[:, 1]) > 0).all()  # in their order
        kept.append(result.x[:, 1])
    assert stats.chisquare(np.bincount(np.concatenate(kept).astype(int), minlength=100)).pvalue > 0.01


def test_pool_allocation_reaches_the_seeds() -> None:
    x, y, pack = client([10])
    policy = Policy.of("single", own=300)
    times = {}
    for how in get_args(Allocation):
        result = augment(x, y, pack, policy, domain="b", rng_for=streams(), scale="none", allocation=how)
        times[how] = Counter(result.x[result.is_synthetic, 1].tolist())
    assert set(times["balanced"].values()) == {29}
    assert len(set(times["pool"].values())) > 1
    assert max(times["pool"].values()) <= 30


def test_nothing_to_do_returns_the_inputs() -> None:
    x, y, pack = client([5, 12])
    for policy in (Policy.of("none"), Policy.of("single", own=5), Policy.of("multi", own=3, foreign=0)):
        result = augment(x, y, pack, policy, domain="b", rng_for=streams())
        assert result.x is x
        assert result.y is y
        assert not result.is_synthetic.any()
        assert result.rms_noise_ratio == 0.0


def test_classes_without_a_geometry_are_left_as_they_are() -> None:
    x, y, pack = client([5, 6])
    del pack.geometries[0]
    result = augment(x, y, pack, MULTI, domain="b", rng_for=streams())
    assert np.bincount(result.y).tolist() == [5, 150]


# --- laws of the result --------------------------------------------------------------------------


def local_set(d: int = 6, n: int = 400) -> tuple[Array, Array, Geometry]:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * 0.7 + 5
    return x, np.zeros(n, np.int64), shape_of(np.geomspace(6, 0.5, d))


def test_v9_generated_covariance_is_local_plus_global() -> None:
    x, y, shape = local_set()
    S, Sigma = covariance(x), matrix(shape)
    policy, pack = Policy.of("single", own=len(x) + 200_000), GeometryPack({0: shape}, {})
    result = augment(x, y, pack, policy, domain="", rng_for=streams())
    made = result.x[result.is_synthetic]
    assert len(made) == 200_000
    assert error(covariance(made), S + Sigma) < 0.03
    assert error(covariance(made), Sigma) > 0.3
    assert error(made.mean(axis=0), x.mean(axis=0)) < 0.03
    assert result.rms_noise_ratio == pytest.approx(
        np.sqrt(shape.trace / np.square(x).sum(1).mean()), rel=0.01
    )


def test_v9_trace_doubles_where_local_equals_global() -> None:
    x, y, _ = local_set()
    shape = eigen_geometry(class_moments(x, y)[0])
    pack = GeometryPack({0: shape}, {})
    result = augment(x, y, pack, Policy.of("single", own=200_400), domain="", rng_for=streams())
    assert np.trace(covariance(result.x[result.is_synthetic])) / shape.trace == pytest.approx(2, rel=0.03)


def test_gauss_control_follows_the_global_law() -> None:
    x, y, shape = local_set()
    mean = np.full(6, -2.0)
    pack = GeometryPack({0: shape}, {("other", 0): np.full(6, 50.0)}, {0: mean})
    policy = Policy.of("multi", own=100_400, foreign=100_000)
    result = augment(x, y, pack, policy, domain="mine", rng_for=streams(), scale="gauss")
    made = result.x[result.is_synthetic]
    assert len(made) == 200_000
    assert error(covariance(made), matrix(shape)) < 0.03
    assert error(made.mean(axis=0), mean) < 0.03
    assert result.rms_noise_ratio == pytest.approx(np.sqrt(shape.trace / np.sum(mean**2)), rel=0.01)


def test_v14_results_do_not_depend_on_order() -> None:
    sizes = [4, 0, 9, 30]
    x, y, pack = client(sizes)
    reference = augment(x, y, pack, MULTI, domain="b", rng_for=streams(1)).x.tobytes()
    augment(x, y, pack, MULTI, domain="b", rng_for=streams(0))  # another client in between
    flipped = GeometryPack(
        dict(reversed(pack.geometries.items())), dict(reversed(pack.prototypes.items())), pack.means
    )
    assert augment(x, y, flipped, MULTI, domain="b", rng_for=streams(1)).x.tobytes() == reference
    assert augment(x, y, pack, MULTI, domain="b", rng_for=streams(2)).x.tobytes() != reference


@pytest.mark.parametrize("policy", [MULTI, Policy.of("single"), Policy.of("code_lds")])
def test_v14_a_class_does_not_depend_on_the_others(policy: Policy) -> None:
    x, y, pack = client([4, 0, 9, 30])
    both = augment(x, y, pack, policy, domain="b", rng_for=streams())
    del pack.geometries[0], pack.geometries[1]
    some = augment(x[y != 0], y[y != 0], pack, policy, domain="b", rng_for=streams())
    for i in (2, 3):
        assert np.array_equal(both.x[both.y == i], some.x[some.y == i])
    # nor do the vectors around one prototype on the presence of another
    if policy is MULTI:
        fewer = GeometryPack(pack.geometries, {k: v for k, v in pack.prototypes.items() if k[0] != "a"})
        last = augment(x, y, fewer, policy, domain="b", rng_for=streams())
        assert np.array_equal(last.x[last.y == 3][-60:], both.x[both.y == 3][-60:])


def test_v14_own_and_foreign_draws_differ() -> None:
    x, y, pack = client([4])
    result = augment(x, y, pack, MULTI, domain="b", rng_for=streams())
    blocks = [result.x[60 + 30 * k : 90 + 30 * k] - pack.prototypes[q, 0] for k, q in enumerate("acd")]
    assert np.abs(blocks[0] - blocks[1]).max() > 0.1
    assert np.abs(blocks[1] - blocks[2]).max() > 0.1


def test_v13_geometry_of_one_class_shapes_that_class_alone() -> None:
    x, y, pack = client([3] * 12)
    before = augment(x, y, pack, SINGLE, domain="b", rng_for=streams())
    pack.geometries[10] = shape_of(np.array([90.0, 80.0, 70.0]))
    after = augment(x, y, pack, SINGLE, domain="b", rng_for=streams())
    for i in range(12):
        assert np.array_equal(before.x[before.y == i], after.x[after.y == i]) == (i != 10)


@pytest.mark.parametrize("scale", ["sqrt", "linear", "iso"])
def test_v15_no_spread_gives_copies(scale: Scale) -> None:
    x, y, pack = client([3, 0])
    flat = eigen_geometry(np.zeros((3, 3)), 40)
    pack = GeometryPack({0: flat, 1: flat}, pack.prototypes)
    result = augment(x, y, pack, MULTI, domain="b", rng_for=streams(), scale=scale)
    copies = augment(*client([3, 0]), MULTI, domain="b", rng_for=streams(), scale="none")
    assert np.array_equal(result.x, copies.x)
    assert result.rms_noise_ratio == 0.0
    known = {tuple(r) for r in x} | {tuple(p) for p in pack.prototypes.values()}
    assert {tuple(r) for r in result.x} <= known
    assert len(result.x) == 3 + 57 + 90 + 90


def test_mistakes_are_named() -> None:
    x, y, pack = client([3, 4])

    def call(**changes: Any) -> None:
        given: dict[str, Any] = {"x": x, "y": y, "pack": pack, "policy": MULTI, "domain": "b"}
        augment(**{**given, "rng_for": streams(), **changes})

    for changes, message in (
        ({"scale": "root"}, "^scale: .*one of sqrt, linear"),
        ({"allocation": "even"}, "^allocation: .*one of balanced, pool"),
        ({"x": x.astype(np.int64)}, "^x.dtype: .*one of float32, float64"),
        ({"y": y[:-1]}, "^x, y: "),
        ({"x": x[:, :2]}, "^x: class 0 "),
        ({"scale": "gauss"}, "^means: "),
        ({"jitter": -1.0}, "^m, jitter: "),
        ({"jitter": float("nan")}, "^m, jitter: "),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changes)
    unknown: Any = "double"
    with pytest.raises(ValueError, match=r"^policy: .*one of none, single"):
        Policy.of(unknown)
    with pytest.raises(ValueError, match=r"^how: "):
        seed_multiplicities(3, 4, np.random.default_rng(0), unknown)
    with pytest.raises(ValueError, match=r"^n, m: "):
        seed_multiplicities(0, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^own: must not be negative"):
        Policy.of("single", own=-1)
    fixed: PolicyName
    for fixed in ("none", "code_lds", "code_digits"):
        with pytest.raises(ValueError, match=f"^own: policy '{fixed}'"):
            Policy.of(fixed, own=5)
    with pytest.raises(ValueError, match=r"^foreign: policy 'single'"):
        Policy.of("single", foreign=5)
