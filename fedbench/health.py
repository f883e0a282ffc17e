"""Whether this machine is fit for a run: what is looked at, what was found, and what to do about it."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_GB = 1e9
_SHOWN = ("flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
_LOADED = {"torch": "torch torchvision", "torchvision": "torch torchvision", "flwr": "flwr", "ray": "ray"}
_OPTIONAL = ("open_clip_torch", "playwright", "tensorboard", "mlflow-skinny", "wandb")
_RAY_TRIAL = """\
import numpy, ray
from fedbench.engine.ray import start_ray
start_ray()
total = ray.remote(lambda x: int(x.sum())).remote(ray.put(numpy.ones(1 << 20, dtype=numpy.uint8)))
assert ray.get(total) == 1 << 20
ray.shutdown()
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Parameters
    ----------
    check : str
        What was looked at.
    status : str
        ``"ok"``, ``"warning"`` (runs work, some or slower) or ``"problem"`` (runs fail).
    found : str
        What there is.
    todo : str
        What to do; empty where nothing has to be done.
    """

    check: str
    status: str
    found: str
    todo: str = ""


def examine(run_dir: str | Path = "runs", *, deep: bool = False) -> Iterator[Finding]:
    """Look at this machine and installation.

    Parameters
    ----------
    run_dir : path
        Where runs are to go.
    deep : bool
        Also start Ray, and read every data set that needs files.

    Yields
    ------
    Finding
        One or more a check, as soon as they are known.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("imports", _imports),
        ("cpus", _cpus),
        ("gpus", _gpus),
        ("memory", _memory),
        ("data", lambda: _data(os.environ.get("FEDBENCH_DATA"), deep)),
        ("runs", lambda: _folder("runs", run_dir, "run_dir=DIR")),
        ("cache", lambda: _folder("cache", _cache(), "cache_dir=DIR or FEDBENCH_CACHE")),
        ("optional", _optional),
        *([("ray starts", ray_starts)] if deep else []),
    ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # broken packages raise anything, and the other checks are worth having
            yield Finding(
                name, PROBLEM, _one_line(error), "make a new environment, and install fedbench in it"
            )


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- installation ----------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        asked = metadata.metadata("fedbench")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        asked = ""
    if SpecifierSet(asked).contains(version, prereleases=True):
        yield Finding("python", OK, f"{version}, {platform.platform()}")
    else:
        yield Finding(
            "python", PROBLEM, f"{version}; fedbench needs {asked}", "make an environment with another"
        )


def _packages() -> Iterator[Finding]:
    """Everything that fedbench needs, and what that needs in turn: Flower pins Ray, torchvision torch."""
    try:
        ours = {requirement.name for requirement, _ in _required("fedbench", frozenset())}
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", WARNING, "fedbench is not installed: versions cannot be checked", "pip install ."
        )
        return
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [("fedbench", frozenset[str]())]
    wrong = 0
    while todo:
        if (asking := todo.pop()) in seen:
            continue
        seen.add(asking)
        for requirement, version in _required(*asking):
            if version is not None:
                todo.append((requirement.name.lower(), frozenset(requirement.extras)))
                if requirement.specifier.contains(version, prereleases=True):
                    continue
            wrong += 1
            have = version or "is not installed"
            yield Finding(
                "packages",
                PROBLEM if requirement.name in ours else WARNING,
                f"{requirement.name} {have}; {asking[0]} needs {requirement.specifier or 'it'}",
                f'pip install "{requirement.name}{requirement.specifier}"',
            )
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in _SHOWN)
    if not wrong:
        yield Finding("packages", OK, f"{shown}; all {len({n for n, _ in seen})} fit together")


def _required(package: str, extras: frozenset[str]) -> Iterator[tuple[Any, str | None]]:
    """What an installed package needs here, and the version that is installed."""
    from packaging.requirements import Requirement

    for line in metadata.requires(package) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement, _version(requirement.name)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _imports() -> Iterator[Finding]:
    """A package that is there may still not load: compiled for another torch, or a library is missing."""
    loaded = []
    for name, together in _LOADED.items():
        try:
            import_module(name)
        except Exception as error:  # broken packages raise anything
            todo = f"pip install --force-reinstall {together}"
            yield Finding("imports", PROBLEM, f"{name} does not load ({_one_line(error)})", todo)
        else:
            loaded.append(name)
    if loaded:
        yield Finding("imports", OK, f"{', '.join(loaded)} load")


