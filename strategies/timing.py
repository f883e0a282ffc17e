"""Marks on what takes time, for whoever measures it; unless somebody does, they do nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

LOAD = "load"
"""Gathering a client's rows and what it keeps, and drawing its batches."""
BROADCAST = "broadcast"
"""From the server's model to tensors on a client."""
TRAIN = "train"
"""Local training, and the answers to a method's queries."""
UPLOAD = "upload"
"""From what a client computed to a reply at the server."""

P = ParamSpec("P")
R = TypeVar("R")
Listener = Callable[[str], AbstractContextManager[Any]]

_NOTHING = nullcontext()
_listener: Listener | None = None


def part(name: str) -> AbstractContextManager[Any]:
    """A block whose time counts as this; of blocks inside each other, the innermost counts."""
    return _NOTHING if _listener is None else _listener(name)


def timed(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of which every call is such a block."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _listener is None:
                return function(*args, **kwargs)
            with _listener(name):
                return function(*args, **kwargs)

        return call

    return decorate


def listen(listener: Listener | None) -> None:
    """Enter ``listener(name)`` around every such block of this process from now on; ``None`` ends it."""
    global _listener
    _listener = listener
