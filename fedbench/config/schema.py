"""The typed top level of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class RunConfig:
    """One run. Groups are checked against the signature of the class that they name.

    Parameters
    ----------
    scenario, data, features, client, align, strategy, personalization, attack, privacy, system, engine,
    tracker
        Config groups; ``fedbench list`` shows the choices.
    rounds : int
        Federated rounds.
    seed : int
        Seed of the split, the initial weights, the batches and every other draw.
    clients_per_round : int or None
        Clients that train in a round, drawn anew each time; ``None`` is all.
    eval_every : int
        Rounds between evaluations; the last round is always evaluated.
    eval_clients : int or None
        Clients that test on their own rows in an evaluation, drawn anew each time; ``None`` is all, 0 none.
        The global model is tested on the domains' rows all the same.
    new_clients : float
        Share of the clients that take no part in training, and are shown the model afterwards.
    support : list of int
        Numbers of own rows from which new clients personalise the model, each in turn.
    patience : int or None
        Evaluations without a better result on validation rows after which a run stops; ``None`` is never.
    max_failures : float
        Share of a round's clients that may fail before the run stops.
    fast : bool
        What presets under ``experiment`` make smaller for a CPU.
    profile : bool
        Write where the rounds' time went, and a trace that chrome://tracing opens.
    run_dir : str or None
        Directory of the run; ``None`` makes one under ``runs/``.
    cache_dir : str
        Directory of cached features.
    sweep : dict
        Axes to run the product of, unless the command line sets them.
    """

    scenario: Any = MISSING
    data: Any = MISSING
    features: Any = MISSING
    client: Any = MISSING
    align: Any = MISSING
    strategy: Any = MISSING
    personalization: Any = MISSING
    attack: Any = MISSING
    privacy: Any = MISSING
    system: Any = MISSING
    engine: Any = MISSING
    tracker: Any = MISSING
    rounds: int = 20
    seed: int = 0
    clients_per_round: int | None = None
    eval_every: int = 1
    eval_clients: int | None = None
    new_clients: float = 0.0
    support: list[int] = field(default_factory=lambda: [0, 1, 5, 20])
    patience: int | None = None
    max_failures: float = 0.0
    fast: bool = False
    profile: bool = False
    run_dir: str | None = None
    cache_dir: str = "${oc.env:FEDBENCH_CACHE,'~/.cache/fedbench'}"
    sweep: dict[str, Any] = field(default_factory=dict)
