"""Profiles: parts that are measured and add up, a trace that can be read, and results that stay the same."""

import json
import sys
import time
from collections import Counter, defaultdict

import pytest
import ray

import fedbench.bench
from clients.app import make_client_app
from fedbench.cli import main
from fedbench.config.compose import plan, settings
from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.engine.profile import PARTS, SERVER, Profile, Row, Span, active, profiling
from fedbench.report.profile_picture import profile_picture
from fedbench.report.profile_table import markdown, mean_seconds, read_csv, write_csv
from fedbench.run import resume, run
from strategies.timing import part, timed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SMALL = [
    "data=gaussian_domains",
    "data.domains=4",
    "data.classes=5",
    "data.dim=8",
    "data.train_per_class=20",
    "data.test_per_class=10",
    "scenario=domain_skew",
    "client=linear",
    "client.steps=40",
    "strategy=fedavg",
    "rounds=4",
]
ENGINES = {
    "serial": ["engine=serial"],
    "one by one": ["engine=serial", "engine.cohort=1"],
    "two workers": ["engine=ray", "engine.workers=2"],
    "two workers, one by one": ["engine=ray", "engine.workers=2", "engine.cohort=1"],
    "partial sums": ["engine=ray", "engine.workers=2", "engine.partial_sums=true"],
}
MS = 1_000_000


def compose(*overrides):
    return plan([*SMALL, *overrides])[0]


@pytest.fixture(
    scope="module", params=[pytest.param(e, marks=pytest.mark.xdist_group("ray")) for e in ENGINES]
)
def profiled(request, tmp_path_factory):
    """Engine, and summary and directory of a run with a profile and of one without."""
    path = tmp_path_factory.mktemp("profiled")
    words = ENGINES[request.param]
    plain = run(compose(*words), path / "plain")
    return (
        request.param,
        run(compose(*words, "profile=true"), path / "run"),
        path / "run",
        plain,
        path / "plain",
    )


# --- whole runs --------------------------------------------------------------------------------------


def test_parts_add_up_to_the_wall_time(profiled):
    engine, _, path, _, _ = profiled
    rows = read_csv(path / "profile/table.csv")
    assert [(r.round, r.traced) for r in rows] == [(1, False), (2, True), (3, False), (4, False)]
    assert sum(sum(r.parts.values()) for r in rows) == pytest.approx(sum(r.wall for r in rows), rel=0.05)
    for name in PARTS:
        assert all(r.parts[name] > 0 for r in rows) == (
            name != "idle" or "workers" in engine or "sums" in engine
        )
        assert all(r.parts[name] >= 0 for r in rows)


def test_results_are_the_same_to_the_bit(profiled):
    _, summary, path, plain, where = profiled
    assert {k: v for k, v in summary.items() if k != "timing"} == {
        k: v for k, v in plain.items() if k != "timing"
    }
    assert (path / "metrics.jsonl").read_bytes() == (where / "metrics.jsonl").read_bytes()
    assert {p.name for p in path.iterdir()} - {p.name for p in where.iterdir()} == {"profile"}
    assert {p.name for p in (path / "profile").iterdir()} == {
        "profile.png", "table.csv", "table.md", "trace.json",
    }  # fmt: skip


def test_the_trace_shows_every_round_on_every_track(profiled):
    engine, _, path, _, _ = profiled
    trace = json.loads((path / "profile/trace.json").read_text())
    assert trace["displayTimeUnit"] == "ms"
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid"} <= event.keys()
        if event["ph"] == "X":
            assert isinstance(event["ts"], int | float)
            assert event["dur"] >= 0
    ours = [e for e in trace["traceEvents"] if e.get("cat") == "fedbench"]
    pid = ours[0]["pid"]
    tracks = {
        e["tid"]: e["args"]["name"]
        for e in trace["traceEvents"]
        if (e["name"], e["pid"]) == ("thread_name", pid)
    }
    workers = ["worker 0", "worker 1"] if "serial" not in ENGINES[engine][0] else []
    assert list(tracks.values()) == ["rounds", "server", *workers]
    seen = defaultdict(Counter)
    for event in ours:
        seen[tracks[event["tid"]]][event["name"]] += 1
    assert seen.pop("rounds") == {f"round {n}": 1 for n in (1, 2, 3, 4)}
    assert seen.keys() == {"server", *workers}
    for track in workers or ["server"]:
        assert {"load", "broadcast", "train", "upload", "evaluate"} <= seen[track].keys()
    # What is on one track lies inside each other or apart, as viewers demand.
    for tid in tracks:
        on_track = sorted((e["ts"], -e["dur"]) for e in ours if e["tid"] == tid)
        ends = []
        for start, negative in on_track:
            while ends and ends[-1] <= start + 0.01:
                ends.pop()
            assert not ends or start - negative <= ends[-1] + 0.01
            ends.append(start - negative)


