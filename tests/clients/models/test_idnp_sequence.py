"""SequenceIDNP against IDNP called by hand, and IDNP against the baselines on the specification's problem."""

from functools import partial

import pytest
import torch
from test_idnp import g1, hits

from clients.errors import ClientError
from clients.models.gru4rec import GRU4Rec
from clients.models.idnp import IDNP, divergence, objective, observations, visible
from clients.models.idnp import scores as scores_of_all
from clients.models.idnp_sequence import SequenceIDNP
from clients.models.next_item import next_item_loss, scores
from clients.models.sasrec import SASRec

V, U, H = 12, 4, 10
options = {"width": 8, "latent": 6, "heads": 2, "dropout": 0.0, "user_dropout": 0.0, "split": False}
EACH_WINDOW = pytest.mark.parametrize("window", [1, 3, 5])


def made(window=3, **others):
    """With weights that are nowhere what they start as."""
    torch.manual_seed(0)
    model = SequenceIDNP(V, H, U, window=window, **{**options, **others}).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, dtype=torch.float64)
            if name == "items.E":
                p[0] = 0
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    hist = torch.randint(1, V + 1, (3, H), generator=generator)
    times = torch.rand(3, H + 1, generator=generator, dtype=torch.float64).cumsum(1)
    for row, padding in enumerate((0, 4, H - 1)):
        hist[row, :padding] = 0
        times[row, :padding] = 0
    return hist, times[:, :-1], times[:, -1], torch.tensor([2, 0, -1])


@EACH_WINDOW
def test_evaluation_is_idnp_asked_by_hand(window):
    """Asked by hand: about the newest events that there are, their lags and the time, seeing everything."""
    model = made(window).eval()
    plain = IDNP(V, U, window=window, **options).double().eval()
    plain.load_state_dict(model.state_dict())
    hist, times, query_time, user = data()
    found = model(hist, times, query_time, user)
    o = observations(hist, times, window)
    w = hist[:, None, -window:]
    g = (query_time[:, None] - times[:, -window:])[:, None] * (w > 0)
    mask = torch.ones(3, 1, H - 1)
    out = plain(user, o.w, o.g, o.tau, o.y, mask, w, g, query_time[:, None])
    torch.testing.assert_close(found.output[:, -1:], out.output)
    torch.testing.assert_close(scores(found), scores_of_all(out)[:, 0])
    assert found.penalty[:, -1].detach().numpy() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("kind", ["w2", "kl"])
def test_training_is_idnps_objective(kind):
    model = made(kind=kind, strength=0.7)
    plain = IDNP(V, U, **options).double()
    plain.load_state_dict(model.state_dict())
    hist, times, query_time, user = data()
    torch.manual_seed(5)
    out = model(hist, times, query_time, user)
    target = torch.cat([hist[:, 1:] * (hist[:, :-1] > 0), torch.zeros(3, 1, dtype=torch.long)], 1)
    each = (next_item_loss(out, target) + out.penalty) * (target > 0)
    o = observations(hist, times)
    mask = visible(o.position, o.position).expand(3, -1, -1)
    torch.manual_seed(5)
    by_hand = plain(user, o.w, o.g, o.tau, o.y, mask, o.w, o.g, o.tau)
    expected = objective(by_hand, o.y, kind=kind, strength=0.7)
    torch.testing.assert_close(each.sum() / (target > 0).sum(), expected)
    distance = 0.7 * divergence(by_hand.posterior, by_hand.prior, kind)
    torch.testing.assert_close(out.penalty[:, :-1], distance)


@EACH_WINDOW
def test_no_query_sees_its_answer_and_all_others_do(window):
    """With z of what a query sees; in training z is of everything, which the penalty is there for."""
    model = made(window).eval()
    hist, times, query_time, user = data()
    before = model.predict(hist, times, query_time, user, H).output[0]
    for j in range(1, H):
        other = hist.clone()
        other[0, j] = 1 + other[0, j] % V
        after = model.predict(other, times, query_time, user, H).output[0]
        same = (after == before).all(-1)
        assert same[j - 1]
        # Of earlier queries, those see event j that lie far enough before it.
        assert not same[j:].any()


