"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: on shared virtual CPUs, threads inside an operation wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_SHARED = Path(__file__).parents[2] / "shared" / "data"
if _SHARED.is_dir():
    os.environ.setdefault("FEDBENCH_DATA", str(_SHARED))

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Root of the real data sets."""
    root = os.environ.get("FEDBENCH_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("real data sets are not here: set FEDBENCH_DATA to their folder")
    return Path(root)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached features of one test run never meet those of a user."""
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
