"""Learning from every step of a history, and being asked once about what comes next."""

import math

import numpy as np
import pytest
import torch

from clients.models.next_item import NextItem
from clients.models.sasrec import SASRec
from clients.tasks.sequential_recommendation import SequentialRecommendation

V, H = 8, 5
ITEM = np.array([3, 1, 4, 1, 5, 2, 6, 5, 3], np.int32)
ARRAYS = {
    "start": np.array([0, 4, 4]),
    "end": np.array([4, 9, 8]),
    "until": np.array([4, 9, 9]),
    **{name: np.array([0, 1, 1]) for name in ("user", "person")},
    "market": np.zeros(3, int),
    "item": ITEM,
    "time": np.arange(9.0),
    "taken": np.array([1, 3, 4, 2, 3, 5, 6]),
    "taken_from": np.array([0, 3, 7]),
}


def task(**options):
    return SequentialRecommendation(V, H, np.ones((1, V + 1), np.float32), **options)


def gathered(t, rows=(0, 1, 2)):
    rows = np.array(rows)
    return t.gather(ARRAYS, rows) | {"weight": torch.ones(len(rows))}


def random_output(rows, seed=0, penalty=0.0):
    rng = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(V + 1, 3, generator=rng).double(), torch.randn(V + 1, generator=rng).double()
    bias[0] = -math.inf
    output = torch.randn(rows, H, 3, generator=rng).double()
    return NextItem(output, weight, bias, penalty + torch.zeros(rows, H).double())


def test_every_event_that_follows_another_is_learnt_from():
    t = task()
    batch, out = gathered(t), random_output(3, penalty=0.25)
    logits = (out.output @ out.weight.T + out.bias)[..., 1:].log_softmax(-1)
    # Of the histories [3 1 4 1] and [5 2 6 5 3], every step; of [5 2 6 5] the steps, and its target 3.
    steps = [
        (0, 1, 1), (0, 2, 4), (0, 3, 1),
        (1, 0, 2), (1, 1, 6), (1, 2, 5), (1, 3, 3),
        (2, 1, 2), (2, 2, 6), (2, 3, 5), (2, 4, 3),
    ]  # fmt: skip
    assert batch["hist"].tolist() == [[0, 3, 1, 4, 1], [5, 2, 6, 5, 3], [0, 5, 2, 6, 5]]
    want = np.mean([-float(logits[row, at, item - 1]) for row, at, item in steps]) + 0.25
    assert float(t.loss(out, batch)) == pytest.approx(want, abs=1e-10)


def test_rows_that_are_padding_count_for_nothing():
    t = task(negatives=3)
    batch = t.drawn(gathered(t), ARRAYS)
    out = random_output(3)
    alone = t.loss(
        NextItem(out.output[:2], out.weight, out.bias, out.penalty[:2]), {k: v[:2] for k, v in batch.items()}
    )
    padded = t.loss(out, batch | {"weight": torch.tensor([1.0, 1.0, 0.0])})
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-12)
    nothing = t.loss(out, batch | {"weight": torch.zeros(3)})
    assert float(nothing) == 0


def test_a_model_learns_what_always_follows():
    """Item v + 1 follows v: after a few steps, it is ranked first, and what the user had does not mislead."""
    rng = np.random.default_rng(0)
    first = rng.integers(1, V + 1, 64)
    item = np.stack([(first + i - 1) % V + 1 for i in range(H + 1)], 1).astype(np.int32)
    arrays = {
        "start": np.arange(64) * (H + 1),
        "end": np.arange(64) * (H + 1) + H,
        "until": np.arange(1, 65) * (H + 1),
        **{name: np.zeros(64, int) for name in ("user", "person", "market")},
        "item": item.ravel(),
        "time": np.arange(item.size, dtype=float),
    }
    t = task()
    torch.manual_seed(0)
    model = SASRec(V, H, width=16, dropout=0.0)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    batch = t.gather(arrays, np.arange(64)) | {"weight": torch.ones(64)}
    for _ in range(60):
        loss = t.loss(model(*t.inputs(batch)), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        sums = t.metrics(model(*t.inputs(batch)), batch)
    scores = t.scores({k: float(v) for k, v in sums.items()})
    assert scores["ndcg@10"] > 0.99
    assert scores["mrr"] > 0.99
    assert scores["popularity_ndcg@10"] < 0.6
