"""A Flower project of somebody else's, which has nothing of ours but the wheel.

A real fresh environment would be some 6 GB and minutes of downloads. Here it is a new virtual environment
with the wheel in its own site-packages; everything that is not ours comes from the environment of this test
through a ``.pth`` file. The editable install there does not follow: Python reads ``.pth`` files in
site-packages only, not in the folders that they name. Flower's commands get new scripts, so that each process
that they start is of the new environment. Flower's files and all its processes go by one ``FLWR_HOME``, by
which they are found again and ended.

Runs of Flower take long because they wait, so all are started at once, and then each is looked at.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedbench.engine.serial import SerialGrid

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples/other_flower_project"
APP = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
ENOUGH = 600
"""Seconds for what takes one minute on an idle machine."""

by_flower = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


# --- in this process -------------------------------------------------------------------------------


def run_here(output, **config):
    """Run the project's two apps on our serial engine."""
    from postal import client_app, server_app

    config = APP["config"] | config | {"output": str(output)}

    def client(message, context):
        context.run_config = config
        return client_app.app(message, context)

    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    server_app.app(SerialGrid(lambda: client, [1] * config["nodes"]), context)
    return results(output)


def results(output):
    return json.loads((output / "results.json").read_text()), dict(np.load(output / "final.npz"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT)


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "scaffold", "ggeur", "scaffold+ggeur"])
def test_every_method_learns(method, tmp_path):
    found, _ = run_here(tmp_path, method=method)
    assert found["method"] == method
    assert found["accuracy"]["5"] > (0.75 if method.startswith("fed") else 0.88)


# --- in Flower's -----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machine:
    """Somebody else's: Flower, the wheel, and a folder with their files, all our own to throw away."""

    def __init__(self, folder, python_env):
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        (folder / "home").mkdir()
        self.flwr_home = folder / "flwr"
        self.flwr_home.mkdir()
        (self.flwr_home / "config.toml").write_text(
            '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n\n'
            f'[superlink.two-nodes]\naddress = "{self.address}"\ninsecure = true\n'
        )
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "RAY_"))}
        self.env = kept | {
            "PATH": f"{python_env / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "FLWR_HOME": str(self.flwr_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Everything is installed; Flower would look on PyPI, where `fedbench` is somebody else's.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            "RAY_ADDRESS": "local",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name, *words, cwd=None):
        """Start a command whose output goes to ``name``.log."""
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                words, cwd=cwd or self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
            )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self):
        """The end of every log, to show with a failure."""
        files = [*self.folder.glob("*.log"), *self.flwr_home.glob("local-superlink/*.log")]
        return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in sorted(files))

    def project(self, name, **edits):
        """Copy the project, with ``{file: (old, new)}`` replaced in its package."""
        copy = self.folder / name
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for file, (old, new) in edits.items():
            path = copy / f"postal/{file}.py"
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))

    def flwr_run(self, name, connection, *options, **config):
        """Start ``flwr run`` of the copy of this name, and return both."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        words = ["flwr", "run", ".", connection, "--stream", "--run-config", pairs, *options]
        return name, self.start(name, *words, cwd=self.folder / name)

    def submitted(self, run):
        """Wait until a run is known to its SuperLink; false if that failed."""
        name, process = run
        self.wait(lambda: "Successfully started run" in self.log(name) or process.poll() is not None)
        return "Successfully started run" in self.log(name)

    def output(self, run):
        """Wait for the end of a run and return all that it printed."""
        name, process = run
        self.wait(lambda: process.poll() is not None)
        return self.log(name)

    def wait(self, condition):
        deadline = time.monotonic() + ENOUGH
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"nothing happened for {ENOUGH} s\n{self.logs()}")
            time.sleep(0.2)

    def answers(self):
        """Whether the SuperLink takes requests."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/health", timeout=1) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def processes(self):
        """All that run with our FLWR_HOME, whoever started them and in whatever session."""
        mark, found = f"FLWR_HOME={self.flwr_home}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:  # ended meanwhile, or somebody else's
                continue
        return found

    def stop(self):
        """End everything."""
        for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            deadline = time.monotonic() + patience
            for process in self.processes():
                try:
                    os.kill(process, sign)
                except ProcessLookupError:
                    continue
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)


