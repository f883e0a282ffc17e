"""Trackers: where a run's numbers go besides its own directory."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from fedbench.config.objects import make
from fedbench.errors import UserError
from fedbench.results.run_dir import read_summary

log = logging.getLogger("fedbench")

Row = Mapping[str, Any]
"""A row of ``metrics.jsonl``: round, phase, scope, node, metric, value."""

_TOTALS = ("bytes_down", "bytes_up")
"""What is added up over clients; of all else the mean is told."""


class Tracker(ABC):
    """What a run tells of itself while it runs.

    Parameters
    ----------
    clients : bool
        Whether the rows of single clients go too, besides the means and totals over clients.

    Raises
    ------
    UserError
        If the tracker's package is not installed.
    """

    extra: ClassVar[str]
    """The extra of fedbench that installs the package."""
    module: ClassVar[str]
    """A module that is there if the package is."""

    def __init__(self, clients: bool = False) -> None:
        self.clients = clients
        try:
            # Not find_spec, for which a folder of the package's name, such as wandb's own, is enough.
            import_module(self.module)
        except ImportError as error:
            raise UserError(
                f"tracker={self.extra}: its package is not installed; "
                f"run: pip install 'fedbench[{self.extra}]'"
            ) from error

    @abstractmethod
    def start(self, directory: Path, config: dict[str, Any], name: str, after: int = 0) -> None:
        """Begin, before the first round or, where a run goes on, after round ``after``.

        Parameters
        ----------
        directory : Path
            The run's own.
        config : dict
            Composed configuration.
        name : str
            What the run is called.
        after : int
            Last round of which everything has been told before.
        """

    @abstractmethod
    def record(self, rows: Iterable[Row]) -> None:
        """Tell rows of ``metrics.jsonl``."""

    @abstractmethod
    def finish(self, summary: dict[str, Any]) -> None:
        """End a run that is complete, with what is in its ``summary.json``."""

    @abstractmethod
    def close(self, status: str) -> None:
        """End a run that is not complete: ``"failed"`` or ``"interrupted"``."""

    def points(self, rows: Iterable[Row]) -> list[tuple[int, str, float]]:
        """Round, name and value of what rows say, e.g. ``(3, "evaluate/photo/accuracy", 0.9)``."""
        found = []
        clients: dict[tuple[int, str, str], list[float]] = defaultdict(list)
        for row in rows:
            if row["scope"] == "client":
                clients[row["round"], row["phase"], row["metric"]].append(row["value"])
                if not self.clients:
                    continue
                where = f"client_{row['node']}"
            else:
                where = str(row["node"] if row["scope"] == "domain" else row["scope"])
            found.append((row["round"], _name(row["phase"], where, row["metric"]), float(row["value"])))
        for (number, phase, metric), values in clients.items():
            value = float(sum(values)) / (1 if metric in _TOTALS else len(values))
            found.append((number, _name(phase, "clients", metric), value))
        return found


def tracker_of(config: DictConfig) -> Tracker | None:
    """The tracker that a config names, if any.

    Raises
    ------
    UserError
        If its package is missing, or an option cannot be.
    """
    node = config.get("tracker")  # which runs from before there were trackers lack
    return make(node, "tracker") if node and node.get("_target_") else None


@contextmanager
def tracking(
    tracker: Tracker | None, directory: Path, config: DictConfig, name: str, after: int = 0
) -> Iterator[Callable[[Iterable[Row]], None] | None]:
    """A block that a tracker follows; gives what takes the rows, or ``None`` where there is no tracker.

    A tracker that cannot start is an error. One that fails later is left out with a warning, because the run
    is worth more.
    """
    if tracker is None:
        yield None
        return
    container: Any = OmegaConf.to_container(config, resolve=True)
    plain = {k: v for k, v in container.items() if k not in ("settings", "sweep", "tracker")}
    tracker.start(directory, plain, name, after)
    well = True

    def safely(method: Callable[[Any], None], argument: Any) -> None:
        nonlocal well
        try:
            method(argument)
        except Exception as error:  # whatever the tracker's package, its server or its disk has
            well = False
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.warning("tracker: failed, and the run goes on without it (%s)", reason)

    def record(rows: Iterable[Row]) -> None:
        if well:
            safely(tracker.record, rows)

    try:
        yield record
    except BaseException as error:
        safely(tracker.close, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    safely(tracker.finish, read_summary(directory))


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers by which runs are compared: means over domains by round reported, and costs."""
    found = {
        f"{when}/{summary['headline']}_avg": float(summary[when]["avg"])
        for when in ("final", "last_5", "best_validation")
        if summary[when]
    }
    # Without evaluation, which is ours and not the method's, as in a comparison.
    sent = sum(sum(ways.values()) for phase, ways in summary["bytes"].items() if phase != "evaluate")
    return found | {
        "total/bytes": float(sent),
        "total/seconds": float(summary["timing"]["total"]),
        "total/failures": float(summary["failures"]),
    }


def kept_files(directory: Path) -> list[Path]:
    """Files of a run's directory that a tracker keeps beside the numbers."""
    named = [directory / name for name in ("config.yaml", "summary.json")]
    return [path for path in named if path.exists()] + sorted(directory.glob("*.png"))


def same_id(directory: Path, new: Callable[[], str]) -> tuple[str, bool]:
    """The id that a run has with its tracker, and whether it had one: a run that goes on keeps its own."""
    file = directory / "tracker_id.txt"
    known = file.exists()
    if not known:
        file.write_text(new() + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip(), known


def _name(*parts: Any) -> str:
    """Parts joined by slashes, with signs that every tracker takes."""
    return "/".join(re.sub(r"[^\w.-]+", "_", str(part)).strip(".") or "_" for part in parts)
