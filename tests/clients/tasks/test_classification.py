"""Calibration against torchmetrics, batch by batch."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from clients.tasks.classification import Classification


def sums_of(task, output, y, weight):
    return {k: float(v) for k, v in task.metrics(output, {"y": y, "weight": weight}).items()}


def test_calibration_error_is_torchmetrics_and_adds_up_over_batches():
    rng = torch.Generator().manual_seed(0)
    output, y = 2 * torch.randn(500, 4, generator=rng).double(), torch.randint(4, (500,), generator=rng)
    task = Classification(calibration=True)
    want = float(multiclass_calibration_error(output.softmax(-1), y, 4, n_bins=15))
    whole = sums_of(task, output, y, torch.ones(500))
    assert task.scores(whole)["ece"] == pytest.approx(want, abs=1e-5)
    assert set(whole) == set(task.sums)
    # A second half that is padded with rows that count for nothing.
    parts = [sums_of(task, output[:200], y[:200], torch.ones(200))]
    parts.append(sums_of(task, output[100:], y[100:], (torch.arange(400) >= 100).float()))
    added = {k: parts[0][k] + parts[1][k] for k in task.sums}
    assert task.scores(added) == pytest.approx(task.scores(whole), abs=1e-5)


def test_calibration_costs_nothing_where_it_is_not_asked_for():
    task = Classification()
    assert task.sums == ("loss", "correct", "count")
    assert set(sums_of(task, torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.ones(3))) == set(
        task.sums
    )
