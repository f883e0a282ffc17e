"""Rankings of items against brute force, torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from clients.errors import ClientError
from clients.models.comirec import ComiRecSA, Interests
from clients.tasks.coarse_ranking import CoarseRanking

V, H, ROWS = 30, 6, 12
POPULARITY = np.random.default_rng(5).integers(0, 40, (2, V + 1)).astype(np.float32)


def events(seed=0):
    """Arrays of 12 users: histories of 1 to 9 events, then 1 to 4 targets."""
    rng = np.random.default_rng(seed)
    lengths, targets = rng.integers(1, 10, ROWS), rng.integers(1, 5, ROWS)
    first = np.concatenate([[0], np.cumsum(lengths + targets)])
    start = first[:-1]
    item = rng.integers(1, V + 1, first[-1]).astype(np.int32)
    sets = [np.unique(item[s : s + n]) for s, n in zip(start, lengths, strict=True)]
    return {
        "start": start,
        "end": start + lengths,
        "until": start + lengths + targets,
        "user": np.arange(ROWS),
        "person": np.arange(ROWS),
        "market": np.arange(ROWS) % 2,
        "item": item,
        "time": np.cumsum(rng.uniform(0, 1, first[-1])),
        "taken": np.concatenate(sets),
        "taken_from": np.concatenate([[0], np.cumsum([len(s) for s in sets])]),
    }


def task(**options):
    return CoarseRanking(V, H, POPULARITY, **options)


def output_of(scores):
    """Interests whose scores are these: one vector a user, and items along the axes."""
    rows = len(scores)
    table = torch.cat([torch.zeros(1, V), torch.eye(V)]).to(scores.dtype)
    one = torch.ones(rows, 1, dtype=torch.bool)
    return Interests(scores[:, None, 1:], one, table, scores[:, None, 1:], torch.ones(1), torch.zeros(1))


def measured(scores, arrays, rows, **options):
    t = task(**options)
    batch = t.gather(arrays, rows)
    batch["weight"] = torch.ones(len(rows))
    return t.scores({k: float(v) for k, v in t.metrics(output_of(scores), batch).items()})


def test_histories_are_the_newest_events_and_targets_those_after_them():
    arrays, t = events(), task()
    batch = t.gather(arrays, slice(None))
    for row in range(ROWS):
        start, end, until = (int(arrays[k][row]) for k in ("start", "end", "until"))
        known = arrays["item"][max(start, end - H) : end].tolist()
        assert batch["hist"][row].tolist() == [0] * (H - len(known)) + known
        assert (
            batch["times"][row, H - len(known) :].tolist() == arrays["time"][end - len(known) : end].tolist()
        )
        came = arrays["item"][end:until].tolist()
        assert batch["target"][row].tolist() == came + [0] * (4 - len(came))
        assert float(batch["query_time"][row]) == arrays["time"][end]


def test_a_row_without_targets_has_one_empty_place():
    arrays = events()
    arrays["until"] = arrays["end"]
    batch = task().gather(arrays, np.array([3, 4]))
    assert batch["target"].tolist() == [[0], [0]]
    assert batch["query_time"].tolist() == arrays["time"][arrays["end"][[3, 4]] - 1].tolist()


def test_metrics_are_those_of_torchmetrics_and_scikit_learn():
    arrays, rows = events(), np.arange(ROWS)
    scores = torch.randn(ROWS, V + 1, generator=torch.Generator().manual_seed(1)).double()
    got = measured(scores, arrays, rows)
    want = {name: [] for name in ("recall@10", "recall@20", "ndcg@10", "ndcg@50", "mrr", "gauc")}
    losses = []
    for row in rows:
        target = np.unique(arrays["item"][arrays["end"][row] : arrays["until"][row]])
        relevant = torch.zeros(V, dtype=torch.bool)
        relevant[target - 1] = True
        own = scores[row, 1:]
        for k in (10, 20):  # torchmetrics leaves out scores below 0
            want[f"recall@{k}"].append(float(retrieval_recall(own.exp(), relevant, top_k=k)))
        for k in (10, 50):
            want[f"ndcg@{k}"].append(
                float(retrieval_normalized_dcg(own.exp(), relevant.long(), top_k=min(k, V)))
            )
        want["mrr"].append(float(retrieval_reciprocal_rank(own.exp(), relevant)))
        one_by_one = []
        for item in target:
            # Against all items, itself among them: the pairs with others, and half a pair with itself.
            alone = np.zeros(V, int)
            alone[item - 1] = 1
            one_by_one.append((roc_auc_score(alone, own.numpy()) * (V - 1) + 0.5) / V)
        want["gauc"].append(np.mean(one_by_one))
        losses.append(float(-own.log_softmax(0)[target - 1].mean()))
    for name, values in want.items():
        assert got[name] == pytest.approx(np.mean(values), abs=1e-6), name
    assert got["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    sizes = [len(np.unique(arrays["item"][arrays["end"][r] : arrays["until"][r]])) for r in rows]
    assert got["auc"] == pytest.approx(np.average(want["gauc"], weights=sizes), abs=1e-6)


def test_ties_count_half():
    arrays = events()
    arrays["until"] = arrays["end"] + 1
    got = measured(torch.zeros(ROWS, V + 1), arrays, np.arange(ROWS))
    middle = (V - 1) / 2
    assert got["mrr"] == pytest.approx(1 / (middle + 1))
    assert got["auc"] == pytest.approx(0.5)
    assert got["recall@10"] == 0
    assert got["hit@20"] == 1


def test_what_was_had_before_ranks_last_unless_it_is_the_target():
    arrays = {
        **events(),
        "start": np.array([0]),
        "end": np.array([4]),
        "until": np.array([6]),
        "market": np.array([0]),
        "user": np.array([0]),
        "person": np.array([0]),
        "item": np.array([1, 2, 3, 4, 5, 4], np.int32),
        "time": np.arange(6.0),
        "taken": np.array([1, 2, 3, 4, 9]),  # 9 was too long ago for the history
        "taken_from": np.array([0, 5]),
    }
    scores = -torch.arange(V + 1.0)[None]  # item 1 is best, then 2, ...
    again = measured(scores, arrays, np.array([0]), repeats=True)
    anew = measured(scores, arrays, np.array([0]), repeats=False)
    assert again["mrr"] == pytest.approx(1 / 4)  # 4 is fourth
    assert anew["mrr"] == pytest.approx(1)  # 1, 2 and 3 are out
    in_play = V - 4
    assert anew["gauc"] == pytest.approx(np.mean([1 - 0.5 / in_play, 1 - 1.5 / in_play]))
    assert "own_frequency_recall@20" in again
    assert "own_frequency_recall@20" not in anew


def test_references_rank_by_counts():
    arrays, rows = events(), np.arange(ROWS)
    popular = torch.from_numpy(POPULARITY)[rows % 2].double()
    frequent = popular / (popular.max(1, keepdim=True).values + 1)
    t = task()
    for row, ids in enumerate(t.gather(arrays, rows)["hist"]):
        for item in ids[ids > 0]:
            frequent[row, item] += 1
    got = measured(torch.randn(ROWS, V + 1), arrays, rows)
    for name, scores in (("popularity", popular), ("own_frequency", frequent)):
        assert got[f"{name}_recall@20"] == pytest.approx(
            measured(scores, arrays, rows)["recall@20"], abs=1e-6
        )


def test_sums_add_up_over_batches_and_padding_changes_nothing():
    arrays, t = events(), task()
    scores = torch.randn(ROWS, V + 1, generator=torch.Generator().manual_seed(2)).double()

    def sums(rows, padding=0):
        batch = t.gather(arrays, rows)
        batch["weight"] = torch.ones(len(rows))
        padded = {
            k: torch.cat([v, torch.zeros_like(v[:1]).expand(padding, *v.shape[1:])]) for k, v in batch.items()
        }
        own = torch.cat([scores[rows], torch.randn(padding, V + 1).double()])
        return {k: float(v) for k, v in t.metrics(output_of(own), padded).items()}, padded

    whole, _ = sums(np.arange(ROWS))
    assert set(whole) == set(t.sums)
    parts = [sums(rows, padding=2)[0] for rows in (np.arange(5), np.arange(5, ROWS))]
    for name in t.sums:
        assert whole[name] == pytest.approx(parts[0][name] + parts[1][name], abs=1e-6), name


def test_negatives_are_items_that_the_user_does_not_have():
    arrays, t = events(), task(negatives=40)
    assert t.draws
    rows = np.tile(np.arange(ROWS), 20)
    torch.manual_seed(0)
    batch = t.drawn(t.gather(arrays, rows), arrays)
    counts = np.zeros((ROWS, V + 1))
    for row, ids in zip(rows, batch["negatives"].numpy(), strict=True):
        np.add.at(counts[row], ids, 1)
    for user in range(ROWS):
        taken = arrays["taken"][arrays["taken_from"][user] : arrays["taken_from"][user + 1]]
        free = np.setdiff1d(np.arange(1, V + 1), taken)
        assert counts[user, taken].sum() == counts[user, 0] == 0
        expected = 800 / len(free)
        assert np.abs(counts[user, free] - expected).max() < 6 * expected**0.5


def test_a_user_who_has_everything_gets_no_negatives():
    arrays = events()
    arrays["taken"], arrays["taken_from"] = np.arange(1, V + 1), np.array([0] + [V] * ROWS)
    t = task(negatives=3)
    assert (t.drawn(t.gather(arrays, np.array([0])), arrays)["negatives"] == 0).all()


@pytest.mark.parametrize("profile", ["next", "rank"])
def test_padding_does_not_change_the_loss(profile):
    arrays, rows = events(), np.arange(ROWS)
    arrays["until"] = arrays["end"] + 1
    t = task(profile=profile, negatives=4)
    model = ComiRecSA(V, H, width=8)
    batch = t.drawn(t.gather(arrays, rows), arrays) | {"weight": torch.ones(ROWS)}
    shortened = {k: v[:9] for k, v in batch.items()}
    padded = batch | {"weight": (torch.arange(ROWS) < 9).float()}
    if profile == "next":  # negatives are shared, so those of rows that are padding would be seen
        padded["negatives"] = torch.where(
            padded["weight"][:, None] > 0, batch["negatives"], batch["negatives"][:1]
        )
        shortened["negatives"] = torch.cat([batch["negatives"][:9], batch["negatives"][:1].expand(3, -1)])
    losses = [t.loss(model(*t.inputs(b)), b) for b in (shortened, padded)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": []}, "cutoffs: must be lengths of lists"),
        ({"cutoffs": [5, 10]}, "cutoffs: must have 20, as methods are compared by recall@20"),
        ({"negatives": -1}, "negatives: must be 0 or more, got -1"),
        ({"examples": "sequences"}, "learns from targets, of which data.examples=sequences have none"),
        ({"profile": "clicks"}, "profile: must be one of next, rank, got 'clicks'"),
        ({"profile": "rank"}, "profile: 'rank' needs items that were not clicked"),
        ({"power": 0.0}, "power: must be above 0, got 0.0"),
        ({"diversity": -0.1}, "diversity: must be 0 or more, got -0.1"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message):
    with pytest.raises(ClientError, match=f"^{message}"):
        task(**options)