@pytest.mark.parametrize("train", [False, True])
def test_the_last_query_does_not_depend_on_how_many_are_asked(train):
    model, inputs = made().train(train), data()
    torch.manual_seed(3)
    several = model.predict(*inputs, H)
    torch.manual_seed(3)
    one = model.predict(*inputs, 1)
    torch.testing.assert_close(several.output[:, -1:], one.output)
    torch.testing.assert_close(several.prior.mu[:, -1:], one.prior.mu)


def test_late_times_keep_their_lags():
    model, (hist, times, query_time, user) = made().float().eval(), data()
    late = (hist, (times + 2.0**22) * (hist > 0), query_time + 2.0**22, user)
    a, b = model(hist, times, query_time, user), model(*late)
    torch.testing.assert_close(a.output, b.output, rtol=0, atol=1e-4)


def test_parameters_are_idnps():
    assert set(made().state_dict()) == set(IDNP(V, U, **options).state_dict())
    local = [k for k in made().state_dict() if k.startswith("user.")]
    assert local == ["user.E_u"]
    without = SequenceIDNP(V, H, **options)
    assert "user.E_u" not in without.state_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"history": 1}, "history: must be 2 or more, got 1"),
        ({"kind": "l2"}, "kind: must be one of w2, kl, got 'l2'"),
        ({"strength": -1}, "strength: must be 0 or more, got -1"),
        ({"users": 0}, "users: must be 1 or more, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(ClientError) as caught:
        SequenceIDNP(**{"items": V, "history": H, **wrong})
    assert str(caught.value) == message


def test_a_history_of_one_event_column_is_refused():
    inputs = (torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1), torch.ones(1), torch.zeros(1).long())
    with pytest.raises(ClientError, match=r"^history: must have 2 events or more, got 1$"):
        made()(*inputs)


# --- the specification's synthetic problem ---------------------------------------------------------


def trained(make, items, times, seed, epochs):
    """Test HR@10 and NDCG@10 at the epoch of the best validation HR@10.

    Trained on events 0..19, validated on 20 and tested on 24, each time with all events before.
    """
    torch.manual_seed(seed)
    users = torch.arange(len(items))
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(items) // 64))
    after_last = torch.zeros(len(items), 1, dtype=torch.long)  # what came next is not told in training
    hist, when, target = items[:, :20], times[:, :20], torch.cat([items[:, 1:20], after_last], 1)

    def measure(event):
        with torch.no_grad():
            out = model.eval()(items[:, :event], times[:, :event], times[:, event], users)
        model.train()
        return hits(scores(out)[:, None], items[:, event])

    best = (-1.0, (0.0, 0.0))
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(items)).split(64):
            out = model(hist[rows], when[rows], times[rows, 20], rows)
            each = next_item_loss(out, target[rows]) + out.penalty
            optimizer.zero_grad()
            each[:, :-1].mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        if epoch % 4 == 0:
            best = max(best, (measure(20)[0], measure(24)))
    return best[1]


CONTESTANTS = {
    "idnp": (partial(SequenceIDNP, 240, 24, 1000, width=32, latent=32), 24),
    "gru4rec": (partial(GRU4Rec, 240, 24, width=32, hidden=64), 40),
    "sasrec": (partial(SASRec, 240, 24, width=32), 40),
    "sasrec with time": (partial(SASRec, 240, 24, width=32, time=True), 40),
}


@pytest.mark.slow
def test_synthetic_problem_with_baselines():
    """Section 7.2, of which the means over seeds 0, 1 and 2 are meant; here is seed 0."""
    items, times, _ = g1(1000, seed=0)
    found = {}
    for name, (make, epochs) in CONTESTANTS.items():
        found[name], _ = trained(make, items, times.double(), 0, epochs)
    print(found)
    assert found["idnp"] >= 0.55
    assert found["idnp"] >= max(found["gru4rec"], found["sasrec"]) + 0.30
    assert found["idnp"] >= found["sasrec with time"] - 0.02
