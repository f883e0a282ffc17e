"""Whole runs: engines agree to the bit, failures are counted, and the books add up."""

import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import ray

import fedbench.bench
import fedbench.run
from clients.app import make_client_app
from fedbench.cli import main
from fedbench.config.compose import plan
from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.engine.ray import RayGrid
from fedbench.errors import RunFailed
from fedbench.report.forecast_picture import forecast_picture
from fedbench.results.run_dir import load_weights, weights_digest
from fedbench.run import run

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
    "client.steps=4",
    "rounds=3",
]
METHODS = {
    "fedavg": ["strategy=fedavg"],
    "fedprox": ["strategy=fedprox", "strategy.proximal_mu=0.5"],
    "ggeur": ["strategy=ggeur"],
    "some clients": ["strategy=fedavg", "clients_per_round=2"],
}
KEYS = ["round", "phase", "scope", "node", "metric", "value"]
on_ray = pytest.mark.xdist_group("ray")


def compose(*overrides):
    return plan([*SMALL, *overrides])[0]


def lasting(summary):
    """What must be the same in every run of a config, whatever the engine and the clock."""
    choices = {k: v for k, v in summary["choices"].items() if k != "engine"}
    return {k: v for k, v in summary.items() if k != "timing"} | {"choices": choices}


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Summary and directory of each method's run on the serial engine."""
    done = {}

    def result(method):
        if method not in done:
            path = tmp_path_factory.mktemp("serial") / "run"
            done[method] = run(compose("engine=serial", *METHODS[method]), path), path
        return done[method]

    return result


# --- the same numbers --------------------------------------------------------------------------------


@on_ray
@pytest.mark.parametrize(
    ("workers", "method"), [(w, m) for w in (1, 2, 4) for m in METHODS if m != "some clients" or w == 2]
)
def test_ray_and_serial_agree_to_the_bit(serial, tmp_path, workers, method):
    expected, where = serial(method)
    summary = run(compose("engine=ray", f"engine.workers={workers}", *METHODS[method]), tmp_path / "run")
    assert summary["weights_sha256"] == expected["weights_sha256"]
    assert lasting(summary) == lasting(expected)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (where / "metrics.jsonl").read_bytes()


@on_ray
@pytest.mark.parametrize("cohort", ["null", "1"])
def test_a_worker_killed_in_the_middle_of_a_round_changes_nothing(tmp_path, monkeypatch, cohort):
    config = compose("engine=ray", "engine.workers=2", f"engine.cohort={cohort}", "strategy=scaffold")
    expected = run(config, tmp_path / "whole")
    submit, killed = RayGrid._submit, []

    def submit_and_kill(self, index, work, refs):
        reference = submit(self, index, work, refs)
        if len(killed) < 2 and work.jobs[0].kind == "train":
            time.sleep(0.02 * len(killed))
            ray.kill(self._workers[index])
            killed.append(index)
        return reference

    monkeypatch.setattr(RayGrid, "_submit", submit_and_kill)
    summary = run(config, tmp_path / "killed")
    assert len(killed) == 2
    assert summary["weights_sha256"] == expected["weights_sha256"]
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_the_same_run_twice_differs_in_its_timing_alone(serial, tmp_path):
    expected, where = serial("ggeur")
    run(compose("engine=serial", *METHODS["ggeur"]), tmp_path / "run")
    first, second = (json.loads((p / "summary.json").read_text()) for p in (where, tmp_path / "run"))
    assert first.pop("timing").keys() == second.pop("timing").keys()
    assert first == second
    assert first == {k: v for k, v in json.loads(json.dumps(expected)).items() if k != "timing"}


def test_methods_and_seeds_end_at_different_weights(serial, tmp_path):
    other = run(compose("engine=serial", "strategy=fedavg", "seed=1"), tmp_path / "run")
    assert len({*(serial(m)[0]["weights_sha256"] for m in METHODS), other["weights_sha256"]}) == 5


# --- chosen clients ----------------------------------------------------------------------------------


