import numpy as np
import pytest
import torch

import strategies
from strategies import DataRule, Examples, LocalRule, Round, Upload


def plain_round():
    return Round(
        model=lambda params, batch: params["w"] * batch["x"],
        task_loss=lambda output, batch: (batch["weight"] * (output - batch["y"]) ** 2).sum(),
        received={"w": torch.tensor(2.0), "buffer": torch.tensor(7.0)},
        trainable=frozenset({"w"}),
        kept={"mine": torch.tensor(1.0)},
    )


def test_plain_rule_starts_at_what_it_received():
    now = plain_round()
    assert LocalRule().begin(now) == now.received


def test_plain_rule_has_the_loss_of_the_task_alone():
    batch = {"x": torch.tensor([1.0, 3.0]), "y": torch.tensor([1.0, 1.0]), "weight": torch.tensor([1.0, 0.0])}
    assert float(LocalRule().loss({"w": torch.tensor(5.0)}, batch, plain_round())) == 16


def test_plain_rule_leaves_gradients_alone():
    grads = {"w": torch.tensor(3.0)}
    assert LocalRule().gradient(grads, {"w": torch.tensor(1.0)}, plain_round()) is grads


def test_plain_rule_sends_all_parameters_and_keeps_what_it_kept():
    now, params = plain_round(), {"w": torch.tensor(4.0), "buffer": torch.tensor(8.0)}
    assert LocalRule().keep(now.received) == {}
    assert LocalRule().end(params, now) == Upload(arrays=params, kept=now.kept)


def test_a_round_starts_with_nothing_kept_sent_or_configured():
    now = Round(model=max, task_loss=min, received={}, trainable=frozenset())
    assert (now.kept, now.sent, now.config, now.steps, now.generator) == ({}, {}, {}, 0, None)


def test_what_a_rule_is_given_cannot_be_swapped_under_it():
    with pytest.raises(AttributeError):
        plain_round().lr = 1.0


def test_a_data_rule_has_to_have_both_parts():
    class Half(DataRule):
        def actions(self):
            return {}

    with pytest.raises(TypeError, match="training_set"):
        Half()


def test_examples_count_their_rows_unless_told():
    examples = Examples(np.zeros((3, 2)), np.zeros(3, np.int64), "a", 0, 0)
    assert examples.weight is None


def test_all_that_is_exported_exists():
    assert all(hasattr(strategies, name) for name in strategies.__all__)
