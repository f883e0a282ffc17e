"""Any CSV file of who had what when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import local_path
from scenarios.datasets.histories import Events, Histories, HistoryDataset, Table
from scenarios.datasets.options import check_text
from scenarios.federation import Rows, ScenarioError


@dataclass(frozen=True)
class Interactions(Histories):
    """A line an event: a user, an item and a time, and optionally the item's category and a marketplace.

    Parameters
    ----------
    history, split, examples, min_history, core, repeats, period, val_from, test_from, seed
        As in :class:`scenarios.datasets.histories.Histories`.
    path : str or Path
        A ``.csv`` or ``.csv.gz`` file.
    user, item, time : str
        Columns of names or numbers of users and items, and of the times: seconds, or ISO dates such as
        2024-01-31 or 2024-01-31T18:00+01:00.
    category : str or None
        Column of the item's category, the same on all lines of an item; empty for an item without one.
    market : str or None
        Column of the marketplace, which becomes the domain. A user of two marketplaces counts as two.
    """

    path: str | Path = ""
    user: str = "user"
    item: str = "item"
    time: str = "time"
    category: str | None = None
    market: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("user", "item", "time"):
            check_text(field, getattr(self, field), "the name of a column")
        for field in ("category", "market"):
            check_text(field, getattr(self, field), "the name of a column, or null for none", none=True)
        taken: dict[str, str] = {}
        for field in ("user", "item", "time", "category", "market"):
            column = getattr(self, field)
            if column in taken:
                raise ValueError(f"{field}: column '{column}' is {taken[column]} already; use another")
            if column is not None:
                taken[column] = field

    def load(self) -> HistoryDataset:
        """Read the file.

        Raises
        ------
        ScenarioError
            Where the file or a column is missing, a name is empty, a time cannot be read, or an item has two
            categories; says in which line.
        """
        path = local_path(self.path, None) if self.path else None
        if path is None or not path.is_file():
            raise ScenarioError(
                f"data 'interactions': no file '{self.path}'; set data.path to a CSV file of interactions"
            )
        columns = [self.user, self.item, self.time, self.category, self.market]
        table = Table.read(path, [column for column in columns if column is not None])
        user, users = table.codes(self.user)
        item, items = table.codes(self.item)
        domain, domains = table.codes(self.market) if self.market else (np.zeros_like(user), ("all",))
        category, categories = self._categories(table, item, len(items))
        return self.cut(
            "interactions",
            Events(
                user=domain * len(users) + user,
                item=item + 1,
                time=table.days(self.time),
                domain=domain,
                domains=domains,
                category=category,
                categories=categories,
            ),
        )

    def _categories(self, table: Table, item: Rows, items: int) -> tuple[Rows, tuple[str, ...]]:
        """Category of every id, shape (items + 1,), and their names."""
        category = np.zeros(items + 1, dtype=np.int64)
        if self.category is None:
            return category, ()
        codes, names = table.codes(self.category, gaps=True)
        _, first = np.unique(item, return_index=True)
        table.refuse(
            self.category,
            codes != codes[first][item],
            "must be the category that its item has on an earlier line",
        )
        category[1:] = codes[first] + 1
        return category, names
