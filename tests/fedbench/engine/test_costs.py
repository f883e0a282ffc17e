import numpy as np
import pytest

from fedbench.engine.costs import Costs


def test_before_any_measurement_costs_go_by_examples():
    costs = Costs(np.array([9, 99, 49]))
    assert sorted(range(3), key=lambda p: costs.predict("train", p)) == [0, 2, 1]


def test_a_client_that_was_measured_costs_what_it_took_and_later_measurements_count_more():
    costs = Costs(np.array([9, 9]))
    for seconds in (1.0, 3.0, 5.0):
        costs.learn("train", 0, seconds)
    assert costs.predict("train", 0) == pytest.approx(0.5 * (0.5 * 1 + 0.5 * 3) + 0.5 * 5)


def test_one_that_was_not_costs_the_rate_of_the_others_by_kind():
    costs = Costs(np.array([9, 99, 49]))
    costs.learn("train", 0, 1.0)
    costs.learn("train", 1, 1.2)
    costs.learn("evaluate", 0, 0.1)
    assert costs.predict("train", 2) == pytest.approx(2.2 / 110 * 50)
    assert costs.predict("evaluate", 2) == pytest.approx(0.5)
