"""Which runs of a comparison are there: recognised by what they are, not by where they lie."""

import shutil

import pytest
from omegaconf import OmegaConf

from fedbench.config.compose import as_yaml, plan
from fedbench.planner import content_key, default_directory, plan_items
from fedbench.run import run

SMALL = [
    "data=gaussian_domains", "data.domains=2", "data.classes=3", "data.dim=4", "data.train_per_class=12",
    "data.test_per_class=6", "scenario=domain_skew", "client=linear", "client.steps=2", "rounds=1",
    "engine=serial",
]  # fmt: skip
ONE = [*SMALL, "strategy=fedavg"]


def key(*overrides):
    (config,) = plan([*ONE, *overrides])
    return content_key(config)


@pytest.mark.parametrize(
    "change",
    [
        "run_dir=elsewhere",
        "cache_dir=elsewhere",
        "profile=true",
        "engine=ray",
        "engine.cohort=1",
        "max_failures=0",
        "data.dim=4",
    ],
)
def test_what_changes_no_result_changes_no_key(change):
    assert key(change) == key()


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "rounds=2",
        "client.lr=0.06",
        "client.model._target_=clients.models.mlp.MLP",
        "data.dim=5",
        "scenario=iid",
        "scenario.val_fraction=0.2",
        "strategy=fedprox",
        "align=ggeur",
        "attack=sign_flip",
        "eval_every=2",
    ],
)
def test_what_may_change_a_result_changes_the_key(change):
    assert key(change) != key()


def test_a_whole_number_is_the_same_with_and_without_a_point():
    assert key("client.lr=1") == key("client.lr=1.0") != key("client.lr=1.5")


def test_a_preset_is_what_it_stands_for():
    named = plan(["experiment=ggeur_digits4", "seed=0"])[0]
    assert named.choices.experiment == "ggeur_digits4"
    same = named.copy()
    del same.choices["experiment"]
    assert content_key(named) == content_key(same)


@pytest.mark.parametrize("more", [[], ["client.lr=0.00001"], ["strategy=fednova", "client.clip=null"]])
def test_the_key_survives_being_written_down(more, tmp_path):
    (config,) = plan([*ONE, *more])
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert content_key(OmegaConf.load(tmp_path / "config.yaml")) == content_key(config)


def test_one_more_method_or_seed_leaves_the_directory_as_it_is():
    few = default_directory(plan([*SMALL, "strategy=fedavg", "seed=0"], multirun=True))
    more = default_directory(plan([*SMALL, "strategy=fedavg,scaffold", "seed=0,1"], multirun=True))
    assert str(few) == str(more) == "runs/compare-gaussian_domains-domain_skew"
    assert default_directory(plan([*ONE, "scenario=iid"])) != few


def test_completed_begun_and_missing_runs_are_told_apart(tmp_path):
    configs = plan([*ONE, "seed=0,1,2,3"], multirun=True)
    run(configs[0], tmp_path / "deep/below/any name")
    for config, name in zip(configs[1:3], ("begun", "barely"), strict=True):
        run(config, tmp_path / name)
        (tmp_path / name / "summary.json").unlink()  # as a killed process leaves it
    shutil.rmtree(tmp_path / "barely/checkpoint")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("a: [1")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/config.yaml").write_text("choices: [1]")

    items = plan_items(configs, tmp_path)
    assert [(item.state, str(item.directory.relative_to(tmp_path))) for item in items] == [
        ("there", "deep/below/any name"),
        ("resume", "begun"),
        ("run", f"fedavg-domain_skew-gaussian_domains-s2-{content_key(configs[2])[:8]}"),
        ("run", f"fedavg-domain_skew-gaussian_domains-s3-{content_key(configs[3])[:8]}"),
    ]


def test_a_completed_run_goes_before_a_begun_one(tmp_path):
    (config,) = plan(ONE)
    run(config, tmp_path / "a")
    (tmp_path / "a/summary.json").unlink()
    run(config, tmp_path / "b")
    (item,) = plan_items([config], tmp_path)
    assert (item.state, item.directory.name) == ("there", "b")


def test_a_damaged_checkpoint_is_none_to_go_on_from(tmp_path):
    (config,) = plan(ONE)
    (item,) = plan_items([config], tmp_path)
    run(config, item.directory)
    (item.directory / "summary.json").unlink()
    for file in (item.directory / "checkpoint").glob("*.safetensors"):
        file.write_bytes(b"")
    (again,) = plan_items([config], tmp_path)
    assert (again.state, again.directory.name) == ("run", f"{item.directory.name}-2")


def test_runs_of_equal_content_are_one(tmp_path):
    configs = plan([*SMALL, "strategy=fedavg,fedavg", "engine=serial,ray", "seed=0,1"], multirun=True)
    assert [item.config.seed for item in plan_items(configs, tmp_path)] == [0, 1]
