"""A part of the model that stays with the client: on quadratics, parts do not know of each other."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from quadratic import SERVER, SOME, four_clients, two_clients
from torch import nn

from strategies import (
    APFLRule,
    DittoRule,
    FedAvgFT,
    FedDyn,
    FedNova,
    FedPer,
    FedProxRule,
    FedSAM,
    KeepLocal,
    LocalRule,
    Scaffold,
    StrategyError,
    local_names,
)
from strategies.arrays import record
from strategies.client import KEPT, train_client
from strategies.cohort import CohortTrainer, Member
from strategies.functional import Stateless
from strategies.local import Round

HEAD = frozenset({"head.w"})
METHODS = {
    "fedavg": (FedAvg, LocalRule, {}),
    "fedprox": (FedProx, FedProxRule, {"proximal_mu": 0.5}),
    "fedadam": (FedAdam, LocalRule, {"eta": 0.1}),
    "scaffold": (Scaffold, None, {"server_lr": 0.7}),
    "feddyn": (FedDyn, None, {}),
    "fednova": (FedNova, None, {}),
}


def without_head(case):
    """The case, whose server has never seen the head."""
    body = {"body.w": case.module().body.w.detach()}
    case.initial = lambda: record(body)
    return case


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chosen", [None, SOME], ids=["all", "some"])
def test_what_is_shared_goes_the_way_that_it_goes_without_a_local_part(name, chosen):
    server, half, options = METHODS[name]
    rule = (half or server.client_half)()
    whole, _ = four_clients().run(server(**SERVER, **options), rule, chosen=chosen)
    case = without_head(four_clients())
    shared, grid = case.run(server(**SERVER, **options), KeepLocal(rule, HEAD), chosen=chosen)
    np.testing.assert_allclose(shared, whole[:, :2], rtol=0, atol=1e-10)
    for client in range(4):
        alone = case.start
        for present in chosen or [range(4)] * 3:
            alone = case.sgd(client, alone) if client in present else alone
        if any(client in present for present in chosen or [range(4)]):
            kept = grid.state_of(client)[KEPT]["local/head.w"]
            np.testing.assert_allclose(kept.numpy(), alone[2:], rtol=0, atol=1e-10)


def test_the_head_kept_under_fedavg_is_fedper():
    rule = KeepLocal(LocalRule(), HEAD)
    case = without_head(two_clients())
    strategy = FedAvg(**SERVER)
    ours, grid = case.run(strategy, rule)
    other = two_clients()
    fedper, fedper_grid = other.run(FedPer(**SERVER))
    np.testing.assert_array_equal(ours, fedper[:, :2])
    for client in range(2):
        mine = case.predicted(strategy, grid, client)
        np.testing.assert_array_equal(mine, other.predicted(FedPer(**SERVER), fedper_grid, client))


def test_a_method_that_fine_tunes_tunes_the_local_part_too():
    case = without_head(two_clients())
    strategy = FedAvgFT(**SERVER)
    rule = KeepLocal(strategy.client_half(), HEAD)
    assert rule.fine_tunes
    assert rule.name == "FedAvgFTRule"
    _, grid = case.run(strategy, rule, rounds=1)
    head = grid.state_of(0)[KEPT]["local/head.w"].numpy()
    assert (case.predicted(strategy, grid, 0)[2:] != head).all()


def test_a_cohort_moves_as_its_clients_alone():
    module = nn.Sequential()
    module.add_module("body", nn.Linear(3, 4))
    module.add_module("head", nn.Linear(4, 2))
    module.double()
    rule, model = KeepLocal(FedSAM.client_half(), frozenset({"head.weight"})), Stateless(module)
    rng = torch.Generator().manual_seed(0)
    members = []
    for _ in range(3):
        data = {"x": torch.randn(8, 3, generator=rng).double(), "weight": torch.ones(8).double()}
        now = Round(
            model,
            lambda output, batch: (output**2).mean() + 0 * batch["weight"].sum(),
            model.initial(),
            model.trainable,
            model.head,
            data=data,
            steps=4,
            lr=0.1,
            config={"fedsam-rho": 0.1},
        )
        kept = {k: torch.randn(v.shape, generator=rng).double() for k, v in rule.keep(now.received).items()}
        members.append(Member(Round(**{**vars(now), "kept": kept}), [np.arange(4), np.arange(4, 8)] * 2))
    together = CohortTrainer(rule).train(members)
    for i, member in enumerate(members):
        params, _ = train_client(rule, member.round, member.plan)
        alone = rule.end(params, member.round)
        assert set(alone.arrays) == set(model.shared) - {"head.weight"}
        for name, values in {**alone.arrays, **alone.kept}.items():
            got = (together.of(i).arrays | together.of(i).kept)[name]
            torch.testing.assert_close(got, values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [DittoRule, APFLRule])
def test_methods_with_several_models_in_a_client_are_refused(rule):
    with pytest.raises(StrategyError, match=f"^{rule.__name__} trains several models"):
        KeepLocal(rule(), HEAD)


def test_patterns_name_parts_of_the_model():
    names = ["user.E", "co.Wl.weight", "co.g", "items.E"]
    assert local_names(names, ["user.*", "*.g"]) == {"user.E", "co.g"}
    assert local_names(names, []) == frozenset()
    with pytest.raises(StrategyError, match=r"no part of the model is called 'users\.\*'; it has"):
        local_names(names, ["users.*"])


def test_a_client_refuses_the_wrong_server_as_without_it():
    """The name that replies carry is the method's, so that the two halves still find each other."""
    assert KeepLocal(Scaffold.client_half(), HEAD).name == "ScaffoldRule"
    assert KeepLocal(LocalRule(), HEAD).name == "LocalRule"
