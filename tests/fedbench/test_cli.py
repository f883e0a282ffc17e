"""The commands, as a user types them."""

import json
import sys

import pytest
import yaml

from fedbench.cli import main

SMALL = [
    "data=gaussian_domains", "data.domains=2", "data.classes=3", "data.dim=4", "data.train_per_class=12",
    "data.test_per_class=6", "scenario=domain_skew", "client=linear", "client.steps=3", "rounds=2",
    "engine=serial",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(folder):
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("summary.json"))


def test_one_run_lands_under_runs(here, capsys):
    assert main(["run", *SMALL, "strategy=fedavg"]) == 0
    (found,) = runs(here)
    assert found.startswith("runs/2")
    out = capsys.readouterr().out
    assert f"results: {found}" in out
    assert "gaussian_domains, domain_skew, linear, 2 rounds" in out
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_several_runs_are_numbered_named_and_compared(here, capsys):
    assert main(["run", "-m", *SMALL, "seed=0,1", "run_dir=out"]) == 0
    assert runs(here) == [
        f"out/{number:03d}-{name}-domain_skew-gaussian_domains-s{seed}"
        for number, (seed, name) in enumerate((s, n) for s in (0, 1) for n in ("fedavg", "fedprox", "ggeur"))
    ]
    out = capsys.readouterr().out
    assert "[6/6] ggeur-domain_skew-gaussian_domains-s1" in out
    assert "mean ± standard deviation over 2 seeds" in " ".join(out.split())
    assert "results: out" in out

    assert main(["compare", "out", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| fedavg", "2"],
        ["| fedprox", "2"],
        ["| ggeur", "2"],
    ]
    assert main(["compare", *(str(here / run) for run in runs(here)), "--at", "best_validation"]) == 0
    assert "best round on validation rows" in " ".join(capsys.readouterr().out.split())


def test_options_may_stand_anywhere(here, capsys):
    assert main(["run", "seed=0,1", "--cfg", "-m", "strategy=fedavg"]) == 0
    assert [c["seed"] for c in yaml.safe_load_all(capsys.readouterr().out)] == [0, 1]


def test_cfg_prints_the_configuration_and_runs_nothing(here, capsys):
    assert main(["run", "--cfg", "strategy=fedprox", "client.lr=0.3", "rounds=7"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["rounds"], config["client"]["lr"], config["strategy"]["proximal_mu"]) == (7, 0.3, 0.01)
    assert list(here.iterdir()) == []


def test_list_shows_every_choice_with_its_description(capsys):
    assert main(["list", "strategy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "strategy"
    assert any(line.split(maxsplit=1)[0] == "fedprox" and "proximal term" in line for line in lines[1:])
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "scenario", "data", "features", "client", "align",
        "strategy", "attack", "personalization", "privacy", "system", "engine", "tracker", "experiment",
    ]  # fmt: skip
    assert "_training" not in out


def test_own_data_and_own_strategy_run(here, capsys, monkeypatch):
    (here / "mine/data").mkdir(parents=True)
    (here / "mine/strategy").mkdir()
    (here / "mine/scenario").mkdir()
    (here / "lib").mkdir()
    (here / "lib/my_halving.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Halving(FedAvg):\n"
        "    def __init__(self, factor: float = 0.5, **rest):\n"
        "        super().__init__(**rest)\n"
        "        self.factor = factor\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        from flwr.app import Array, ArrayRecord\n"
        "        arrays, metrics = super().aggregate_train(server_round, replies)\n"
        "        smaller = {k: Array(v.numpy() * self.factor) for k, v in arrays.items()}\n"
        "        return ArrayRecord(smaller), metrics\n"
    )
    # Neither names what most files inherit: the strategy its client half, the scenario its fractions.
    (here / "mine/strategy/halving.yaml").write_text(
        "# Halve everything\n_target_: my_halving.Halving\n"
        "factor: 0.0\nmin_train_nodes: 1\nmin_evaluate_nodes: 1\n"
    )
    (here / "mine/scenario/two.yaml").write_text(
        "# Two clients\n_target_: scenarios.skews.iid.Iid\nclients: 2\n"
    )
    (here / "mine/data/tiny.yaml").write_text(
        "# Tiny\ndefaults:\n  - gaussian_domains\n  - _self_\ndim: 3\nclasses: 2\ntrain_per_class: 10\n"
    )
    monkeypatch.syspath_prepend(here / "lib")
    words = ["engine=serial", "client=linear", "rounds=1", "run_dir=out", "--config-dir", "mine"]
    assert main(["run", "data=tiny", "strategy=halving", "scenario=two", *words]) == 0
    summary = json.loads((here / "out/summary.json").read_text())
    assert (summary["label"], len(summary["split"])) == ("halving", 2)
    assert summary["choices"]["data"] == "tiny"
    assert summary["final"]["loss"] == {"domain_0": pytest.approx(0.6931472)}  # log 2: all weights are 0
    capsys.readouterr()
    assert main(["list", "strategy", "--config-dir", "mine"]) == 0
    assert "Halve everything" in capsys.readouterr().out
    sys.modules.pop("my_halving")


def test_a_single_method_has_no_verdict(here, capsys):
    assert main(["run", *SMALL, "strategy=fedavg", "run_dir=out"]) == 0
    assert main(["compare", "out"]) == 0
    assert "ahead" not in capsys.readouterr().out


def test_a_sweep_goes_on_without_a_method_that_makes_no_sense(tmp_path, capsys):
    request = ["data=digits", "client=cnn", "rounds=1", "client.steps=1", "engine=serial"]
    assert main(["run", *request, f"run_dir={tmp_path / 'run'}"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("fedbench: left out: align=ggeur works on feature vectors")
    assert "fedprox" in out
    assert "ggeur " not in out.partition("method")[2]


def test_a_strategy_that_cannot_go_on_ends_the_run_in_one_line(tmp_path, capsys):
    request = ["data=digits", "strategy=ggeur", "align.n_min_upload=5000", "engine=serial"]
    assert main(["run", *request, f"run_dir={tmp_path / 'run'}"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no client has a class with 5000 or more samples; lower n_min_upload" in err
