import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "fedbench/config/data").glob("*.yaml"))
MODULES = sorted(
    path.stem
    for path in (ROOT / "scenarios/datasets").glob("*.py")
    if path.stem not in ("__init__", "files", "graphs", "histories", "options", "series")
)


def test_every_data_set_has_a_config() -> None:
    targets = {yaml.safe_load(path.read_text())["_target_"].split(".")[2] for path in CONFIGS}
    assert sorted(targets) == MODULES
    assert "digits" in MODULES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_lists_all_options_with_their_defaults(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 110
    config = yaml.safe_load(path.read_text())
    module, name = config.pop("_target_").rsplit(".", 1)
    assert module.startswith("scenarios.datasets.")
    fields = dataclasses.fields(getattr(import_module(module), name))
    assert list(config) == [field.name for field in fields]
    for field in fields:
        if field.name == "root":
            assert config["root"] == "${oc.env:FEDBENCH_DATA,null}"
            assert field.default is None
        elif field.name == "name":  # of several data sets that one class reads
            assert config["name"] == path.stem
        elif field.default is dataclasses.MISSING:
            assert config[field.name] == "???"
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert config[field.name] == default
            assert type(config[field.name]) is type(default)


def test_importing_data_sets_loads_nothing_heavy() -> None:
    heavy = ["torch", "torchvision", "sklearn", "h5py", "scipy", "PIL", "datasets", "flwr_datasets"]
    names = ", ".join(f"scenarios.datasets.{name}" for name in MODULES)
    code = f"import sys, {names}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
