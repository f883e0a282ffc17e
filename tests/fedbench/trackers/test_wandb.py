"""Weights & Biases offline, read back from the file that would be sent."""

import json
import struct
import time

import pytest

from fedbench.errors import UserError
from fedbench.trackers import figures, tracker_of

pytest.importorskip("wandb")
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32_768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


@pytest.fixture(autouse=True)
def _away_from_home(tmp_path, monkeypatch):
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def records(path):
    """What a run's file holds: a log of records, cut where a block ends."""
    data, at, record = path.read_bytes(), 7, b""
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left
            continue
        _, size, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        if at + size > len(data):  # still being written
            return
        record += data[at : at + size]
        at += size
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def only_run(directory):
    """A run's file and its records, once wandb's process has written all of them."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(400):
        found = list(records(path))
        if found and found[-1].HasField("exit"):
            break
        time.sleep(0.05)
    return path, found


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(found):
    told = {}
    for record in found:
        if record.HasField("history"):
            row = values(record.history.item)
            for name in row.keys() - {"round"}:
                if not name.startswith("_"):
                    told.setdefault(name, {})[row["round"]] = row[name]
    return told


def summary(found):
    told = {}
    for record in found:
        if record.HasField("summary"):
            told |= values(record.summary.update)
    return told


@pytest.mark.parametrize("clients", [False, True])
def test_every_number_is_there_at_its_round(finished, follow, choose, expected, clients):
    path, found = only_run(follow(choose("wandb", project="p", clients=clients)))
    assert history(found) == {name: pytest.approx(steps) for name, steps in expected(clients).items()}
    (run,) = (record.run for record in found if record.HasField("run"))
    assert (run.project, run.display_name) == ("p", "ggeur-digits")
    config = values(run.config.update)
    assert (config["rounds"], config["strategy"]["_target_"]) == (3, finished.config.strategy["_target_"])
    told = summary(found)
    assert told["status"] == "completed"
    assert {name: told[name] for name in figures(finished.summary)} == figures(finished.summary)
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]
    files = {file.name for file in (path.parent / "files").iterdir()}
    assert files >= {"summary.json", "split.png"}
    assert {r.metric.step_metric for r in found if r.HasField("metric") and r.metric.step_metric} == {"round"}


def test_a_run_that_goes_on_keeps_its_id(follow, choose, tmp_path):
    config = choose("wandb", directory=str(tmp_path / "all"))
    with pytest.raises(KeyboardInterrupt):
        follow(config, rounds=(0, 1, 2), error=KeyboardInterrupt())
    first, found = only_run(tmp_path / "all")
    assert summary(found)["status"] == "interrupted"
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]
    follow(config, rounds=(2, 3), after=1)
    files = list((tmp_path / "all/wandb").glob("offline-run-*/run-*.wandb"))
    assert {path.name for path in files} == {first.name}
    assert not (tmp_path / "runs/r/wandb").exists()


def test_online_needs_to_know_who_asks(choose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^tracker\.mode=online: No API key .* use tracker\.mode=offline\.$"):
        tracker_of(choose("wandb", mode="online"))
    with pytest.raises(UserError, match=r"^tracker\.mode=later: must be one of offline, online$"):
        tracker_of(choose("wandb", mode="later"))
