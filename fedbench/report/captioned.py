"""The look that terminal tables share."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def captioned(caption: str, columns: Sequence[str], words: str) -> Table:
    """An empty table with a caption below; columns are of numbers, but for the one of ``words``."""
    table = Table(
        caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in columns:
        table.add_column(name, justify="left" if name == words else "right")
    return table
