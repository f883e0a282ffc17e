"""The methods to choose from: of each, the half for the server and the half for the clients."""

from __future__ import annotations

from functools import partial

from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from strategies import GGEUR, FedProxRule, LocalRule, Scaffold, ScaffoldRule

HALVES = {
    "fedavg": (FedAvg, LocalRule),
    "fedprox": (partial(FedProx, proximal_mu=0.1), FedProxRule),
    "scaffold": (Scaffold, ScaffoldRule),
}


def server_half(method: str, nodes: int, fraction_evaluate: float) -> Strategy:
    """Strategy of a method for ``nodes`` nodes, all of which train in every round."""
    # FedAvg counts nodes before they have all connected, so that a fraction of 1 alone is not enough.
    wait = {f"min_{what}_nodes": nodes for what in ("train", "evaluate", "available")}
    strategy = HALVES[_base(method)][0](fraction_evaluate=fraction_evaluate, **wait)
    return GGEUR(strategy) if method.endswith("ggeur") else strategy


def client_half(method: str) -> LocalRule:
    """Rule by which the clients of a method train; GGEUR's clients change what they train on instead."""
    return HALVES[_base(method)][1]()


def _base(method: str) -> str:
    return method.removesuffix("ggeur").removesuffix("+") or "fedavg"
