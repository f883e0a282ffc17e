"""MLflow: parameters, metrics and files of a run in a tracking store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedbench.config.objects import flat
from fedbench.errors import UserError

from . import Row, Tracker, figures, kept_files, same_id

_METRICS, _PARAMS = 1_000, 100
"""What MLflow takes in one request."""
_LONGEST = 500
"""Characters of a parameter's value; newer stores take more, but older servers do not."""
_EVERY = 5.0
"""Seconds after which waiting metrics are sent."""


class MLflow(Tracker):
    """Runs of an MLflow experiment.

    Parameters
    ----------
    uri : str or None
        Tracking store: a database, as ``sqlite:///mlflow.db``, or a server. ``None`` is what the variable
        MLFLOW_TRACKING_URI says, or that database in the current directory.
    experiment : str
        Made if needed.
    clients : bool
        Whether rows of single clients go too.
    """

    extra = "mlflow"
    module = "mlflow.tracking"

    def __init__(self, uri: str | None = None, experiment: str = "fedbench", clients: bool = False) -> None:
        # Before anything is asked: a server that is not there is otherwise tried for minutes, and MLflow's
        # makers are told how it is used.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        super().__init__(clients)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # Read here and not in the config, which is written down, because it may hold a password.
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        uri = uri or f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
        except Exception as error:  # MLflow's own, or its database's
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"tracker.uri: MLflow cannot use the store ({reason})") from error
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def start(self, directory: Path, config: dict[str, Any], name: str, after: int = 0) -> None:  # noqa: ARG002
        """Make the run, or open it again."""
        from mlflow.entities import Param

        self._directory = directory
        self._id, known = same_id(
            directory, lambda: str(self._client.create_run(self._experiment, run_name=name).info.run_id)
        )
        if known:
            self._client.set_terminated(self._id, "RUNNING")
            return
        options = flat(config)
        params = [Param(key[:250], str(value)[:_LONGEST]) for key, value in options.items()]
        for some in _parts(params, _PARAMS):
            self._client.log_batch(self._id, params=some)
        tags = {f"fedbench.{k.removeprefix('choices.')}": v for k, v in options.items() if "choices." in k}
        self._tag(tags | {"fedbench.directory": directory.absolute()})

    def record(self, rows: Iterable[Row]) -> None:
        """Keep metrics until there are many of them, or some time has passed."""
        self._add(self.points(rows))
        if len(self._waiting) >= _METRICS or time.monotonic() - self._sent > _EVERY:
            self._send()

    def finish(self, summary: dict[str, Any]) -> None:
        """Add the summary's numbers and the run's files."""
        self._add((summary["rounds"], name, value) for name, value in figures(summary).items())
        self._send()
        self._tag({f"fedbench.{k}": summary[k] for k in ("status", "label", "weights_sha256")})
        for path in kept_files(self._directory):
            self._client.log_artifact(self._id, str(path))
        self._client.set_terminated(self._id, "FINISHED")

    def close(self, status: str) -> None:
        """End the run as one that failed or was killed."""
        self._send()
        self._tag({"fedbench.status": status})
        self._client.set_terminated(self._id, "KILLED" if status == "interrupted" else "FAILED")

    def _add(self, points: Iterable[tuple[int, str, float]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, number) for number, name, value in points]

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for some in _parts(waiting, _METRICS):
            self._client.log_batch(self._id, metrics=some)
        self._sent = time.monotonic()

    def _tag(self, tags: dict[str, Any]) -> None:
        for key, value in tags.items():
            self._client.set_tag(self._id, key, str(value))


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))
