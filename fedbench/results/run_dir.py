"""A run's directory: configuration, environment, metrics, checkpoints, summary and log. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbench.errors import UserError

from .state import flatten, unflatten

Weights = Mapping[str, npt.NDArray[Any]]

_PACKAGES = ("fedbench", "flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
_CHECKPOINTS_KEPT = 2


class RunDirectory:
    """Directory of one run.

    Parameters
    ----------
    path : path
        Made if needed; must not hold a run already.
    config : str
        Composed configuration as YAML.

    Raises
    ------
    UserError
        If the directory already holds a run.
    """

    watch: Callable[[list[Mapping[str, Any]]], None] | None = None
    """What is told all rows too, e.g. a tracker."""

    def __init__(self, path: str | Path, config: str) -> None:
        self.path = Path(path).expanduser()
        self._open(config)

    @classmethod
    def again(cls, path: str | Path, server_round: int) -> RunDirectory:
        """The directory of a run that goes on after a round; what it recorded of later rounds is removed."""
        directory = cls.__new__(cls)
        directory.path = Path(path).expanduser()
        metrics = directory.path / "metrics.jsonl"
        rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        directory._write("metrics.jsonl", "".join(r for r in rows if _round_of(r) <= server_round))
        (directory.path / "summary.json").unlink(missing_ok=True)
        directory._metrics = metrics.open("a", encoding="utf-8")
        return directory

    def _open(self, config: str) -> None:
        if (self.path / "config.yaml").exists():
            raise UserError(f"run_dir={self.path}: already holds a run; choose another directory")
        (self.path / "checkpoint").mkdir(parents=True, exist_ok=True)
        self._write("config.yaml", config)
        self._write("environment.json", json.dumps(environment(), indent=2) + "\n")
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")

    def record(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows (round, phase, scope, node, metric, value) to ``metrics.jsonl``."""
        rows = list(rows)
        for row in rows:
            self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        if self.watch is not None:
            self.watch(rows)

    def checkpoint(self, server_round: int, weights: Weights, state: Any = None) -> None:
        """Keep the global weights after a round, with checksums; older checkpoints but one are removed.

        Parameters
        ----------
        server_round : int
            Last complete round.
        weights : mapping of ndarray
            Global weights.
        state : nested dict or None
            All else that the next round depends on (see :func:`fedbench.results.state.flatten`); a run can
            only go on from a checkpoint that has it.
        """
        name = f"round-{server_round:06d}"
        about: dict[str, Any] = {"round": server_round, "sha256": self._write_arrays(name, weights)}
        if state is not None:
            about["state"], arrays = flatten(state)
            about["state_sha256"] = self._write_arrays(f"{name}-state", arrays)
        # The JSON file comes last: it makes the checkpoint whole.
        self._write(f"checkpoint/{name}.json", json.dumps(about) + "\n")
        for old in _checkpoints(self.path)[:-_CHECKPOINTS_KEPT]:
            for file in (_state_file(old), old.with_suffix(".safetensors"), old):
                file.unlink(missing_ok=True)

    def _write_arrays(self, name: str, arrays: Weights) -> str:
        """Write a safetensors file and return its checksum."""
        from safetensors.numpy import save

        # ascontiguousarray gives a scalar an axis.
        data = save({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in arrays.items()})
        self._write(f"checkpoint/{name}.safetensors", data)
        return hashlib.sha256(data).hexdigest()

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the metrics file."""
        self._metrics.close()

    def _write(self, name: str, content: str | bytes) -> None:
        """Write under a temporary name and rename, so that no reader sees half a file."""
        target = self.path / name
        partial = target.with_name(target.name + ".tmp")
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(target)


def _round_of(line: str) -> float:
    """Round of a line of ``metrics.jsonl``; infinity for half a line, which a killed process leaves."""
    try:
        return float(json.loads(line)["round"])
    except json.JSONDecodeError:
        return float("inf")


def _checkpoints(path: Path) -> list[Path]:
    """JSON files of a run's whole checkpoints, oldest first."""
    return sorted((path / "checkpoint").glob("round-*.json"))


def _state_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-state.safetensors")


def load_checkpoint(run: str | Path) -> tuple[int, dict[str, npt.NDArray[Any]], Any]:
    """Round, weights and state of the last checkpoint that a run can go on from.

    Raises
    ------
    UserError
        If there is none, or a file is damaged.
    """
    for last in reversed(_checkpoints(Path(run).expanduser())):
        about = _read_json(last)
        if "state" in about:
            arrays = _load(_state_file(last), about["state_sha256"])
            return int(about["round"]), load_weights(last), unflatten(about["state"], arrays)
    raise UserError(f"{run}: holds no checkpoint to go on from; start the run again")


def load_weights(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Weights of a checkpoint, of which either file is named.

    Raises
    ------
    UserError
        If the file does not match the checksum beside it, or there is none.
    """
    path = Path(path)
    return _load(path.with_suffix(".safetensors"), _read_json(path.with_suffix(".json")).get("sha256"))


def _load(path: Path, checksum: str | None) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load

    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != checksum:
        raise UserError(f"{path}: does not match its checksum; the file is damaged")
    return load(data)


def weights_digest(weights: Weights) -> str:
    """Hash of names, types, shapes and bytes: equal if and only if the weights are, to the bit."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        array = weights[key]
        digest.update(f"{key} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_summary(run: str | Path) -> dict[str, Any]:
    """Summary of a run directory.

    Raises
    ------
    UserError
        If the directory holds no finished run, or its summary cannot be read.
    """
    path = Path(run) / "summary.json"
    if not path.is_file():
        raise UserError(f"{run}: holds no summary.json; give the directory of a finished run")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); the file is damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not one of fedbench's files")
    return content


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run directories at or below the given paths, sorted."""
    runs: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such directory")
        found = sorted(p.parent for p in path.rglob("summary.json"))
        if not found:
            raise UserError(f"{path}: holds no finished run (no summary.json in or below it)")
        runs += found
    return list(dict.fromkeys(runs))


def environment() -> dict[str, Any]:
    """Versions and machine, for the reader of a result."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
    }
