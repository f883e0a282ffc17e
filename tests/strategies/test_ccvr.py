import numpy as np
import pytest
import scipy.linalg
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from labelled import CLASSES, Labelled, assert_halves_are_named, flat, skewed
from quadratic import SERVER
from torch.nn import functional

from strategies import CCVR, GGEUR, CCVRRule, LocalRule, StrategyError
from strategies.ccvr import pool, unbiased
from strategies.seeding import generator


def representations(case, arrays):
    """Representations of all clients' rows at given arrays, and their labels."""
    module = case.module()
    module.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in arrays.items()})
    with torch.no_grad():
        z = module.body(torch.from_numpy(np.concatenate(case.x))).numpy()
    return z, np.concatenate(case.y)


@pytest.mark.parametrize("chosen", [None, [[0, 2], [1], [1, 2]]], ids=["all", "some"])
def test_training_is_fedavgs(chosen):
    case = skewed(3)
    got, grid, _ = case.run(CCVR(**SERVER), chosen=chosen)
    plain, _, _ = case.run(FedAvg(**SERVER), LocalRule(), chosen=chosen)
    np.testing.assert_array_equal(got, plain)
    assert not grid.client_states()


@pytest.mark.parametrize("chosen", [None, [[0], [2]]], ids=["all trained", "some trained"])
def test_pooled_statistics_are_those_of_all_rows(chosen):
    case = skewed(3)
    strategy = CCVR(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=2, chosen=chosen)
    pooled = pool(strategy._ask(grid, arrays))
    z, y = representations(case, arrays)
    assert list(pooled) == list(range(CLASSES))
    for label, moments in pooled.items():
        rows = z[y == label]
        assert moments.count == len(rows)
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(unbiased(moments), np.cov(rows, rowvar=False), rtol=0, atol=1e-12)


def test_the_new_head_is_sgds_on_the_draws():
    case = skewed(3)
    strategy = CCVR(virtual=30, epochs=3, lr=0.1, momentum=0.5, batch_size=16, seed=4, **SERVER)
    _, grid, arrays = case.run(strategy, rounds=2)
    got = strategy.finish(grid, arrays)

    z, y = representations(case, arrays)
    draws = [
        z[y == c].mean(0)
        + generator(4, "ccvr features", c).standard_normal((30, 4))
        @ scipy.linalg.sqrtm(np.cov(z[y == c], rowvar=False))
        for c in range(CLASSES)
    ]
    x, labels = torch.from_numpy(np.concatenate(draws)), torch.arange(CLASSES).repeat_interleave(30)
    head = torch.nn.Linear(4, CLASSES).double()
    head.load_state_dict({k: torch.from_numpy(arrays[f"head.{k}"].numpy()) for k in ("weight", "bias")})
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.5)
    rng = generator(4, "ccvr batches")
    for _ in range(3):
        order = rng.permutation(90)
        for start in range(0, 90, 16):
            rows = order[start : start + 16]
            optimizer.zero_grad()
            functional.cross_entropy(head(x[rows]), labels[rows]).backward()
            optimizer.step()
    for k, v in head.state_dict().items():
        np.testing.assert_allclose(got[f"head.{k}"].numpy(), v.numpy(), rtol=0, atol=1e-8)
    for k in ("body.0.weight", "body.0.bias"):
        np.testing.assert_array_equal(got[k].numpy(), arrays[k].numpy())
    assert list(got) == list(arrays)


def test_without_epochs_it_is_fedavg():
    case = skewed()
    strategy = CCVR(epochs=0, **SERVER)
    _, grid, arrays = case.run(strategy)
    np.testing.assert_array_equal(flat(strategy.finish(grid, arrays)), flat(arrays))


