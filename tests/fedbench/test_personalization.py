"""Clients that personalise before they predict, and clients that have never trained."""

import json

import numpy as np
import pytest
from test_strategies import interrupted, told

from fedbench.bench import build
from fedbench.config.compose import plan
from fedbench.report.new_client_table import new_client_table
from fedbench.run import resume, run

SMALL = [
    "data=digits",
    "scenario=label_domain_skew",
    "scenario.alpha=0.5",
    "scenario.clients_per_domain=4",
    "client.steps=4",
    "rounds=3",
    "engine=serial",
]


def config_of(*more):
    return plan([*SMALL, *more])[0]


def test_new_clients_take_no_part_and_are_shown_the_model(tmp_path):
    config = config_of("strategy=fedavg", "new_clients=0.25", "client.task.calibration=true")
    bench = build(config)
    assert len(bench.spec.new) == 4
    summary = run(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    trained = {row["node"] for row in lines if (row["phase"], row["scope"]) == ("train", "client")}
    assert trained == set(range(16)) - bench.spec.new
    assert not {int(node) for node in summary["final"]["clients"]} & bench.spec.new
    scores = summary["final"]["new_clients"]
    assert list(scores) == ["0", "1", "5", "20"]
    # FedAvg does not personalise, so that support is of no use.
    assert scores["0"] == scores["20"]
    assert set(scores["0"]) == {"accuracy", "loss", "ece", "reliability"}
    bins = scores["0"]["reliability"]
    tested = sum(len(bench.spec.splits[node].test) for node in bench.spec.new)
    assert sum(bins["rows"]) == tested
    assert all(
        lower < c <= lower + 1 / 15
        for lower, c in zip(np.arange(15) / 15, bins["confidence"], strict=True)
        if c
    )
    gaps = [abs(a - c) * n for n, c, a in zip(*bins.values(), strict=True) if n]
    assert sum(gaps) / tested == pytest.approx(scores["0"]["ece"])


@pytest.mark.parametrize("own", ["strategy=ditto", "personalization=finetune", "personalization=niw"])
def test_the_global_model_is_tested_on_the_same_rows_as_the_clients_own(own, tmp_path):
    """Ditto and fine-tuning leave FedAvg's model as it is."""
    plain = run(config_of("strategy=fedavg"), tmp_path / "plain")["final"]
    told = run(config_of("strategy=fedavg", own), tmp_path / "own")["final"]
    assert plain["global"] is None
    assert told["global"]["clients"].keys() == told["clients"].keys()
    assert told["global"]["clients"] != told["clients"]
    if "niw" not in own:
        assert told["global"]["clients"] == plain["clients"]
        assert told["global"]["mean_client"] == plain["mean_client"]


def test_the_global_model_is_tested_on_all_domains_of_a_client(tmp_path):
    mixed = ["data=digits", "scenario=label_skew", "scenario.clients=4", "client.steps=4", "rounds=2"]
    plain, own = (
        run(plan([*mixed, "engine=serial", f"strategy={name}"])[0], tmp_path / name)["final"]
        for name in ("fedavg", "ditto")
    )
    assert own["global"]["clients"] == plain["clients"]
    assert own["global"]["domains"].keys() == own["domains"].keys()


def test_there_is_no_global_model_where_heads_stay_with_clients(tmp_path):
    assert run(config_of("strategy=fedper"), tmp_path / "run")["final"]["global"] is None


def test_new_clients_do_not_change_what_others_do_but_by_their_absence(tmp_path):
    """Without them, the model is the one that the others make."""
    with_new = run(config_of("strategy=fedavg", "new_clients=0.25"), tmp_path / "with")
    other_support = run(config_of("strategy=fedavg", "new_clients=0.25", "support=[3]"), tmp_path / "other")
    assert with_new["weights_sha256"] == other_support["weights_sha256"]
    assert with_new["weights_sha256"] != run(config_of("strategy=fedavg"), tmp_path / "all")["weights_sha256"]


def test_a_new_client_of_a_method_with_models_of_their_own_trains_a_round_on_its_rows(tmp_path):
    """Ditto without its pull is training alone from the global model, so fine-tuning of FedAvg's."""
    rows = ["new_clients=0.25", "support=[0,8]"]
    alone = run(config_of(*rows, "strategy=ditto", "strategy.lam=0"), tmp_path / "ditto")
    tuning = ["strategy=fedavg", "personalization=finetune", "personalization.rule.steps=4"]
    tuned = run(config_of(*rows, *tuning), tmp_path / "tuned")
    found, expected = (s["final"]["new_clients"] for s in (alone, tuned))
    assert found["0"]["loss"] == pytest.approx(expected["0"]["loss"], rel=1e-6)
    assert found["8"]["loss"] == pytest.approx(expected["8"]["loss"], rel=1e-5)
    assert found["8"]["loss"] != pytest.approx(found["0"]["loss"], rel=1e-3)


@pytest.mark.parametrize("strategy", ["fedrep", "apfl", "local_only", "pfedme", "fedproto"])
def test_what_a_client_keeps_is_learnt_from_its_support(strategy, tmp_path):
    scores = run(config_of(f"strategy={strategy}", "new_clients=0.25", "support=[0,20]"), tmp_path / "run")
    found = scores["final"]["new_clients"]
    assert found["20"]["loss"] != pytest.approx(found["0"]["loss"], rel=1e-4)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedper", "ditto"])
def test_fine_tuning_follows_any_method(strategy, tmp_path):
    common = [f"strategy={strategy}", "new_clients=0.25"]
    tuned = run(
        config_of(*common, "personalization=finetune", "personalization.rule.steps=10"), tmp_path / "tuned"
    )
    plain = run(config_of(*common), tmp_path / "plain")
    assert tuned["personal"]
    assert tuned["weights_sha256"] == plain["weights_sha256"]  # it changes predictions alone
    new, before = tuned["final"]["new_clients"], plain["final"]["new_clients"]
    assert new["0"] == before["0"]  # without rows there is nothing to tune on
    assert new["20"]["loss"] != before["20"]["loss"]
    assert tuned["final"]["clients"] != plain["final"]["clients"]


def test_fine_tuned_fedavg_is_fedavg_ft(tmp_path):
    """Where steps and epochs are the same: a batch has all rows."""
    common = ["client.batch_size=1000", "scenario.clients_per_domain=1"]
    own = run(config_of("strategy=fedavg_ft", "strategy.epochs=3", *common), tmp_path / "own")
    wrapped = ["strategy=fedavg", "personalization=finetune", "personalization.rule.steps=3"]
    around = run(config_of(*wrapped, *common), tmp_path / "around")
    assert own["final"]["clients"] == around["final"]["clients"]


def test_a_run_with_new_clients_goes_on_after_an_interruption(tmp_path, monkeypatch):
    config = config_of(
        "strategy=fedavg", "personalization=finetune", "new_clients=0.25", "clients_per_round=5"
    )
    whole = run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "parts", monkeypatch)
    assert told(resume(tmp_path / "parts")) == told(whole)


