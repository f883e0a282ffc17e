import numpy as np
import pytest
import torch
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg, QFedAvg
from labelled import skewed
from quadratic import SERVER, SOME, four_clients, two_clients

from fedbench.config.compose import plan
from strategies import LocalRule, QFedAvgRule, qfedavg
from strategies.qfedavg import LOSS, loss_over_rows


def server(case, q):
    return QFedAvg(client_learning_rate=case.lr, q=q, train_loss_key=LOSS, **SERVER)


def loss_of(case, client, w):
    return 0.5 * (case.a[client] * (w - case.b[client]) ** 2).sum()


def by_hand(case, rounds, q, chosen=None):
    """Algorithm 2 for quadratics, with ``L`` the inverse of the clients' rate."""
    x, trace = case.start, []
    for t in range(rounds):
        total, scale = 0.0, 0.0
        for i in chosen[t] if chosen else range(len(case.a)):
            loss, delta = loss_of(case, i, x), (x - case.sgd(i, x)) / case.lr
            total = total + loss**q * delta
            scale += q * loss ** (q - 1) * (delta**2).sum() + loss**q / case.lr
        x = x - total / scale
        trace.append(x)
    return np.array(trace)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("q", [0.1, 2.0])
def test_rounds_equal_the_algorithm_by_hand(q, rounds):
    case = two_clients(steps=(2, 5))
    got, _ = case.run(server(case, q), QFedAvgRule(), rounds=rounds)
    np.testing.assert_allclose(
        got, by_hand(case, rounds, q), rtol=0, atol=1e-8
    )  # Flower adds 1e-10 to losses


def test_clients_that_are_left_out_count_for_nothing():
    case = four_clients()
    got, _ = case.run(server(case, 0.5), QFedAvgRule(), chosen=SOME)
    np.testing.assert_allclose(got, by_hand(case, 3, 0.5, SOME), rtol=0, atol=1e-8)


def test_q_0_is_fedavg_with_equal_weights():
    case = two_clients(rows=(5, 2))
    got, _ = case.run(server(case, 0.0), QFedAvgRule())
    case.rows = (1, 1)
    plain, _ = case.run(FedAvg(**SERVER), LocalRule())
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_the_worst_client_is_better_off():
    far = np.array([[0.0] * 4, [2.0] * 4])
    case = two_clients(steps=1, lr=0.5, b=far, a=np.array([[1.0] * 4, [0.1] * 4]))
    worst = []
    for q in (0.0, 5.0):
        got, _ = case.run(server(case, q), QFedAvgRule(), rounds=10)
        worst.append(max(loss_of(case, i, got[-1]) for i in (0, 1)))
    assert worst[1] < 0.8 * worst[0]


def test_the_loss_is_that_of_the_received_model_on_all_rows(monkeypatch):
    now = skewed().round(1)
    whole = now.task_loss(now.model(now.received, now.data), now.data)
    for rows in (1024, 4, 1):
        monkeypatch.setattr(qfedavg, "ROWS", rows)
        torch.testing.assert_close(loss_over_rows(now.received, now), whole, rtol=0, atol=1e-12)
    now.data["x"] = torch.cat([now.data["x"], torch.ones(2, now.data["x"].shape[1])])
    for key in ("y", "weight"):
        now.data[key] = torch.cat([now.data[key], torch.zeros(2, dtype=now.data[key].dtype)])
    torch.testing.assert_close(loss_over_rows(now.received, now), whole, rtol=0, atol=1e-12)
    moved = {k: v + 1 for k, v in now.received.items()}
    torch.testing.assert_close(QFedAvgRule().end(moved, now).metrics[LOSS], whole, rtol=0, atol=1e-12)


def test_without_the_client_half_flower_says_which_metric_it_lacks():
    case = two_clients()
    with pytest.raises(AggregationError, match="qfedavg-loss"):
        case.run(server(case, 0.1), LocalRule(), rounds=1)


def test_the_configuration_takes_the_clients_rate():
    (config,) = plan(["strategy=qfedavg", "client.lr=0.2"])
    assert config.strategy.client_learning_rate == 0.2
    assert config.strategy.train_loss_key == LOSS
