"""Comparisons that are asked for: which of their runs are there already, and running the others."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from .errors import NotApplicable, RunFailed, UserError

# Whatever imports torch is imported by the functions that need it: a process of its own has to be ready for
# the signal that ends it before it spends seconds on that.

State = Literal["there", "resume", "run"]
Failure = RunFailed | NotApplicable


@dataclass(frozen=True)
class Item:
    """One run of a comparison.

    Parameters
    ----------
    config : DictConfig
        From :func:`fedbench.config.compose.plan`.
    directory : path
        Where the run is, or will be.
    state : {"there", "resume", "run"}
        Completed, begun with a checkpoint to go on from, or yet to be started.
    """

    config: DictConfig
    directory: Path
    state: State


@dataclass(frozen=True)
class Outcome:
    """What became of a run; ``error`` is None where it was completed."""

    item: Item
    error: Failure | None = None


def content_key(config: DictConfig) -> str:
    """Digest of all that a run's result depends on, its seed included: equal for runs with equal results.

    Parameters
    ----------
    config : DictConfig
        Composed, or read from a run's ``config.yaml``.
    """
    from .config.compose import NOT_COMPARED

    # Results depend on the seed too, and a method is called what was chosen; how settings were written is
    # no matter.
    without = {*NOT_COMPARED, "settings"} - {"seed", "choices"}
    content: Any = OmegaConf.to_container(config)
    content = {k: v for k, v in content.items() if k not in without}
    if isinstance(chosen := content.get("choices"), dict):
        content["choices"] = {k: v for k, v in chosen.items() if k not in without}
    text = json.dumps(_plain(content), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(node: Any) -> Any:
    """Nested values in which 1.0 is 1: ``client.lr=1`` and ``client.lr=1.0`` train alike."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(v) for v in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def default_directory(configs: Sequence[DictConfig]) -> Path:
    """Where a comparison lies if nothing else is said.

    It follows from data and scenario alone, so that one more method, seed or setting finds the earlier runs.
    """
    parts = ["+".join(dict.fromkeys(c.choices[g] for c in configs)) for g in ("data", "scenario")]
    return Path("runs") / "-".join(["compare", *parts])[:120]


def plan_items(configs: Iterable[DictConfig], base: str | Path) -> list[Item]:
    """What there is to do for each config, given the runs at or below a directory.

    Configs of equal content are one run.

    Parameters
    ----------
    configs : iterable of DictConfig
        Of the runs asked for.
    base : path
        Of the comparison; need not be there yet.
    """
    from .run import run_name

    base = Path(base).expanduser()
    found = _runs_by_content(base)
    items: dict[str, Item] = {}
    for config in configs:
        key = content_key(config)
        if key not in items:
            state, directory = _best(found.get(key, []))
            new = _unused(base / f"{run_name(config)}-{key[:8]}")
            items[key] = Item(config, directory or new, state)
    return list(items.values())


def _runs_by_content(base: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in sorted(base.rglob("config.yaml")):
        try:
            config = OmegaConf.load(path)
        except (YAMLError, OSError, UnicodeDecodeError):  # of another program, or damaged: no run to go by
            continue
        if isinstance(config, DictConfig):
            found[content_key(config)].append(path.parent)
    return found


def _best(directories: list[Path]) -> tuple[State, Path | None]:
    """The furthest of some runs of equal content."""
    for directory in directories:
        if _completed(directory):
            return "there", directory
    for directory in directories:
        if _resumable(directory):
            return "resume", directory
    return "run", None


def _completed(directory: Path) -> bool:
    from .results.run_dir import read_summary

    try:
        return read_summary(directory).get("status") == "completed"
    except UserError:
        return False


def _resumable(directory: Path) -> bool:
    from .results.run_dir import load_checkpoint

    try:
        load_checkpoint(directory)
    except UserError:
        return False
    return True


def _unused(directory: Path) -> Path:
    """The directory, or one with a number where it holds the remains of a run."""
    number, free = 1, directory
    while free.exists():
        number += 1
        free = directory.with_name(f"{directory.name}-{number}")
    return free


# --- running -----------------------------------------------------------------------------------------


def execute(
    items: Sequence[Item], jobs: int = 1, tell: Callable[[str], None] = print
) -> Generator[Outcome, None, None]:
    """Start or go on with runs, and give what became of each as it ends; one that fails stops no other.

    Parameters
    ----------
    items : sequence of Item
        None of which is there.
    jobs : int
        Runs at a time. One runs in this process; several have a process each.
    tell : callable
        Given a line on how far things are.

    Raises
    ------
    UserError, ScenarioError, ClientError
        For a mistake in what was asked for. What was completed is kept, and so is what others had that ran at
        the same time, as it is where the caller stops early.
    """
    jobs = min(jobs, len(items))
    return _at_once(items, jobs, tell) if jobs > 1 else _in_turn(items, tell)


def _in_turn(items: Sequence[Item], tell: Callable[[str], None]) -> Generator[Outcome, None, None]:
    for number, item in enumerate(items):
        tell(f"[{number + 1}/{len(items)}] {item.directory.name}")
        yield Outcome(item, _carry_out(item))


def _carry_out(item: Item) -> Failure | None:
    from .run import resume, run

    try:
        if item.state == "resume":
            resume(item.directory)
        else:
            run(item.config, item.directory)
    except (RunFailed, NotApplicable) as error:
        return error
    return None


@dataclass(frozen=True)
class _Running:
    item: Item
    process: BaseProcess
    started: float


def _at_once(items: Sequence[Item], jobs: int, tell: Callable[[str], None]) -> Generator[Outcome, None, None]:
    # Spawned, as torch's and Ray's threads do not survive a fork; one process a run, so that one that is
    # killed for its memory takes no other with it.
    context = multiprocessing.get_context("spawn")
    waiting, ended = deque(items), 0
    running: dict[Any, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                item = waiting.popleft()
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(send, item))
                process.start()
                send.close()  # so that the pipe ends where the process does
                running[receive] = _Running(item, process, time.perf_counter())
            for ready in wait(list(running)):
                done = running.pop(ready)
                error = _received(ready, done.process)
                ended += 1
                word = "left out" if isinstance(error, NotApplicable) else "failed" if error else "done"
                took = time.perf_counter() - done.started
                tell(f"[{ended}/{len(items)}] {done.item.directory.name} {word} in {took:.0f} s")
                yield Outcome(done.item, error)
    finally:
        for left in running.values():
            left.process.terminate()
        for left in running.values():
            left.process.join()


def _received(receive: Any, process: BaseProcess) -> Failure | None:
    """What a process says of its run."""
    try:
        error: Failure | UserError | None = receive.recv()
    except EOFError:
        process.join()
        return RunFailed(f"its process ended with exit code {process.exitcode}")
    process.join()
    if error is not None and not isinstance(error, RunFailed | NotApplicable):
        raise error
    return error


def _child(send: Connection, item: Item) -> None:
    """Carry out a run in this process, which ends as by Ctrl-C when the comparison's process says so."""
    # A terminal's Ctrl-C reaches all processes; only the comparison's acts on it, and says it once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from clients.errors import ClientError
        from scenarios import ScenarioError

        # Progress bars of several runs at once are unreadable.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            try:
                error: Failure | UserError | None = _carry_out(item)
            except (UserError, ClientError, ScenarioError) as mistake:
                error = UserError(str(mistake))
        send.send(error)
    except KeyboardInterrupt:
        sys.exit(130)
