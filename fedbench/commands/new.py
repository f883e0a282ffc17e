"""``fedbench new``: the files to start a strategy, model, data set or skew of one's own from."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from fedbench.errors import UserError


class _Kind(NamedTuple):
    """What can be started: its config group, and the run that shows it at work."""

    group: str
    run: str


_KINDS = {
    "strategy": _Kind("strategy", "-m strategy=fedavg,{name}"),
    "model": _Kind("client", "client={name}"),
    "data": _Kind("data", "data={name}"),
    "skew": _Kind("scenario", "scenario={name}"),
}
_NOT_NAMES = ("true", "false", "null", "nan", "inf")
"""What an override such as ``strategy=null`` does not read as a name."""

_HELP = """\
Write three files to start from, which work as they are: a Python file, its YAML file, and a test.

example:
  fedbench new strategy half_step
  half_step.py                    both halves of the method
  conf/strategy/half_step.yaml    its options
  test_half_step.py               tests of both

`fedbench run --config-dir conf strategy=half_step` then runs it, from the directory of the files.
"""


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    new = commands.add_parser(
        "new",
        help="start a strategy, model, data set or skew of your own",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("kind", choices=_KINDS, metavar="KIND", help=f"one of {', '.join(_KINDS)}")
    new.add_argument("name", metavar="NAME", help="lower case, such as half_step")
    new.add_argument("--into", metavar="DIR", default=".", help="your project's directory (the current one)")
    new.set_defaults(function=_new)


def _new(arguments: argparse.Namespace) -> int:
    kind, name = _KINDS[arguments.kind], arguments.name
    into = Path(arguments.into).expanduser()
    _check_word(name)
    files = {
        into / f"{name}.py": f"{arguments.kind}.py.tmpl",
        into / "conf" / kind.group / f"{name}.yaml": f"{arguments.kind}.yaml.tmpl",
        into / f"test_{name}.py": f"{arguments.kind}_test.py.tmpl",
    }
    for path in files:
        if os.path.lexists(path):
            raise UserError(f"{path} exists already and stays as it is; choose another name")
    _check_free(kind.group, name)
    _write({path: _filled(template, name) for path, template in files.items()})
    for path in files:
        print(f"wrote {path}")
    there = "" if into.resolve() == Path.cwd() else f"cd {shlex.quote(arguments.into)} && "
    print(f"next: {there}fedbench run --config-dir conf {kind.run.format(name=name)}")
    print(f"test: {there}python -m pytest test_{name}.py")
    return 0


def _check_word(name: str) -> None:
    """Raise UserError for what can be no module, or no value of an override."""
    import keyword

    if re.fullmatch(r"[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name) and name not in _NOT_NAMES:
        return
    if near := re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_"):
        reserved = keyword.iskeyword(near) or near in _NOT_NAMES or near[0].isdigit()
        near = f"; did you mean '{f'my_{near}' if reserved else near}'?"
    raise UserError(
        f"'{name}': must be a word of lower-case letters, digits and underscores, a letter first{near}"
    )


def _check_free(group: str, name: str) -> None:
    """Raise UserError where the name is one of ours, or that of a module that it would hide."""
    from importlib.util import find_spec

    from fedbench.config.compose import choices

    if name in choices(group):
        raise UserError(
            f"{group}={name} exists already; did you mean 'my_{name}'? (`fedbench list {group}` shows all)"
        )
    if find_spec(name) is not None:
        raise UserError(
            f"'{name}' is a Python module already, which yours would hide; did you mean 'my_{name}'?"
        )


def _filled(template: str, name: str) -> str:
    from importlib import resources
    from string import Template

    text = resources.files("fedbench").joinpath("templates", template).read_text(encoding="utf-8")
    words = name.split("_")
    return Template(text).substitute(
        name=name,
        cls="".join(word.capitalize() for word in words),
        key="-".join(filter(None, words)),
        title=" ".join(filter(None, words)).capitalize(),
    )


def _write(files: dict[Path, str]) -> None:
    """Write all files or none; what exists is never written over, even if it has come up just now."""
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink()
        raise UserError(f"{error.filename or path}: cannot be written ({error.strerror})") from error
