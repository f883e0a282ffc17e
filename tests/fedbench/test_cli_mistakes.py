"""Every mistake in a request is one line that names the key and what would be right, and writes nothing."""

import json
import os
import subprocess
import sys

import pytest

from fedbench.cli import main

ONE = ["strategy=fedavg", "rounds=1", "engine=serial"]
DATA = "data=gaussian_domains data.dim=4 data.classes=3 data.train_per_class=8 scenario=iid"

MISTAKES = {
    # names
    "strategy=fedavgg": "strategy=fedavgg: no such strategy; did you mean 'fedavg'?",
    "-m strategy=fedavg,ggeurr": "strategy=ggeurr: no such strategy; did you mean",
    "client=": "client=: no such client; one of: cnn, ",
    "strategy=scaffold client.optimizer=adam": "strategy=scaffold is derived for SGD, but client.opt",
    "strategy=fedper client=linear": "strategy=fedper cuts a model into body and head, but client=linear has",
    "strategy=fedbn": "strategy=fedbn keeps normalisation layers with the clients, but client=",
    "data=markets client=timexer strategy=fedproto": "strategy=fedproto works on class labels",
    "data=markets client=timexer align=ggeur": "align=ggeur aligns what clients hold of each class",
    "data=markets client=timexer features=pixels": "features=pixels works on images or vectors",
    "data=markets client=mlp": "client=mlp is made for classification, but data=markets is forecasting",
    "data=markets client=timexer data.scaler=own": "data.scaler: unknown, got 'own'; use client",
    "data=markets client=timexer client.task.day=0": "client.task.day: must be 1 step or more, got 0",
    "data=csv_series client=timexer": "data 'csv_series': no folder ''; set data.path to one with CSV files",
    "personalization=niw strategy=ditto": "personalization=niw: ",
    "personalization=niw personalization.scope=hed": "personalization=niw: scope 'hed' matches no parameter",
    "personalization=niw personalization.n0=-1": "personalization.n0: ",
    "personalization=finetune personalization.rule.steps=-1": "personalization.rule.steps: must be 0 or",
    "personalization=niw privacy=dp_server_fixed": "privacy=dp_server_fixed covers the mean of clients'",
    "new_clients=1": "new_clients=1.0: must be 0 or more and below 1",
    "new_clients=0.9": "new_clients=0.9: leaves none of the 4 clients to train",
    "new_clients=0.5 support=[-1]": "support=[-1]: must be numbers of rows, 0 or more",
    "new_clients=0.5 system=cross_device": "new_clients=0.5: system=cross_device does not tell them",
    "client.local=[hed.*]": "client=mlp: no part of the model is called 'hed.*'; it has body.0.weight",
    "client.local=[head.*] strategy=ditto": "client=mlp: DittoRule trains several models in a client",
    "client.local=[head.*] eval_clients=0": "eval_clients=0 tests the global model alone, but client.local=",
    "client.seen_rows=[head.weight]": "client.seen_rows=['head.weight']: client=mlp has no ids of rows",
    "client.seen_rows=[E] data=interests client=sasrec": "client=sasrec: no part of the model is called 'E'",
    "data=interests client=hcn": "client.task: learns from targets, of which data.examples=sequences",
    "data=block_model client=largegt client.task.inputs=[x]": "client.model: cannot take what client.task",
    "data=block_model client=largegt client.task.encoding_dim=4": "pos_enc: must have global_dim=8 columns",
    "scenario=natural": "scenario: natural: data 'digits'",
    "scenario=community": "scenario: community: data 'digits'",
    "data=digits client=gcvit": "client.model: client 'gcvit' needs square images",
    "patience=0": "patience=0: must be 1 evaluation or more, or null for never",
    "patience=1 strategy=ccvr": "patience=1 may stop a run early, but strategy=ccvr has work to do after",
    "strategy=ditto strategy.lam=-1": "strategy.lam: must be 0 or more, got -1",
    "strategy=moon strategy.muu=1": "strategy.muu: no such key in 'strategy'; did you mean 'mu'?",
    "strategy=null": "strategy=null: no such strategy; one of: ",
    "experiment=ggeur_e9": "experiment=ggeur_e9: no such experiment; did you mean 'ggeur_e",
    "round=3": "round: no such key; did you mean 'rounds'?",
    "zzz=3": "zzz: no such key; one of: align, attack, cache_dir, client, ",
    "client.lrr=1": "client.lrr: no such key in 'client'; did you mean 'lr'?",
    "strategy.mu=1": "strategy.mu: no such key in 'strategy'",
    "client.model.hiden=[3]": "client.model.hiden: no such key in 'client.model'; did you",
    "align.policy=multi": "align.policy: no such key in 'align', which has none",
    "engine.workers=2": "engine.workers: no such key in 'engine'; one of: cohort, partial_sums",
    "+client.lrr=1": "client.lrr: no such option; did you mean 'lr'?",
    # types
    "rounds=abc": "rounds=abc: must be a whole number\n",
    "rounds=1.5": "rounds=1.5: must be a whole number\n",
    "rounds=null": "rounds=null: must be a whole number\n",
    "rounds=": "rounds=: must be a whole number\n",
    "seed=first": "seed=first: must be a whole number\n",
    "max_failures=few": "max_failures=few: must be a number\n",
    "clients_per_round=all": "clients_per_round=all: must be a whole number or null\n",
    "sweep=3": "sweep=3: must be names with values\n",
    "client.lr=fast": "client.lr=fast: must be a number\n",
    "client.steps=few": "client.steps=few: must be a whole number or null\n",
    "client.optimizer=sdg": "client.optimizer=sdg: must be one of sgd, adam, adamw\n",
    "client.replace=1": "client.replace=1: must be true or false\n",
    "scenario=label_skew scenario.alpha=x": "scenario.alpha=x: must be a number\n",
    "strategy=fedprox strategy.proximal_mu=x": "strategy.proximal_mu=x: must be a number",
    "engine=ray engine.workers=x": "engine.workers=x: must be a whole number or null\n",
    "engine=ray engine.gpus_per_worker=x": "engine.gpus_per_worker=x: must be a number\n",
    "client.model.hidden=[a]": "client.model.hidden=['a']: must be a list of whole numbers\n",
    "client.model.norm=group": "client.model.norm=group: must be one of none, batch, layer\n",
    "client.model._target_=no.Where": "client.model._target_: cannot load 'no.Where' (No module named 'no')",
    # ranges
    "data=digits scenario.test_fraction=0": "scenario.test_fraction=0: leaves some domain without test rows",
    "strategy=ggeur align.own=-5": "align.own: must not be negative, got -5",
    "client.lr=nan": "client.lr: must be above 0, got nan",
    "rounds=0": "rounds=0: must be 1 or more",
    "seed=-1": "seed=-1: must be 0 or more",
    "eval_every=0": "eval_every=0: must be 1 or more",
    "max_failures=2": "max_failures=2.0: must be between 0 and 1",
    "clients_per_round=99": "clients_per_round=99: must be between 1 and the 4 clients",
    "clients_per_round=0": "clients_per_round=0: must be between 1 and the 4 clients",
    "eval_clients=5": "eval_clients=5: must be between 1 and the 4 clients, 0 for none or null for all",
    "eval_clients=-1": "eval_clients=-1: must be between 1 and the 4 clients, 0 for none or null for all",
    "eval_clients=some": "eval_clients=some: must be a whole number or null\n",
    "scenario=label_skew scenario.alpha=-1": "scenario.alpha: not a Dirichlet concentration, got -1; use a n",
    "client.lr=-1": "client.lr: must be above 0, got -1",
    "scenario.val_fraction=2": "scenario.val_fraction: not a share, got 2; use a number from 0",
    "engine=ray engine.workers=0": "engine.workers: must be 1 or more, got 0",
    "engine=ray engine.gpus_per_worker=-1": "engine.gpus_per_worker: must be 0 or more, got -1",
    "align=ggeur align.rank=0": "align.rank: must be 1 or more, got 0",
    "scenario=iid scenario.clients=5000": "scenario: data 'digits': 1260 rows to train on cannot give 1 to e",
    # things that do not go together
    "strategy=ditto eval_clients=0": "eval_clients=0 tests the global model alone, but strategy=ditto leaves",
    f"{DATA} client=cnn": "client.model: client 'cnn' needs images (channels, height, width)",
    "client=cnn strategy=ggeur": "align=ggeur works on feature vectors, but client=cnn",
    "data=gaussian_domains": "scenario: domain_skew: data 'gaussian_domains' have one domain only",
    # the words themselves
    "strategy=fedavg,ggeur": "'strategy=fedavg,ggeur' names several values; add -m",
    "strategyfedavg": "'strategyfedavg' is no override; write key=value, e.g. strategy=ggeur",
    "~rounds": "'~rounds' is no override; write key=value",
    "client.model.hidden=[3": "'client.model.hidden=[3' cannot be read (",
    "sweep.strategy=ggeur": "sweep.strategy: must be a list of values, or names with overrides; got",
    "sweep={seed:[3]}": "sweep.seed: no such key in 'sweep'; one of: strategy\n",
    "client.model=cnn": "client.model=cnn: must be a class with its options",
    "client.task=forecasting": "client.task=forecasting: must be a class with its options",
    "strategy.rule=fedprox": "strategy.rule=fedprox: must be a class with its options",
    # data that are not there
    "data=digits4 data.root=null": "data 'mnist': needs files, and no data folder is set.",
    "data=digits4 data.root=nowhere": "data 'mnist': nothing at ",
    "data=image_folder": "data.path: needs a value; add data.path=... to the command",
    "data=image_folder data.path=nowhere": "data 'image_folder': nothing at ",
    "--config-dir nowhere": "--config-dir nowhere: no such directory",
}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty current directory, and no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDBENCH_DATA", raising=False)
    return tmp_path