def test_operators_are_those_of_the_second_round(profiled):
    engine, _, path, _, _ = profiled
    events = json.loads((path / "profile/trace.json").read_text())["traceEvents"]
    second = next(e for e in events if e["name"] == "round 2")
    operators = [e for e in events if e.get("cat") == "cpu_op"]
    assert operators
    assert all(
        second["ts"] - 1e3 <= e["ts"] and e["ts"] + e["dur"] <= second["ts"] + second["dur"] + 1e3
        for e in operators
    )
    if "serial" in ENGINES[engine][0]:
        trains = [e for e in events if e.get("cat") == "fedbench" and e["name"] == "train"]
        steps = [e for e in operators if e["name"] == "aten::mm" or "log_softmax" in e["name"]]
        within = [any(t["ts"] <= e["ts"] <= t["ts"] + t["dur"] for t in trains) for e in steps]
        assert sum(within) > 10


def test_the_only_round_is_traced(tmp_path):
    run(compose("engine=serial", "rounds=1", "profile=true"), tmp_path / "run")
    assert [(r.round, r.traced) for r in read_csv(tmp_path / "run/profile/table.csv")] == [(1, True)]
    text = (tmp_path / "run/profile/table.md").read_text()
    assert text.endswith("mean of 1 round, slowed by the trace of torch's operators.\n")


def test_nothing_is_recorded_unless_asked_for(tmp_path):
    run(compose("engine=serial"), tmp_path / "run")
    assert not (tmp_path / "run/profile").exists()
    assert active() is None
    assert part("train") is part("load")  # one block that does nothing


def test_profiles_do_not_make_runs_different():
    assert settings(compose("engine=serial", "profile=true")) == settings(compose("engine=serial"))


# --- runs that break ---------------------------------------------------------------------------------


def breaking(spec):
    """The usual app, whose client 1 fails in round 3 as long as the test says so."""
    inner = make_client_app(spec)

    def app(message, context):
        server_round = message.content.config_records.get("config", {}).get("server-round", 0)
        if broken and (server_round, message.metadata.dst_node_id - FIRST_NODE_ID) == (3, 1):
            raise LookupError("gone")
        return inner(message, context)

    return app


broken = []


def test_a_run_that_breaks_keeps_its_rounds_and_can_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(fedbench.bench, "make_client_app", breaking)
    expected = run(compose("engine=serial"), tmp_path / "whole")
    broken.append(True)
    try:
        with pytest.raises(LookupError, match="gone"):
            run(compose("engine=serial", "profile=true"), tmp_path / "run")
    finally:
        broken.clear()
    assert active() is None
    assert [r.round for r in read_csv(tmp_path / "run/profile/table.csv")] == [1, 2]
    summary = resume(tmp_path / "run")
    assert summary["weights_sha256"] == expected["weights_sha256"]
    rows = read_csv(tmp_path / "run/profile/table.csv")
    assert [(r.round, r.traced) for r in rows] == [(3, False), (4, True)]


# --- the sums ----------------------------------------------------------------------------------------


def milliseconds(profile):
    (row,) = profile.table()
    return {k: round(1e3 * v, 6) for k, v in row.parts.items() if v}, round(1e3 * row.wall, 6)


def recorded(spans, wall=100, workers=0):
    profile = Profile(rounds=1)
    profile.workers = workers
    profile.rounds[1] = Span("round 1", 0, wall * MS)
    profile.spans = [Span(name, a * MS, b * MS, *track) for name, a, b, *track in spans]
    return profile


NESTED = [
    ("load", 20, 25), ("broadcast", 0, 10), ("train", 12, 60), ("upload", 50, 58), ("other", 10, 62),
    ("aggregate", 62, 80), ("evaluate", 80, 90), ("other", 90, 100),
]  # fmt: skip


def test_the_innermost_span_counts():
    assert milliseconds(recorded(NESTED)) == (
        {
            "load": 5, "broadcast": 10, "train": 35, "upload": 8, "aggregate": 18, "evaluate": 10,
            "other": 14,
        },
        100,
    )  # fmt: skip


def test_time_without_a_span_is_missing_from_the_sum():
    for name, lost in (("aggregate", 18), ("evaluate", 10), ("broadcast", 10)):
        parts, wall = milliseconds(recorded([s for s in NESTED if s[0] != name]))
        assert sum(parts.values()) == wall - lost
    parts, wall = milliseconds(recorded([s for s in NESTED if s != ("other", 90, 100)]))
    assert sum(parts.values()) == wall - 10


def test_spans_of_other_rounds_do_not_count():
    assert milliseconds(recorded([*NESTED, ("train", -50, -1), ("train", 100, 150)])) == milliseconds(
        recorded(NESTED)
    )


