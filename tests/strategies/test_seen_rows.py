"""Tables that are averaged row by row over the clients that saw the row."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from quadratic import SERVER
from torch import nn

from fedbench.engine.serial import SerialGrid
from strategies import LocalRule, RuleClient, Scaffold, SeenRows, StrategyError, averaging_seen_rows
from strategies.arrays import record

ITEMS, LR, STEPS = 6, 0.1, 2
IDS = [[1, 2], [2, 3, 4], [4]]
"""Items of three clients; nobody has 0 and 5."""
WEIGHTS = [1, 2, 5]


class Table(nn.Module):
    """Every item's vector, whoever's example it is, and one number beside it."""

    def __init__(self):
        super().__init__()
        self.E = nn.Parameter(torch.arange(2 * ITEMS, dtype=torch.float64).view(ITEMS, 2) / 10)
        self.b = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.E.sum() + self.b + 0 * x.sum()


def loss(output, batch):
    """Moves all rows of all clients, as a softmax over items does: ``(sum of E + b - target)^2 / 2``."""
    return 0.5 * ((output - batch["target"]) ** 2).mean()


def run(strategy, rule, rounds=1):
    client = RuleClient(rule, Table(), loss)
    app = ClientApp()

    @app.train()
    def train(message, context: Context):
        node = int(context.node_config["partition-id"])
        ids = torch.tensor(IDS[node])
        data = {"x": ids, "ids": ids, "target": torch.full((len(ids),), 1.0 + node).double()}
        return client.train(message, context, data, [np.arange(len(ids))] * STEPS, LR, weight=WEIGHTS[node])

    grid = SerialGrid(lambda: app, [1] * len(IDS))
    arrays = record({k: v.detach() for k, v in Table().named_parameters()})
    if hasattr(strategy, "prepare"):
        arrays = strategy.prepare(grid, arrays)
    for t in range(1, rounds + 1):
        replies = grid.send_and_receive(strategy.configure_train(t, arrays, ConfigRecord(), grid))
        arrays = strategy.aggregate_train(t, replies)[0]
    return {k: v.numpy() for k, v in arrays.items()}


def locally(node):
    """``E`` and ``b`` after a client's steps."""
    E, b = (p.detach().numpy().copy() for p in (Table().E, Table().b))
    for _ in range(STEPS):
        error = E.sum() + b[0] - (1 + node)
        E, b = E - LR * error, b - LR * error
    return E, b


def test_a_row_is_the_mean_over_those_who_saw_it():
    got = run(averaging_seen_rows(FedAvg(**SERVER)), SeenRows(LocalRule(), {"E": ["ids"]}))
    trained = [locally(node) for node in range(3)]
    want = Table().E.detach().numpy().copy()
    for row in range(ITEMS):
        seen = [i for i in range(3) if row in IDS[i]]
        if seen:
            want[row] = np.average(
                [trained[i][0][row] for i in seen], axis=0, weights=[WEIGHTS[i] for i in seen]
            )
    np.testing.assert_allclose(got["E"], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        got["b"], np.average([b for _, b in trained], axis=0, weights=WEIGHTS), atol=1e-12
    )


def test_rows_that_nobody_saw_stay_whatever_the_server_does():
    start = Table().E.detach().numpy()
    for strategy, rule in ((FedAdam(eta=0.1, **SERVER), LocalRule()), (Scaffold(), Scaffold.client_half())):
        got = run(averaging_seen_rows(strategy), SeenRows(rule, {"E": ["ids"]}), rounds=3)
        np.testing.assert_allclose(got["E"][[0, 5]], start[[0, 5]], rtol=0, atol=1e-12)
        assert (got["E"][[1, 2, 3, 4]] != start[[1, 2, 3, 4]]).all()


def test_where_all_see_all_rows_it_is_the_plain_average(monkeypatch):
    monkeypatch.setattr("test_seen_rows.IDS", [list(range(ITEMS))] * 3)
    ours = run(averaging_seen_rows(FedAvg(**SERVER)), SeenRows(LocalRule(), {"E": ["ids"]}), rounds=2)
    plain = run(FedAvg(**SERVER), LocalRule(), rounds=2)
    for name in plain:
        np.testing.assert_allclose(ours[name], plain[name], rtol=0, atol=1e-12)


def test_padding_is_not_seen():
    data = {"ids": torch.tensor([[1, 2], [3, 3]]), "weight": torch.tensor([1.0, 0.0])}
    assert SeenRows._seen(5, ["ids"], data).tolist() == [False, True, True, False, False]


def test_clients_that_do_not_say_what_they_saw_are_refused():
    with pytest.raises(StrategyError, match="did not say which rows it saw"):
        run(averaging_seen_rows(FedAvg(**SERVER)), LocalRule())
