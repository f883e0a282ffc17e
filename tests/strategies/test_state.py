import copy

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, QFedAvg
from labelled import skewed
from quadratic import SERVER

from strategies import FedDyn, LocalRule, QFedAvgRule, Scaffold, load_state_dict, state_dict
from strategies.qfedavg import LOSS

STRATEGIES = {
    "fedavg": (FedAvg, {}, LocalRule, set()),
    "fedavgm": (FedAvgM, {"server_momentum": 0.9}, LocalRule, {"momentum_vector", "current_arrays"}),
    "fedadam": (FedAdam, {"eta": 0.05}, LocalRule, {"m_t", "v_t", "current_arrays"}),
    "fedyogi": (FedYogi, {"eta": 0.05}, LocalRule, {"m_t", "v_t", "current_arrays"}),
    "fedadagrad": (FedAdagrad, {"eta": 0.05}, LocalRule, {"m_t", "v_t", "current_arrays"}),
    "qfedavg": (
        QFedAvg,
        {"client_learning_rate": 0.3, "q": 1.0, "train_loss_key": LOSS},
        QFedAvgRule,
        {"current_arrays"},
    ),
    "scaffold": (Scaffold, {}, Scaffold.client_half, {"population", "state"}),
    "feddyn": (FedDyn, {}, FedDyn.client_half, {"population", "state"}),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_rounds_a_reload_and_one_more_equal_three(name):
    make, options, rule, parts = STRATEGIES[name]
    case = skewed(clients=3)
    whole, *_ = case.run(make(**options, **SERVER), rule(), rounds=3)
    first, again = make(**options, **SERVER), make(**options, **SERVER)
    _, grid, arrays = case.run(first, rule(), rounds=2)
    state = copy.deepcopy(state_dict(first))
    assert state.keys() == parts
    load_state_dict(again, state)
    rest, *_ = case.run(again, grid=grid, arrays=arrays, rounds=1, first=3)
    np.testing.assert_array_equal(rest[-1], whole[-1])


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_without_its_state_a_server_optimiser_would_go_another_way(name):
    make, options, rule, _ = STRATEGIES[name]
    case = skewed(clients=3)
    whole, *_ = case.run(make(**options, **SERVER), rule(), rounds=3)
    _, grid, arrays = case.run(make(**options, **SERVER), rule(), rounds=2)
    rest, *_ = case.run(make(**options, **SERVER), grid=grid, arrays=arrays, rounds=1, first=3)
    assert np.abs(rest[-1] - whole[-1]).max() > 1e-4
