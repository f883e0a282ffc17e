"""Statistics of a model that are pooled as those of all clients' examples together."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian
from quadratic import SERVER

from clients.models.largegt import (
    CODEBOOK,
    LargeGT,
    codebook_state,
    codebook_statistics,
    pool_codebooks,
)
from fedbench.engine.serial import SerialGrid
from strategies.arrays import record, tensors_of
from strategies.functional import Stateless
from strategies.pooling import Pooling, pooled

EXAMPLES = [30, 10, 60]
VAR, MEAN = CODEBOOK + "bn.running_var", CODEBOOK + "bn.running_mean"


def ratio(averaged):
    """``E = W / n`` as far as the server has both."""
    return {"E": averaged["W"] / averaged["n"]} if {"W", "n"} <= averaged.keys() else {}


def of_codebook(averaged):
    return codebook_state(codebook_statistics(averaged))


def once(strategy, states, start=None):
    """One round in which clients answer with given states."""
    app = ClientApp()

    @app.train()
    def train(message, context: Context):
        node = int(context.node_config["partition-id"])
        if states[node] is None:
            return Message(Error(code=0, reason="lost"), reply_to=message)
        content = {"arrays": record(states[node]), "metrics": MetricRecord({"num-examples": EXAMPLES[node]})}
        return Message(RecordDict(content), reply_to=message)

    grid = SerialGrid(lambda: app, [1] * len(states))
    arrays = record(start or states[0])
    messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    arrays, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    return (None if arrays is None else tensors_of(arrays)), metrics


def normalised_by_their_own(sizes=EXAMPLES):
    rng = np.random.default_rng(0)
    rows = [rng.normal(3 * i, 1 + i, (size, 4)) for i, size in enumerate(sizes)]
    states = [{"mean": r.mean(0), "var": r.var(0), "w": rng.normal(size=2)} for r in rows]
    return rows, [{k: torch.from_numpy(v) for k, v in s.items()} for s in states]


def test_a_pooled_variance_is_that_of_all_rows_together():
    rows, states = normalised_by_their_own()
    got, metrics = once(pooled(FedAvg(**SERVER), Pooling(lambda _: {}, {"var": "mean"})), states)
    together = np.concatenate(rows)
    np.testing.assert_allclose(got["mean"], together.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got["var"], together.var(0), rtol=1e-12)
    plain, plain_metrics = once(FedAvg(**SERVER), states)
    assert (plain["var"] < 0.8 * got["var"]).all()
    assert torch.equal(plain["w"], got["w"])
    assert metrics == plain_metrics


@pytest.mark.parametrize("server", [FedAvg, FedMedian, FedAdam])
def test_what_follows_is_derived_from_whatever_the_server_makes_of_the_rest(server):
    torch.manual_seed(0)
    states = [{"W": torch.randn(3, 2), "n": torch.rand(3, 1) + 1, "E": torch.randn(3, 2)} for _ in EXAMPLES]
    got, _ = once(pooled(server(**SERVER), Pooling(ratio)), states)
    plain, _ = once(server(**SERVER), states)
    assert list(got) == ["W", "n", "E"]
    torch.testing.assert_close(got["W"], plain["W"])
    torch.testing.assert_close(got["E"], got["W"] / got["n"])
    assert not torch.allclose(got["E"], plain["E"])


def test_lost_clients_have_no_say():
    rows, states = normalised_by_their_own()
    pooling = Pooling(lambda _: {}, {"var": "mean"})
    got, _ = once(pooled(FedAvg(**SERVER), pooling), [states[0], None, states[2]])
    np.testing.assert_allclose(got["var"], np.concatenate([rows[0], rows[2]]).var(0), rtol=1e-12)
    assert once(pooled(FedAvg(**SERVER), pooling), [None] * 3, states[0])[0] is None


def test_what_stays_with_clients_is_passed_over():
    states = [{"w": torch.ones(2), "var": torch.ones(1)} for _ in EXAMPLES]
    got, _ = once(pooled(FedAvg(**SERVER), Pooling(ratio, {"var": "mean"})), states)
    assert got.keys() == {"w", "var"}


def trained_books():
    """Three LargeGTs that started alike and saw different seeds."""
    states = []
    for i in range(len(EXAMPLES)):
        torch.manual_seed(0)
        model = LargeGT((5,), 3, hidden_dim=8, global_dim=4, num_centroids=6).train()
        torch.manual_seed(i)
        for _ in range(50):
            model.layer.vq.update(torch.randn(16, 8) * (1 + i) + 2 * i)
        states.append(Stateless(model).initial())
    return states


def test_codebooks_come_out_as_they_are_pooled_in_one_place():
    states = trained_books()
    pooling = Pooling(of_codebook, {VAR: MEAN})
    got, _ = once(pooled(FedAvg(**SERVER), pooling), states)
    want = pool_codebooks(states, EXAMPLES)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)
    plain, _ = once(FedAvg(**SERVER), states)
    rest = plain.keys() - want.keys()
    assert all(torch.equal(plain[k], got[k]) for k in rest)
    assert not torch.allclose(plain[CODEBOOK + "_embedding"], want[CODEBOOK + "_embedding"], rtol=1e-2)
    assert not torch.allclose(plain[VAR], want[VAR], rtol=1e-2)
