import pytest
import torch

from clients.augment import augment
from clients.errors import ClientError


def images(rows=40):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((rows, 3, 16, 16), generator=generator)


def test_none_changes_nothing():
    x = images()
    assert augment(x, "none") is x


@pytest.mark.parametrize("kind", ["crop_flip", "rand_augment"])
def test_same_seed_same_images_in_range_and_shape(kind):
    x = images()
    torch.manual_seed(1)
    one = augment(x, kind)
    torch.manual_seed(1)
    again = augment(x, kind)
    assert torch.equal(one, again)
    assert one.shape == x.shape
    assert not torch.equal(one, x)
    assert 0 <= one.min() <= one.max() <= 1


def test_images_are_changed_independently_of_each_other():
    torch.manual_seed(0)
    same = images(1).expand(40, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augment(same, "crop_flip")}) > 20


def test_crop_and_flip_are_a_window_of_the_mirrored_image():
    x = torch.arange(256.0).view(1, 1, 16, 16) / 256
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")[0, 0]
    windows = [padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    windows += [w.flip(1) for w in windows]
    torch.manual_seed(0)
    seen = set()
    for image in augment(x.expand(200, -1, -1, -1), "crop_flip"):
        at = [k for k, w in enumerate(windows) if torch.equal(w, image[0])]
        assert at
        seen.add(at[0])
    assert len(seen) > 40


def test_vectors_are_refused():
    with pytest.raises(ClientError, match=r"augment=crop_flip changes images, but .*\(7,\)"):
        augment(torch.rand(3, 7), "crop_flip")
