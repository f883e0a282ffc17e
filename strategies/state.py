"""State of any strategy, Flower's own included, as scalars and arrays: what makes a run resumable."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from .arrays import numpy_of, record

_FLOWER = ("m_t", "v_t", "momentum_vector", "current_arrays", "clipping_norm")
"""Attributes in which Flower's strategies remember earlier rounds."""


def state_dict(strategy: Strategy) -> dict[str, Any]:
    """What the next round of a strategy depends on besides the arrays that it is given.

    Parameters
    ----------
    strategy : Strategy
        Any: one with a ``state_dict`` of its own is asked; of Flower's, server momenta, the adaptive
        clipping norm and what a wrapped strategy remembers are collected.
    """
    own = getattr(strategy, "state_dict", None)
    if own is not None:
        return dict(own())
    state: dict[str, Any] = {}
    for name in _FLOWER:
        value = getattr(strategy, name, None)
        if isinstance(value, ArrayRecord):
            state[name] = {"record": numpy_of(value)}
        elif isinstance(value, list):
            state[name] = {"list": {str(i): v for i, v in enumerate(value)}}
        elif value is not None:
            state[name] = value
    inner = getattr(strategy, "strategy", None)
    if inner is not None:
        state["strategy"] = state_dict(inner)
    return state


def load_state_dict(strategy: Strategy, state: dict[str, Any]) -> None:
    """Give a strategy, built as before, what :func:`state_dict` took from it."""
    own = getattr(strategy, "load_state_dict", None)
    if own is not None:
        own(state)
        return
    for name, value in state.items():
        if name == "strategy":
            load_state_dict(strategy.strategy, value)  # type: ignore[attr-defined]
        elif isinstance(value, dict) and value.keys() == {"record"}:
            setattr(strategy, name, record(value["record"]))
        elif isinstance(value, dict) and value.keys() == {"list"}:
            setattr(strategy, name, [value["list"][str(i)] for i in range(len(value["list"]))])
        else:
            setattr(strategy, name, value)
