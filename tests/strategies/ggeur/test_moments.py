from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from strategies.ggeur.geometry import eigen_geometry
from strategies.ggeur.moments import (
    ClassMoments,
    class_moments,
    from_sums,
    guides,
    merge,
    merge_means,
    pack_triangle,
    to_sums,
    unpack_triangle,
)

Array = npt.NDArray[Any]
SIZES = (0, 1, 2, 5, 40, 150)
D = 24


def clients(dtype: str = "float64", offset: float = 0.0) -> list[Array]:
    """Rows of one class at clients of uneven size whose means differ."""
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((D, D))
    return [(rng.standard_normal((n, D)) @ mixing + k + offset).astype(dtype) for k, n in enumerate(SIZES)]


def one_class(rows: Array) -> ClassMoments:
    return class_moments(rows, np.zeros(len(rows), np.int64))[0]


def parts_of(rows: list[Array]) -> list[ClassMoments]:
    return [m for r in rows for m in class_moments(r, np.zeros(len(r), np.int64)).values()]


def packed(parts: list[ClassMoments], dtype: str = "float64") -> list[ClassMoments]:
    return [ClassMoments(m.count, m.mean, pack_triangle(m.cov, dtype)) for m in parts]


def error(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_v1_merge_equals_moments_of_the_concatenation(dtype: str, offset: float) -> None:
    rows = clients(dtype, offset)
    merged = merge(parts_of(rows))
    pooled = np.concatenate(rows).astype(np.float64)
    assert merged.count == sum(SIZES)
    assert error(merged.mean, pooled.mean(axis=0)) <= 1e-10
    assert error(merged.cov, np.cov(pooled.T, bias=True)) <= 1e-10  # float32 embeddings too
    assert merged.cov.dtype == merged.mean.dtype == np.float64


def test_v2_merge_is_associative_and_order_independent() -> None:
    parts = parts_of(clients())
    flat = merge(parts)
    tree = merge([merge([merge(parts[:2]), parts[2]]), merge(parts[3:])])
    for other in (tree, merge(parts[::-1])):
        assert other.count == flat.count
        assert error(other.mean, flat.mean) <= 1e-12
        assert error(other.cov, flat.cov) <= 1e-12


def test_v3_dropping_the_between_term_fails() -> None:
    rows = clients()
    truth = np.cov(np.concatenate(rows).T, bias=True)
    parts = parts_of(rows)
    without = merge(parts, between=False)
    assert error(without.cov, truth) > 1e-2
    assert error(merge([ClassMoments(1, p.mean, p.cov) for p in parts]).cov, truth) > 1e-2
    # and what is left is the weighted mean of the covariances
    within = np.sum([len(r) * np.cov(r.T, bias=True) for r in rows if len(r) > 1], axis=0) / sum(SIZES)
    assert error(without.cov, within) <= 1e-12


@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_merging_packed_equals_merging_dense(dtype: str, between: bool) -> None:
    parts = [ClassMoments(m.count, m.mean, m.cov.astype(dtype)) for m in parts_of(clients())]
    dense, triangle = merge(parts, between), merge(packed(parts, dtype), between)
    assert triangle.count == dense.count
    assert np.array_equal(triangle.mean, dense.mean)
    assert triangle.cov.dtype == np.float64
    assert np.array_equal(unpack_triangle(triangle.cov, D), dense.cov)
    shapes = [eigen_geometry(m) for m in (dense, triangle)]
    assert np.array_equal(shapes[0].values, shapes[1].values)
    assert np.array_equal(shapes[0].vectors, shapes[1].vectors)


def test_means_alone_are_those_of_the_merge() -> None:
    parts = parts_of(clients("float32"))
    assert np.array_equal(merge_means(parts), merge(parts).mean)


def test_v4_covariance_has_divisor_n() -> None:
    three = one_class(np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    assert three.count == 3
    assert np.array_equal(three.mean, [1.0, 1.0])
    assert np.array_equal(three.cov, [[2.0, -1.0], [-1.0, 2.0]])
    one = one_class(np.array([[0.1, -7.3]], np.float32))
    assert one.count == 1
    assert np.array_equal(one.cov, np.zeros((2, 2)))


def test_v13_classes_do_not_leak_into_one_another() -> None:
    labels = np.repeat(np.arange(12), 5)
    x = np.repeat(np.arange(12.0)[:, None] + [[0.0, 0.5, 2.0]], 5, axis=0)
    before = class_moments(x, labels)
    x[labels >= 10] = np.random.default_rng(0).standard_normal((10, 3))
    after = class_moments(x, labels)
    assert list(before) == list(after) == list(range(12))
    assert np.array_equal(after[1].mean, [1.0, 1.5, 3.0])
    assert after[1].count == before[1].count == 5
    assert np.array_equal(after[1].cov, np.zeros((3, 3)))
    assert eigen_geometry(after[1]).rank == 0
    assert eigen_geometry(after[10]).rank > 0


def test_v18_two_samples_can_be_read_from_their_moments() -> None:
    rows = np.random.default_rng(2).standard_normal((2, D))
    shape = eigen_geometry(one_class(rows))
    assert shape.rank == 1
    step = np.sqrt(shape.values[0]) * shape.vectors[:, 0]
    mean = one_class(rows).mean
    found = np.stack([mean + step, mean - step])
    if error(found, rows) > error(found[::-1], rows):
        found = found[::-1]
    assert error(found, rows) <= 1e-10


def test_v18_min_count_withholds_small_classes() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    x = np.random.default_rng(3).standard_normal((6, 2))
    assert list(class_moments(x, labels, min_count=3)) == [2]
    assert list(class_moments(x, labels)) == list(class_moments(x, labels, min_count=0)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([5, 50, 0, 30, 15], 0.8, [1, 3]),
        ([5, 50, 0, 30, 15], 0.81, [1, 3, 4]),
        ([5, 50, 0, 30, 15], 1.0, [0, 1, 3, 4]),
        ([10, 10, 10], 0.1, [0]),
        ([1] * 100, 0.07, [*range(7)]),  # 0.07 * 100 is a little above 7
        ([0, 0], 0.8, []),
        ([], 1.0, []),
    ],
)
def test_guides_are_the_smallest_covering_set(
    counts: list[int], fraction: float, expected: list[int]
) -> None:
    assert guides(counts, fraction) == expected


def test_triangle_goes_there_and_back() -> None:
    cov = one_class(clients()[4]).cov
    triangle = pack_triangle(cov, np.float64)
    assert triangle.shape == (D * (D + 1) // 2,)
    assert np.array_equal(triangle, cov[np.triu_indices(D)])
    assert np.array_equal(unpack_triangle(triangle, D), cov)
    assert np.array_equal(pack_triangle(triangle, np.float32), pack_triangle(cov, np.float32))
    single = pack_triangle(cov, np.float32)
    assert single.dtype == np.float32
    assert unpack_triangle(single, D).dtype == np.float64
    assert error(unpack_triangle(single, D), cov) < 1e-6


def test_sums_add_up_and_give_the_moments_back() -> None:
    rows = clients(offset=10.0)
    sums = [to_sums(part) for part in parts_of(rows)]
    z = np.column_stack([np.ones(sum(SIZES)), np.concatenate(rows)])
    assert error(sum(sums), pack_triangle(z.T @ z, np.float64)) <= 1e-12
    pooled, merged = from_sums(np.sum(sums, axis=0)), merge(parts_of(rows))
    assert pooled.count == merged.count
    assert error(pooled.mean, merged.mean) <= 1e-12
    assert error(unpack_triangle(pooled.cov, D), merged.cov) <= 1e-10
    for part in packed(parts_of(rows)):
        assert np.array_equal(to_sums(part), sums.pop(0))


def test_merging_moments_of_noisy_sums_adds_the_sums() -> None:
    rng = np.random.default_rng(5)
    sums = [to_sums(part) for part in parts_of(clients())[2:]]
    noisy = [s + rng.standard_normal(s.size) for s in sums]
    merged = merge(from_sums(s) for s in noisy)
    assert merged.count == sum(round(s[0]) for s in noisy)
    total = np.sum(noisy, axis=0)
    total[0] = merged.count
    assert error(merged.mean, from_sums(total).mean) <= 1e-12
    assert error(merged.cov, from_sums(total).cov) <= 1e-10


def test_mistakes_are_named() -> None:
    for sums in (np.zeros(6), np.array([0.4, 9, 9, 9, 9, 9])):
        with pytest.raises(ValueError, match=r"^packed: a class needs a count of at least 1, got 0"):
            from_sums(sums)
    with pytest.raises(ValueError, match=r"^packed: need"):
        from_sums(np.ones(5))
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"^x, y: "):
        class_moments(x, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"^y: "):
        class_moments(x, np.zeros(2))
    with pytest.raises(ValueError, match=r"^x: class 4 "):
        class_moments(x * np.nan, np.full(2, 4))
    with pytest.raises(ValueError, match=r"^parts: nothing"):
        merge([])
    with pytest.raises(ValueError, match=r"^parts: dimensions"):
        merge([one_class(x), one_class(np.zeros((2, 4)))])
    with pytest.raises(ValueError, match=r"^parts: dimensions"):
        merge([one_class(x), *packed([one_class(x)])])
    with pytest.raises(ValueError, match=r"^packed: need 6 entries"):
        eigen_geometry(ClassMoments(2, np.zeros(3), np.zeros(5)))
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"^fraction: "):
            guides([1], fraction)
    with pytest.raises(ValueError, match=r"^packed: "):
        unpack_triangle(np.zeros(5), 3)
