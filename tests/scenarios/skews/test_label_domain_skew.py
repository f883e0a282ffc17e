import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.label_domain_skew import LabelDomainSkew

DOMAINS, CLASSES = ("Art", "Clipart", "Product", "Real World"), 30


def toy(seed=7):
    generator = np.random.default_rng(seed)
    held = generator.integers(5, 60, (CLASSES, 4))  # rows by class and domain
    labels = np.repeat(np.arange(CLASSES), held.sum(axis=1))
    domain = np.concatenate([np.repeat(np.arange(4), of_class) for of_class in held])
    order = generator.permutation(len(labels))
    meta = Meta("classification", (1,), tuple(map(str, range(CLASSES))))
    return Dataset("toy", {"y": labels[order]}, domain[order], DOMAINS, meta), held


def table(data, parts):
    """Counts by class and domain; asserts that no row is held twice and that domains are kept apart."""
    rows = np.concatenate([part.rows for part in parts])
    assert len(np.unique(rows)) == len(rows)
    counts = np.zeros((CLASSES, 4), int)
    for part in parts:
        assert (data.domain[part.rows] == part.domain).all()
        counts[:, part.domain] += np.bincount(data.arrays["y"][part.rows], minlength=CLASSES)
    return counts


@pytest.mark.parametrize("alpha", [0.05, 0.5, 50.0])
def test_a_domain_keeps_the_floor_of_its_share_and_drops_the_rest(alpha):
    data, held = toy()
    parts = LabelDomainSkew(alpha).split(data, np.arange(len(data)), np.random.default_rng(3))
    # The shares are the first thing that is drawn: one Dirichlet over the domains for each class.
    shares = np.random.default_rng(3).dirichlet(np.full(4, alpha), size=CLASSES)
    assert np.array_equal(table(data, parts), np.floor(shares * held))
    assert [part.domain for part in parts] == [0, 1, 2, 3]


def test_only_rows_of_the_pool_count():
    data, _ = toy()
    pool = np.arange(0, len(data), 2)
    held = np.zeros((CLASSES, 4), int)
    np.add.at(held, (data.arrays["y"][pool], data.domain[pool]), 1)
    parts = LabelDomainSkew(1.0).split(data, pool, np.random.default_rng(3))
    shares = np.random.default_rng(3).dirichlet(np.ones(4), size=CLASSES)
    assert np.array_equal(table(data, parts), np.floor(shares * held))
    assert np.isin(np.concatenate([part.rows for part in parts]), pool).all()


def test_limits_of_alpha():
    data, held = toy()
    even = table(data, LabelDomainSkew(1e8).split(data, np.arange(len(data)), np.random.default_rng(0)))
    assert np.abs(even - held / 4).max() <= 1.01
    single = table(data, LabelDomainSkew(1e-3).split(data, np.arange(len(data)), np.random.default_rng(0)))
    assert np.mean((single > 0).sum(axis=1) <= 1) > 0.9  # a class is left to one domain


def test_which_rows_are_kept_is_random():
    data, _ = toy()
    first, other = (
        LabelDomainSkew(1e8).split(data, np.arange(len(data)), np.random.default_rng(seed)) for seed in (0, 1)
    )
    both = np.intersect1d(first[0].rows, other[0].rows)
    assert len(both) < 0.5 * len(first[0].rows)


def test_several_clients_share_what_their_domain_keeps():
    data, held = toy()
    parts = LabelDomainSkew(0.5, clients_per_domain=3).split(
        data, np.arange(len(data)), np.random.default_rng(3)
    )
    shares = np.random.default_rng(3).dirichlet(np.full(4, 0.5), size=CLASSES)
    assert np.array_equal(table(data, parts), np.floor(shares * held))
    assert [part.domain for part in parts] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for index in range(4):
        sizes = [len(part.rows) for part in parts if part.domain == index]
        assert max(sizes) - min(sizes) <= 1
        # At random: every client has most of the domain's classes, which blocks of a class would not give.
        found = [len(np.unique(data.arrays["y"][part.rows])) for part in parts if part.domain == index]
        assert min(found) > 0.6 * np.count_nonzero(np.floor(shares * held)[:, index])


def test_min_size_is_met_for_every_client_or_refused():
    data, _ = toy()

    def smallest(seed, **options):
        skew = LabelDomainSkew(0.1, clients_per_domain=2, **options)
        return min(
            len(part.rows) for part in skew.split(data, np.arange(len(data)), np.random.default_rng(seed))
        )

    assert min(smallest(seed) for seed in range(10)) < 100
    assert min(smallest(seed, min_size=100) for seed in range(10)) >= 100
    with pytest.raises(
        ScenarioError, match=r"raise alpha \(0.1\), lower clients_per_domain \(2\) or min_size"
    ):
        smallest(0, min_size=500)


def test_one_domain_is_refused():
    data = Dataset(
        "toy", {"y": np.arange(9) % 3}, np.zeros(9, np.int64), ("d",), Meta("classification", (1,))
    )
    with pytest.raises(ScenarioError, match="one domain only"):
        LabelDomainSkew().split(data, np.arange(9), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"alpha": -1}, "alpha"),
        ({"clients_per_domain": 0}, "clients_per_domain"),
        ({"min_size": 0}, "min_size"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; use"):
        LabelDomainSkew(**options)
