"""Attacks, robust strategies and privacy as a user chooses them: whole runs, and what cannot be."""

import logging

import numpy as np
import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fedbench.bench import build
from fedbench.cli import main
from fedbench.config.compose import plan, settings
from fedbench.errors import NotApplicable, UserError
from fedbench.report.comparison import compare
from fedbench.results.run_dir import RunDirectory, load_weights
from fedbench.run import Run
from strategies import GGEUR, SignFlip, attackers

SMALL = [
    "data=gaussian_domains", "data.domains=4", "data.classes=5", "data.dim=8", "data.train_per_class=20",
    "data.test_per_class=10", "scenario=domain_skew", "client=linear", "client.steps=4", "rounds=2",
]  # fmt: skip
DIGITS = [
    "data=digits", "scenario=iid", "client.momentum=0.9", "client.model.hidden=[50]", "rounds=4",
    "eval_every=4",
]  # fmt: skip
on_ray = pytest.mark.xdist_group("ray")


def compose(*words):
    given = {o.partition("=")[0] for o in words}
    base = [*SMALL, "strategy=fedavg", "engine=serial"]
    (config,) = plan([*(o for o in base if o.partition("=")[0] not in given), *words])
    return config


def execute(config, path):
    """Summary and final weights of a run, without its picture."""
    summary = Run(build(config), RunDirectory(path, "")).execute()
    return summary, load_weights(path / f"checkpoint/round-{summary['rounds']:06d}.json")


def done(tmp_path, name, *words):
    return execute(compose(*words), tmp_path / name)


# --- attacks and robust strategies -------------------------------------------------------------------


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    def of(*words):
        (config,) = plan([*DIGITS, "engine=serial", *words])
        return execute(config, tmp_path_factory.mktemp("digits") / "run")[0]["final"]["avg"]

    return of


@pytest.mark.slow
def test_an_attack_that_destroys_fedavg_is_resisted_by_robust_strategies(accuracy):
    attack = ["attack=sign_flip", "attack.share=0.2"]
    assert accuracy("strategy=fedavg") > 0.55
    assert accuracy("strategy=fedavg", *attack) < 0.25
    assert accuracy("strategy=fedmedian", *attack) > 0.45
    assert accuracy("strategy=krum", "strategy.num_malicious_nodes=2", *attack) > 0.4


def test_one_boosted_client_makes_fedavg_say_one_class(tmp_path):
    """And Multi-Krum leaves its model out."""
    some = ["scenario=iid", "data.domains=1", "data.mean_std=1.0", "client.lr=0.1", "client.steps=20"]
    attack = ["attack=model_replacement", "attack.share=0.1", "attack.boost=100.0"]
    robust = ["strategy=multikrum", "strategy.num_malicious_nodes=1", "strategy.num_nodes_to_select=9"]
    honest = done(tmp_path, "honest", *some)[0]["final"]["avg"]
    assert honest > 0.5
    assert done(tmp_path, "attacked", *some, *attack)[0]["final"]["avg"] == pytest.approx(0.2, abs=0.1)
    assert done(tmp_path, "robust", *some, *attack, *robust)[0]["final"]["avg"] > honest - 0.1


def test_the_attackers_alone_send_something_else(tmp_path):
    """FedAvg over equal clients: the mean differs by what one client sent in place of its own model."""
    one = ["rounds=1", "client.weighting=uniform"]
    plain = done(tmp_path, "plain", *one)[1]
    flipped = done(tmp_path, "flip", *one, "attack=sign_flip", "attack.scale=1", "attack.share=0.25")[1]
    twice = done(tmp_path, "twice", *one, "attack=sign_flip", "attack.scale=3", "attack.share=0.25")[1]
    for k in plain:
        # (mean with scale s) = plain - (1 + s) / 4 of the attacker's update.
        np.testing.assert_allclose(twice[k] - plain[k], 2 * (flipped[k] - plain[k]), atol=1e-6)
        assert np.abs(flipped[k] - plain[k]).max() > 1e-4


@pytest.mark.slow
@on_ray
def test_the_same_seed_gives_the_same_bits_on_any_engine(tmp_path):
    words = ["attack=gaussian_noise", "privacy=dp_server_fixed"]
    first, second = (done(tmp_path, name, *words)[0] for name in ("first", "second"))
    other = done(tmp_path, "ray", *words, "engine=ray", "engine.workers=2")[0]
    assert first["weights_sha256"] == second["weights_sha256"] == other["weights_sha256"]
    assert done(tmp_path, "seed", *words, "seed=1")[0]["weights_sha256"] != first["weights_sha256"]


def test_runs_that_differ_by_attack_or_privacy_are_told_apart(tmp_path):
    words = [[], ["attack=sign_flip"], ["attack=sign_flip", "attack.scale=2.0"], ["privacy=dp_server_fixed"]]
    summaries = [done(tmp_path, str(i), *w, "rounds=1")[0] for i, w in enumerate(words)]
    assert {s["label"] for s in summaries} == {"fedavg"}
    rows = compare(summaries).rows
    assert [row.label.partition(" ")[0] for row in rows] == ["fedavg"] * 4
    assert len({row.label for row in rows}) == 4
    assert "attack=sign_flip" in rows[2].label
    assert "scale=2.0" in rows[2].label
    assert "privacy=dp_server_fixed" in rows[3].label


