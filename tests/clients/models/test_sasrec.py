"""SASRec against plain loops, and what it knows of times."""

import math

import numpy as np
import pytest
import torch

from clients.errors import ClientError
from clients.models.sasrec import SASRec

V, H, D, HEADS = 9, 6, 8, 2


def scrambled(time, seed=0):
    torch.manual_seed(seed)
    model = SASRec(V, H, width=D, heads=HEADS, dropout=0.0, time=time, frequencies=(0.5, 1.0)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, dtype=torch.float64)
            if name == "items.E":
                p[0] = 0
    return model


def data():
    hist = torch.tensor([[3, 1, 9, 9, 2, 5], [0, 0, 4, 1, 8, 4]])
    times = torch.tensor([[0.0, 0.2, 0.3, 1.7, 1.9, 2.6], [0, 0, 5.0, 5.5, 5.6, 9.1]], dtype=torch.float64)
    return hist, times, torch.tensor([3.0, 9.2], dtype=torch.float64), torch.tensor([0, -1])


def norm(x, p, name):
    scaled = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def phi(t):
    angles = 2 * np.pi * t * np.array([0.5, 1.0])
    return np.r_[np.sin(angles), np.cos(angles)]


def by_loops(model, hist, times, query_time, time):
    """Output after each event of one user without padding, one position and one head at a time."""
    p = {k: v.numpy() for k, v in model.state_dict().items()}
    n, width = len(hist), D // HEADS
    following = [*times[1:], query_time]
    x = [p["items.E"][hist[i]] + p["P"][H - n + i] for i in range(n)]
    if time:
        for i in range(n):
            x[i] = x[i] + p["time.W_event.weight"] @ phi(times[i]) + p["time.W_event.bias"]
            x[i] = x[i] + p["time.W_next.weight"] @ phi(following[i])
    for block in ("blocks.0", "blocks.1"):
        y = [norm(xi, p, f"{block}.norm_1") for xi in x]
        q, k, v = ([p[f"{block}.W_{letter}.weight"] @ yi for yi in y] for letter in "qkv")
        for i in range(n):
            mixed = np.zeros(D)
            for part in (slice(h * width, (h + 1) * width) for h in range(HEADS)):
                a = np.exp([q[i][part] @ k[j][part] / math.sqrt(width) for j in range(i + 1)])
                mixed[part] = sum(a[j] / a.sum() * v[j][part] for j in range(i + 1))
            x[i] = x[i] + mixed
        for i in range(n):
            h = norm(x[i], p, f"{block}.norm_2")
            h = np.maximum(p[f"{block}.mlp.0.weight"] @ h + p[f"{block}.mlp.0.bias"], 0)
            x[i] = x[i] + p[f"{block}.mlp.3.weight"] @ h + p[f"{block}.mlp.3.bias"]
    return np.array([norm(xi, p, "norm") for xi in x])


@pytest.mark.parametrize("time", [False, True])
def test_output_is_that_of_plain_loops(time):
    model, (hist, times, query_time, user) = scrambled(time), data()
    out = model(hist, times, query_time, user).output.detach().numpy()
    for row, padding in enumerate((0, 2)):
        known = (x[row, padding:].numpy() for x in (hist, times))
        expected = by_loops(model, *known, float(query_time[row]), time)
        np.testing.assert_allclose(out[row, padding:], expected, atol=1e-12)


def test_times_are_seen_only_if_asked_for():
    hist, times, query_time, user = data()
    later = (hist, times + 0.3, query_time + 0.1, user)
    plain, timed = scrambled(False), scrambled(True)
    assert torch.equal(plain(hist, times, query_time, user).output, plain(*later).output)
    other = (timed(hist, times, query_time, user).output - timed(*later).output).abs()
    assert (other[hist > 0].amax(-1) > 1e-3).all()


def test_the_next_events_time_is_told_to_its_query_alone():
    hist, times, query_time, user = data()
    model = scrambled(True)
    before, after = (model(hist, times, q, user).output for q in (query_time, query_time + 0.3))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).any()


def test_times_of_long_ago_keep_their_phase():
    hist, times, query_time, user = data()
    model = scrambled(True).float()
    a, b = (model(hist, times + shift, query_time + shift, user).output for shift in (0.0, 2.0**21))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_dropout_in_training_alone():
    torch.manual_seed(0)
    model, inputs = SASRec(V, H, width=D), data()
    a, b = (model(*inputs).output for _ in range(2))
    assert (a != b).any()
    a, b = (model.eval()(*inputs).output for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: must be 1 or more, got 0"),
        ({"history": 0}, "history: must be 1 or more, got 0"),
        ({"layers": 0}, "layers: must be 1 or more, got 0"),
        ({"heads": 0}, "heads: must be 1 or more, got 0"),
        ({"width": 9}, "width: must be a multiple of heads=2, got 9"),
        ({"dropout": -0.5}, "dropout: must be 0 or more and below 1, got -0.5"),
        ({"time": True, "frequencies": ()}, "frequencies: must be one or more finite numbers, got []"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(ClientError) as caught:
        SASRec(**{"items": V, "history": H, **options})
    assert str(caught.value) == message


def test_longer_histories_are_refused():
    hist, times, query_time, user = data()
    with pytest.raises(ClientError, match=r"^history: the model is made for 5 events, but is given 6$"):
        SASRec(V, 5)(hist, times, query_time, user)
