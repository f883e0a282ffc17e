"""Clients that train together end where they end one at a time, for every method and through a whole run."""

import numpy as np
import pytest

from fedbench.bench import build
from fedbench.config.compose import choices, plan
from fedbench.results.run_dir import load_weights
from fedbench.run import run
from strategies.method import may_merge

STRATEGIES = sorted(choices("strategy"))
SETTING = [
    "data=digits",
    "scenario=label_domain_skew",
    "client.steps=null",  # epochs, so that clients differ in their numbers of steps
    "rounds=3",
    "engine=serial",
]
SYSTEM = ["system=stragglers", "strategy.concurrency=3"]
NEEDS = {"fedbn": ["client.model.norm=layer"], "fedasync": SYSTEM, "fedbuff": [*SYSTEM, "strategy.buffer=2"]}

SENSITIVE = {"ccvr": 1e-3}
"""CCVR takes roots of covariances that are singular here, and the root of 1e-9 is 3e-5."""


def config_of(strategy, *more):
    return plan([*SETTING, f"strategy={strategy}", *NEEDS.get(strategy, []), *more])[0]


def outcome(path, *overrides):
    """Final weights, and the numbers that a run tells of its clients."""
    summary = run(config_of(*overrides), path)
    weights = load_weights(path / "checkpoint/round-000003.safetensors")
    said = "one at a time" in (path / "log.txt").read_text()
    return weights, summary, said


def assert_near(got, expected, tolerance):
    """Distance relative to length, for each tensor."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        distance = np.linalg.norm((got[key] - value).astype(np.float64))
        assert distance <= tolerance * np.linalg.norm(value), key


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_together_and_one_at_a_time_end_at_the_same_weights(strategy, tmp_path):
    alone, expected, _ = outcome(tmp_path / "alone", strategy, "engine.cohort=1")
    together, summary, gave_up = outcome(tmp_path / "together", strategy, "engine.cohort=32")
    assert not gave_up
    assert_near(together, alone, SENSITIVE.get(strategy, 1e-5))
    assert summary["bytes"] == expected["bytes"]
    for key, value in expected["client_metrics"].items():
        assert summary["client_metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


MERGING = [s for s in STRATEGIES if may_merge(build(config_of(s)).strategy)]


def test_strategies_say_whether_single_updates_matter():
    assert {"fedavg", "fedavgm", "fedprox", "moon", "fedbn"} <= set(MERGING)
    assert not {"fedadam", "scaffold", "feddyn", "fednova", "fedproto", "krum", "fedmedian", "fedbuff"} & set(
        MERGING
    )


@pytest.mark.parametrize("cohort", ["32", "1"])
@pytest.mark.parametrize("strategy", MERGING)
def test_partial_sums_change_nothing_but_the_last_digits(strategy, cohort, tmp_path):
    single, expected, _ = outcome(tmp_path / "single", strategy, f"engine.cohort={cohort}")
    merged, summary, _ = outcome(
        tmp_path / "merged", strategy, f"engine.cohort={cohort}", "engine.partial_sums=true"
    )
    assert_near(merged, single, SENSITIVE.get(strategy, 1e-6))
    assert summary["bytes"] == expected["bytes"]
    for key, value in expected["client_metrics"].items():
        assert summary["client_metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_what_partial_sums_cannot_do_is_said(tmp_path):
    weights, _, _ = outcome(tmp_path / "plain", "scaffold")
    asked, _, _ = outcome(tmp_path / "asked", "scaffold", "engine.partial_sums=true")
    assert_near(asked, weights, 0)
    assert "engine.partial_sums: of no effect, strategy=scaffold" in (tmp_path / "asked/log.txt").read_text()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["client.model.norm=batch"], "BatchNorm"),
        (["client=cnn", "client.model.norm=none", "features=none"], "convolutions"),
        (["privacy=dp_client_fixed", "client.weighting=uniform"], "mods of privacy="),
    ],
    ids=["batch norm", "convolution", "privacy"],
)
def test_clients_that_cannot_train_together_say_why(more, why, tmp_path):
    run(config_of("fedavg", *more, "rounds=1"), tmp_path / "run")
    (said,) = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if "at a time" in line]
    assert why in said
