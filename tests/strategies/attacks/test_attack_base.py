from itertools import pairwise

import pytest
import torch

from strategies import Attack, Upload, attackers
from strategies.attacks.base import steered


def test_an_attack_does_nothing_unless_it_says_so(now, upload, rows):
    assert Attack().poison(rows, 3, now.generator) is rows
    assert Attack().corrupt(upload, now) is upload


@pytest.mark.parametrize(
    ("clients", "share", "count"),
    [
        (10, 0, 0), (10, 0.2, 2), (10, 0.24, 2), (10, 0.25, 3), (10, 0.01, 1), (10, 1, 10), (4, 0.3, 1),
        (4, 0.5, 2), (1, 0.1, 1), (7, 0.5, 4), (100, 0.29, 29),
    ],
)  # fmt: skip
def test_a_share_is_a_whole_number_of_clients(clients, share, count):
    chosen = attackers(0, clients, share)
    assert isinstance(chosen, frozenset)
    assert len(chosen) == count
    assert chosen <= set(range(clients))


def test_attackers_depend_on_seed_and_number_of_clients_alone():
    assert attackers(3, 50, 0.2) == attackers(3, 50, 0.2)
    assert len({attackers(seed, 50, 0.2) for seed in range(5)}) == 5
    chosen = [attackers(3, 50, share / 10) for share in range(11)]
    assert all(less < more for less, more in pairwise(chosen))
    counts = [sum(client in attackers(seed, 10, 0.2) for seed in range(500)) for client in range(10)]
    assert all(60 < count < 140 for count in counts)  # 100 each, give or take 4.5 deviations


@pytest.mark.parametrize("share", [-0.1, 1.5, 2, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match=r"^share: must be between 0 and 1, got "):
        attackers(0, 10, share)


def test_steering_multiplies_the_way_of_what_is_trained(now, upload):
    steered_up = steered(upload, now, 4.0)
    assert {k: v.tolist() for k, v in steered_up.arrays.items()} == {
        "w": [3.0, -6.0],
        "b": [-0.5],
        "running_var": [2.0],
    }
    assert list(steered_up.arrays) == list(upload.arrays)
    assert (steered_up.kept, steered_up.extra, steered_up.metrics) == (
        upload.kept,
        upload.extra,
        upload.metrics,
    )
    assert upload.arrays["w"].tolist() == [1.5, -3.0]


def test_steering_leaves_names_alone_that_were_not_received(now):
    """Of a method that trains, or sends, something else than the model."""
    upload = Upload({"prototypes": torch.tensor([5.0]), "w": torch.tensor([1.0, -1.0])})
    arrays = steered(upload, now, -1.0).arrays
    assert {k: v.tolist() for k, v in arrays.items()} == {"prototypes": [5.0], "w": [1.0, -3.0]}
