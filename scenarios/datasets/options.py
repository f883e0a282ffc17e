"""Checks of data-set options, each raising ValueError with what would be right."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any


def check_whole(field: str, value: Any, minimum: int, *, none: str = "") -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``minimum``.

    Where ``None`` is allowed, ``none`` says what it means.
    """
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        also = f", or null for {none}" if none else ""
        raise ValueError(
            f"{field}: not a possible number, got {value!r}; use a whole number of at least {minimum}{also}"
        )


def check_number(field: str, value: Any, minimum: float = 0.0, maximum: float = math.inf) -> None:
    """Raise ValueError unless ``value`` is a finite number from ``minimum`` to ``maximum``."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not minimum <= value <= maximum:
        upper = f" to {maximum:g}" if maximum < math.inf else ""
        raise ValueError(f"{field}: not a possible number, got {value!r}; use one from {minimum:g}{upper}")


def check_flag(field: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is true or false."""
    if value is not True and value is not False:
        raise ValueError(f"{field}: neither yes nor no, got {value!r}; use true or false")


def check_text(field: str, value: Any, what: str, *, none: bool = False) -> None:
    """Raise ValueError unless ``value`` is text that is not empty, or ``None`` where that is allowed."""
    if not (isinstance(value, str) and value) and not (none and value is None):
        raise ValueError(f"{field}: not a name, got {value!r}; use {what}")


def check_choice(field: str, value: Any, choices: Sequence[str] | Sequence[int]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; the nearest one is suggested."""
    if isinstance(value, bool) or value not in choices:
        names = [str(choice) for choice in choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{field}: unknown, got {value!r}; use {' or '.join(names)}{hint}")


def check_choices(field: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Raise ValueError unless there are ``values``, each of which is one of ``choices``."""
    if not values:
        raise ValueError(f"{field}: none are named; use some of {', '.join(choices)}")
    for value in values:
        check_choice(field, value, choices)