def chosen(path):
    nodes = defaultdict(set)
    for row in rows_of(path):
        if row["phase"] == "train":
            nodes[row["round"]].add(row["node"])
    return dict(nodes)


def test_chosen_clients_depend_on_seed_and_round_alone(tmp_path):
    some = ["engine=serial", "scenario=iid", "scenario.clients=9", "clients_per_round=3"]
    first = compose(*some, "strategy=fedavg")
    others = [
        compose(*some, "strategy=fedprox"),
        compose(*some, "strategy=ggeur", "client.lr=0.2", "eval_every=2"),
        compose(*some, "strategy=fedavg", "rounds=2"),
        compose(*some, "strategy=fedavg", "data.seed=5", "scenario=quantity_skew"),
    ]
    run(first, tmp_path / "first")
    picks = chosen(tmp_path / "first")
    assert [len(p) for p in picks.values()] == [3, 3, 3]
    assert len({frozenset(p) for p in picks.values()}) > 1
    for number, config in enumerate(others):
        run(config, tmp_path / str(number))
        again = chosen(tmp_path / str(number))
        assert again == {r: p for r, p in picks.items() if r <= config.rounds}
    run(compose(*some, "strategy=fedavg", "seed=1"), tmp_path / "seed")
    assert chosen(tmp_path / "seed") != picks


# --- clients that evaluate ---------------------------------------------------------------------------

MANY = ["engine=serial", "scenario=iid", "scenario.clients=9", "data.domains=1", "strategy=fedavg"]


def evaluating(path):
    nodes = defaultdict(set)
    for row in rows_of(path):
        if (row["phase"], row["scope"]) == ("evaluate", "client"):
            nodes[row["round"]].add(row["node"])
    return dict(nodes)


@pytest.fixture(scope="module")
def all_evaluate(tmp_path_factory):
    path = tmp_path_factory.mktemp("all") / "run"
    return run(compose(*MANY), path), path


def test_all_clients_evaluate_unless_told_otherwise(all_evaluate, tmp_path):
    summary, path = all_evaluate
    assert evaluating(path) == {number: set(range(9)) for number in (1, 2, 3)}
    again = run(compose(*MANY, "eval_clients=9"), tmp_path / "run")  # a draw of all
    assert again["history"] == summary["history"]
    assert again["final"] == summary["final"]


@pytest.mark.parametrize("count", [0, 4])
def test_some_or_no_clients_evaluate_and_all_else_stays(all_evaluate, tmp_path, count):
    everyone = all_evaluate[0]
    summary = run(compose(*MANY, f"eval_clients={count}"), tmp_path / "run")
    assert summary["weights_sha256"] == everyone["weights_sha256"]
    for key in ("domains", "avg", "std", "loss"):
        assert summary["final"][key] == everyone["final"][key]
    assert [p["avg"] for p in summary["history"]] == [p["avg"] for p in everyone["history"]]
    asked = evaluating(tmp_path / "run")
    if count:
        assert [len(nodes) for nodes in asked.values()] == [4, 4, 4]
        assert len({frozenset(nodes) for nodes in asked.values()}) > 1
        scores = summary["final"]["clients"]
        assert {int(node) for node in scores} <= asked[3]
        assert scores == {k: v for k, v in everyone["final"]["clients"].items() if k in scores}
        assert summary["bytes"]["evaluate"]["down"] * 9 == everyone["bytes"]["evaluate"]["down"] * 4
    else:
        assert asked == summary["final"]["clients"] == {}
        assert "evaluate" not in summary["bytes"]
        assert summary["final"]["worst_client"] is summary["best_validation"] is None
    assert chosen(tmp_path / "run") == chosen(all_evaluate[1])


def test_clients_that_evaluate_depend_on_seed_and_round_alone(tmp_path):
    asked = []
    for number, words in enumerate(
        (["clients_per_round=2"], ["strategy=fedprox", "client.lr=0.2"], ["eval_every=2"], ["seed=1"])
    ):
        run(compose(*MANY[:-1], "strategy=fedavg", "eval_clients=3", *words), tmp_path / str(number))
        asked.append(evaluating(tmp_path / str(number)))
    assert asked[0] == asked[1]
    assert asked[2] == {r: nodes for r, nodes in asked[0].items() if r in (2, 3)}
    assert asked[3] != asked[0]