@pytest.fixture(scope="module")
def python_env(tmp_path_factory):
    """A virtual environment in which nothing but the wheel is ours."""
    folder = tmp_path_factory.mktemp("fresh")
    env, python = folder / "env", folder / "env/bin/python"

    def sh(*words):
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=ENOUGH)
        assert done.returncode == 0, done.stdout + done.stderr

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sh(*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder))
    (wheel,) = folder.glob("fedbench-*.whl")
    sh(sys.executable, "-m", "venv", "--without-pip", str(env))
    # Before anything is borrowed, or pip would take our own install for an older one to be removed.
    sh(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site,) = env.glob("lib/python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    for command in distribution("flwr").entry_points.select(group="console_scripts"):
        script = env / "bin" / command.name
        script.write_text(
            f"#!{python}\nimport sys\nfrom {command.module} import {command.attr} as main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    return env


@pytest.fixture(scope="module")
def machine(python_env, tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("machine"), python_env)
    try:
        yield machine
    finally:
        machine.stop()
    assert not machine.processes()
    assert not (machine.folder / "home/.flwr").exists()


CONFIG = {
    "simulated": {"method": "scaffold+ggeur", "rounds": 2},
    # SuperNodes start a new process for every message, which takes most of the time of this test.
    "deployed": {"method": "scaffold+ggeur", "rounds": 1, "fraction-evaluate": 0.0},
    "no-rule": {"method": "scaffold", "rounds": 2},
    "no-actions": {"method": "ggeur", "rounds": 2},
}


@pytest.fixture(scope="module")
def runs(machine):
    """All runs, under way: one simulated, one on two SuperNodes, and two with half a method missing."""

    def run(name, connection, *options, **edits):
        if not (machine.folder / name).exists():
            machine.project(name, **edits)
        config = CONFIG[name] | {"output": str(machine.folder / f"{name}-results")}
        return machine.flwr_run(name, connection, *options, **config)

    def simulate():
        federation = "num-supernodes=2 client-resources-num-cpus=1"
        # Not the package of the deployed run: while one installs it, the other could find half of it.
        return run("simulated", "local", "--federation-config", federation, __init__=("Post", "More post"))

    simulated = simulate()
    host, port = machine.address.split(":")
    machine.start("superlink", "flower-superlink", "--insecure", "--host", host, "--port", port)
    for i in range(2):
        where = ["--superlink", machine.address, "--port", str(free_port())]
        which = ["--node-config", f"partition-id={i} num-partitions=2"]
        machine.start(f"supernode-{i}", "flower-supernode", "--insecure", *where, *which)
    machine.wait(machine.answers)
    started = {
        "deployed": run("deployed", "two-nodes"),
        "no-rule": run("no-rule", "two-nodes", methods=("ScaffoldRule)", "LocalRule)")),
        "no-actions": run(
            "no-actions", "two-nodes", client_app=("app.query(name)(answering(action))", "pass")
        ),
    }
    for _ in range(2):
        # Flower gives its local SuperLink 15 s to start, which may be too short on a busy machine.
        if not machine.submitted(simulated):
            simulated = simulate()
    return started | {"simulated": simulated}


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@by_flower
class TestByFlower:
    """With ``flwr run``."""

    def test_strategies_comes_from_the_wheel_and_loads_nothing_else(self, python_env, tmp_path):
        heavy = ["hydra", "ray", "torchvision", "clients", "scenarios", "fedbench"]
        code = f"import strategies, sys; print(strategies.__file__, *set({heavy}) & set(sys.modules))"
        words = [str(python_env / "bin/python"), "-I", "-c", code]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=ENOUGH, check=True)
        (file,) = done.stdout.split()
        assert Path(file).is_relative_to(python_env)

    @pytest.mark.parametrize("where", ["simulated", "deployed"])
    def test_the_results_are_those_of_our_serial_engine(self, where, machine, runs, tmp_path):
        printed = machine.output(runs[where])
        output = machine.folder / f"{where}-results"
        assert (output / "results.json").exists(), machine.logs()
        found, weights = results(output)
        here, expected = run_here(tmp_path, **CONFIG[where])
        assert found["accuracy"] == pytest.approx(here["accuracy"])
        assert set(weights) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-6)
        if where == "simulated":
            assert found["accuracy"]["2"] > 0.8
            assert f"scaffold+ggeur, round 2: accuracy {100 * found['accuracy']['2']:.1f} %" in printed

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            (
                "no-rule",
                r"StrategyError: Scaffold: node \d+ trained with LocalRule, .* strategies.ScaffoldRule",
            ),
            ("no-actions", r"StrategyError: GGEUR: none of 2 clients answered .* strategies.GGEURClient"),
        ],
    )
    def test_a_missing_client_half_is_named(self, run, message, machine, runs):
        printed = machine.output(runs[run])
        assert re.search(message, printed), machine.logs()
        assert "[ROUND 2" not in printed
