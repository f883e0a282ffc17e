import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import (
    assert_halves_are_named,
    assert_lowered_by_training,
    assert_padding_counts_for_nothing,
    flat,
    kept_by,
    skewed,
)
from quadratic import SERVER

from strategies import LocalRule, Moon, MoonRule
from strategies.client import record


class ByHand:
    """The contrastive term as the paper writes it, row by row, and the last model of each client."""

    def __init__(self, mu, tau):
        self.mu, self.tau = mu, tau
        self.previous = {}

    def __call__(self, step):
        fixed = (step.start, self.previous.get(step.client, step.start))
        rows = []
        for z, z_global, z_previous in zip(
            step.now.body(step.x), *(m.body(step.x).detach() for m in fixed), strict=True
        ):
            near = torch.exp(z @ z_global / (z.norm() * z_global.norm()) / self.tau)
            far = torch.exp(z @ z_previous / (z.norm() * z_previous.norm()) / self.tau)
            rows.append(-torch.log(near / (near + far)))
        return self.mu * torch.stack(rows).mean()

    def after(self, modules):
        self.previous |= modules


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("options", [{}, {"mu": 5.0}, {"mu": 2, "tau": 0.1}], ids=str)
def test_rounds_equal_the_formula_by_hand(options, rounds):
    case = skewed()
    got, grid, _ = case.run(Moon(**options, **SERVER), rounds=rounds)
    hand = ByHand(**{"mu": 1.0, "tau": 0.5, **options})
    want = case.by_hand(rounds, hand, hand.after)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    for client, module in hand.previous.items():
        np.testing.assert_allclose(
            kept_by(grid, client), flat(record(module.state_dict())), rtol=0, atol=1e-10
        )


def test_the_last_model_outlives_rounds_without_its_client():
    case = skewed(3)
    chosen = [[0, 1], [1, 2], [2], [0, 2]]
    got, _, _ = case.run(Moon(**SERVER), rounds=4, chosen=chosen)
    hand = ByHand(1.0, 0.5)
    np.testing.assert_allclose(got, case.by_hand(4, hand, hand.after, chosen), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mu", "rounds"), [(0.0, 3), (5.0, 1)], ids=["mu=0", "first round"])
def test_without_weight_or_a_last_model_it_is_fedavg(mu, rounds):
    case = skewed()
    got, _, _ = case.run(Moon(mu=mu, **SERVER), rounds=rounds)
    plain, _, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=rounds)
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_training_turns_to_the_global_model_and_away_from_the_last_local_one():
    case, hand = skewed(), ByHand(5.0, 0.5)
    hand.after({c: case.trained(c, case.module()) for c in (0, 1)})
    assert_lowered_by_training(case, hand, case.mean(hand.previous))


def test_padding_counts_for_nothing():
    case = skewed()
    kept = {k: v + 0.1 for k, v in case.round(0).received.items()}
    config = {"moon-mu": 1.0, "moon-tau": 0.5}
    assert_padding_counts_for_nothing(case, MoonRule(), kept=kept, config=config)


def test_a_missing_half_is_named():
    assert_halves_are_named(Moon(**SERVER))


@pytest.mark.parametrize(
    ("options", "said"), [({"mu": -0.1}, "mu: must be 0 or more"), ({"tau": 0.0}, "tau: must be above 0")]
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Moon(**options)
