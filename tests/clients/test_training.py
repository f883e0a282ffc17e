import numpy as np
import pytest

from clients.errors import ClientError
from clients.training import Training
from strategies.optim import SGD, Adam


def rng(seed=0):
    return np.random.default_rng(seed)


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (4, 4), (9, 4), (10, 1), (3, 100)])
def test_every_epoch_covers_every_row_once(rows, batch_size):
    plan = Training(batch_size=batch_size, epochs=3).plan(rows, rng())
    per_epoch = -(-rows // batch_size)
    assert len(plan) == 3 * per_epoch
    for epoch in range(3):
        batches = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(b) for b in batches[:-1]] == [batch_size] * (per_epoch - 1)
        assert sorted(np.concatenate(batches)) == list(range(rows))


def test_epochs_differ_in_order():
    first, second = Training(batch_size=50, epochs=2).plan(50, rng())
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("options", [{"epochs": 2}, {"steps": 7}, {"steps": 7, "replace": True}])
def test_the_order_depends_on_the_generator_alone(options):
    training = Training(batch_size=4, **options)
    assert same(training.plan(10, rng(1)), training.plan(10, rng(1)))
    assert not same(training.plan(10, rng(1)), training.plan(10, rng(2)))


@pytest.mark.parametrize("steps", [1, 3, 4, 11])
@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("replace", [False, True])
def test_steps_are_exactly_as_many_as_asked_for(steps, rows, replace):
    assert len(Training(batch_size=3, steps=steps, replace=replace, epochs=9).plan(rows, rng())) == steps


def test_steps_go_on_from_epoch_to_epoch():
    plan = Training(batch_size=4, steps=5).plan(10, rng())
    assert [len(b) for b in plan] == [4, 4, 2, 4, 4]
    assert sorted(np.concatenate(plan[:3])) == list(range(10))


def test_replace_draws_with_replacement():
    plan = Training(batch_size=8, steps=100, replace=True).plan(8, rng())
    assert {len(b) for b in plan} == {8}
    assert all(((b >= 0) & (b < 8)).all() for b in plan)
    # A batch without repetition has probability 8! / 8^8 = 0.0024.
    assert sum(len(set(b.tolist())) == 8 for b in plan) < 10
    assert np.bincount(np.concatenate(plan)).min() > 60


def test_smallest_leaves_lone_rows_out():
    lone = Training(batch_size=4, epochs=2)
    assert [len(b) for b in lone.plan(9, rng(), smallest=2)] == [4, 4, 4, 4]
    assert [len(b) for b in lone.plan(10, rng(), smallest=2)] == [4, 4, 2, 4, 4, 2]
    assert [len(b) for b in Training(batch_size=4, steps=5).plan(9, rng(), smallest=2)] == [4] * 5


def test_smallest_never_leaves_a_client_without_a_batch():
    assert [len(b) for b in Training(batch_size=4).plan(1, rng(), smallest=2)] == [1]


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"steps": 3, "replace": True}])
def test_batches_that_are_all_too_small_are_an_error(options):
    with pytest.raises(ClientError, match=r"^batch_size: .*BatchNorm.* 2 or more rows.*got 1$"):
        Training(batch_size=1, **options).plan(5, rng(), smallest=2)


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"steps": 3, "replace": True}])
def test_a_client_without_rows_takes_no_steps(options):
    assert Training(**options).plan(0, rng()) == []


def test_the_rate_may_be_held_before_it_decays():
    """TimeXer's schedule: the first two epochs have the full rate, each later one half of that before."""
    training = Training(lr=0.1, lr_decay=0.5, lr_hold=2)
    assert [training.learning_rate(t) for t in (1, 2, 3, 4)] == [0.1, 0.1, 0.05, 0.025]


def test_learning_rate_falls_along_a_half_cosine():
    training = Training(lr=0.2, lr_cosine=4)
    want = [0.2, 0.1 + 0.1 * 0.5**0.5, 0.1, 0.1 - 0.1 * 0.5**0.5, 0.0, 0.0]
    assert [training.learning_rate(t) for t in range(1, 7)] == pytest.approx(want, abs=1e-12)


def test_learning_rate_decays_by_round():
    training = Training(lr=0.1, lr_decay=0.5)
    assert [training.learning_rate(t) for t in (1, 2, 3)] == [0.1, 0.05, 0.025]
    assert Training(lr=0.1).learning_rate(50) == 0.1


def test_optimizers_get_their_options():
    assert Training(momentum=0.9, weight_decay=0.1).build_optimizer() == SGD(momentum=0.9, weight_decay=0.1)
    assert Training(optimizer="adam", weight_decay=0.1).build_optimizer() == Adam(weight_decay=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"^lr: must be above 0, got 0.0$"),
        ({"lr": -1.0}, r"^lr: must be above 0, got -1.0$"),
        ({"lr_decay": 0.0}, r"^lr_decay: must be above 0, got 0.0$"),
        ({"clip": 0.0}, r"^clip: must be above 0, got 0.0$"),
        ({"lr_cosine": 9, "lr_decay": 0.5}, r"^lr_cosine: takes the place of lr_decay, got 0.5"),
        ({"batch_size": 0}, r"^batch_size: must be 1 or more, got 0$"),
        ({"epochs": 0}, r"^epochs: must be 1 or more, got 0$"),
        ({"steps": 0}, r"^steps: must be 1 or more, got 0$"),
        ({"momentum": -0.1}, r"^momentum: must be 0 or more, got -0.1$"),
        ({"weight_decay": -0.1}, r"^weight_decay: must be 0 or more, got -0.1$"),
        ({"replace": True}, r"^replace: .*set steps"),
        ({"optimizer": "adam", "momentum": 0.9}, r"^momentum: is SGD's option, got 0.9 with optimizer=adam$"),
        ({"optimizer": "lion"}, r"^optimizer: must be one of sgd, adam, adamw, got 'lion'$"),
        ({"weighting": "rows"}, r"^weighting: must be one of examples, uniform, got 'rows'$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        Training(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1},
        {"epochs": 3},
        {"steps": 1},
        {"steps": 5},
        {"steps": 7},
        {"steps": 4, "replace": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 9, 31])
def test_examples_are_those_of_the_plan(options, rows):
    training = Training(batch_size=8, **options)
    plan = training.plan(rows, np.random.default_rng(0))
    assert training.examples(rows) == sum(len(batch) for batch in plan)
