"""The doctor on this machine, and on installations and folders that are wrong on purpose."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fedbench.cli import main
from fedbench.config.compose import choices
from fedbench.health import ray_starts, shared_memory

ROOT = Path(__file__).parents[2]
CHECKS = {
    "python", "packages", "imports", "cpus", "threads", "gpus", "memory", "data", "runs", "cache", "optional",
}  # fmt: skip


@pytest.fixture
def findings(tmp_path, monkeypatch, capsys):
    """Exit code and findings, by check, of the doctor in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDBENCH_DATA", raising=False)

    def ask(*words):
        code = main(["doctor", "--json", *words])
        said = json.loads(capsys.readouterr().out)
        assert said["ok"] == (code == 0) == all(f["status"] != "problem" for f in said["findings"])
        assert all(f["todo"] for f in said["findings"] if f["status"] != "ok")
        found = {}
        for finding in said["findings"]:
            found.setdefault(finding["check"], []).append(finding)
        return code, found

    return ask


def doctor(code="", **environment):
    """The doctor in a process of its own, after some code."""
    command = [
        sys.executable,
        "-c",
        f"{code}\nimport sys\nfrom fedbench.cli import main\nsys.exit(main(['doctor']))",
    ]
    paths = os.pathsep.join([*([environment.pop("path")] if "path" in environment else []), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def distribution(folder, name, version, *lines):
    """Metadata of a package, as pip leaves it."""
    (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    (folder / f"{name}-{version}.dist-info/METADATA").write_text(text)


def test_this_machine_is_fit(findings, tmp_path):
    code, found = findings()
    assert code == 0
    assert found.keys() >= CHECKS
    assert f"flwr {metadata.version('flwr')}" in found["packages"][-1]["found"]
    assert found["imports"] == [
        {"check": "imports", "status": "ok", "found": "torch, torchvision, flwr, ray load", "todo": ""}
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_a_plain_line_for_each_finding(findings, capsys, monkeypatch):
    _, found = findings()
    for coloured in (False, True):
        if coloured:
            monkeypatch.setenv("FORCE_COLOR", "1")
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert ("\x1b[" in out) == coloured
    monkeypatch.delenv("FORCE_COLOR")
    assert main(["doctor"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"no problems, (no|\d+) warnings?", last)
    advice = [line for line in lines if line.lstrip().startswith("->")]
    flat = [finding for each in found.values() for finding in each]
    assert len(lines) - len(advice) == len(flat)
    assert len(advice) == sum(bool(finding["todo"]) for finding in flat)
    assert all(line.startswith(("ok ", "warning ")) for line in lines if line not in advice)


# --- the installation ------------------------------------------------------------------------------


def test_another_ray_than_flower_pins_is_a_problem(findings, tmp_path, monkeypatch):
    distribution(tmp_path / "site", "ray", "2.9.0")
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, found = findings()
    assert code == 1
    (wrong,) = [f for f in found["packages"] if f["status"] == "problem"]
    pin = next(line for line in metadata.requires("flwr") if line.startswith("ray==")).split()[0]
    assert wrong["found"] == f"ray 2.9.0; flwr needs {pin.removeprefix('ray')}"
    assert wrong["todo"] == f'pip install "{pin}"'


def test_what_a_package_of_another_needs_is_a_warning(findings, tmp_path, monkeypatch):
    distribution(tmp_path / "site", "plotly", metadata.version("plotly"), "Requires-Dist: leftpad_99 (>=2)")
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, found = findings()
    assert code == 0
    (wrong,) = [f for f in found["packages"] if f["status"] == "warning"]
    assert wrong["found"] == "leftpad_99 is not installed; plotly needs >=2"
    assert wrong["todo"] == 'pip install "leftpad_99>=2"'


def test_another_python_is_a_problem(findings, tmp_path, monkeypatch):
    distribution(tmp_path / "site", "fedbench", "0.1.0", "Requires-Python: >=4.1")
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, found = findings()
    assert code == 1
    assert found["python"][0]["found"].endswith("; fedbench needs >=4.1")


def test_a_package_that_does_not_load_is_a_problem_and_the_rest_is_checked(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = doctor(path=str(tmp_path))
    assert done.returncode == 1
    assert "torchvision does not load (RuntimeError: operator torchvision::nms does not exist)" in done.stdout
    assert "-> pip install --force-reinstall torch torchvision" in done.stdout
    assert "torch, flwr, ray load" in done.stdout
    assert "1 problem, " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_it_runs_where_nothing_is_installed(tmp_path):
    missing = ["rich", "packaging", "torch", "torchvision", "flwr", "ray", "yaml", "numpy", "hydra"]
    done = doctor(f"import sys; sys.modules.update(dict.fromkeys({missing}))", OMP_NUM_THREADS="1")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("problem")] == [
        "python", "packages", "imports", "imports", "imports", "imports", "gpus", "data",
    ]  # fmt: skip
    assert done.stderr == ""
    assert lines[-1].startswith("8 problems, ")


# --- the machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", ["100000", "0", "many"])
def test_more_threads_than_cpus_are_advised_against(findings, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    code, found = findings()
    assert code == 0
    assert found["threads"][0]["status"] == "warning"
    assert found["threads"][0]["found"].startswith(f"OMP_NUM_THREADS={threads}, with ")


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs CPUs to give away"
)
def test_cpus_that_may_not_be_used_are_counted():
    done = doctor("import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])")
    assert f"{os.cpu_count()}, of which this process may use 1; Ray starts a worker for each" in done.stdout
    assert "-> engine.workers=1" in done.stdout


def test_a_container_with_little_shared_memory_is_told_its_option():
    found = shared_memory(64e6, 16e9)
    assert (found.status, found.found) == (
        "warning", "0.1 GB free in /dev/shm; Ray's object store takes 4.8 GB",
    )  # fmt: skip
    assert "--shm-size=5.3g" in found.todo
    assert shared_memory(8e9, 16e9).status == "ok"
    assert shared_memory(20e9, 400e9).found.endswith("takes 19.0 GB")  # as large as fits


def test_without_a_gpu_a_cuda_build_is_fine(findings):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    _, found = findings()
    (gpus,) = found["gpus"]
    if not Path("/proc/driver/nvidia/version").exists():
        assert gpus["status"] == "ok"
        assert gpus["found"].startswith("none, and no driver: runs use the CPU")


@pytest.mark.gpu
def test_a_gpu_is_named_with_its_memory(findings):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, found = findings()
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["gpus"][0]["status"] == "ok"
    assert torch.cuda.get_device_name(0) in found["gpus"][0]["found"]


# --- folders and data sets -------------------------------------------------------------------------


def test_where_runs_cannot_go_is_a_problem(findings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDBENCH_CACHE", "/proc/cache")
    code, found = findings("--run-dir", "file/runs")
    assert code == 1
    (runs,), (cache,) = found["runs"], found["cache"]
    assert runs["found"] == f"cannot write to {tmp_path / 'file'} (Not a directory)"
    assert runs["todo"] == "choose another with run_dir=DIR"
    assert cache["found"].startswith("cannot write to /proc (")
    assert "FEDBENCH_CACHE" in cache["todo"]


def test_a_data_folder_that_is_not_there_is_a_problem(findings, monkeypatch):
    assert "FEDBENCH_DATA is not set" in findings()[1]["data"][0]["found"]
    monkeypatch.setenv("FEDBENCH_DATA", "nowhere")
    code, found = findings()
    assert code == 1
    assert found["data"][0]["found"] == "FEDBENCH_DATA=nowhere: no such folder"


def test_every_data_set_that_needs_files_is_looked_for(findings, tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-images-idx3-ubyte.gz").write_bytes(b"no gzip file")
    (tmp_path / "pacs/photo").mkdir(parents=True)  # images may lie unpacked
    (tmp_path / "cifar10_jpg").mkdir()
    monkeypatch.setenv("FEDBENCH_DATA", str(tmp_path))
    code, found = findings()
    assert code == 0
    there, missing = found["data"]
    needed = [n for n, about in choices("data").items() if about.endswith("needs files") and n != "ogb"]
    assert there["found"] == f"{tmp_path}: 3 of {len(needed)} data sets: digits4, mnist, pacs"
    assert (there["status"], missing["status"]) == ("ok", "warning")
    named = re.findall(r"(\w+) \(([^)]+)\)", missing["found"])
    assert [name for name, _ in named] == [n for n in needed if n not in ("digits4", "mnist", "pacs")]
    assert ("cifar10", "cifar10_jpg/cifar10_subset.zip") in named


def test_the_real_data_sets_are_found(findings, monkeypatch, data_root):
    monkeypatch.setenv("FEDBENCH_DATA", str(data_root))
    (data,) = findings()[1]["data"]
    count = re.search(r": (\d+) of (\d+) data sets: ", data["found"])
    assert count[1] == count[2] != "0"


@pytest.mark.slow
def test_deep_starts_ray_and_reads_the_data_sets(findings, tmp_path, monkeypatch, data_root):
    (tmp_path / "epf").symlink_to(data_root / "epf")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-images-idx3-ubyte.gz").write_bytes(b"no gzip file")
    monkeypatch.setenv("FEDBENCH_DATA", str(tmp_path))
    code, found = findings("--deep")
    assert code == 1
    assert found["ray starts"][0]["status"] == "ok"
    assert found["ray starts"][0]["found"].startswith("and runs a task")
    wrong = {f["found"]: f["todo"] for f in found["data"] if f["status"] == "problem"}
    assert wrong.keys() == {"data=digits4 cannot be read", "data=mnist cannot be read"}
    assert "labels-idx1-ubyte.gz" in wrong["data=mnist cannot be read"]
    assert found["data"][-1]["found"] == "1 data set read whole"


def test_a_ray_that_does_not_start_in_time_is_a_problem():
    (found,) = ray_starts(seconds=0.2)
    assert (found.status, found.found) == ("problem", "it failed: not within 0.2 s")
    assert "engine=serial" in found.todo