def _optional() -> Iterator[Finding]:
    versions = {name: _version(name) for name in _OPTIONAL}
    there = [f"{name} {version}" for name, version in versions.items() if version]
    missing = [name for name, version in versions.items() if not version]
    found = ", ".join(there) or "none installed"
    yield Finding("optional", OK, f"{found}{'; not installed: ' if missing else ''}{', '.join(missing)}")


# --- machine ---------------------------------------------------------------------------------------


def _cpus() -> Iterator[Finding]:
    count = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    if allowed < count:
        yield Finding(
            "cpus",
            WARNING,
            f"{count}, of which this process may use {allowed}; Ray starts a worker for each of the {count}",
            f"engine.workers={allowed}",
        )
    else:
        yield Finding("cpus", OK, f"{count}; Ray starts as many workers, each with one thread")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        yield Finding(
            "threads", OK, "OMP_NUM_THREADS is not set; runs train with one thread a process anyway"
        )
    elif not threads.isdigit() or not 1 <= int(threads) <= allowed:
        yield Finding(
            "threads",
            WARNING,
            f"OMP_NUM_THREADS={threads}, with {allowed} usable CPUs: threads would wait for each other",
            f"unset it, or set it to 1 to {allowed}",
        )
    else:
        yield Finding(
            "threads", OK, f"OMP_NUM_THREADS={threads}; runs train with one thread a process anyway"
        )


def _gpus() -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    driver = Path("/proc/driver/nvidia/version").exists()
    if there:
        for index in range(torch.cuda.device_count()):
            yield _gpu(index)
    elif not driver:
        yield Finding("gpus", OK, f"none, and no driver: runs use the CPU, which torch's {build} build can")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("gpus", OK, "hidden by CUDA_VISIBLE_DEVICES; runs use the CPU")
    elif torch.version.cuda:
        reason = " ".join(str(said[0].message).split()) if said else "it names no reason"
        yield Finding(
            "gpus",
            WARNING,
            f"torch's {build} build cannot use the NVIDIA driver that is here: {reason}",
            "update the driver, or install the torch build for the CUDA version that nvidia-smi shows",
        )
    else:
        yield Finding(
            "gpus",
            WARNING,
            "an NVIDIA driver, but torch's CPU build",
            "install a CUDA build of torch to use it",
        )


def _gpu(index: int) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        return Finding(
            "gpus",
            PROBLEM,
            f"{index}: {name} cannot compute ({_one_line(error)})",
            "free its memory, install a torch build for this GPU, or hide it with CUDA_VISIBLE_DEVICES",
        )
    found = f"{index}: {name}, {free / _GB:.1f} of {total / _GB:.1f} GB free"
    return Finding("gpus", OK, f"{found}; used with engine.gpus_per_worker=0.5, two workers on each")


def _memory() -> Iterator[Finding]:
    free = _free_memory()
    if free is None:
        return
    if free < 2 * _GB:
        todo = "end other programs, or take fewer workers: engine.workers=1"
        yield Finding("memory", WARNING, f"{free / _GB:.1f} GB free", todo)
    else:
        yield Finding("memory", OK, f"{free / _GB:.1f} GB free")
    if (shm := Path("/dev/shm")).is_dir():
        yield shared_memory(shutil.disk_usage(shm).free, free)


def shared_memory(size: float, free: float) -> Finding:
    """Whether Ray's object store fits into shared memory.

    Parameters
    ----------
    size, free : float
        Free bytes of shared memory, and of memory.
    """
    # As Ray decides: 30 % of the memory, at most what is shared, but never less than 10 GB for that.
    store = min(0.3 * free, max(10 * _GB, 0.95 * size))
    found = f"{size / _GB:.1f} GB free in /dev/shm; Ray's object store takes {store / _GB:.1f} GB"
    if size >= store:
        return Finding("shared memory", OK, found)
    todo = f"enlarge it, as by docker run --shm-size={store * 1.1 / _GB:.1f}g; Ray uses the slow disk instead"
    return Finding("shared memory", WARNING, found, todo)