def test_the_table_has_a_line_for_each_method_and_support(tmp_path):
    runs = [
        run(
            config_of("strategy=fedavg", "new_clients=0.25", "rounds=1", f"seed={seed}"), tmp_path / str(seed)
        )
        for seed in range(2)
    ]
    table = new_client_table(runs)
    assert [column.header for column in table.columns] == ["method", "rows", "accuracy", "loss"]
    assert table.row_count == 4
    mean = np.mean([100 * r["final"]["new_clients"]["5"]["accuracy"] for r in runs])
    assert list(table.columns[2].cells)[2].startswith(f"{mean:.2f} ± ")
    assert new_client_table([run(config_of("strategy=fedavg", "rounds=1"), tmp_path / "none")]) is None


@pytest.mark.parametrize("name", ["niw", "fedhb"])
def test_a_prior_is_learnt_kept_and_used(name, tmp_path, monkeypatch):
    config = config_of("strategy=fedprox", f"personalization={name}", "new_clients=0.25")
    whole = run(config, tmp_path / "whole")
    assert (whole["label"], whole["personal"]) == (f"fedprox+{name}", True)
    assert any(key.startswith("niw_") for key in whole["diagnostics"])
    scores = whole["final"]["new_clients"]
    assert scores["20"]["loss"] < scores["0"]["loss"]
    interrupted(config, tmp_path / "parts", monkeypatch)
    assert told(resume(tmp_path / "parts")) == told(whole)


def test_two_workers_learn_the_same_prior(tmp_path):
    common = ["strategy=fedavg", "personalization=niw", "new_clients=0.25", "engine.cohort=1"]
    (parallel,) = plan([*SMALL[:-1], "engine=ray", "engine.workers=2", *common])
    serial = run(config_of(*common), tmp_path / "serial")
    assert run(parallel, tmp_path / "ray")["final"] == serial["final"]
