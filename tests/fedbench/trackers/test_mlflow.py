"""MLflow, read back with its own client."""

import shutil
from pathlib import Path

import pytest

from fedbench.errors import UserError
from fedbench.trackers import figures, tracker_of

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables and nothing else, which takes seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch):
    """A client of a local store in the current directory."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda: mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def only_run(client, experiment="fedbench"):
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def history(client, run):
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def by_round(values):
    return {name: [(step, pytest.approx(v)) for step, v in sorted(s.items())] for name, s in values.items()}


@pytest.mark.parametrize("clients", [False, True])
def test_every_number_is_there_at_its_round(store, finished, follow, choose, expected, clients):
    follow(choose("mlflow", clients=clients))
    run = only_run(store())
    numbers = {name: {3: value} for name, value in figures(finished.summary).items()}
    assert history(store(), run) == by_round(expected(clients) | numbers)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "ggeur-digits")


def test_settings_tags_and_files_are_kept(store, finished, follow, choose, tmp_path):
    config = choose("mlflow", experiment="mine")
    config.data["note"] = "x" * 10_000
    directory = follow(config)
    run = only_run(store(), "mine")
    params, tags = run.data.params, run.data.tags
    assert params["rounds"] == "3"
    assert params["strategy._target_"] == finished.config.strategy["_target_"]
    assert params["data.note"] == "x" * 500
    assert not [name for name in params if name.startswith(("tracker", "settings"))]
    assert (tags["fedbench.strategy"], tags["fedbench.status"]) == ("ggeur", "completed")
    assert tags["fedbench.weights_sha256"] == finished.summary["weights_sha256"]
    assert tags["fedbench.directory"] == str(directory)
    files = {file.path for file in store().list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "summary.json", "split.png"}
    copy = mlflow.artifacts.download_artifacts(
        f"{run.info.artifact_uri}/summary.json", dst_path=str(tmp_path / "copy")
    )
    assert Path(copy).read_text() == (finished.path / "summary.json").read_text()


def test_many_settings_and_numbers_go_in_several_requests(store, choose, tmp_path):
    tracker = tracker_of(choose("mlflow", clients=True))
    tracker.start(tmp_path, {f"option_{i}": i for i in range(250)}, "x")
    row = {"round": 1, "phase": "train", "scope": "client", "metric": "loss"}
    tracker.record(row | {"node": i, "value": i} for i in range(2_500))
    run = only_run(store())
    assert len(run.data.params) == 250
    assert run.data.metrics["train/client_2499/loss"] == 2499
    assert len(run.data.metrics) == 2501


def test_a_run_that_goes_on_is_the_same_run(store, follow, choose, expected):
    config = choose("mlflow")
    with pytest.raises(KeyboardInterrupt):
        follow(config, rounds=(0, 1, 2), error=KeyboardInterrupt())
    killed = only_run(store())
    assert (killed.info.status, killed.data.tags["fedbench.status"]) == ("KILLED", "interrupted")
    follow(config, rounds=(2, 3), after=1)
    run = only_run(store())
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert run.data.tags["fedbench.status"] == "completed"
    told = history(store(), run)
    for name, steps in expected().items():
        assert {step for step, _ in told[name]} == set(steps)


def test_a_run_that_failed_keeps_what_it_had(store, follow, choose, expected):
    with pytest.raises(ValueError, match="x"):
        follow(choose("mlflow"), error=ValueError("x"))
    run = only_run(store())
    assert run.info.status == "FAILED"
    assert run.data.metrics.keys() == expected().keys()


def test_the_store_may_be_named_in_the_environment(store, choose, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").rename(tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    tracker_of(choose("mlflow", experiment="mine"))
    other = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/other.db")
    assert other.get_experiment_by_name("mine") is not None
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("uri", ["nonsense://x", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_used_is_one_line(store, choose, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"^tracker\.uri: MLflow cannot use the store \(.*\)$"):
        tracker_of(choose("mlflow", uri=uri))
