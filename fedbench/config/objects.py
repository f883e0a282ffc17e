"""From a config node with ``_target_`` to the object it names, checked against that class's signature."""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from fedbench.errors import UserError, nearest


def make(node: Any, where: str, /, *args: Any, **given: Any) -> Any:
    """Object that a node describes.

    Parameters
    ----------
    node : DictConfig or dict
        ``_target_`` and its keyword arguments.
    where : str
        Key of the node, for errors.
    *args, **given
        Arguments that come from the program and not from the user.

    Raises
    ------
    UserError
        For an unknown target or key, a wrong type, or a value that the class refuses.
    """
    options = contents(node, where)
    target = options.pop("_target_", None)
    if not target:
        raise UserError(f"{where}: has no _target_, the full name of the class to use")
    cls = load(target, where)
    check_options(cls, options, where, skip=set(given), positional=len(args))
    return call(cls, where, options, *args, **given)


def call(function: Any, where: str, options: Mapping[str, Any], /, *args: Any, **given: Any) -> Any:
    """Result of a function whose ValueError about an option becomes an error about the option's key."""
    try:
        return function(*args, **options, **given)
    except ValueError as error:
        message = str(error).splitlines()[0]
        # Classes start their message with the name of the option, so that the two join to its key.
        name = message.partition(":")[0]
        joined = f"{where}.{message}" if name in options else f"{where}: {message}"
        raise (UserError(joined) if type(error) is ValueError else type(error)(joined)) from error


def contents(node: Any, where: str) -> dict[str, Any]:
    """A config node as a dict of its own; raises UserError where it is a plain value."""
    container = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict):
        raise UserError(f"{where}={container}: must be a class with its options, as in `fedbench run --cfg`")
    return {str(key): value for key, value in container.items()}


def options_of(node: Any, *without: str) -> dict[str, Any]:
    """Options of a config node: all but its target, and those named."""
    options: Any = OmegaConf.to_container(node, resolve=True)
    return {k: v for k, v in options.items() if k not in ("_target_", *without)}


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys; lists stay as they are."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def load(target: Any, where: str) -> Any:
    """What a full name such as ``clients.models.mlp.MLP`` names; raises UserError."""
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}._target_: cannot load '{target}' ({reason})") from error


def check_options(
    cls: Any, options: Mapping[str, Any], where: str, skip: set[str] | None = None, positional: int = 0
) -> None:
    """Names and types of options against a signature; raises UserError."""
    known = dict(list(parameters(cls).items())[positional:])
    hints = _hints(cls)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    allowed = {n for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    allowed -= skip or set()
    for name, value in options.items():
        if name not in allowed:
            if open_ended:
                continue
            raise UserError(f"{where}.{name}: no such option{nearest(name, allowed)}")
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise UserError(f"{where}.{name}={value}: must be {words(hint)}")
    for name in sorted(allowed - options.keys()):
        if known[name].default is inspect.Parameter.empty:
            raise UserError(f"{where}.{name}: needs a value")


def parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Parameters of a function or class; those that a class takes as ``**options`` are its base's."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in _constructors(cls):
        own = inspect.signature(base).parameters
        parameters |= {n: p for n, p in own.items() if n not in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            return {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return parameters


def _constructors(cls: Any) -> list[Any]:
    if not inspect.isclass(cls):
        return [cls]
    return [base for base in cls.__mro__ if base is cls or "__init__" in vars(base)]


def _hints(cls: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(_constructors(cls)):
        with contextlib.suppress(NameError):  # an annotation that exists for type checkers only
            hints |= typing.get_type_hints(base.__init__ if inspect.isclass(base) else base)
    return hints


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(_fits(v, h) for v, h in zip(value, inner, strict=True))
    if origin is list or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return isinstance(value, (list, tuple)) and all(_fits(v, h) for v in value for h in inner[:1])
    if origin is dict or (inspect.isclass(origin) and issubclass(origin, Mapping)):
        return isinstance(value, dict)
    return True


_PLAIN = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
}


def words(hint: Any, several: bool = False) -> str:
    """A type as a user reads it, e.g. ``"a whole number or null"``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(h, several) for h in inner)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if hint in _PLAIN:
        return _PLAIN[hint][several]
    if hint is type(None):
        return "null"
    if origin is list or origin is tuple or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return f"a list of {words(inner[0], several=True)}" if inner else "a list"
    if hint is dict or origin is dict:
        return "names with values"
    return str(getattr(hint, "__name__", hint))
