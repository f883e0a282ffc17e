"""``fedbench list``."""

from __future__ import annotations

import argparse
from typing import Any

from fedbench.errors import UserError


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    lister = commands.add_parser(
        "list",
        help="what can be chosen in each group",
        description="What can be chosen in each group.",
    )
    lister.add_argument("group", nargs="?", help="one group only, e.g. strategy")
    lister.add_argument("--config-dir", metavar="DIR", help="a directory with your own groups")
    lister.set_defaults(function=_list)


def _list(arguments: argparse.Namespace) -> int:
    from fedbench.config.compose import GROUPS, check_config_dir, choices
    from fedbench.errors import nearest

    groups = GROUPS if arguments.group is None else (arguments.group,)
    if arguments.group is not None and arguments.group not in GROUPS:
        raise UserError(f"'{arguments.group}': no such group{nearest(arguments.group, GROUPS)}")
    if arguments.config_dir is not None:
        check_config_dir(arguments.config_dir)
    for group in groups:
        print(group)
        found = choices(group, arguments.config_dir)
        width = max(map(len, found), default=0)
        for name, description in found.items():
            print(f"  {name:<{width}}  {description}")
    return 0
