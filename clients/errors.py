"""The one error of this package that is meant for a person to read."""

from __future__ import annotations


class ClientError(ValueError):
    """A model, task or extractor that does not fit the data, worded for the person who chose it."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
