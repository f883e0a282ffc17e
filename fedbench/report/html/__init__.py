"""A report of runs: one HTML page that needs nothing else."""

from __future__ import annotations

from .page import render, write_report

__all__ = ["render", "write_report"]
