"""Runs of presets, several side by side; what the same commit finished before is not run again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from machine import commit
from omegaconf import DictConfig

from fedbench.config.compose import settings
from fedbench.results.run_dir import read_summary
from fedbench.run import run


def run_all(
    name: str, configs: Sequence[DictConfig], runs: Path, jobs: int, words: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Summaries of all runs, in order.

    Parameters
    ----------
    name : str
        Of the preset, for the directory and the progress lines.
    configs : sequence of DictConfig
        From ``fedbench.config.compose.plan``.
    runs : Path
        Where runs are kept, under the commit that made them.
    jobs : int
        Runs side by side, each in a process of its own.
    words : callable
        What to call a finished run in its progress line.
    """
    digests = [
        hashlib.blake2b(json.dumps([settings(c), c.seed], sort_keys=True).encode(), digest_size=8).hexdigest()
        for c in configs
    ]
    done: dict[int, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_one_run, config, str(runs / commit() / name / digest)): i
            for i, (config, digest) in enumerate(zip(configs, digests, strict=True))
        }
        for number, future in enumerate(as_completed(futures), 1):
            done[futures[future]] = s = future.result()
            line = f"{name} {number}/{len(configs)} {words(s)} seed {s['seed']}"
            print(f"{line}: {100 * s['last_5']['avg']:.2f}", flush=True)
    return [done[i] for i in range(len(configs))]


def _one_run(config: DictConfig, directory: str) -> dict[str, Any]:
    path = Path(directory)
    if (path / "summary.json").is_file() and not commit().endswith("-dirty"):
        summary = read_summary(path)
        if summary["status"] == "completed":
            return summary
    shutil.rmtree(path, ignore_errors=True)
    return run(config, path)
