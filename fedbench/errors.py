"""Errors that a user reads: one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for: what is wrong, where, and what would be right."""


class NotApplicable(UserError):  # noqa: N818 - what it is about a method
    """A method that makes no sense with the other choices; a sweep goes on without it, saying so."""


class RunFailed(Exception):  # noqa: N818 - an outcome, not a mistake of the user
    """A run that could not go on; what it had is kept."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest choice, or the choices themselves."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'? (one of: {', '.join(choices)})"
    return f"; one of: {', '.join(choices)}" if choices else ""


def say(message: str, code: int) -> int:
    """Tell the user one line on standard error; returns the exit code."""
    print(f"fedbench: {message}", file=sys.stderr)
    return code