def test_personal_models_of_some_clients(tmp_path):
    words = ["engine=serial", "strategy=ditto", "scenario.clients_per_domain=2", "eval_clients=1"]
    summary = run(compose(*words), tmp_path / "run")
    domains = summary["last_5"]["domains"]
    assert [len(nodes) for nodes in evaluating(tmp_path / "run").values()] == [1, 1, 1]
    assert len(summary["final"]["domains"]) == 1
    assert set(domains) >= set(summary["final"]["domains"])


def test_a_personal_method_needs_somebody_with_test_rows(tmp_path):
    words = ["engine=serial", "strategy=ditto", "scenario=iid", "scenario.clients=40", "data.domains=1"]
    config = compose(*words, "data.test_per_class=1", "eval_clients=1", "seed=1")
    with pytest.raises(RunFailed, match="none of the 1 clients that evaluated round 1 could test its model"):
        run(config, tmp_path / "run")


# --- many clients ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_round_of_some_of_two_hundred_thousand_clients(tmp_path):
    words = ["engine=serial", "scenario=iid", "scenario.clients=200000", "data.domains=1", "strategy=fedavg"]
    sizes = ["data.train_per_class=200000", "clients_per_round=50", "eval_clients=20", "rounds=2"]
    summary = run(compose(*words, *sizes), tmp_path / "run")
    assert summary["split"] == {
        "clients": 200_000,
        "domains": {
            "domain_0": {
                "clients": 200_000, "rows": 1_000_000, "smallest": 5, "median": 5.0, "largest": 5,
            }
        },
    }  # fmt: skip
    assert [len(nodes) for nodes in chosen(tmp_path / "run").values()] == [50, 50]
    assert [len(nodes) for nodes in evaluating(tmp_path / "run").values()] == [20, 20]
    assert (tmp_path / "run/summary.json").stat().st_size < 20_000
    assert (tmp_path / "run/split.png").stat().st_size > 10_000


# --- what is written down ----------------------------------------------------------------------------


def test_rows_have_six_keys_and_three_scopes(serial):
    rows = rows_of(serial("fedavg")[1])
    assert all(list(row) == KEYS for row in rows)
    assert {row["scope"] for row in rows} == {"client", "domain", "global"}
    assert {row["phase"] for row in rows} == {"train", "evaluate"}
    assert {row["round"] for row in rows} == {1, 2, 3}
    assert {row["node"] for row in rows if row["scope"] == "client"} == {0, 1, 2, 3}
    assert {row["node"] for row in rows if row["scope"] == "global"} == {None}


def test_client_bytes_add_up_to_those_of_the_summary(serial):
    for method in METHODS:
        summary, path = serial(method)
        books = defaultdict(int)
        for row in rows_of(path):
            if row["metric"] in ("bytes_up", "bytes_down"):
                books[row["phase"], row["metric"][6:]] += row["value"]
        assert dict(books) == {(p, way): n for p, ways in summary["bytes"].items() for way, n in ways.items()}
    # 8 x 5 weights and 5 biases of 4 bytes, and the round as a number of 8 bytes; 4 clients, 3 rounds.
    model = (8 * 5 + 5) * 4
    rows = [r for r in rows_of(serial("fedavg")[1]) if r["phase"] == "train"]
    assert {r["value"] for r in rows if r["metric"] == "bytes_down"} == {model + 8}
    assert {r["value"] for r in rows if r["metric"] == "bytes_up"} == {model + 3 * 8}
    queries = {"query.ggeur_statistics", "query.ggeur_deliver"}
    assert set(serial("fedavg")[0]["bytes"]) == {"train", "evaluate"}
    assert set(serial("ggeur")[0]["bytes"]) == {"train", "evaluate"} | queries