def _free_memory() -> float | None:
    """Bytes that programs can still have, within a container's limit; ``None`` where the system won't say."""
    available = re.search(r"^MemAvailable: +(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    if available is None:
        return None
    free = int(available[1]) * 1024
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        cached = re.search(r"^inactive_file (\d+)", _text("/sys/fs/cgroup/memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cache() -> str:
    return os.environ.get("FEDBENCH_CACHE") or "~/.cache/fedbench"


def _folder(check: str, wanted: str | Path, setting: str) -> Iterator[Finding]:
    """Whether there is space for a folder, and whether it can be written to."""
    folder = Path(wanted).expanduser()
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding(
            check, PROBLEM, f"cannot write to {there} ({error.strerror})", f"choose another with {setting}"
        )
        return
    free = shutil.disk_usage(there).free
    status = OK if free >= 5 * _GB else WARNING if free >= _GB / 2 else PROBLEM
    todo = "" if status == OK else f"make space, or choose another with {setting}"
    yield Finding(check, status, f"{folder}: can be written to, {free / _GB:.1f} GB free", todo)


# --- data sets -------------------------------------------------------------------------------------


def _data(root: str | None, deep: bool) -> Iterator[Finding]:
    makers = {name: maker for name, maker in _data_sets().items() if first_file(maker)}
    if not root:
        names = ", ".join(makers)
        todo = "to use them, set FEDBENCH_DATA to the folder that they lie in"
        yield Finding("data", OK, f"FEDBENCH_DATA is not set; what needs it: {names}", todo)
        return
    folder = Path(root).expanduser()
    if not folder.is_dir():
        todo = "make it, or set FEDBENCH_DATA to the folder of the data sets"
        yield Finding("data", PROBLEM, f"FEDBENCH_DATA={root}: no such folder", todo)
        return
    missing = {name: file for name, maker in makers.items() if not _there(folder, file := first_file(maker))}
    found = [name for name in makers if name not in missing]
    yield Finding(
        "data", OK, f"{folder}: {len(found)} of {len(makers)} data sets: {', '.join(found) or 'none'}"
    )
    if missing:
        files = ", ".join(f"{name} ({file})" for name, file in missing.items())
        todo = (
            f"where they are published is said by `fedbench run data=NAME`, e.g. data={next(iter(missing))}"
        )
        yield Finding("data", WARNING, f"not found: {files}", todo)
    if deep:
        yield from _read_whole({name: makers[name] for name in found}, folder)


def _data_sets() -> dict[str, Callable[..., Any]]:
    """What makes each data set of ours that lies under the data folder; only ``root`` is left to give."""
    import yaml  # type: ignore[import-untyped]

    makers: dict[str, Callable[..., Any]] = {}
    for path in sorted((Path(__file__).parent / "config/data").glob("[!_]*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        module, _, name = node.pop("_target_").rpartition(".")
        if "root" in node and "???" not in node.values():  # the others need none, or are the user's own
            del node["root"]
            makers[path.stem] = functools.partial(getattr(import_module(module), name), **node)
    return makers


def first_file(maker: Callable[..., Any]) -> str:
    """File below the data folder that a data set reads first, which it names where no folder is set."""
    from scenarios import ScenarioError

    try:
        maker(root=None).load()
    except ScenarioError as error:
        if said := re.search(r"under a data folder as (\S+), and name", str(error)):
            return said[1]
    return ""


def _there(folder: Path, file: str) -> bool:
    path = folder / file
    unpacked = path.suffix == ".zip" and any(each.is_dir() for each in path.parent.glob("*"))
    return path.exists() or unpacked


def _read_whole(makers: dict[str, Callable[..., Any]], folder: Path) -> Iterator[Finding]:
    from scenarios import ScenarioError

    whole = 0
    for name, maker in makers.items():
        try:
            maker(root=folder).load()
        except ScenarioError as error:
            yield Finding("data", PROBLEM, f"data={name} cannot be read", str(error))
        else:
            whole += 1
    yield Finding("data", OK, f"{whole} data set{'s' * (whole != 1)} read whole")


# --- Ray -------------------------------------------------------------------------------------------


def ray_starts(seconds: float = 120) -> Iterator[Finding]:
    """Start Ray as a run does, and run one task.

    Parameters
    ----------
    seconds : float
        Time after which it is taken to hang.
    """
    # In a process of its own: a Ray that hangs can be ended, and one that runs in this process is left alone.
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        command = [sys.executable, "-c", _RAY_TRIAL]
        try:
            done = subprocess.run(command, stdout=said, stderr=said, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            why = f"not within {seconds:g} s"
        else:
            if done.returncode == 0:
                took = time.perf_counter() - started
                yield Finding("ray starts", OK, f"and runs a task; {took:.0f} s with the imports")
                return
            said.seek(0)
            why = (said.read().strip().splitlines() or ["without a word"])[-1]
    todo = "see /tmp/ray/session_latest/logs; engine=serial runs without Ray"
    yield Finding("ray starts", PROBLEM, f"it failed: {why}", todo)
