"""The package as others install it: everything is in the wheel, and it runs from an empty directory."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedbench", "strategies", "clients", "scenarios")
pytestmark = pytest.mark.slow


def sh(*words, cwd, **env):
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=os.environ | env, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    sh(sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "-w", str(folder), cwd=folder)
    (found,) = folder.glob("fedbench-*.whl")
    return found


def test_the_wheel_holds_all_modules_configurations_and_type_markers(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".html", ".css", ".js", ".tmpl") or path.name == "py.typed"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert "fedbench/config/strategy/fedprox.yaml" in expected
    assert expected <= names
    inside = {name.split("/")[0] for name in names}
    assert {name for name in inside if not name.endswith(".dist-info")} == set(PACKAGES)


def test_an_installed_wheel_runs_from_an_empty_directory(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
    sh(*pip, "--target", str(site), str(wheel), cwd=here)
    env = {"PYTHONPATH": str(site)}
    imported = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})))"
    for file in sh(sys.executable, "-c", imported, cwd=here, **env).split():
        assert Path(file).is_relative_to(site)

    words = ["run", "scenario=domain_skew", "rounds=2", "engine=serial", "strategy=fedavg"]
    out = sh(sys.executable, str(site / "bin/fedbench"), *words, cwd=here, **env)
    assert [path.name for path in here.iterdir()] == ["runs"]
    (run,) = (here / "runs").iterdir()
    assert f"results: runs/{run.name}" in out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    versions = json.loads((run / "environment.json").read_text())["packages"]
    assert versions["fedbench"] in wheel.name
