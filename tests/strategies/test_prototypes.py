import pytest
import torch
from labelled import CLASSES, skewed

from strategies.prototypes import class_means, distance_to_class, representations


def test_prototypes_are_means_of_each_class_and_know_no_padding():
    case = skewed()
    now = case.round(1)
    padded = {k: torch.cat([v, v[:3] * 0 + 1]) for k, v in now.data.items()}
    padded["weight"][-3:] = 0
    for data in (now.data, padded):
        made = class_means(now.received, case.round(1, data=data))
        assert made["counts"].tolist() == [0, 5, 4]
        assert (made["means"][0] == 0).all()
        for label in (1, 2):
            want = case.class_mean(case.module(), 1, label)
            torch.testing.assert_close(made["means"][label], want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_representations_do_not_depend_on_the_batches_they_are_made_in(batch_size):
    case = skewed()
    now = case.round(1)
    z, output = representations(now.received, now, batch_size)
    with torch.no_grad():
        want = case.module().body(torch.from_numpy(case.x[1]))
    torch.testing.assert_close(z, want, rtol=0, atol=1e-14)
    assert output.shape == (9, CLASSES)


def test_rows_of_classes_without_a_prototype_have_no_distance():
    z, means = torch.ones(3, 2), torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    distance = distance_to_class(z, torch.tensor([0, 1, 0]), means, torch.tensor([True, False]))
    assert distance.tolist() == [2.0, 0.0, 2.0]
