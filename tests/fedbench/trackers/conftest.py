"""A real run whose rows the trackers are told."""

import json
import os
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fedbench.config.compose import CONFIG_DIR, plan
from fedbench.run import run
from fedbench.trackers import tracker_of, tracking

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before a test imports it

SMALL = [
    "data=gaussian_domains", "data.domains=2", "data.classes=3", "data.dim=4", "data.train_per_class=12",
    "data.test_per_class=6", "scenario=domain_skew", "client=linear", "client.steps=3", "rounds=3",
    "engine=serial", "strategy=ggeur",
]  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: its config, directory, rows and summary."""
    path = tmp_path_factory.mktemp("finished") / "run"
    config = plan(SMALL)[0]
    summary = run(config, path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(config=config, path=path, rows=rows, summary=summary)


@pytest.fixture
def choose(finished):
    """``choose(name, **options)``: the run's config with a tracker, as the command line makes it."""

    def chosen(name, **options):
        config = finished.config.copy()
        config["tracker"] = OmegaConf.merge(OmegaConf.load(CONFIG_DIR / f"tracker/{name}.yaml"), options)
        return config

    return chosen


@pytest.fixture
def follow(finished, tmp_path):
    """``follow(config)``: a tracker told of the run again, in a directory of its own, which is returned."""

    def followed(config, directory=tmp_path / "runs" / "r", rounds=(0, 1, 2, 3), after=0, error=None):
        directory.mkdir(parents=True, exist_ok=True)
        for path in finished.path.iterdir():
            if path.is_file():
                (directory / path.name).write_bytes(path.read_bytes())
        with tracking(tracker_of(config), directory, config, "ggeur-digits", after) as record:
            for _, rows in groupby(finished.rows, key=lambda row: (row["round"], row["phase"])):
                rows = list(rows)
                if rows[0]["round"] in rounds:
                    record(rows)
            if error is not None:
                raise error
        return Path(directory)

    return followed


@pytest.fixture
def expected(finished):
    """``expected(clients)``: values by name and round that a tracker has to hold."""

    def values(clients=False):
        found = {}
        for row in finished.rows:
            number, phase, metric = row["round"], row["phase"], row["metric"]
            if row["scope"] != "client":
                found.setdefault(f"{phase}/{row['node'] or 'global'}/{metric}", {})[number] = row["value"]
                continue
            if clients:
                found.setdefault(f"{phase}/client_{row['node']}/{metric}", {})[number] = row["value"]
            alike = [
                r["value"]
                for r in finished.rows
                if (r["scope"], r["round"], r["phase"], r["metric"]) == ("client", number, phase, metric)
            ]
            total = sum(alike) if metric.startswith("bytes_") else sum(alike) / len(alike)
            found.setdefault(f"{phase}/clients/{metric}", {})[number] = total
        return found

    return values
