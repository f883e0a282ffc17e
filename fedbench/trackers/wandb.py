"""Weights & Biases, offline unless asked otherwise."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fedbench.errors import UserError

from . import Row, Tracker, figures, kept_files, log, same_id


class Wandb(Tracker):
    """Runs of a Weights & Biases project.

    Parameters
    ----------
    project : str
        Name of the project.
    entity : str or None
        User or team; ``None`` is the default of whoever is logged in.
    mode : str
        ``"offline"`` writes files that ``wandb sync`` sends later; ``"online"`` sends as the run goes.
    directory : str or None
        Where the ``wandb`` folder is made; ``None`` is the run's own directory.
    clients : bool
        Whether rows of single clients go too.
    """

    extra = "wandb"
    module = "wandb.sdk"

    def __init__(
        self,
        project: str = "fedbench",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        directory: str | None = None,
        clients: bool = False,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline is offline for errors too
        super().__init__(clients)
        self.project, self.entity, self.mode, self.directory = project, entity, mode, directory
        if mode == "online":
            import wandb

            try:
                wandb.login()
            except wandb.errors.Error as error:
                raise UserError(
                    f"tracker.mode=online: {str(error).splitlines()[0]} Or use tracker.mode=offline."
                ) from error

    def start(self, directory: Path, config: dict[str, Any], name: str, after: int = 0) -> None:  # noqa: ARG002
        """Make the run, or open it again."""
        import wandb

        where = Path(self.directory).expanduser() if self.directory else directory
        where.mkdir(parents=True, exist_ok=True)
        number, _ = same_id(directory, lambda: uuid4().hex[:8])
        wandb.setup(wandb.Settings(silent=True))  # the terminal is the run's own
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                dir=str(where),
                id=number,
                resume="allow",
                name=name,
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(f"tracker=wandb: cannot start ({' '.join(str(error).split())})") from error
        # Rounds as the axis, because wandb's own steps cannot go back to where a run goes on.
        self._run.define_metric("*", step_metric="round")
        self._directory = directory
        if self._run.url:
            log.info("tracker: %s", self._run.url)

    def record(self, rows: Iterable[Row]) -> None:
        """Hand rows to wandb's process, a round at a time."""
        rounds: dict[int, dict[str, float]] = defaultdict(dict)
        for number, name, value in self.points(rows):
            rounds[number][name] = value
        for number, values in rounds.items():
            self._run.log({"round": number, **values})

    def finish(self, summary: dict[str, Any]) -> None:
        """Add the summary's numbers and the run's files."""
        self._run.summary.update({"status": summary["status"], **figures(summary)})
        for path in kept_files(self._directory):
            if path.name != "config.yaml":  # which is wandb's name for what it was given at the start
                self._run.save(str(path), base_path=str(self._directory), policy="now")
        self._run.finish(exit_code=0)

    def close(self, status: str) -> None:
        """End the run as one that failed."""
        self._run.summary.update({"status": status})
        self._run.finish(exit_code=1)
