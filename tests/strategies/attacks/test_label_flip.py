import pytest
import torch

from strategies import LabelFlip


@pytest.mark.parametrize(
    ("options", "labels"),
    [({}, [2, 0, 1, 0]), ({"target": 1}, [1, 1, 1, 1]), ({"permutation": [1, 2, 0]}, [1, 0, 2, 0])],
)
def test_labels_are_changed_and_nothing_else(rows, now, upload, options, labels):
    before = {k: v.clone() for k, v in rows.items()}
    poisoned = LabelFlip(**options).poison(rows, 3, now.generator)
    assert poisoned["y"].tolist() == labels
    assert poisoned["y"].dtype == torch.int64
    assert poisoned["x"] is rows["x"]
    assert poisoned["weight"] is rows["weight"]
    assert all(torch.equal(rows[k], before[k]) for k in rows)
    assert LabelFlip(**options).corrupt(upload, now) is upload


def test_flipping_twice_gives_the_labels_back(rows):
    flip = LabelFlip()
    assert torch.equal(flip.poison(flip.poison(rows, 10), 10)["y"], rows["y"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 3}, "target: must be a class from 0 to 2, got 3"),
        ({"target": -1}, "target: must be a class from 0 to 2, got -1"),
        ({"permutation": [0, 1]}, "permutation: must hold the classes 0 to 2 once each, got [0, 1]"),
        ({"permutation": [0, 1, 1]}, "permutation: must hold the classes 0 to 2 once each, got [0, 1, 1]"),
    ],
)
def test_labels_that_are_none(rows, options, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        LabelFlip(**options).poison(rows, 3)
    assert str(error.value) == said


def test_one_way_to_flip_at_a_time():
    with pytest.raises(ValueError, match=r"^target: the permutation names the labels already"):
        LabelFlip(target=1, permutation=[1, 0])
