"""A round and an upload whose numbers are exact in binary."""

import pytest
import torch

from strategies import Round, Upload


@pytest.fixture
def now():
    received = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5]), "running_var": torch.tensor([1.0])}
    return Round(
        model=max,
        task_loss=min,
        received=received,
        trainable=frozenset({"w", "b"}),
        generator=torch.Generator().manual_seed(7),
    )


@pytest.fixture
def upload():
    arrays = {"w": torch.tensor([1.5, -3.0]), "b": torch.tensor([0.25]), "running_var": torch.tensor([2.0])}
    return Upload(
        arrays=arrays,
        kept={"mine": torch.tensor(3.0)},
        extra={"control": {"w": torch.tensor([9.0])}},
        metrics={"m": 1.0},
    )


@pytest.fixture
def rows():
    return {"x": torch.arange(8.0).reshape(4, 2), "y": torch.tensor([0, 2, 1, 2]), "weight": torch.ones(4)}
