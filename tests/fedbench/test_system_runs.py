"""Whole runs on a system's clock: what is written down, what is lost, and the same numbers everywhere."""

import json
import math

import pytest

import fedbench.bench
from fedbench.cli import main
from fedbench.config.compose import choices, plan
from fedbench.errors import NotApplicable, RunFailed, UserError
from fedbench.run import Run, resume, run

SMALL = [
    "data=gaussian_domains", "data.domains=4", "data.classes=5", "data.dim=8", "data.train_per_class=20",
    "data.test_per_class=10", "scenario=iid", "scenario.clients=12", "client=linear", "client.steps=4",
    "rounds=4",
]  # fmt: skip
BUFFERED = ["strategy=fedbuff", "strategy.concurrency=6", "strategy.buffer=3", "system=cross_device"]
RUNS = {
    "fedbuff": [*BUFFERED, "system.dropout=0.3"],
    "fedasync": ["strategy=fedasync", "strategy.concurrency=5", "system=cross_device", "system.deadline=0.8",
                 "rounds=8"],
    "fedavg": ["strategy=fedavg", "system=cross_device", "system.dropout=0.3", "clients_per_round=3",
               "system.over_sampling=0.5"],
    "fedbuff+ggeur": [*BUFFERED, "align=ggeur", "align.own=20", "align.foreign=2"],
    "ggeur": ["strategy=fedavg", "align=ggeur", "system=cross_silo", "align.own=20", "align.foreign=2"],
}  # fmt: skip
SETS = [name for name in choices("system") if name != "none"]
on_ray = pytest.mark.xdist_group("ray")


def compose(*overrides, engine="serial"):
    return plan([*SMALL, f"engine={engine}", *overrides])[0]


def rows_of(path, metric):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["metric"] == metric]


def lasting(summary):
    choices = {k: v for k, v in summary["choices"].items() if k != "engine"}
    return {k: v for k, v in summary.items() if k != "timing"} | {"choices": choices}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Summary and directory of each run on the serial engine, one client at a time."""
    ran = {}

    def result(name):
        if name not in ran:
            path = tmp_path_factory.mktemp(name) / "run"
            ran[name] = run(compose(*RUNS[name], "engine.cohort=1"), path), path
        return ran[name]

    return result


# --- what is written down ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_round_has_its_time(done, name):
    summary, path = done(name)
    assert (summary["status"], summary["failures"]) == ("completed", 0)
    times = [row["value"] for row in rows_of(path, "virtual_seconds")]
    assert times == sorted(times)
    assert times[0] > 0
    assert [p["virtual_seconds"] for p in summary["history"]] == times
    assert summary["virtual_seconds"] == summary["final"]["virtual_seconds"] == times[-1]
    row = rows_of(path, "virtual_seconds")[0]
    assert (row["round"], row["phase"], row["scope"], row["node"]) == (1, "train", "global", None)


@pytest.mark.parametrize("name", ["fedbuff", "fedasync", "fedavg"])
def test_what_is_lost_was_sent_down_and_is_counted(done, name):
    summary, path = done(name)
    up = [row for row in rows_of(path, "bytes_up") if row["phase"] == "train"]
    down = [row for row in rows_of(path, "bytes_down") if row["phase"] == "train"]
    lost = [row for row in up if row["value"] == 0]
    assert len(up) == len(down)
    assert len(lost) == sum(summary["lost"].values()) > 0
    assert all(row["value"] > 0 for row in down)
    assert sum(row["value"] for row in down) == summary["bytes"]["train"]["down"]


def test_a_round_takes_the_first_and_an_update_what_it_waits_for(done):
    def trained(name):
        rows = rows_of(done(name)[1], "train_loss")
        return [sum(row["round"] <= t for row in rows) for t in range(1, done(name)[0]["rounds"] + 1)]

    # Answers of one moment come together, those that are too many for the next update.
    assert all(n >= 3 * t for t, n in enumerate(trained("fedbuff"), 1))
    assert all(n >= t for t, n in enumerate(trained("fedasync"), 1))
    assert all(t <= n <= 3 * t for t, n in enumerate(trained("fedavg"), 1))
    assert done("fedavg")[0]["lost"]["surplus"] > 0


def test_without_a_system_there_is_no_time_and_nothing_is_lost(tmp_path):
    summary = run(compose("strategy=fedavg"), tmp_path / "run")
    assert summary["virtual_seconds"] is None
    assert sum(summary["lost"].values()) == 0
    assert rows_of(tmp_path / "run", "virtual_seconds") == []


def test_on_a_system_that_loses_nothing_a_run_is_as_without_one(tmp_path):
    some = ["strategy=scaffold", "clients_per_round=5"]
    plain = run(compose(*some), tmp_path / "plain")
    timed = run(compose(*some, "system=cross_silo"), tmp_path / "timed")
    for key in ("weights_sha256", "bytes", "client_metrics", "lost"):
        assert timed[key] == plain[key]


def test_sizes_on_the_clock_are_those_of_the_work(tmp_path):
    """4 steps of at most 32 of a client's rows, 8 x 5 + 5 numbers of 4 bytes each way, one 8-byte round."""
    one = "{one: {share: 1, examples_per_second: 10}}"
    slow = "{one: {share: 1, down_mbps: 0.008, up_mbps: 0.004, latency: 0.25}}"
    words = [f"system.devices={one}", f"system.networks={slow}", "scenario.clients=4", "rounds=1"]
    config = compose("strategy=fedavg", "system=cross_silo", "client.batch_size=16")
    bench = fedbench.bench.build(config)
    assert len(bench.federation.clients) == 12
    path = tmp_path / "mine/system"
    path.mkdir(parents=True)
    (path / "slow.yaml").write_text(
        f"# One slow class\n_target_: fedbench.engine.system.System\ndevices: {one}\nnetworks: {slow}\n"
    )
    overrides = [
        *SMALL,
        "engine=serial",
        "strategy=fedavg",
        "system=slow",
        *words[2:],
        "client.batch_size=16",
    ]
    (config,) = plan(overrides, config_dir=tmp_path / "mine")
    summary = run(config, tmp_path / "run")
    want = 0.25 + (45 * 4 + 8) / 1000 + 4 * 16 / 10 + 45 * 4 / 500
    assert summary["virtual_seconds"] == pytest.approx(want)


