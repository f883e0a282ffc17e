import math

import pytest

from fedbench.config.compose import choices, plan
from fedbench.run import run

PRESETS = choices("experiment")
SMALLER = {
    "gaussian_domains": ["data.train_per_class=10", "data.test_per_class=5"],
    "cifar10": ["data.size=32"],
    "pacs": ["data.size=32"],
    "twitch": ["data.countries=[DE,RU]"],
    "xmarket": ["data.markets=[de,jp]"],
    "epf": ["data.stride=500"],
}
"""What makes data quick to test on."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_a_round(name, data_root, tmp_path):
    tiny = [f"experiment={name}", "rounds=1", "engine=serial", "client.steps=1", "client.batch_size=8"]
    smaller = SMALLER.get(plan(tiny)[0].choices.data, [])
    config = plan([*tiny, *smaller])[-1 if name.endswith("_niw") else 0]
    if name.endswith("_niw"):
        assert config.choices.personalization == "niw"
        config.personalization.update({"steps": 2, "personal_steps": 2})
    summary = run(config, tmp_path / "run")
    assert summary["status"] == "completed"
    assert math.isfinite(summary["final"]["avg"])
    assert (tmp_path / "run" / "forecasts.png").exists() == (summary["task"] == "forecasting")


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith(("timexer", "gcvit"))])
def test_presets_of_papers_have_two_sizes(name):
    small, whole = (plan([f"experiment={name}", f"fast={flag}"])[0] for flag in ("true", "false"))
    assert small.rounds < whole.rounds
    model = "d_model" if name.startswith("timexer") else "variant"
    assert small.client.model[model] != whole.client.model[model]


def test_a_presets_size_is_part_of_what_is_compared():
    small, whole = (plan(["experiment=gcvit_pacs", f"fast={flag}"])[0] for flag in ("true", "false"))
    assert small.settings != whole.settings
