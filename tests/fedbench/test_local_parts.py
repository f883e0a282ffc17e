"""Users' vectors that never leave their clients, and items averaged where they were met, in whole runs."""

import pytest
from test_strategies import interrupted, told

from fedbench.config.compose import plan
from fedbench.results.run_dir import load_checkpoint
from fedbench.run import resume, run

SMALL = [
    "data=interests",
    "data.markets=2",
    "data.users=30",
    "data.history=8",
    "scenario=domain_skew",
    "scenario.clients_per_domain=2",
    "client=idnp",
    "client.model.width=8",
    "client.model.latent=8",
    "client.model.heads=2",
    "client.steps=2",
    "client.batch_size=8",
    "rounds=3",
]


def config_of(*more, engine="serial"):
    return plan([*SMALL, f"engine={engine}", *more])[0]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedper", "fedrep", "fedavg_ft", "local_only"])
def test_users_vectors_stay_under_any_method(strategy, tmp_path, monkeypatch):
    config = config_of(f"strategy={strategy}")
    whole = run(config, tmp_path / "whole")
    assert whole["status"] == "completed"
    assert whole["personal"]
    assert set(whole["final"]["domains"]) == {"market_0", "market_1"}
    assert set(whole["final"]["references"]) == {"popularity", "own_frequency"}
    _, weights, state = load_checkpoint(tmp_path / "whole")
    assert "user.E_u" not in weights
    kept = [client["local-rule-kept"] for client in state["clients"].values()]
    assert len(kept) == 4
    assert all(any("local/user.E_u" in str(name) for name in client) for client in map(_names, kept))
    interrupted(config, tmp_path / "parts", monkeypatch)
    assert told(resume(tmp_path / "parts")) == told(whole)


def _names(record):
    """All keys in a nested record."""
    if not isinstance(record, dict):
        return []
    return [*record, *(name for value in record.values() for name in _names(value))]


def test_sharing_the_table_of_users_costs_bytes_and_changes_the_rest(tmp_path):
    kept = run(config_of("strategy=fedavg"), tmp_path / "kept")
    shared = run(config_of("strategy=fedavg", "client.local=[]"), tmp_path / "shared")
    assert not shared["personal"]
    rows = 15 * 8 * 4  # users of a client, features, bytes
    for way in ("up", "down"):
        assert shared["bytes"]["train"][way] - kept["bytes"]["train"][way] == pytest.approx(
            3 * 4 * rows, rel=0.2
        )


@pytest.mark.parametrize("engine", ["serial", "ray"])
def test_items_are_averaged_where_they_were_met(engine, tmp_path):
    config = config_of("strategy=fedadam_cosine", "client.seen_rows=[items.E]", engine=engine)
    summary = run(config, tmp_path / engine)
    assert summary["status"] == "completed"
    plain = run(config_of("strategy=fedadam_cosine"), tmp_path / "plain")
    assert plain["weights_sha256"] != summary["weights_sha256"]
    again = run(config_of("strategy=fedadam_cosine", "client.seen_rows=[items.E]"), tmp_path / "again")
    assert again["weights_sha256"] == summary["weights_sha256"]


def test_negatives_are_drawn_anew_in_each_round_and_alike_on_any_engine(tmp_path):
    sampled = ["strategy=fedavg", "client.task.negatives=3", "client.model.dropout=0"]
    serial = run(config_of(*sampled), tmp_path / "serial")
    assert serial["weights_sha256"] != run(config_of("strategy=fedavg"), tmp_path / "all")["weights_sha256"]
    ray = run(config_of(*sampled, engine="ray"), tmp_path / "ray")
    assert ray["weights_sha256"] == serial["weights_sha256"]
