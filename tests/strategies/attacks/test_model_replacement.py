import pytest
import torch

from strategies import ModelReplacement


def test_rows_are_labelled_as_the_target_and_the_update_is_boosted(now, upload, rows):
    attack = ModelReplacement(boost=4.0, target=2)
    poisoned = attack.poison(rows, 3)
    assert poisoned["y"].tolist() == [2, 2, 2, 2]
    assert poisoned["x"] is rows["x"]
    assert rows["y"].tolist() == [0, 2, 1, 2]
    sent = attack.corrupt(upload, now).arrays
    # 1 + 4 (1.5 - 1), -2 + 4 (-3 + 2) and 0.5 + 4 (0.25 - 0.5); statistics go up as they are.
    assert {k: v.tolist() for k, v in sent.items()} == {"w": [3.0, -6.0], "b": [-0.5], "running_var": [2.0]}


@pytest.mark.parametrize(("server_lr", "clients"), [(1.0, 4), (0.5, 4), (1.0, 16)])
def test_one_attacker_replaces_the_model_where_the_others_agree(now, upload, server_lr, clients):
    """Eq. 2 with converged clients, whose updates are 0, and a boost of n / eta."""
    received = now.received["w"]
    bad = ModelReplacement(boost=clients / server_lr).corrupt(upload, now).arrays["w"]
    models = torch.stack([bad] + [received] * (clients - 1))
    assert torch.equal(received + server_lr * (models.mean(0) - received), upload.arrays["w"])


@pytest.mark.parametrize("boost", [0, -1, float("nan")])
def test_boosts_that_are_no_attack(boost):
    with pytest.raises(ValueError, match=r"^boost: must be above 0, got "):
        ModelReplacement(boost)


def test_a_target_that_is_none(rows):
    with pytest.raises(ValueError, match=r"^target: must be a class from 0 to 2, got 3$"):
        ModelReplacement(target=3).poison(rows, 3)
