"""The laws of the house: who may import whom, and that every configuration file describes what it names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedbench.config.compose import CONFIG_DIR, GROUPS, choices, plan
from fedbench.config.objects import check_options, load
from strategies import Method

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "strategies": set(),
    "scenarios": set(),
    "clients": {"strategies"},
    "fedbench": {"strategies", "scenarios", "clients"},
}
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
INTERNAL_FLOWER = {(Path("fedbench/engine/grid.py"), "flwr.supercore.task_identity")}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """Full names of the modules that a file imports, at whatever depth."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    found = {(path.name, name) for path in modules(package) for name in imports(path)}
    assert found
    allowed = MAY_IMPORT[package] | {package}
    wrong = {(file, name) for file, name in found if name.split(".")[0] in MAY_IMPORT.keys() - allowed}
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_only_public_modules_of_flower_are_used(package):
    used = {
        (path.relative_to(ROOT), name)
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] == "flwr"
    }
    inside = {(path, name) for path, name in used if name not in PUBLIC_FLOWER}
    assert inside == {each for each in INTERNAL_FLOWER if each[0].parts[0] == package}


def test_results_know_no_pickle():
    names = {name.split(".")[0] for path in modules("fedbench/results") for name in imports(path)}
    assert "json" in names
    assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    calls = {
        node.func.attr
        for path in modules("fedbench/results")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "np")
    }
    assert not calls & {"save", "load", "savez"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("strategies", ["hydra", "ray", "torchvision", "torchmetrics", "clients", "scenarios", "fedbench"]),
        ("scenarios", ["torch", "torchvision", "sklearn", "scipy", "flwr", "ray", "hydra", "fedbench"]),
        ("fedbench.cli", ["torch", "flwr", "ray", "hydra", "sklearn", "rich"]),
    ],
)
def test_importing_a_package_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- configuration files ---------------------------------------------------------------------------

CHOICES = [(group, name) for group in GROUPS for name in choices(group)]
NEEDED = {
    "data=image_folder": ["data.path=x"],
    "data=hub": ["data.dataset=x"],
    "data=ogb": ["data.dataset=x"],
    "features=gcvit": ["features.weights=x"],
}
# Parts of a node that its class is not given, and what the program gives it: as in fedbench/bench.py.
PARTS = {"strategy": ["rule"], "client": ["model", "task"], "align": ["client"]}
FRACTIONS = ["val_fraction", "test_fraction"]
OWN = {
    "attack": ["share"],
    "privacy": ["mods"],
    "personalization": ["rule"],
    "client": ["local", "seen_rows"],
}  # options for the program itself
FACTS = {"shape", "classes", "horizon", "graph"}  # what data sets may tell models and tasks
FACTS |= {"items", "users", "history", "categories", "popularity", "repeats", "examples"}
GIVEN = {
    "client.model": FACTS,
    "client.task": FACTS,
    "engine": {"app_factory", "sizes", "observer"},
    "privacy": {"num_sampled_clients"},
}


def composed(group, name):
    given = {"strategy": "fedavg"} | {group: name}
    return plan([f"{key}={value}" for key, value in given.items()] + NEEDED.get(f"{group}={name}", []))[0]


def check(node, where, *without, target=None, positional=0):
    options = {key: value for key, value in OmegaConf.to_container(node).items() if key not in without}
    target = options.pop("_target_", target)
    if target is None:
        assert where in ("features", "align", "attack", "personalization", "privacy", "system", "tracker")
        assert not options
        return
    check_options(load(target, where), options, where, GIVEN.get(where), positional)


@pytest.mark.parametrize(("group", "name"), [c for c in CHOICES if c[0] != "experiment"])
def test_every_choice_names_a_class_and_fits_its_signature(group, name):
    config = composed(group, name)
    node = config[group]
    if group == "client":
        check(node, "client", *PARTS["client"], *OWN["client"], target="clients.training.Training")
    elif group == "scenario":
        check(node, "scenario", *FRACTIONS)
        fractions = {key: node[key] for key in FRACTIONS if key in node}
        check_options(load("scenarios.build_federation", group), fractions, group, positional=3)
    else:
        wraps = group in ("align", "personalization", "privacy") and name != "none"
        check(node, group, *PARTS.get(group, []), *OWN.get(group, []), positional=wraps)
    for part in PARTS.get(group, []):
        # A server half of ours names its client half itself.
        if name != "none" and (part in node or not issubclass(load(node._target_, group), Method)):
            check(node[part], f"{group}.{part}")


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes(name):
    sweep = OmegaConf.load(CONFIG_DIR / "experiment" / f"{name}.yaml").get("sweep", {})
    axes = {axis: values[-1] for axis, values in sweep.items() if OmegaConf.is_list(values)} | {"seed": 3}
    configs = plan([f"experiment={name}", *(f"{axis}={value}" for axis, value in axes.items())])
    assert configs
    for config in configs:
        assert config.seed == 3
        assert config.choices.experiment == name
        for group in ("data", "scenario", "features", "strategy", "align"):
            alone = group == "align" and config.choices.align != "none"
            check(config[group], group, *PARTS.get(group, []), *FRACTIONS, positional=alone)
        check(config.client, "client", *PARTS["client"], *OWN["client"], target="clients.training.Training")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_says_in_one_line_what_it_is(group, name):
    assert (CONFIG_DIR / group / f"{name}.yaml").read_text().startswith("# ")
    assert 10 < len(choices(group)[name]) < 110
