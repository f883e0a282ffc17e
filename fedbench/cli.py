"""The command line; what each command does is in :mod:`fedbench.commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .commands import compare, completion, doctor, list, new, report, resume, run  # noqa: A004 - a command's name
from .errors import RunFailed, UserError, say

_COMMANDS = (run, resume, compare, report, list, new, doctor, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 a run failed, 2 a mistake in the request."""
    parser = _parser()
    # argparse takes positional words in one place only; overrides may stand before and after options.
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    try:
        with _current_directory_on_path():
            code: int = arguments.function(arguments)
    except UserError as error:
        return say(str(error), 2)
    except RunFailed as error:
        return say(str(error), 1)
    except ValueError as error:
        if not _for_people(error):
            raise
        return say(str(error), 2)
    except KeyboardInterrupt:
        return say("interrupted; what the run had is kept in its directory", 130)
    return code


@contextmanager
def _current_directory_on_path() -> Iterator[None]:
    """A block in which classes of the user's own are found, as `python -m` has it."""
    before = [*sys.path]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _for_people(error: ValueError) -> bool:
    """Whether an error is one of those that our packages word for their users."""
    from clients.errors import ClientError
    from scenarios import ScenarioError

    return isinstance(error, (ClientError, ScenarioError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedbench", description="A federated learning testbed.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