def test_attackers_are_in_the_bench_and_in_the_log(caplog):
    words = ["scenario=iid", "scenario.clients=10", "attack=sign_flip", "attack.share=0.3", "seed=4"]
    bench = build(compose(*words))
    assert bench.label == "fedavg"
    assert bench.attackers == sorted(attackers(4, 10, 0.3))
    assert bench.spec.attack.scale == 4.0
    assert isinstance(bench.spec.attack, SignFlip)
    logger = logging.getLogger("fedbench")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "fedbench"):
        bench.make_grid(lambda _: None).close()
    logger.removeHandler(caplog.handler)
    who = ", ".join(map(str, bench.attackers))
    assert caplog.messages[0] == f"attack=sign_flip: 3 of 10 clients: {who}"
    assert build(compose()).attackers == []


# --- privacy -----------------------------------------------------------------------------------------

EXACT = ["privacy.noise_multiplier=0", "client.weighting=uniform"]
FOUR = ["dp_server_fixed", "dp_client_fixed", "dp_server_adaptive", "dp_client_adaptive"]


def norm_of(privacy):
    return "privacy.initial_clipping_norm" if "adaptive" in privacy else "privacy.clipping_norm"


def moved(first, second):
    return float(np.sqrt(sum(((first[k] - second[k]) ** 2).sum() for k in first)))


@pytest.mark.parametrize("privacy", FOUR)
def test_no_noise_and_a_huge_norm_change_nothing_and_a_tiny_norm_holds_the_model(tmp_path, privacy):
    plain = done(tmp_path, "plain", *EXACT[1:], "client.lr=0.01")[1]
    still = done(tmp_path, "still", *EXACT[1:], "client.lr=1e-12")[1]
    huge, tiny = (
        done(tmp_path, n, *EXACT, "client.lr=0.01", f"privacy={privacy}", f"{norm_of(privacy)}={n}")[1]
        for n in ("1e6", "1e-3")
    )
    for k in plain:
        np.testing.assert_allclose(huge[k], plain[k], atol=1e-6)
    assert moved(plain, still) > 0.02
    assert 0 < moved(tiny, still) <= 2.3e-3  # two rounds of 1e-3, with adaptive norms a little more


def test_noise_has_the_deviation_that_the_clients_of_a_round_call_for(tmp_path):
    words = ["rounds=1", "client.weighting=uniform", "data.dim=200", "data.train_per_class=8"]
    dp = ["privacy=dp_server_fixed", "privacy.clipping_norm=2.0"]
    for number, some in ((4, []), (2, ["clients_per_round=2"])):
        exact = done(tmp_path, f"exact{number}", *words, *some, *dp, "privacy.noise_multiplier=0")[1]
        noisy = done(tmp_path, f"noisy{number}", *words, *some, *dp, "privacy.noise_multiplier=0.5")[1]
        noise = np.concatenate([(noisy[k] - exact[k]).ravel() for k in exact])
        assert noise.std() == pytest.approx(0.5 * 2.0 / number, rel=0.1)  # 1005 numbers: 4.5 deviations


def test_server_and_clients_clip_alike(tmp_path):
    for kind in ("fixed", "adaptive"):
        server, client = (
            done(tmp_path, f"{half}-{kind}", f"privacy=dp_{half}_{kind}")[0] for half in ("server", "client")
        )
        assert server["weights_sha256"] == client["weights_sha256"]


def test_privacy_lies_between_an_alignment_and_the_method():
    bench = build(compose("strategy=moon", "client=mlp", "align=ggeur", "privacy=dp_server_fixed"))
    assert isinstance(bench.strategy, GGEUR)
    assert isinstance(bench.strategy.strategy, DifferentialPrivacyServerSideFixedClipping)
    assert bench.strategy.strategy.num_sampled_clients == 4
    assert type(bench.strategy.strategy.strategy).__name__ == "Moon"
    assert type(bench.spec.rule).__name__ == "MoonRule"  # Flower's wrapper hides which one it is
    assert bench.label == "moon+ggeur"
    assert bench.spec.mods == []
    other = build(compose("privacy=dp_client_fixed", "clients_per_round=2"))
    assert other.strategy.num_sampled_clients == 2
    assert [mod.__name__ for mod in other.spec.mods] == ["fixedclipping_mod"]