def test_scores_are_those_of_the_rows(serial):
    summary, path = serial("fedprox")
    rows = [r for r in rows_of(path) if r["round"] == 3 and r["phase"] == "evaluate"]
    domains = {r["node"]: r["value"] for r in rows if r["scope"] == "domain" and r["metric"] == "accuracy"}
    assert domains == summary["final"]["domains"]
    assert len(domains) == 4
    glob = {r["metric"]: r["value"] for r in rows if r["scope"] == "global"}
    assert glob["accuracy_avg"] == pytest.approx(np.mean(list(domains.values())))
    assert glob["accuracy_std"] == pytest.approx(np.std(list(domains.values())))
    sums = Counter()
    clients = defaultdict(dict)
    for r in rows:
        if r["scope"] == "client":
            sums[r["metric"]] += r["value"]
            clients[r["node"]][r["metric"]] = r["value"]
    assert glob["accuracy_val"] == pytest.approx(sums["val_correct"] / sums["val_count"])
    worst = min(c["test_correct"] / c["test_count"] for c in clients.values())
    assert summary["final"]["worst_client"] == pytest.approx(worst)
    # Every domain has one client here, which holds all of its test rows.
    assert sorted(c["test_correct"] / c["test_count"] for c in clients.values()) == pytest.approx(
        sorted(domains.values())
    )


def test_the_best_round_is_chosen_by_validation_rows(serial):
    for method in METHODS:
        summary, _ = serial(method)
        best = max(summary["history"], key=lambda p: p["val"])
        assert summary["best_validation"]["val"] == best["val"]
        assert summary["best_validation"]["round"] == best["round"]


def test_evaluation_can_be_rarer_and_always_has_the_last_round(tmp_path):
    summary = run(compose("engine=serial", "strategy=fedavg", "rounds=5", "eval_every=2"), tmp_path / "run")
    assert [p["round"] for p in summary["history"]] == [2, 4, 5]
    assert summary["last_5"]["rounds"] == [2, 4, 5]
    assert summary["last_5"]["avg"] == pytest.approx(np.mean([p["avg"] for p in summary["history"]]))
    assert {r["round"] for r in rows_of(tmp_path / "run") if r["phase"] == "evaluate"} == {2, 4, 5}


def test_a_finished_run_leaves_its_files_and_no_others(serial):
    summary, path = serial("ggeur")
    assert {p.name for p in path.iterdir()} == {
        "checkpoint", "config.yaml", "environment.json", "log.txt", "metrics.jsonl", "split.png",
        "summary.json",
    }  # fmt: skip
    assert not list(path.rglob("*.tmp"))
    assert "round 3/3 accuracy" in (path / "log.txt").read_text()
    last = sorted((path / "checkpoint").glob("*.safetensors"))[-1]
    assert weights_digest(load_weights(last)) == summary["weights_sha256"]


# --- forecasts that are drawn -----------------------------------------------------------------------

