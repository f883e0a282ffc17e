"""The one error of this package that is meant for a person to read."""

from __future__ import annotations


class StrategyError(RuntimeError):
    """A strategy cannot go on with what clients sent, worded for the person who runs it."""