def test_the_seed_alone_decides_the_draws():
    case = skewed()
    _, grid, arrays = case.run(CCVR(**SERVER))
    heads = [flat(CCVR(seed=seed, **SERVER).finish(grid, arrays)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).any()


def test_all_clients_are_asked_once_and_send_statistics_alone():
    case = skewed(3)
    strategy = CCVR(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=1, chosen=[[0]])
    del case.seen[:]
    strategy.finish(grid, arrays)
    assert [(e.phase, e.node) for e in case.seen] == [("query.ccvr_statistics", node) for node in range(3)]
    assert {e.down for e in case.seen} == {8 * flat(arrays).size}
    # Two classes each: label, count, mean, triangle; metrics and the rule's name come on top.
    assert {e.up for e in case.seen} == {2 * 8 * (1 + 1 + 4 + 10) + 8 + len("CCVRRule")}


def two_domains_of_labels(rows=200, seed=0):
    """Clients that have hardly a class in common, so that FedAvg's last layer is torn."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(CLASSES, 6))
    x, y, batches = [], [], []
    for client in range(3):
        odds = np.where(np.arange(CLASSES) == client, 0.98, 0.01)
        size = rows // (1 + 2 * client)
        labels = rng.choice(CLASSES, size, p=odds)
        y.append(labels)
        x.append(centres[labels] + 1.3 * rng.normal(size=(size, 6)))
        batches.append([rng.choice(size, 16) for _ in range(30)])
    held = np.arange(3 * 400) % CLASSES
    return Labelled(x, y, batches), centres[held] + 1.3 * rng.normal(size=(len(held), 6)), held


@pytest.mark.parametrize("seed", range(3))
def test_calibration_makes_up_for_skewed_labels(seed):
    case, x, y = two_domains_of_labels(seed=seed)
    strategy = CCVR(lr=0.05, **SERVER)
    _, grid, arrays = case.run(strategy, rounds=3)

    def accuracy(arrays):
        module = case.module()
        module.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in arrays.items()})
        with torch.no_grad():
            return (module(torch.from_numpy(x)).argmax(dim=1).numpy() == y).mean()

    assert accuracy(strategy.finish(grid, arrays)) > accuracy(arrays) + 0.03


def test_flowers_start_calibrates_at_the_end():
    case = skewed()
    result = CCVR(**SERVER).start(case.grid(CCVRRule()), case.initial(), num_rounds=2)
    strategy = CCVR(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=2)
    np.testing.assert_allclose(flat(result.arrays), flat(strategy.finish(grid, arrays)), rtol=0, atol=1e-12)


def test_it_finishes_inside_ggeur():
    case = skewed()
    strategy = CCVR(**SERVER)
    _, grid, arrays = case.run(strategy)
    aligned = GGEUR(strategy)
    assert aligned.client_half is CCVRRule
    np.testing.assert_array_equal(
        flat(aligned.finish(grid, arrays)), flat(CCVR(**SERVER).finish(grid, arrays))
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"body.w": (3, 2)}, "nothing under 'head'"),
        ({"head.0.weight": (3, 2), "head.2.weight": (3, 3)}, r"head\.0\.weight \(3, 2\), head\.2"),
        ({"head.weight": (3, 2, 1, 1), "head.bias": (3,)}, r"head\.weight \(3, 2, 1, 1\)"),
    ],
)
def test_a_head_that_is_not_one_linear_layer_is_refused(model, said):
    arrays = ArrayRecord({k: Array(np.zeros(shape)) for k, shape in model.items()})
    with pytest.raises(StrategyError, match=rf"^CCVR: .*one linear layer.*{said}.*$"):
        CCVR(**SERVER).finish(skewed().grid(CCVRRule()), arrays)


def test_a_client_app_that_answers_no_queries_is_an_error_that_says_so():
    case = skewed()
    grid = case.grid(CCVRRule(), queries=False)
    with pytest.raises(StrategyError, match=r"^CCVR: none of 2 clients .*ccvr_statistics.*CCVRRule$"):
        CCVR(**SERVER).finish(grid, case.initial())


def test_a_client_that_fails_is_left_out():
    case = skewed(3)
    _, grid, arrays = case.run(CCVR(**SERVER), rounds=1)
    case.x[1] = case.x[1] * np.nan
    strategy = CCVR(**SERVER)
    assert [m.count for m in pool(strategy._ask(grid, arrays)).values()] == [9, 3, 6]


def test_one_row_of_a_class_has_no_spread():
    case = skewed(1)
    case.y[0][:] = 0
    case.y[0][0] = 1
    strategy = CCVR(**SERVER)
    _, grid, arrays = case.run(strategy, rounds=1)
    assert (unbiased(pool(strategy._ask(grid, arrays))[1]) == 0).all()
    assert np.isfinite(flat(strategy.finish(grid, arrays))).all()


def test_a_missing_half_is_named():
    assert_halves_are_named(CCVR(**SERVER))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"virtual": 0}, "virtual: must be 1 or more"),
        ({"epochs": -1}, "epochs: must be 0 or more"),
        ({"batch_size": 0}, "batch_size: must be 1 or more"),
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"lr": 0.0}, "lr: must be above 0"),
        ({"momentum": 1.0}, "momentum: must be 0 or more and below 1"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CCVR(**options)


def test_messages_carry_nothing_of_it_before_the_end():
    case = skewed()
    strategy = CCVR(**SERVER)
    grid = case.grid(CCVRRule())
    (first, _) = strategy.configure_train(1, case.initial(), ConfigRecord(), grid)
    assert set(first.content) == {"arrays", "config"}