SERIES = [
    "data=markets", "data.markets=4", "data.hours=400", "client=timexer", "client.model.d_model=8",
    "client.model.d_ff=8", "client.steps=2", "client.batch_size=16", "scenario=domain_skew", "rounds=1",
]  # fmt: skip


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Runs on series; gives summary, directory, and what was drawn under which title."""
    pictures = []

    def keep(forecasts, path, title):
        forecast_picture(forecasts, path, title)
        pictures.append((title, forecasts))

    monkeypatch.setattr(fedbench.run, "forecast_picture", keep)

    def result(*words):
        path = tmp_path / str(len(pictures))
        summary = run(plan([*SERIES, *words])[0], path)
        return summary, path, *pictures[-1]

    return result


@pytest.mark.parametrize(
    "words", [["fedavg"], ["local_only", "eval_clients=4"], ["fedavg_ft", "system=cross_silo"]]
)
def test_forecasts_of_three_clients_are_drawn_and_in_no_book(drawn, words):
    summary, path, title, forecasts = drawn("engine=serial", f"strategy={words[0]}", *words[1:])
    assert summary["status"] == "completed"
    assert summary["personal"] == ("clients' own models" in title) == (words[0] != "fedavg")
    scores = summary["final"]["clients"]
    best, _, median, worst = sorted(scores, key=scores.get)
    assert [f.title for f in forecasts] == [
        f"{which}: client {node} (market_{node}), MSE {scores[node]:.3f} of scaled values"
        for which, node in (("best", best), ("median", median), ("worst", worst))
    ]
    assert (path / "forecasts.png").is_file()
    assert set(summary["bytes"]) == {row["phase"] for row in rows_of(path)} == {"train", "evaluate"}


@on_ray
def test_a_client_that_cannot_show_its_forecast_is_left_out_of_the_picture(drawn, trouble):
    summary, _, _, expected = drawn("engine=serial", "strategy=local_only")
    worst = max(summary["final"]["clients"], key=summary["final"]["clients"].get)

    def hides(phase, server_round, node):
        if phase == "query.forecast" and node == int(worst):
            raise LookupError("nothing to see here")

    trouble(hides)
    again, path, _, forecasts = drawn("engine=ray", "engine.workers=2", "strategy=local_only")
    assert lasting(again) == lasting(summary)
    assert "LookupError: nothing to see here" in (path / "log.txt").read_text()
    assert [f.title for f in forecasts] == [f.title for f in expected[:2]]
    for got, want in zip(forecasts, expected, strict=False):
        np.testing.assert_array_equal(got.forecast, want.forecast)


# --- clients that fail -------------------------------------------------------------------------------


def with_trouble(spec, trouble):
    """The usual app, which first calls ``trouble(phase, round, node)``."""
    inner = make_client_app(spec)

    def app(message, context):
        server_round = message.content.config_records.get("config", {}).get("server-round", 0)
        trouble(message.metadata.message_type, server_round, message.metadata.dst_node_id - FIRST_NODE_ID)
        return inner(message, context)

    return app


@pytest.fixture
def trouble(monkeypatch):
    def patch(what):
        monkeypatch.setattr(fedbench.bench, "make_client_app", lambda spec: with_trouble(spec, what))

    return patch


def one_fails_once(phase, server_round, node):
    if (phase, server_round, node) == ("train", 2, 1):
        raise LookupError("the disk of client 1 is gone")


def test_serial_raises_what_the_client_raised_and_keeps_what_the_run_had(trouble, tmp_path):
    trouble(one_fails_once)
    with pytest.raises(LookupError, match="the disk of client 1 is gone"):
        run(compose("engine=serial", "strategy=fedavg", "max_failures=1"), tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["final"]["round"] == 1


@on_ray
def test_a_tolerated_failure_is_counted_logged_and_survived(trouble, tmp_path):
    trouble(one_fails_once)
    config = compose("engine=ray", "engine.workers=2", "strategy=fedavg", "max_failures=0.25")
    summary = run(config, tmp_path / "run")
    assert (summary["status"], summary["failures"], summary["rounds"]) == ("completed", 1, 3)
    log = (tmp_path / "run/log.txt").read_text()
    assert "client 1 failed in round 2 (train)" in log
    assert "Traceback (most recent call last)" in log
    assert "LookupError: the disk of client 1 is gone" in log
    rows = [r for r in rows_of(tmp_path / "run") if r["phase"] == "train" and r["metric"] == "train_loss"]
    assert [(r["round"], r["node"]) for r in rows] == [
        (t, n) for t in (1, 2, 3) for n in range(4) if (t, n) != (2, 1)
    ]


@on_ray
def test_more_failures_than_allowed_end_the_run_and_keep_what_it_had(trouble, tmp_path, capsys):
    trouble(one_fails_once)
    overrides = ["engine=ray", "engine.workers=2", "strategy=fedavg", "max_failures=0.2"]
    code = main(["run", *SMALL, *overrides, f"run_dir={tmp_path / 'run'}"])
    message = capsys.readouterr().err
    assert code == 1
    assert message.count("\n") == 1
    assert message.startswith(
        "fedbench: 1 of 4 clients failed in round 2, more than max_failures=0.2 allows; "
    )
    assert "client 1: LookupError: the disk of client 1 is gone" in message
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["failures"], summary["rounds"]) == ("failed", 1, 2)
    assert summary["final"]["round"] == 1
    rows = rows_of(tmp_path / "run")
    assert {r["node"] for r in rows if r["round"] == 2 and r["metric"] == "train_loss"} == {0, 2, 3}
    assert load_weights(sorted((tmp_path / "run/checkpoint").glob("*.safetensors"))[-1])


@on_ray
def test_failures_before_the_first_round_say_what_the_clients_said(trouble, tmp_path):
    def no_statistics(phase, server_round, node):
        if phase == "query.ggeur_statistics":
            raise LookupError("no embeddings here")

    trouble(no_statistics)
    with pytest.raises(RunFailed, match=r"4 of 4 clients failed in round 0.*no embeddings here"):
        run(compose("engine=ray", "engine.workers=2", "strategy=ggeur"), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["failures"] == 4


@on_ray
@pytest.mark.parametrize("method", ["fedavg", "ggeur"])
def test_a_worker_that_dies_in_the_middle_of_a_round_changes_nothing(serial, trouble, tmp_path, method):
    marker = str(tmp_path / "died")

    def dies_once(phase, server_round, node):
        if (phase, server_round, node) == ("train", 2, 1) and not os.path.exists(marker):
            open(marker, "x").close()
            os._exit(1)

    trouble(dies_once)
    summary = run(compose("engine=ray", "engine.workers=2", *METHODS[method]), tmp_path / "run")
    assert os.path.exists(marker)
    assert lasting(summary) == lasting(serial(method)[0])


def test_an_interrupted_run_is_kept(trouble, tmp_path, capsys):
    def interrupt(phase, server_round, node):
        if server_round == 3:
            raise KeyboardInterrupt

    trouble(interrupt)
    assert main(["run", *SMALL, "engine=serial", "strategy=fedavg", f"run_dir={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err.startswith("fedbench: interrupted")
    assert json.loads((tmp_path / "run/summary.json").read_text())["final"]["round"] == 2


def test_flowers_own_sampling_follows_the_seed(tmp_path):
    def trained(name, seed):
        half = compose("strategy=fedavg", "+strategy.fraction_train=0.5", f"seed={seed}", "engine=serial")
        run(half, tmp_path / name)
        rows = rows_of(tmp_path / name)
        return [r["node"] for r in rows if r["phase"] == "train" and r["metric"] == "train_loss"]

    first = trained("a", 0)
    assert len(first) == 3 * 2
    assert trained("b", 0) == first
    assert trained("c", 1) != first


@pytest.mark.slow
def test_the_number_of_threads_that_the_machine_offers_changes_nothing(tmp_path):
    digests = []
    for threads in ("1", "4"):
        # Wide enough that a multi-threaded decomposition would sum in another order.
        wide = [
            *SMALL,
            "data.dim=600",
            "strategy=ggeur",
            "align.own=30",
            "align.foreign=1",
            "rounds=1",
            "engine=serial",
            f"run_dir={tmp_path / threads}",
        ]
        command = [sys.executable, "-m", "fedbench", "run", *wide]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        digests.append(json.loads((tmp_path / threads / "summary.json").read_text())["weights_sha256"])
    assert digests[0] == digests[1]


def test_a_pure_client_among_mixed_ones_has_no_domain_of_its_own(tmp_path):
    tiny = ["data=digits", "scenario=label_skew", "scenario.alpha=0.05", "seed=2", "strategy=ggeur"]
    config = plan([*tiny, "client=linear", "rounds=1", "engine=serial"])[0]
    bench = fedbench.bench.build(config)
    assert {c.domain for c in bench.federation.clients} > {-1}  # the split that this is about
    assert set(bench.spec.domains) == {"mixed"}
