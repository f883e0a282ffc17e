from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import fedbench
from scenarios import Dataset, Meta, build_federation

FOLDER = Path(next(iter(fedbench.__path__))) / "config" / "scenario"
NAMES = ("iid", "central", "label_skew", "label_shards", "quantity_skew", "domain_skew", "label_domain_skew")


def toy():
    generator = np.random.default_rng(0)
    labels, domain = generator.integers(0, 10, 4000), generator.integers(0, 4, 4000)
    return Dataset(
        "toy", {"y": labels}, domain, tuple("abcd"), Meta("classification", (1,), tuple("0123456789"))
    )


@pytest.mark.parametrize("name", NAMES)
def test_file_has_every_option_and_builds(name):
    path = FOLDER / f"{name}.yaml"
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
    config = OmegaConf.load(path)
    builder = {key: config.pop(key) for key in ("val_fraction", "test_fraction")}
    assert builder == {"val_fraction": 0.1, "test_fraction": 0.3}
    kind = get_class(config["_target_"])
    assert set(config) - {"_target_"} == {field.name for field in fields(kind)}
    federation = build_federation(toy(), instantiate(config), 0, **builder)
    assert len(federation.clients) == {"central": 1, "domain_skew": 4, "label_domain_skew": 4}.get(name, 10)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("central", "label_shards")])
def test_file_states_the_defaults_of_the_class(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    kind = get_class(config["_target_"])
    assert {field.name: config[field.name] for field in fields(kind)} == {
        f.name: f.default for f in fields(kind)
    }
