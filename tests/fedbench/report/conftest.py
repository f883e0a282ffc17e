"""Summaries as a run leaves them, made up: what the tests of the report share."""

import copy
import json
import statistics

import numpy as np
import pytest

ENVIRONMENT = {"python": "3.11.7", "cpus": 2, "gpus": [], "packages": {"torch": "2.4.0"}}


def point(server_round, domains, clients, val):
    """An evaluation; scores in 0..1."""
    return {
        "round": server_round,
        "domains": domains,
        "avg": statistics.fmean(domains.values()),
        "std": statistics.pstdev(domains.values()),
        "references": {},
        "clients": clients,
        "mean_client": statistics.fmean(clients.values()) if clients else None,
        "worst_client": min(clients.values()) if clients else None,
        "val": val,
        "virtual_seconds": None,
    }


def made_up(label="fedavg", seed=0, domains=(0.5, 0.7), **changes):
    """A run of 4 rounds that climbs by a tenth a round to these scores; two clients a domain."""
    names = [f"d{i}" for i in range(len(domains))]
    history = []
    for server_round in (1, 2, 3, 4):
        scores = {n: v - 0.1 * (4 - server_round) for n, v in zip(names, domains, strict=True)}
        clients = {str(2 * i + j): scores[n] + 0.02 * j for i, n in enumerate(names) for j in (0, 1)}
        history.append(point(server_round, scores, clients, scores[names[0]]))
    whole = {
        "status": "completed",
        "label": label,
        "seed": seed,
        "choices": {"data": "digits", "scenario": "iid", "strategy": label, "client": "mlp", "engine": "ray"},
        "settings": {"rounds": 4, "client.lr": 0.1, "scenario.clients": 4, "data.root": "${oc.env:X}"},
        "task": "classification",
        "headline": "accuracy",
        "higher_is_better": True,
        "personal": False,
        "rounds": 4,
        "split": [{"domain": n, "rows": 50} for n in names for _ in (0, 1)],
        "notes": {},
        "final": history[-1],
        "last_5": history[-1],
        "best_validation": history[-1],
        "history": [{k: p[k] for k in ("round", "avg", "val", "virtual_seconds")} for p in history],
        "bytes": {
            "train": {"down": 3_000_000, "up": 1_000_000},
            "query.statistics": {"down": 0, "up": 2_000_000},
            "evaluate": {"down": 7_000_000, "up": 7},
        },
        "failures": 0,
        "lost": {"dropout": 0, "deadline": 0, "surplus": 0},
        "virtual_seconds": None,
        "timing": {"start": 0.5, "prepare": 1.0, "total": 5.5},
    }
    return json.loads(json.dumps(whole | changes))  # no two parts are one object


@pytest.fixture(name="made_up")
def _made_up():
    return made_up


@pytest.fixture
def write(tmp_path):
    """Write summaries as run directories, numbered in their order; returns the folder that holds them."""

    def written(*summaries):
        for number, summary in enumerate(summaries):
            directory = tmp_path / "runs" / f"{number:03d}"
            directory.mkdir(parents=True)
            (directory / "config.yaml").write_text("rounds: 4\n")
            (directory / "summary.json").write_text(json.dumps(summary))
            (directory / "environment.json").write_text(json.dumps(ENVIRONMENT))
        return tmp_path / "runs"

    return written


def sweep(base, methods, scenarios, seeds, rng=None):
    """Copies of a run, a method better than the one before, with seeded noise on all scores."""
    rng = rng or np.random.default_rng(0)
    runs = []
    for number, scenario in enumerate(scenarios):
        for seed in range(seeds):
            luck = rng.normal(0, 0.02)
            for place, method in enumerate(methods):
                run = copy.deepcopy(base)
                run |= {"label": method, "seed": seed}
                run["choices"] |= {"strategy": method, "scenario": scenario}
                shift = 0.015 * place - 0.03 * number + luck
                for part in (run["final"], run["best_validation"], run["last_5"], *run["history"]):
                    shake(part, shift, rng)
                run["bytes"]["train"]["up"] = int(run["bytes"]["train"]["up"] * (1 + 0.2 * place))
                run["timing"]["total"] *= 1 + 0.1 * place + rng.uniform(0, 0.05)
                runs.append(run)
    return runs


def shake(part, shift, rng):
    """Move the scores of an evaluation, each by a little more."""

    def moved(value):
        return min(0.99, max(0.01, value + shift + rng.normal(0, 0.01)))

    for key in ("avg", "mean_client", "worst_client"):
        if part.get(key) is not None:
            part[key] = moved(part[key])
    for key in ("domains", "clients"):
        if part.get(key):
            part[key] = {k: moved(v) for k, v in part[key].items()}


@pytest.fixture(name="sweep")
def _sweep():
    return sweep
