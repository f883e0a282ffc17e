from dataclasses import replace

import pytest
import torch

from strategies import GaussianNoise, Upload


def test_noise_stands_in_place_of_the_update(now, upload, rows):
    sent = GaussianNoise(std=0.5).corrupt(upload, now)
    draws = torch.Generator().manual_seed(7)
    b, w = torch.randn(1, generator=draws), torch.randn(2, generator=draws)  # by name
    assert torch.equal(sent.arrays["b"], 0.5 + 0.5 * b)
    assert torch.equal(sent.arrays["w"], torch.tensor([1.0, -2.0]) + 0.5 * w)
    assert sent.arrays["running_var"] is upload.arrays["running_var"]
    assert list(sent.arrays) == list(upload.arrays)
    assert (sent.kept, sent.extra) == (upload.kept, upload.extra)
    assert GaussianNoise().poison(rows, 3) is rows


def test_what_was_trained_is_not_in_it(now, upload):
    other = Upload({k: v + 100 for k, v in upload.arrays.items()})
    sent = [
        GaussianNoise().corrupt(u, replace(now, generator=torch.Generator().manual_seed(1))).arrays["w"]
        for u in (upload, other)
    ]
    assert torch.equal(*sent)


def test_noise_has_the_deviation_asked_for(now):
    x = torch.full((200_000,), 3.0)
    alone = replace(now, received={"w": x}, trainable=frozenset({"w"}))
    noise = GaussianNoise(std=2.0).corrupt(Upload({"w": x}), alone).arrays["w"] - 3.0
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)  # 4.5 deviations of the mean
    assert float(noise.std()) == pytest.approx(2, abs=0.015)


@pytest.mark.parametrize("std", [0, -1, float("nan")])
def test_deviations_that_are_no_attack(std):
    with pytest.raises(ValueError, match=r"^std: must be above 0, got "):
        GaussianNoise(std)
