"""The files of a run: whole or absent, checked, and readable without pickle."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from fedbench.errors import UserError
from fedbench.results.run_dir import (
    RunDirectory,
    environment,
    find_runs,
    load_weights,
    read_summary,
    weights_digest,
)


def weights(value):
    return {"w": np.full((2, 3), value, np.float32), "b": np.arange(3, dtype=np.float64) + value}


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory(tmp_path / "run", "seed: 3\n")
    yield made
    made.close()


def test_a_new_directory_says_what_runs_and_where(directory):
    assert (directory.path / "config.yaml").read_text() == "seed: 3\n"
    written = json.loads((directory.path / "environment.json").read_text())
    assert written == environment()
    assert {"fedbench", "flwr", "torch", "ray"} <= written["packages"].keys()
    assert "not installed" not in written["packages"].values()
    assert not list(directory.path.rglob("*.tmp"))


def test_a_directory_that_holds_a_run_is_refused(directory):
    with pytest.raises(UserError, match="already holds a run; choose another directory"):
        RunDirectory(directory.path, "seed: 4\n")
    assert (directory.path / "config.yaml").read_text() == "seed: 3\n"


def test_rows_can_be_read_before_the_run_is_over(directory):
    row = {"round": 1, "phase": "train", "scope": "client", "node": 0, "metric": "loss", "value": 0.25}
    directory.record([row])
    directory.record(iter([row | {"node": 1}, row | {"node": 2}]))
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row, row | {"node": 1}, row | {"node": 2}]


def test_two_checkpoints_are_kept_and_hold_the_weights(directory):
    for server_round in (1, 2, 9, 10, 100):
        directory.checkpoint(server_round, weights(server_round))
        assert len(list((directory.path / "checkpoint").iterdir())) <= 4
    assert sorted(p.name for p in (directory.path / "checkpoint").iterdir()) == [
        "round-000010.json", "round-000010.safetensors", "round-000100.json", "round-000100.safetensors",
    ]  # fmt: skip
    for server_round in (10, 100):
        path = directory.path / f"checkpoint/round-{server_round:06d}.safetensors"
        for found in (load_weights(path), load(path.read_bytes())):
            assert found.keys() == weights(0).keys()
            for name, expected in weights(server_round).items():
                assert found[name].dtype == expected.dtype
                np.testing.assert_array_equal(found[name], expected)
        assert json.loads(path.with_suffix(".json").read_text())["round"] == server_round


def test_weights_that_are_views_are_stored_as_they_look(directory):
    view = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    directory.checkpoint(1, {"view": view})
    found = load_weights(directory.path / "checkpoint/round-000001.safetensors")
    np.testing.assert_array_equal(found["view"], view)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda _: b""])
def test_a_damaged_checkpoint_is_refused(directory, damage):
    directory.checkpoint(3, weights(1))
    path = directory.path / "checkpoint/round-000003.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"round-000003\.safetensors: does not match its checksum"):
        load_weights(path)


def test_a_checkpoint_without_its_checksum_is_refused(directory):
    directory.checkpoint(3, weights(1))
    path = directory.path / "checkpoint/round-000003.safetensors"
    path.with_suffix(".json").write_text('{"round": 3')
    with pytest.raises(UserError, match=r"round-000003\.json: is not valid JSON"):
        load_weights(path)
    path.with_suffix(".json").write_text('{"round": 3}')
    with pytest.raises(UserError, match="does not match its checksum"):
        load_weights(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"round-000003\.json: is not there"):
        load_weights(path)


def test_a_write_that_fails_leaves_the_old_file(directory, monkeypatch):
    directory.summarise({"status": "completed"})
    with pytest.raises(TypeError):
        directory.summarise({"status": object()})
    assert read_summary(directory.path) == {"status": "completed"}


def test_the_digest_tells_every_difference():
    base = weights(1.0)
    assert weights_digest(base) == weights_digest(dict(reversed(base.items())))
    off = {k: v.copy() for k, v in base.items()}
    off["w"][1, 2] = np.nextafter(np.float32(1.0), np.float32(2.0))
    assert weights_digest(off) != weights_digest(base)
    assert weights_digest({"v": base["w"], "b": base["b"]}) != weights_digest(base)
    assert weights_digest({"w": base["w"].T, "b": base["b"]}) != weights_digest(base)
    assert weights_digest({"w": base["w"].view(np.int32), "b": base["b"]}) != weights_digest(base)


def test_runs_are_found_at_or_below_a_path_once(tmp_path):
    for name in ("b/001", "b/000", "a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps({"name": name}))
    found = find_runs([tmp_path / "b", tmp_path / "a", str(tmp_path / "b/000")])
    assert [read_summary(path)["name"] for path in found] == ["b/000", "b/001", "a"]


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_where_there_are_no_runs(tmp_path, path):
    with pytest.raises(UserError, match="holds no finished run" if not path else "no such directory"):
        find_runs([tmp_path / path])
    with pytest.raises(UserError, match=r"holds no summary\.json; give the directory of a finished run"):
        read_summary(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not valid JSON"), ("[]", "is not one of fedbench's files")]
)
def test_a_summary_that_cannot_be_read(tmp_path, text, said):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_summary(tmp_path)