# --- the same numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedbuff", "fedavg"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(done, tmp_path, name):
    summary, _ = done(name)
    again = run(compose(*RUNS[name], "engine.cohort=1"), tmp_path / "again")
    assert lasting(again) == lasting(summary)
    other = run(compose(*RUNS[name], "seed=1"), tmp_path / "other")
    assert other["virtual_seconds"] != summary["virtual_seconds"]


@on_ray
@pytest.mark.parametrize("name", RUNS)
def test_ray_and_serial_agree_to_the_bit(done, tmp_path, name):
    summary, path = done(name)
    config = compose(*RUNS[name], "engine.workers=2", "engine.cohort=1", engine="ray")
    assert lasting(run(config, tmp_path / "run")) == lasting(summary)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (path / "metrics.jsonl").read_bytes()


def interrupted(config, path, monkeypatch, after):
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


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_goes_on_to_the_same_end(done, tmp_path, monkeypatch, name, after):
    summary, path = done(name)
    interrupted(compose(*RUNS[name], "engine.cohort=1"), tmp_path / "parts", monkeypatch, after)
    ended = resume(tmp_path / "parts")
    if name == "ggeur":
        assert ended["weights_sha256"] == summary["weights_sha256"]
        assert ended["virtual_seconds"] == summary["virtual_seconds"]
        return
    assert lasting(ended) == lasting(summary)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (path / "metrics.jsonl").read_bytes()


# --- rounds that are lost ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedadam", "fedavgm", "krum", "qfedavg", "scaffold", "fednova", "feddyn", "ggeur"]
)
def test_a_round_of_which_nothing_is_left_leaves_the_model_as_it_is(tmp_path, strategy):
    lost = ["system=cross_silo", "system.dropout=1.0", "rounds=2"]
    summary = run(compose(f"strategy={strategy}", *lost), tmp_path / "run")
    assert summary["status"] == "completed"
    assert summary["failures"] == 0
    assert summary["lost"] == {"dropout": 24, "deadline": 0, "surplus": 0}
    assert len({point["avg"] for point in summary["history"]}) == 1
    log = (tmp_path / "run/log.txt").read_text()
    assert "round 2: none of 12 clients finished; the model stays as it is" in log
    assert "failed" not in log


@pytest.mark.parametrize("strategy", ["ccvr", "fedproto", "fpl", "ditto", "fedbabu", "lg_fedavg"])
def test_other_methods_bear_the_loss_of_some_clients_and_of_all(tmp_path, strategy):
    for dropout in (0.6, 1.0):
        config = compose(
            f"strategy={strategy}", "client=mlp", "system=cross_silo", f"system.dropout={dropout}", "rounds=2"
        )
        summary = run(config, tmp_path / str(dropout))
        assert summary["status"] == "completed"
        assert math.isfinite(summary["final"]["avg"])


def test_an_asynchronous_run_without_an_answer_says_so(tmp_path):
    with pytest.raises(RunFailed, match=r"FedBuff: the last \d+ clients answered with an error.*dropout"):
        run(compose(*BUFFERED, "system.dropout=1.0"), tmp_path / "run")


# --- as a user chooses it ----------------------------------------------------------------------------


@pytest.mark.parametrize("system", SETS)
@pytest.mark.parametrize("strategy", ["fedprox", "fedbuff"])
def test_every_system_runs(tmp_path, capsys, system, strategy):
    where = tmp_path / "run"
    words = [f"system={system}", f"strategy={strategy}", "engine=serial", f"run_dir={where}"]
    assert main(["run", *SMALL, *words]) == 0
    summary = json.loads((where / "summary.json").read_text())
    assert summary["choices"]["system"] == system
    assert summary["settings"]["system.availability"] > 0


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["strategy=fedbuff"], NotApplicable, r"strategy=fedbuff is asynchronous.*system=none.*another"),
        (["strategy=fedasync"], NotApplicable, r"strategy=fedasync is asynchronous and needs a clock"),
        ([*BUFFERED, "clients_per_round=3"], NotApplicable, r"clients_per_round=3.*set strategy.concurrency"),
        ([*BUFFERED, "system.over_sampling=0.2"], NotApplicable, r"system.over_sampling=0.2.*use 0"),
        (
            ["strategy=fedavg", "system=cross_silo", "system.over_sampling=0.2"],
            NotApplicable,
            r"system.over_sampling=0.2: asks for more than clients_per_round, which is null; use 0",
        ),
        (
            ["strategy=fedavg", "system=cross_silo", "system.dropout=2"],
            UserError,
            r"system.dropout: must be between 0 and 1, got 2",
        ),
        (
            ["strategy=fedavg", "system=cross_device", "system.devices.phone.share=0"],
            UserError,
            r"system.devices: phone.share must be a number above 0, got 0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_says_so_in_a_line(words, kind, said):
    with pytest.raises(kind, match=said) as raised:
        fedbench.bench.build(compose(*words))
    assert "\n" not in str(raised.value)
