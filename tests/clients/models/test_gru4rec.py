"""GRU4Rec against the framework's recurrent network."""

import pytest
import torch

from clients.errors import ClientError
from clients.models.gru4rec import GRU, GRU4Rec


def test_plain_recurrence_is_the_frameworks():
    torch.manual_seed(0)
    ours, theirs = GRU(5, 7).double(), torch.nn.GRU(5, 7, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x, weight = torch.randn(3, 11, 5, dtype=torch.float64), torch.randn(3, 11, 7, dtype=torch.float64)
    found, expected = ours(x, torch.ones(3, 11, dtype=torch.bool)), theirs(x)[0]
    torch.testing.assert_close(found, expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_states_are_0_before_the_first_event():
    states = GRU(5, 7)(torch.randn(1, 4, 5), torch.tensor([[False, False, True, True]]))
    assert (states[:, :2] == 0).all()
    assert (states[:, 2:] != 0).all()


def test_dropout_is_on_the_way_in_and_out():
    torch.manual_seed(0)
    model = GRU4Rec(50, 8, width=16, hidden=16, dropout=0.5)
    seen = []
    model.gru.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hist = torch.randint(1, 51, (20, 8))
    out = model(hist, None, None, None)
    for x in (seen[0], out.output):
        assert (x == 0).double().mean() == pytest.approx(0.5, abs=0.05)
    a, b = (model.eval()(hist, None, None, None).output for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: must be 1 or more, got 0"),
        ({"history": 0}, "history: must be 1 or more, got 0"),
        ({"width": 0}, "width: must be 1 or more, got 0"),
        ({"hidden": 0}, "hidden: must be 1 or more, got 0"),
        ({"dropout": 1}, "dropout: must be 0 or more and below 1, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(ClientError) as caught:
        GRU4Rec(**{"items": 5, "history": 4, **options})
    assert str(caught.value) == message
