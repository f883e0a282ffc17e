"""TensorBoard: scalars in event files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedbench.config.objects import flat
from fedbench.errors import UserError

from . import Row, Tracker, figures


class TensorBoard(Tracker):
    """Event files that ``tensorboard --logdir`` shows.

    Parameters
    ----------
    directory : str or None
        Where each run gets a folder; ``None`` is ``tensorboard`` in the run's own directory.
    clients : bool
        Whether rows of single clients go too.
    """

    extra = "tensorboard"
    module = "torch.utils.tensorboard"

    def __init__(self, directory: str | None = None, clients: bool = False) -> None:
        super().__init__(clients)
        self.directory = directory

    def start(self, directory: Path, config: dict[str, Any], name: str, after: int = 0) -> None:
        """Open an event file; what an interrupted run told of later rounds is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        where = directory / "tensorboard"
        if self.directory is not None:  # the two last names tell the runs of several sweeps apart
            where = Path(self.directory).expanduser().joinpath(*directory.absolute().parts[-2:])
        try:
            self._writer = SummaryWriter(str(where), purge_step=after + 1 if after else None)
        except OSError as error:
            raise UserError(f"tracker.directory={where}: cannot be written to ({error.strerror})") from error
        self._config = config
        if not after:
            self._writer.add_text("run", name)
            text = yaml.safe_dump(config, sort_keys=False)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def record(self, rows: Iterable[Row]) -> None:
        """Write scalars, which the writer's own thread brings to the disk."""
        for number, name, value in self.points(rows):
            self._writer.add_scalar(name, value, number)

    def finish(self, summary: dict[str, Any]) -> None:
        """Add what the table of hyperparameters shows, and close."""
        options = {
            k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in flat(self._config).items()
        }
        self._writer.add_hparams(options, figures(summary), run_name=".")
        self.close(summary["status"])

    def close(self, status: str) -> None:
        """Write how the run ended, and close."""
        self._writer.add_text("status", status)
        self._writer.close()
