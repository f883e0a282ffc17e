"""What all trackers share: who is told what, and what happens when a tracker cannot go on."""

import logging
import sys
from logging.handlers import BufferingHandler

import pytest

from fedbench.config.compose import CONFIG_DIR
from fedbench.config.objects import flat
from fedbench.errors import UserError
from fedbench.trackers import Tracker, figures, tracker_of, tracking

PACKAGES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.tracking", "wandb": "wandb.sdk"}


class Told(Tracker):
    """Keeps what it is told."""

    extra, module = "told", "json"

    def __init__(self, fails_at=(), clients=False):
        super().__init__(clients)
        self.fails_at, self.calls = fails_at, []

    def _told(self, what, *values):
        self.calls.append((what, *values))
        if what in self.fails_at:
            raise RuntimeError("the disk\nis full")

    def start(self, directory, config, name, after=0):
        self.config = config
        self._told("start", directory, name, after)

    def record(self, rows):
        self._told("record", self.points(rows))

    def finish(self, summary):
        self._told("finish", summary)

    def close(self, status):
        self._told("close", status)


def client(node, metric, value, number=1):
    return {
        "round": number, "phase": "train", "scope": "client", "node": node, "metric": metric, "value": value
    }  # fmt: skip


ROWS = [
    client(0, "loss", 1.0),
    client(1, "loss", 2.0),
    client(0, "bytes_up", 10),
    client(1, "bytes_up", 30),
    client(0, "loss", 5.0, number=2),
    {
        "round": 1,
        "phase": "evaluate",
        "scope": "domain",
        "node": "../Art & Craft",
        "metric": "accuracy",
        "value": 0.5,
    },
    {
        "round": 1,
        "phase": "query.x",
        "scope": "global",
        "node": None,
        "metric": "virtual_seconds",
        "value": 9,
    },
]
SHARED = [
    (1, "evaluate/_Art_Craft/accuracy", 0.5),
    (1, "query.x/global/virtual_seconds", 9.0),
    (1, "train/clients/loss", 1.5),
    (1, "train/clients/bytes_up", 40.0),
    (2, "train/clients/loss", 5.0),
]


def test_clients_are_summed_up():
    assert Told().points(iter(ROWS)) == SHARED


def test_single_clients_go_too_if_asked_for():
    single = [(r["round"], f"train/client_{r['node']}/{r['metric']}", r["value"]) for r in ROWS[:5]]
    assert Told(clients=True).points(ROWS) == [*single, *SHARED]


@pytest.fixture
def heard():
    """What goes to a run's log."""
    handler, logger = BufferingHandler(100), logging.getLogger("fedbench")
    logger.addHandler(handler)
    yield handler.buffer
    logger.removeHandler(handler)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line_that_says_what_to_install(name, choose, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as Python marks a package that cannot be imported
    monkeypatch.delitem(sys.modules, PACKAGES[name], raising=False)
    with pytest.raises(UserError) as error:
        tracker_of(choose(name))
    said = f"tracker={name}: its package is not installed; run: pip install 'fedbench[{name}]'"
    assert str(error.value) == said


def test_every_choice_but_none_is_tried_above():
    assert {path.stem for path in (CONFIG_DIR / "tracker").glob("*.yaml")} == {"none", *PACKAGES}


def test_without_a_tracker_nobody_listens(finished, choose, tmp_path):
    without = finished.config.copy()
    without.pop("tracker", None)
    for config in (choose("none"), without):
        assert tracker_of(config) is None
        with tracking(None, tmp_path, config, "x") as record:
            assert record is None
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_is_an_error(choose):
    with pytest.raises(UserError, match=r"tracker\.client: no such option; did you mean 'clients'\?"):
        tracker_of(choose("tensorboard", client=True))
    with pytest.raises(UserError, match=r"tracker\.clients=3: must be true or false"):
        tracker_of(choose("tensorboard", clients=3))


def test_a_run_is_followed_from_its_start_to_its_summary(finished, choose):
    told = Told()
    with tracking(told, finished.path, choose("none"), "name", after=2) as record:
        record(ROWS)
    assert told.calls == [
        ("start", finished.path, "name", 2),
        ("record", SHARED),
        ("finish", finished.summary),
    ]
    assert told.config["strategy"]["_target_"]
    assert not told.config.keys() & {"tracker", "settings", "sweep"}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_stops_is_closed_and_its_error_goes_on(finished, choose, error, status):
    told = Told(fails_at=["close"])
    with pytest.raises(type(error)) as raised, tracking(told, finished.path, choose("none"), "x"):
        raise error
    assert raised.value is error
    assert told.calls[1:] == [("close", status)]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(finished, choose, heard):
    told = Told(fails_at=["record"])
    with tracking(told, finished.path, choose("none"), "x") as record:
        record(ROWS)
        record(ROWS)
    assert [call[0] for call in told.calls] == ["start", "record", "finish"]
    said = "tracker: failed, and the run goes on without it (RuntimeError: the disk is full)"
    assert [record.getMessage() for record in heard] == [said]


def test_a_tracker_that_cannot_start_stops_the_run(finished, choose):
    with (
        pytest.raises(RuntimeError, match="full"),
        tracking(Told(["start"]), finished.path, choose("none"), "x"),
    ):
        pytest.fail("the run began")


def test_configs_are_flattened_and_summaries_reduced(finished):
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, {"f": 2}]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [1, {"f": 2}],
    }
    found = figures(finished.summary)
    assert found["final/accuracy_avg"] == finished.summary["final"]["avg"]
    assert found["total/bytes"] == sum(
        row["value"]
        for row in finished.rows
        if row["metric"] in ("bytes_down", "bytes_up") and row["phase"] != "evaluate"
    )
    assert "best_validation/accuracy_avg" not in figures(finished.summary | {"best_validation": None})
