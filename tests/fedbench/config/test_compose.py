"""What the words of a command become: runs, in order, each with its own configuration."""

import pytest
from omegaconf import OmegaConf

from fedbench.config.compose import as_yaml, check_config_dir, choices, plan, settings
from fedbench.errors import UserError


def chosen(configs, *groups):
    return [tuple(config.choices[group] for group in groups) for config in configs]


# --- sweeps ------------------------------------------------------------------------------------------


def test_without_a_strategy_the_usual_three_are_compared():
    configs = plan(["scenario=label_skew"])
    assert chosen(configs, "strategy", "align") == [
        ("fedavg", "none"),
        ("fedprox", "none"),
        ("ggeur", "ggeur"),
    ]
    assert chosen(configs, "scenario") == [("label_skew",)] * 3
    assert [config.strategy._target_.rpartition(".")[2] for config in configs] == [
        "FedAvg",
        "FedProx",
        "FedAvg",
    ]


def test_an_axis_is_dropped_where_the_command_sets_it():
    assert chosen(plan(["strategy=fedprox"]), "strategy") == [("fedprox",)]
    assert chosen(plan(["strategy=fedavg", "align=ggeur"]), "strategy", "align") == [("fedavg", "ggeur")]


def test_an_axis_over_an_option_is_dropped_where_the_command_sets_the_group(tmp_path):
    axes = "sweep:\n  strategy: [fedavg]\n  scenario.alpha: [0.1, 5.0]\n  seed: [0, 1]\n"
    preset(tmp_path, "mine", "defaults:\n  - override /scenario: label_skew\n" + axes)
    planned = lambda *words: plan(["experiment=mine", *words], config_dir=tmp_path)  # noqa: E731
    every = [(c.scenario.alpha, c.seed) for c in planned()]
    assert every == [(0.1, 0), (0.1, 1), (5.0, 0), (5.0, 1)]
    assert [(c.scenario.alpha, c.seed) for c in planned("scenario.alpha=1.0")] == [(1.0, 0), (1.0, 1)]
    assert [(c.scenario.alpha, c.seed) for c in planned("seed=7")] == [(0.1, 7), (5.0, 7)]
    assert [(c.scenario.clients, c.seed) for c in planned("scenario=iid")] == [(10, 0), (10, 1)]
    assert [c.scenario.clients for c in planned("scenario.clients=4")] == [4] * 4
    assert chosen(planned("strategy=fedprox", "seed=0"), "strategy") == [("fedprox",)] * 2


def test_products_are_run_in_order():
    configs = plan(["strategy=fedavg,fedprox", "seed=0,1,2", "scenario=iid"], multirun=True)
    assert [(c.choices.strategy, c.seed) for c in configs] == [
        (strategy, seed) for strategy in ("fedavg", "fedprox") for seed in (0, 1, 2)
    ]
    configs = plan(["client.lr=0.1,0.2", "rounds=range(1,4)"], multirun=True)
    assert len(configs) == 2 * 3 * 3  # and the usual three strategies
    assert {(c.client.lr, c.rounds) for c in configs} == {(lr, r) for lr in (0.1, 0.2) for r in (1, 2, 3)}


def test_named_overrides_of_a_sweep_belong_together(tmp_path):
    text = """
sweep:
  strategy: [fedavg]
  arm:
    plain: align=none
    double: align=dup align.policy=multi align.own=60
    central: align=none scenario=central
  scenario.clients_per_domain: [1, 2]
  data.size: [16, 8]
"""
    preset(tmp_path, "mine", text)
    configs = plan(["experiment=mine"], config_dir=tmp_path)
    found = [
        (c.choices.align, c.choices.scenario, c.scenario.get("clients_per_domain"), c.data.size)
        for c in configs
    ]
    skew = [("domain_skew", k, size) for k in (1, 2) for size in (16, 8)]
    assert found == [
        *(("none", *s) for s in skew),
        *(("dup", *s) for s in skew),
        *(("none", "central", None, size) for size in (16, 8)),  # once, not once for each clients_per_domain
    ]
    assert {c.align.own for c in configs if c.choices.align == "dup"} == {60}
    alone = plan(["experiment=mine", "align=ggeur", "data.size=8"], config_dir=tmp_path)
    assert [c.choices.align for c in alone] == ["ggeur"] * 2


def test_null_is_a_value_of_an_axis(tmp_path):
    preset(tmp_path, "mine", "sweep:\n  strategy: [fedavg]\n  clients_per_round: [null, 2]\n")
    assert [c.clients_per_round for c in plan(["experiment=mine"], config_dir=tmp_path)] == [None, 2]


def test_presets_of_the_package_sweep_what_they_say():
    configs = plan(["experiment=ggeur_e2", "seed=0"])
    assert {c.data.rerandomise for c in configs} == {0.0, 0.5}
    assert {c.choices.align for c in configs} == {
        "none", "dup", "ggeur_step1", "ggeur", "ggeur_linear", "iso", "gauss",
    }  # fmt: skip
    assert {c.data.seed for c in configs} == {0}
    alone = plan(["experiment=ggeur_e2", "data.rerandomise=0", "data.train_per_class=30", "align=iso"])
    assert [(c.choices.align, c.seed, c.data.seed) for c in alone] == [("iso", s, s) for s in range(4)]


