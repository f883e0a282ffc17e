"""The one error of this package that is meant for a person to read."""

from __future__ import annotations


class ClientError(ValueError):
    """A model, task or extractor that does not fit the data, worded for the person who chose it."""
