"""From a config node with ``_target_`` to the object it names, checked against that class's signature."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_object
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
    options: dict[str, Any] = (
        OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)  # type: ignore[assignment]
    )
    target = options.pop("_target_", None)
    if not target:
        raise UserError(f"{where}: has no _target_, the full name of the class to use")
    try:
        cls = get_object(str(target))
    except (ImportError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{where}._target_: cannot load '{target}' ({reason})") from error
    check_options(cls, options, where, skip=set(given), positional=len(args))
    try:
        return cls(*args, **options, **given)
    except ValueError as error:
        message = str(error).splitlines()[0]
        # Classes start their message with the name of the option, so that the two join to its key.
        name = message.partition(":")[0]
        joined = f"{where}.{message}" if name in options else f"{where}: {message}"
        raise (UserError(joined) if type(error) is ValueError else type(error)(joined)) from error


def check_options(
    cls: Any, options: Mapping[str, Any], where: str, skip: set[str] | None = None, positional: int = 0
) -> None:
    """Names and types of options against a signature; raises UserError."""
    parameters = dict(list(inspect.signature(cls).parameters.items())[positional:])
    hints = _hints(cls)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = {n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    allowed -= skip or set()
    for name, value in options.items():
        if name not in allowed:
            if open_ended:
                continue
            raise UserError(f"{where}.{name}: no such option{nearest(name, allowed)}")
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise UserError(f"{where}.{name}={value}: must be {_words(hint)}, got {type(value).__name__}")
    for name in sorted(allowed - options.keys()):
        if parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"{where}.{name}: needs a value")


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__ if inspect.isclass(cls) else cls)
    except NameError:  # an annotation that exists for type checkers only
        return {}


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


def _words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(h) for h in inner)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint]
    if hint is type(None):
        return "null"
    if origin is list or origin is tuple or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return f"a list of {_words(inner[0])}" if inner else "a list"
    return str(getattr(hint, "__name__", hint))