def test_workers_are_averaged_and_idle_while_the_server_waits():
    server = [
        ("broadcast", 0, 20), ("idle", 20, 60), ("upload", 60, 64), ("idle", 64, 90), ("upload", 90, 100),
    ]  # fmt: skip
    workers = [
        ("train", 10, 50, 0), ("load", 12, 16, 0), ("upload", 50, 60, 0),  # then nothing to do
        ("train", 30, 85, 1), ("upload", 85, 92, 1),  # late: its machine was asleep until 30
    ]  # fmt: skip
    parts, wall = milliseconds(recorded([*server, *workers], workers=2))
    # Worker 0: 10 + 36 + 4 + 10, the server's 4 and 10 uploading, and idle 64 to 90.
    # Worker 1: 20 broadcast, idle 20 to 30, 55 + 7, and the server's uploading 92 to 100.
    assert parts == {
        "broadcast": (10 + 20) / 2,
        "load": 4 / 2,
        "train": (36 + 55) / 2,
        "upload": (10 + 4 + 10 + 7 + 8) / 2,
        "idle": (26 + 10) / 2,
    }
    assert sum(parts.values()) == wall == 100


def test_a_worker_without_work_is_idle():
    spans = [("broadcast", 0, 10), ("idle", 10, 100), ("train", 10, 100, 0)]
    assert milliseconds(recorded(spans, workers=2))[0] == {"broadcast": 10, "train": 45, "idle": 45}


def test_what_a_worker_sends_home_gets_its_track_and_its_ways():
    profile = Profile(rounds=1)
    now = time.time_ns()
    profile.take(3, [Span("train", now - 50 * MS, now - 10 * MS)], now - 60 * MS)
    assert {s.track for s in profile.spans} == {3}
    there, back, train = profile.spans
    assert (there.name, there.start, there.end) == ("broadcast", now - 60 * MS, now - 50 * MS)
    assert (back.name, back.start) == ("upload", now - 10 * MS)
    assert back.end >= now
    assert (train.name, train.duration) == ("train", 40 * MS)
    profile.take(3, [], now)
    assert len(profile.spans) == 3


def test_another_machine_s_clock_is_put_right():
    profile = Profile(rounds=1)
    now = time.time_ns()
    ahead = 3_600_000 * MS
    profile.take(0, [Span("train", now + ahead - 50 * MS, now + ahead - 10 * MS)], now - 60 * MS)
    there, back, train = profile.spans
    assert now - 60 * MS == there.start < there.end == train.start
    assert train.end == back.start < back.end
    assert train.duration == 40 * MS
    assert abs(there.duration - back.duration) <= 1


def test_blocks_and_functions_are_recorded_even_if_they_raise():
    @timed("load")
    def load(x, *, fails=False):
        """Doc."""
        if fails:
            raise LookupError
        return x

    assert (load(1), load.__doc__) == (1, "Doc.")
    with profiling(rounds=1) as profile:
        assert active() is profile
        with part("train"):
            assert load(2) == 2
        with pytest.raises(LookupError):
            load(3, fails=True)
    assert load(4) == 4
    assert [(s.name, s.track) for s in profile.spans] == [
        ("load", SERVER),
        ("train", SERVER),
        ("load", SERVER),
    ]
    assert active() is None


# --- what people see ---------------------------------------------------------------------------------

ROWS = [
    Row(n, n == 2, dict.fromkeys(PARTS, seconds), round(seconds * 8.08, 6))
    for n, seconds in ((1, 0.25), (2, 9.0), (3, 0.75))
]


def test_the_traced_round_is_left_out_of_the_means(tmp_path):
    means = mean_seconds(ROWS)
    assert means == pytest.approx(dict.fromkeys(PARTS, 0.5) | {"sum": 4, "wall": 4.04})
    text = markdown(ROWS)
    assert "| train | 0.5000 | 12.4 % |" in text
    assert "| sum | 4.0000 | 99.0 % |" in text
    assert "mean of 2 rounds; round 2, slowed by the trace of torch's operators, is left out." in text
    write_csv(ROWS, tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == ROWS


@pytest.mark.parametrize("rounds", [1, 3, 250])
def test_a_picture_of_few_and_many_rounds(tmp_path, rounds):
    rows = [Row(n, n == 2, dict.fromkeys(PARTS, 0.1 + n % 3), 1.0) for n in range(1, rounds + 1)]
    profile_picture(rows, tmp_path / "profile.png", "fedavg")
    assert (tmp_path / "profile.png").stat().st_size > 5_000


def test_the_command_prints_the_table_and_where_the_trace_is(tmp_path, capsys):
    words = [*SMALL, "engine=serial", "profile=true", f"run_dir={tmp_path / 'run'}"]
    assert main(["run", *words]) == 0
    said = capsys.readouterr().out
    assert "where the rounds' time went" in said
    for name in (*PARTS, "sum", "wall"):
        assert any(line.split()[:1] == [name] for line in said.splitlines())
    assert f"trace: {tmp_path / 'run/profile/trace.json'}" in said