# --- the user's own groups ---------------------------------------------------------------------------


def preset(folder, name, text):
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n# My own preset\n{text}")


def own(folder, group, name, text):
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)


def test_own_files_are_listed_and_chosen(tmp_path):
    own(tmp_path, "data", "few", "# Few digits\ndefaults:\n  - digits\n  - _self_\nsize: 8\n")
    own(tmp_path, "strategy", "mine", "# My method\ndefaults:\n  - fedprox\n  - _self_\nproximal_mu: 3.0\n")
    preset(tmp_path, "both", "defaults:\n  - override /data: few\n  - override /strategy: mine\nrounds: 2\n")
    assert choices("strategy", tmp_path)["mine"] == "My method"
    assert "mine" not in choices("strategy")
    assert choices("experiment", tmp_path)["both"] == "My own preset"
    (config,) = plan(["data=few", "strategy=mine"], config_dir=tmp_path)
    assert (config.data.size, config.strategy.proximal_mu) == (8, 3.0)
    assert config.strategy.rule._target_ == "strategies.fedprox.FedProxRule"
    (config,) = plan(["experiment=both", "strategy=mine", "rounds=3"], config_dir=str(tmp_path))
    assert (config.data.size, config.rounds) == (8, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Broken\nsize: [1\n", r"data/mine\.yaml, line 3: not valid YAML"),
        ("# Broken\ndefaults:\n  - digitz\n", "Could not load 'data/digitz'"),
    ],
)
def test_own_files_that_cannot_be_read_are_named(tmp_path, text, message):
    own(tmp_path, "data", "mine", text)
    with pytest.raises(UserError, match=message) as error:
        plan(["data=mine", "strategy=fedavg"], config_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_an_own_file_cannot_hide_one_of_ours(tmp_path):
    own(tmp_path, "strategy", "fedavg", "# Mine\n")
    with pytest.raises(UserError, match="strategy=fedavg exists already; give the file another name"):
        check_config_dir(tmp_path)


# --- one configuration -------------------------------------------------------------------------------


def test_choices_name_what_the_groups_chose():
    (config,) = plan(["strategy=ggeur", "client=linear", "scenario=iid"])
    assert OmegaConf.to_container(config.choices) == {
        "scenario": "iid", "data": "digits", "features": "pixels", "client": "linear", "align": "ggeur",
        "strategy": "ggeur", "attack": "none", "privacy": "none", "system": "none", "engine": "ray",
        "personalization": "none",
    }  # fmt: skip


def test_settings_are_what_a_result_depends_on_besides_the_seed():
    def of(*words):
        return settings(plan(["strategy=fedavg", *words])[0])

    plain = of()
    assert of("seed=3", "run_dir=x", "engine=serial", "cache_dir=y") == plain
    assert of("client.lr=0.2") == plain | {"client.lr": 0.2}
    assert of("rounds=3")["rounds"] == 3
    assert of("data.seed=${seed}", "seed=1") == of("data.seed=${seed}", "seed=2") != plain
    assert not any(key.startswith(("seed", "run_dir", "engine", "choices", "sweep")) for key in plain)


def test_the_printed_configuration_can_be_read_back():
    (config,) = plan(["strategy=fedprox", "seed=4", "data.seed=${seed}"])
    back = OmegaConf.create(as_yaml(config))
    assert (back.seed, back.data.seed, back.strategy.rule._target_) == (
        4,
        4,
        "strategies.fedprox.FedProxRule",
    )
    assert "sweep" not in back
    assert back.choices.strategy == "fedprox"


def test_a_client_of_images_takes_the_examples_as_they_are_unless_told_otherwise():
    assert plan(["client=cnn", "strategy=fedavg"])[0].choices.features == "none"
    assert plan(["client=mlp", "strategy=fedavg"])[0].choices.features == "pixels"
    assert plan(["client=cnn", "features=pixels", "strategy=fedavg"])[0].choices.features == "pixels"


def test_options_may_stand_before_their_group():
    (config,) = plan(
        ["strategy.proximal_mu=0.7", "scenario.alpha=2", "strategy=fedprox", "scenario=label_skew"]
    )
    assert (config.strategy.proximal_mu, config.scenario.alpha) == (0.7, 2)


def test_a_run_of_a_sweep_is_the_run_that_is_asked_for_alone():
    """Seeds share a composition; none of them changes another's."""
    words = ["scenario=label_skew", "strategy=fedavg,ggeur", "seed=0,3", "run_dir=out/${seed}"]
    swept = plan(words, multirun=True)
    alone = [
        plan([words[0], f"strategy={strategy}", f"seed={seed}", words[3]])[0]
        for strategy in ("fedavg", "ggeur")
        for seed in (0, 3)
    ]
    assert [as_yaml(c) for c in swept] == [as_yaml(c) for c in alone]
    assert [c.settings for c in swept] == [c.settings for c in alone]
    assert [c.run_dir for c in swept] == ["out/0", "out/3"] * 2
    swept[0].client.lr = 9
    assert swept[1].client.lr != 9
