"""TensorBoard, read back with its own reader."""

import pytest
import yaml

from fedbench.errors import UserError
from fedbench.trackers import figures, tracker_of

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2


def read(path):
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(events):
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def close_to(values):
    return {tag: pytest.approx(steps, rel=1e-6) for tag, steps in values.items()}


def text(events, tag):
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")]


@pytest.mark.parametrize("clients", [False, True])
def test_every_number_is_there_at_its_round(finished, follow, choose, expected, clients):
    events = read(follow(choose("tensorboard", clients=clients)) / "tensorboard")
    numbers = {name: {0: value} for name, value in figures(finished.summary).items()}
    assert scalars(events) == close_to(expected(clients) | numbers)
    assert any(tag.startswith("train/client_1/") for tag in expected(True))


def test_the_configuration_is_text_and_hyperparameters(finished, follow, choose):
    events = read(follow(choose("tensorboard")) / "tensorboard")
    (written,) = text(events, "config")
    config = yaml.safe_load("\n".join(line.removeprefix("    ") for line in written.splitlines()))
    assert (config["rounds"], config["strategy"]["_target_"]) == (3, finished.config.strategy["_target_"])
    assert text(events, "run") == ["ggeur-digits"]
    assert text(events, "status") == ["completed"]
    (data,) = (
        plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        for tag, content in events.PluginTagToContent("hparams").items()
        if "session_start" in tag
    )
    assert data["rounds"].number_value == 3
    assert data["choices.strategy"].string_value == "ggeur"


def test_runs_share_a_directory_under_names_of_their_own(follow, choose, tmp_path):
    config = choose("tensorboard", directory=str(tmp_path / "all"))
    for sweep in ("one", "two"):
        follow(config, tmp_path / sweep / "000-fedavg")
        assert read(tmp_path / "all" / sweep / "000-fedavg").Tags()["scalars"]
    assert not list((tmp_path / "one").rglob("events.*"))


def test_a_run_that_goes_on_shows_each_round_once(finished, follow, choose, expected):
    config = choose("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        follow(config, rounds=(0, 1, 2), error=KeyboardInterrupt())
    directory = follow(config, rounds=(2, 3), after=1)
    events = read(directory / "tensorboard")
    for tag, steps in expected().items():
        assert [e.step for e in events.Scalars(tag)] == sorted(steps)
    assert len(text(events, "config")) == 1


def test_a_run_that_failed_says_so(follow, choose, tmp_path):
    with pytest.raises(ValueError, match="x"):
        follow(choose("tensorboard"), tmp_path / "failed", error=ValueError("x"))
    events = read(tmp_path / "failed/tensorboard")
    assert text(events, "status") == ["failed"]
    assert "final/accuracy_avg" not in events.Tags()["scalars"]


def test_a_directory_that_cannot_be_is_an_error(choose, tmp_path):
    (tmp_path / "file").touch()
    tracker = tracker_of(choose("tensorboard", directory=str(tmp_path / "file")))
    with pytest.raises(UserError, match=r"^tracker\.directory=.*: cannot be written to \(Not a directory\)$"):
        tracker.start(tmp_path / "run", {}, "x")
