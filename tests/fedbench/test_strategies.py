"""Every method that can be chosen trains, says something, and survives an interruption to the bit."""

import json
import math

import pytest

from fedbench.config.compose import choices, plan
from fedbench.errors import UserError
from fedbench.run import Run, resume, run

STRATEGIES = sorted(choices("strategy"))
SETTING = ["data=digits", "scenario=label_domain_skew", "client.steps=5", "rounds=3"]
SYSTEM = ["system=stragglers", "strategy.concurrency=3"]
NEEDS = {
    "fedbn": ["client.model.norm=batch"],
    "fedasync": SYSTEM,
    "fedbuff": [*SYSTEM, "strategy.buffer=2"],
}
"""What a method needs beyond the default."""


def config_of(strategy, *more, engine="serial"):
    (config,) = plan([*SETTING, f"strategy={strategy}", f"engine={engine}", *NEEDS.get(strategy, []), *more])
    return config


def interrupted(config, path, monkeypatch, after=2):
    """A run that a person stops in the middle of the round that follows ``after``."""
    one_round = Run._one_round

    def stopped(self, grid, arrays):
        arrays = one_round(self, grid, arrays)
        if self._round > after:
            raise KeyboardInterrupt
        return arrays

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_one_round", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config, path)


def told(summary):
    """What a summary tells, less what depends on the clock and on sending GGEUR's geometry again."""
    again = "query."
    return {
        key: {k: v for k, v in value.items() if not k.startswith(again)} if isinstance(value, dict) else value
        for key, value in summary.items()
        if key != "timing"
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_method_trains_and_goes_on_after_an_interruption_as_if_there_had_been_none(
    strategy, tmp_path, monkeypatch
):
    config = config_of(strategy)
    whole = run(config, tmp_path / "whole")
    assert whole["status"] == "completed"
    assert set(whole["final"]["domains"]) == {"scanned", "inverted", "blurred", "textured"}
    assert all(math.isfinite(loss) for loss in whole["final"]["loss"].values())
    assert math.isfinite(whole["client_metrics"]["train/train_loss"])
    interrupted(config, tmp_path / "parts", monkeypatch)
    assert json.loads((tmp_path / "parts/summary.json").read_text())["status"] == "failed"
    assert told(resume(tmp_path / "parts")) == told(whole)
    lines = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    rows = [[line for line in each if '"query.' not in line] for each in lines]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"ggeur"}))
def test_ggeur_goes_around_it(strategy, tmp_path):
    config = config_of(
        strategy, "align=ggeur", "align.own=60", "align.foreign=5", "client.steps=2", "rounds=1"
    )
    summary = run(config, tmp_path / "run")
    assert (summary["status"], summary["label"]) == ("completed", f"{strategy}+ggeur")
    assert summary["client_metrics"]["query.ggeur_deliver/ggeur_synthetic"] > 100


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("strategy", ["scaffold", "ggeur"])
def test_a_run_on_ray_goes_on_too(strategy, tmp_path, monkeypatch):
    config = config_of(strategy, engine="ray")
    interrupted(config, tmp_path / "parts", monkeypatch, after=2)
    assert resume(tmp_path / "parts")["weights_sha256"] == run(config, tmp_path / "whole")["weights_sha256"]


def test_what_cannot_go_on_says_why(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no run"):
        resume(tmp_path)
    config = config_of("fedavg")
    run(config, tmp_path / "whole")
    with pytest.raises(UserError, match=r"the run is complete"):
        resume(tmp_path / "whole")
    interrupted(config, tmp_path / "early", monkeypatch, after=0)
    with pytest.raises(UserError, match=r"no checkpoint to go on from"):
        resume(tmp_path / "early")


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    interrupted(config_of("scaffold"), tmp_path / "parts", monkeypatch)
    (path,) = (tmp_path / "parts/checkpoint").glob("round-000002-state.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"round-000002-state.safetensors: does not match its checksum"):
        resume(tmp_path / "parts")