def test_an_aligned_private_run(tmp_path):
    words = ["align=ggeur", "client.lr=0.01", *EXACT[1:]]
    dp = ["privacy=dp_client_fixed", "privacy.noise_multiplier=0", "privacy.clipping_norm=1e6"]
    plain, private = done(tmp_path, "plain", *words)[1], done(tmp_path, "dp", *words, *dp)[1]
    for k in plain:
        np.testing.assert_allclose(private[k], plain[k], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["client.weighting=uniform"], False),
        (["strategy=moon", "client=mlp", "client.weighting=uniform"], False),
        (["client.weighting=examples"], True),
        (["strategy=fedmedian", "client.weighting=uniform"], True),
        (["client.weighting=examples", "privacy.noise_multiplier=0"], False),
    ],
)
def test_the_log_says_where_the_multiplier_promises_too_much(caplog, words, said):
    logger = logging.getLogger("fedbench")
    logger.addHandler(caplog.handler)
    build(compose("privacy=dp_server_fixed", *words)).make_grid(lambda _: None).close()
    logger.removeHandler(caplog.handler)
    assert any("promises more than is kept" in message for message in caplog.messages) == said


def test_flowers_adaptive_norm_still_moves_the_wrong_way():
    """As fedbench/config/privacy/_adaptive.yaml says; where this fails, flwr has been put right."""
    wrapper = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.0, 10, initial_clipping_norm=1.0)
    wrapper._geometric_update(1.0)  # all updates clipped, where half should be
    assert wrapper.clipping_norm < 1


# --- what cannot be ----------------------------------------------------------------------------------

IID = "scenario=iid scenario.clients="
COVERS = "covers the mean of clients' models, but strategy="
FIXED = "privacy=dp_server_fixed"
MISTAKES = {
    "attack=sgn_flip": "attack=sgn_flip: no such attack; did you mean 'sign_flip'?",
    "attack.share=0.1": "attack.share: no such key in 'attack', which has none",
    "attack=sign_flip attack.share=2": "attack.share: must be between 0 and 1, got 2",
    "attack=sign_flip attack.scale=0": "attack.scale: must be above 0, got 0",
    "attack=label_flip attack.target=10": "attack.target: must be a class from 0 to 9, got 10",
    "attack=label_flip attack.permutation=[1,0]": "attack.permutation: must hold the classes 0 to 9 once",
    f"{FIXED} privacy.clipping_norm=0": "privacy: The clipping norm should be a positive value.",
    f"{FIXED} +privacy.num_sampled_clients=3": "privacy.num_sampled_clients: no such option",
    "privacy=dp_server_adaptive privacy.noise_multiplier=1": "privacy: If not specified, `clipped_count",
    f"{FIXED} strategy=scaffold": f"{FIXED} {COVERS}scaffold does more than average what they send; choose",
    f"{FIXED} strategy=feddyn": f"{FIXED} {COVERS}feddyn does more than average what they send; choose",
    f"{FIXED} strategy=fedper": f"{FIXED} {COVERS}fedper leaves clients models of their own; choose",
    "strategy=krum strategy.num_malicious_nodes=1": "strategy=krum with strategy.num_malicious_nodes=1 needs "
    "2 * 1 + 3 = 5 clients a round, but there are 4\n",
    f"{IID}6 strategy=bulyan strategy.num_malicious_nodes=1": "strategy=bulyan with "
    "strategy.num_malicious_nodes=1 needs 4 * 1 + 3 = 7 clients a round, but there are 6\n",
    f"{IID}9 clients_per_round=2 strategy=bulyan": "strategy=bulyan with strategy.num_malicious_nodes=0 "
    "needs 4 * 0 + 3 = 3 clients a round, but there are 2\n",
    "strategy=krum strategy.num_malicious_nodes=-1": "strategy.num_malicious_nodes=-1: must be 0 or more\n",
    "strategy=multikrum strategy.num_nodes_to_select=5": "strategy.num_nodes_to_select=5: must be between 1",
    "strategy=fedtrimmedavg strategy.beta=0.2": "strategy=fedtrimmedavg with strategy.beta=0.2 cuts off less",
    "strategy=fedtrimmedavg strategy.beta=0.5": "strategy: `beta` must be in the range [0, 0.5).",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    words = case.split()
    base = [] if any(w.startswith("strategy=") for w in words) else ["strategy=fedavg"]
    assert main(["run", "rounds=1", "engine=serial", "features=none", *base, *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedbench: {MISTAKES[case]}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_noise_on_running_variances_is_refused():
    words = ["client=mlp", "client.model.norm=batch", "privacy=dp_server_fixed"]
    with pytest.raises(NotApplicable, match="running variances of BatchNorm"):
        build(compose(*words))
    build(compose(*words, "privacy.noise_multiplier=0"))


@pytest.mark.parametrize("strategy", ["krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg"])
def test_robust_strategies_run_with_the_four_clients_of_the_usual_scenario(tmp_path, strategy):
    summary = done(tmp_path, "run", f"strategy={strategy}", "rounds=1")[0]
    assert summary["status"] == "completed"
    still = done(tmp_path, "still", "client.lr=1e-12", "rounds=1")[0]
    assert summary["final"]["loss"] != still["final"]["loss"]  # Bulyan could skip all rounds in silence


def test_settings_hold_attack_and_privacy():
    plain = settings(compose())
    assert (plain["attack._target_"], plain["privacy._target_"]) == (None, None)
    with pytest.raises(UserError):
        compose("privacy.noise_multiplier=1")
