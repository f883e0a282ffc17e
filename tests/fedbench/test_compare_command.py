"""``fedbench compare KEY=VALUE...``: what is missing runs, what is there stays, a report tells of both."""

import json
import os
import re
import subprocess
import sys

import pytest

from fedbench.cli import main

SMALL = [
    "data=gaussian_domains", "data.domains=2", "data.classes=3", "data.dim=4", "data.train_per_class=12",
    "data.test_per_class=6", "scenario=domain_skew", "client=linear", "client.steps=2", "rounds=3",
    "engine=serial",
]  # fmt: skip
BASE = "runs/compare-gaussian_domains-domain_skew"

BRITTLE = """\
import os, signal, time
from pathlib import Path
from flwr.serverapp.strategy import FedAvg
from strategies.errors import StrategyError

class Brittle(FedAvg):
    def __init__(self, how: str = "", **rest):
        super().__init__(**rest)
        self.how = Path(how)
    def aggregate_train(self, server_round, replies):
        how = self.how.read_text() if server_round == 2 else ""
        if how == "fail":
            raise StrategyError("it broke")
        if how == "stop":
            raise KeyboardInterrupt
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt":
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
        return super().aggregate_train(server_round, replies)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def brittle(here, monkeypatch):
    """Words for a method that goes wrong in its second round in the way that the file ``how`` says."""
    (here / "mine/strategy").mkdir(parents=True)
    (here / "lib").mkdir()
    (here / "lib/my_brittle.py").write_text(BRITTLE)
    (here / "mine/strategy/brittle.yaml").write_text(
        "# Goes wrong\n_target_: my_brittle.Brittle\nhow: how\nmin_train_nodes: 1\nmin_evaluate_nodes: 1\n"
    )
    monkeypatch.syspath_prepend(here / "lib")
    monkeypatch.setenv("PYTHONPATH", str(here / "lib"), prepend=os.pathsep)
    (here / "how").write_text("")
    yield ["--config-dir", "mine"]
    sys.modules.pop("my_brittle", None)


def summaries(base):
    """Content of every summary, by method and seed."""
    found = [json.loads(path.read_text()) for path in base.rglob("summary.json")]
    return {(s["label"], s["seed"]): s for s in found}


def times(base):
    return {path: path.stat().st_mtime_ns for path in base.rglob("*") if path.name != "report.html"}


def lines(text):
    """The words of a text, wherever the terminal ended its lines."""
    return " ".join(text.split())


def test_what_is_there_is_not_run_again(here, capsys):
    words = ["compare", *SMALL, "strategy=fedavg,fedprox"]
    assert main([*words, "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 0 there already, 4 to run" in out
    assert re.search(r"\[4/4\] fedprox-domain_skew-gaussian_domains-s1-[0-9a-f]{8}\n", out)
    assert f"report: {BASE}/report.html" in out
    assert "mean ± standard deviation over 2 seeds" in lines(out)
    base, before = here / BASE, times(here / BASE)
    assert summaries(base).keys() == {(m, s) for m in ("fedavg", "fedprox") for s in (0, 1)}

    assert main([*words, "seed=0,1", "engine=ray", "profile=true"]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 4 there already, nothing to run" in out
    assert "fedprox" in out
    assert times(base) == before

    assert main(["compare", *SMALL, "strategy=fedavg,fedprox,scaffold", "seed=0,1,2"]) == 0
    out = capsys.readouterr().out
    assert "9 runs: 4 there already, 5 to run" in out
    assert "over 3 seeds" in lines(out)
    assert len(summaries(base)) == 9
    assert {path: time for path, time in times(base).items() if path in before and path != base} == {
        path: time for path, time in before.items() if path != base
    }
    assert "scaffold" in (base / "report.html").read_text()


def test_the_report_is_about_what_was_asked_for(here, capsys):
    assert main(["compare", *SMALL, "strategy=fedavg,scaffold"]) == 0
    capsys.readouterr()
    assert main(["compare", *SMALL, "strategy=fedavg,fedprox", "--baseline", "fedprox", "--overlap=0.4"]) == 0
    out = capsys.readouterr().out
    assert "scaffold" not in out
    page = (here / BASE / "report.html").read_text()
    assert "scaffold" not in page
    assert page.index(">fedprox<") < page.index(">fedavg<")


def test_an_unknown_baseline_is_said_and_the_runs_are_kept(here, capsys):
    words = ["compare", *SMALL, "strategy=fedavg"]
    assert main([*words, "--baseline", "fedavgg"]) == 2
    assert capsys.readouterr().err.startswith("fedbench: --baseline fedavgg: no such method in these runs")
    assert main([*words, "--overlap", "-1"]) == 2
    out, err = capsys.readouterr()
    assert "1 run: 1 there already, nothing to run" in out
    assert err.startswith("fedbench: --overlap -1.0: not a ratio")


def test_runs_of_fedbench_run_are_found_too(here, capsys):
    assert main(["run", "-m", *SMALL, "strategy=fedavg,fedprox", "run_dir=out"]) == 0
    capsys.readouterr()
    assert main(["compare", *SMALL, "strategy=fedavg,fedprox", "-o", "out", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "there   out/000-fedavg-domain_skew-gaussian_domains-s0",
        "there   out/001-fedprox-domain_skew-gaussian_domains-s0",
        "2 runs: 2 there already, nothing to run",
    ]


def test_a_dry_run_writes_nothing(here, capsys):
    assert main(["compare", *SMALL, "--dry-run", "seed=0,1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split("-")[0] for line in out[:-1]] == ["run     runs/compare"] * 6
    assert out[-1] == "6 runs: 0 there already, 6 to run"
    assert list(here.iterdir()) == []


def test_the_report_may_lie_elsewhere(here, capsys):
    assert main(["compare", *SMALL, "strategy=fedavg", "-o", "page.html", "run_dir=mine"]) == 0
    assert sorted(path.name for path in here.iterdir()) == ["mine", "page.html"]
    assert "report: page.html" in capsys.readouterr().out


def test_methods_on_different_federations_are_no_rivals(here, capsys):
    words = ["strategy=fedavg", "scenario=iid,domain_skew", "--markdown"]
    assert main(["compare", *SMALL, *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| fedavg ") for line in out) == 2
    assert sum(line.startswith("| method ") for line in out) == 2


def test_a_failed_run_stops_no_other_and_goes_on_later(here, brittle, capsys):
    words = ["compare", *SMALL, *brittle, "strategy=brittle,fedavg"]
    (here / "how").write_text("fail")
    assert main([*words, "-o", "out"]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.match(r"fedbench: brittle-domain_skew-gaussian_domains-s0-\w{8}: it broke\n", err)
    assert "report: out/report.html" in out
    assert "fedavg" in out
    assert "failed in round 2" in (here / "out/report.html").read_text()

    (here / "how").write_text("")
    assert main([*words, "-o", "out"]) == 0
    assert "2 runs: 1 there already, 1 to resume" in capsys.readouterr().out
    assert main([*words, "-o", "unbroken"]) == 0
    assert "2 runs: 0 there already, 2 to run" in capsys.readouterr().out
    left, right = summaries(here / "out"), summaries(here / "unbroken")
    assert {k: s["weights_sha256"] for k, s in left.items()} == {
        k: s["weights_sha256"] for k, s in right.items()
    }
    assert len(left) == 2


def test_nothing_but_failures(here, brittle, capsys):
    (here / "how").write_text("fail")
    assert main(["compare", *SMALL, *brittle, "strategy=brittle"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (here / BASE / "report.html").exists()


def test_an_interruption_keeps_what_is_there(here, brittle, capsys):
    words = ["compare", *SMALL, *brittle, "strategy=fedavg,brittle,fedprox", "-o", "out"]
    (here / "how").write_text("stop")
    assert main(words) == 130
    said = "fedbench: interrupted after 1 of 3 runs; what they had is kept, and the same command goes on\n"
    assert capsys.readouterr().err == said
    (here / "how").write_text("")
    assert main([*words, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "there",
        "resume",
        "run",
        "3",
    ]


def test_a_method_that_makes_no_sense_is_left_out(here, capsys):
    words = ["compare", *SMALL, "client.optimizer=adam", "seed=0,1"]
    assert main([*words, "strategy=scaffold,fedavg"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("fedbench: left out: strategy=scaffold is derived for SGD")
    assert err.count("\n") == 1
    assert summaries(here).keys() == {("fedavg", 0), ("fedavg", 1)}
    assert "fedavg" in out
    assert main([*words, "strategy=scaffold"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["fedbench: no method was left to run"]


@pytest.mark.slow
def test_several_at_once(here, brittle, capfd):
    (here / "how").write_text("die")
    words = ["compare", *SMALL, *brittle, "seed=0,1"]
    assert main([*words, "strategy=brittle,fedavg,scaffold", "client.optimizer=adam", "--jobs", "2"]) == 1
    out, err = capfd.readouterr()
    assert [line.split("-")[0] for line in sorted(err.splitlines())] == [
        "fedbench: brittle",
        "fedbench: brittle",
        "fedbench: left out: strategy=scaffold is derived for SGD, but client.optimizer=adam; set client.opti"
        "mizer=sgd",
    ]
    assert err.count("its process ended with exit code -9\n") == 2
    told = re.findall(r"^\[(\d)/6\] (\w+)-\S+ (done|failed|left out) in \d+ s$", out, re.MULTILINE)
    assert [number for number, *_ in told] == list("123456")
    assert sorted(name for _, *name in told) == [
        *[["brittle", "failed"]] * 2,
        *[["fedavg", "done"]] * 2,
        *[["scaffold", "left out"]] * 2,
    ]
    assert "━" not in out
    assert main([*words, "strategy=fedavg", "client.optimizer=adam", "-o", "turn"]) == 0
    for name, run in summaries(here / "turn").items():
        assert run["weights_sha256"] == summaries(here / BASE)[name]["weights_sha256"]


@pytest.mark.slow
def test_an_interruption_of_several_at_once(here, brittle, capsys):
    (here / "how").write_text("interrupt")
    words = ["compare", *SMALL, *brittle, "strategy=brittle", "seed=0,1", "--jobs=2", "-o", "out"]
    # As from a terminal, whatever signals this process ignores.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += f"from fedbench.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=120)
    assert done.stderr == (
        "fedbench: interrupted after 0 of 2 runs; what they had is kept, and the same command goes on\n"
    )
    assert done.returncode == 130
    # The one that asked for it had a round; the other may not have come so far.
    assert main([*words, "--dry-run"]) == 0
    assert "resume" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mistake_in_one_of_several_at_once(here, capfd):
    words = ["compare", *SMALL, "strategy=fedavg", "client.lr=-1,-2", "--jobs", "2"]
    assert main(words) == 2
    assert re.fullmatch(r"fedbench: client\.lr: must be above 0, got -[12]\n", capfd.readouterr().err)
    assert not (here / "runs").exists()


MISTAKES = {
    "runs seed=0": "'runs' would be a finished run, 'seed=0' a setting of runs to make; give one kind of th",
    "seed=0 strategy": "'strategy' would be a finished run, 'seed=0' a setting of runs to make; give one",
    "nowhere": "nowhere: no such directory",
    "runs --jobs 2": "--jobs goes with runs to make, KEY=VALUE...\n",
    "runs --dry-run": "--dry-run goes with runs to make, KEY=VALUE...\n",
    "runs --config-dir x": "--config-dir goes with runs to make, KEY=VALUE...\n",
    "runs -o x": "--output goes with runs to make, KEY=VALUE...; fedbench report has it for finished ones\n",
    "runs --baseline x": "--baseline goes with runs to make, KEY=VALUE...; fedbench report has it for",
    "seed=0 --jobs 0": "--jobs 0: must be 1 or more\n",
    "seed=0 -o nowhere/page.html": "-o nowhere/page.html: give the name of a file in a folder that exists\n",
    "seed=0 -o file": "file: is no directory\n",
    "seed=0 -o run": "run: is a run; give a directory that holds runs, or a new one\n",
    "seed=0 --config-dir nowhere": "--config-dir nowhere: no such directory\n",
    "strategy=fedavg,ggeurr": "strategy=ggeurr: no such strategy; did you mean 'ggeur'?",
    "strategy=fedavg client.lr=-1 engine=serial": "client.lr: must be above 0, got -1\n",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(here, capsys, case):
    (here / "file").touch()
    (here / "runs").mkdir()
    (here / "run").mkdir()
    (here / "run/config.yaml").touch()
    before = sorted(here.rglob("*"))
    assert main(["compare", *case.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedbench: {MISTAKES[case]}")
    assert err.count("\n") == 1
    assert sorted(here.rglob("*")) == before
