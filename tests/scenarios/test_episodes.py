import numpy as np
import pytest

from scenarios.build import build_federation
from scenarios.datasets.gaussian_domains import GaussianDomains
from scenarios.episodes import over_classes, over_clients, sine_lines, split_classes
from scenarios.federation import ScenarioError
from scenarios.skews.domain_skew import DomainSkew

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 10))


def test_an_episode_has_its_shapes_and_no_row_twice() -> None:
    for episode in over_classes(LABELS, ways=4, shots=3, queries=5, episodes=50):
        assert episode.support.shape == (4, 3)
        assert episode.query.shape == (4, 5)
        assert len(np.unique(episode.classes)) == 4
        assert np.array_equal(LABELS[episode.support], np.repeat(episode.classes[:, None], 3, axis=1))
        assert np.array_equal(LABELS[episode.query], np.repeat(episode.classes[:, None], 5, axis=1))
        assert len(np.unique(np.concatenate([episode.support, episode.query], axis=1))) == 4 * 8


def test_classes_come_in_any_order_and_equally_often() -> None:
    drawn = np.stack([each.classes for each in over_classes(LABELS, ways=3, queries=4, episodes=2000)])
    for place in drawn.T:  # 2000/12 = 167 expected, standard deviation 12
        counts = np.bincount(place, minlength=12)
        assert 115 < counts.min() <= counts.max() < 220


def test_an_episode_depends_on_seed_purpose_and_number_alone() -> None:
    options = {"ways": 3, "shots": 2, "queries": 4}

    def rows(index: int, **further: object) -> list[int]:
        episode = over_classes(LABELS, **options, **further)[index]
        return np.concatenate([episode.support, episode.query], axis=1).ravel().tolist()

    first = rows(7)
    many = over_classes(LABELS, **options, episodes=10_000)
    assert [many[i] for i in (3, 5)]
    assert many[7].support[0].tolist() == first[:2]
    assert rows(7, episodes=8) == first
    assert len({tuple(first), *(map(tuple, (rows(8), rows(7, seed=1), rows(7, purpose="test"))))}) == 4


def test_no_class_of_the_test_is_trained_on() -> None:
    train, test = split_classes(LABELS, 0.3, 5)
    assert (len(train), len(test)) == (8, 4)
    assert sorted([*train, *test]) == list(range(12))
    assert not np.array_equal(test, split_classes(LABELS, 0.3, 6)[1])
    for classes in (train, test):
        seen = np.concatenate(
            [e.classes for e in over_classes(LABELS, classes, ways=3, queries=4, episodes=99)]
        )
        assert np.array_equal(np.unique(seen), classes)
    assert [len(part) for part in split_classes(LABELS, 0.001, 0)] == [11, 1]


def test_over_clients_an_episode_is_of_one_clients_training_rows() -> None:
    data = GaussianDomains(domains=3, classes=6, dim=2, train_per_class=20, test_per_class=5).load()
    federation = build_federation(data, DomainSkew(), 0)
    episodes = over_clients(federation, np.array([0, 2, 3, 5]), ways=3, shots=2, queries=4, episodes=60)
    for episode in episodes:
        assert np.isin(episode.support, federation.clients[episode.pool].train).all()
        assert np.isin(episode.query, federation.clients[episode.pool].train).all()
        assert set(episode.classes) <= {0, 2, 3, 5}
    assert {episode.pool for episode in episodes} == {0, 1, 2}


def test_pools_and_classes_that_are_too_small_are_left_out() -> None:
    labels = np.array([0] * 5 + [1] * 5 + [2] * 2 + [3] * 5 + [4] * 5)
    pools = [np.arange(12), np.arange(17), np.arange(10, 22)]  # able classes: 2; 3 (0, 1, 3); 2
    episodes = over_classes(labels, ways=3, shots=1, queries=2, episodes=20)
    assert all(2 not in episode.classes for episode in episodes)
    chosen = type(episodes)(labels, pools, ways=3, shots=1, queries=2, episodes=20)
    assert {episode.pool for episode in chosen} == {1}
    with pytest.raises(ScenarioError, match=r"no pool has 5 classes with 3 rows each .* 3 at most"):
        type(episodes)(labels, pools, ways=5, shots=1, queries=2)


@pytest.mark.parametrize(("field", "value"), [("ways", 1), ("shots", 0), ("queries", 1.5), ("seed", -1)])
def test_numbers_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: not a possible number, got {value}"):
        over_classes(LABELS, **{field: value})


def test_classes_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match=r"^share: not a share, got 1"):
        split_classes(LABELS, 1, 0)
    with pytest.raises(ScenarioError, match="1 class cannot be divided"):
        split_classes(np.zeros(5, np.int64), 0.5, 0)


def test_lines_and_sines() -> None:
    curves = sine_lines(range(400), 7, 0, noise=0.0, places=101)
    assert curves.x.shape == curves.y.shape == (400, 7)
    assert (curves.grid[0], curves.grid[-1], curves.truth.shape) == (-5, 5, (400, 101))
    assert np.abs(curves.x).max() <= 5
    # What lies between two places of the grid is near the straight line between them.
    between = np.stack(
        [np.interp(x, curves.grid, line) for x, line in zip(curves.x, curves.truth, strict=True)]
    )
    assert np.abs(between - curves.y).max() < 0.01
    bent = np.abs(np.diff(curves.truth, 2)).max(axis=1) > 1e-4
    assert 160 < bent.sum() < 240
    assert np.abs(curves.truth[bent]).max() <= 5
    slopes = np.diff(curves.truth[~bent][:, [0, -1]]).ravel() / 10
    assert 2.5 < np.abs(slopes).max() <= 3

    noisy = sine_lines(range(390, 400), 7, 0)
    assert np.array_equal(noisy.x, curves.x[390:])
    assert 0.2 < (noisy.y - curves.y[390:]).std() < 0.4
    assert not np.array_equal(sine_lines(range(390, 400), 7, 0, purpose="test").x, noisy.x)
    with pytest.raises(ValueError, match=r"^noise: not a standard deviation, got -1"):
        sine_lines(range(2), 5, 0, noise=-1)