def one_line(message):
    assert message.startswith("fedbench: ")
    assert message.count("\n") == 1
    assert message.endswith("\n")
    assert "Traceback" not in message
    return message.removeprefix("fedbench: ")


def given_first(overrides):
    """The usual short run, unless the mistake is about a part of it."""
    named = {o.partition("=")[0] for o in overrides}
    return [*(o for o in ONE if o.partition("=")[0] not in named), *overrides]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(empty, capsys, case):
    assert main(["run", *given_first(case.split())]) == 2
    said = one_line(capsys.readouterr().err)
    assert said.startswith(MISTAKES[case])
    assert list(empty.iterdir()) == []


def test_gpus_where_there_are_none(empty, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", "strategy=fedavg", "engine.gpus_per_worker=0.5"]) == 2
    assert one_line(capsys.readouterr().err).startswith("engine.gpus_per_worker=0.5: torch finds no GPU here")
    assert list(empty.iterdir()) == []


def test_other_commands(empty, capsys):
    (empty / "runs").mkdir()
    (empty / "broken").mkdir()
    (empty / "broken/summary.json").write_text("{")
    for words, expected in {
        ("list", "nothing"): "'nothing': no such group; one of: align, attack, client, data, engine, experi",
        ("list", "stratgy"): "'stratgy': no such group; did you mean 'strategy'?",
        ("list", "--config-dir", "nowhere"): "--config-dir nowhere: no such directory",
        ("compare", "runs"): "runs: holds no finished run (no summary.json in or below it)",
        ("compare", "nowhere"): "nowhere: no such directory",
        ("compare", "broken"): "broken/summary.json: is not valid JSON",
    }.items():
        assert main(words) == 2
        assert one_line(capsys.readouterr().err).startswith(expected)


def test_a_directory_that_holds_a_run_is_left_alone(empty, capsys):
    words = ["run", *ONE, *DATA.split(), "client=linear", "run_dir=mine"]
    assert main(words) == 0
    before = {p: p.stat().st_mtime_ns for p in empty.rglob("*")}
    capsys.readouterr()
    assert main([*words, "seed=1"]) == 2
    assert one_line(capsys.readouterr().err).startswith("run_dir=mine: already holds a run; choose another")
    assert {p: p.stat().st_mtime_ns for p in empty.rglob("*")} == before
    assert json.loads((empty / "mine/summary.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "strategy=fedavgg"], "fedbench: strategy=fedavgg: no such strategy; did you mean 'fedavg'?"),
        (["run", *ONE, "rounds=abc"], "fedbench: rounds=abc: must be a whole number"),
        (["run", *ONE, "client.lr=-1"], "fedbench: client.lr: must be above 0, got -1"),
        (["run", *ONE, "client.model._target_=no.Where"], "fedbench: client.model._target_: cannot load"),
    ],
)
def test_the_command_itself(empty, words, said):
    done = subprocess.run(
        [sys.executable, "-m", "fedbench", *words], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert list(empty.iterdir()) == []


def test_unknown_options_and_no_command(capsys):
    for words in (["run", "--rounds", "3"], [], ["compare", "x", "--at", "best_test"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
