"""Electronics bought in seven Amazon marketplaces, which share many items but no users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import find
from scenarios.datasets.histories import Events, Histories, HistoryDataset, Table
from scenarios.datasets.options import check_choices

SOURCE = (
    "XMarket is the data set of Bonab et al. (2021); github.com/hamedrab/FOREC has its 5-core files of "
    "electronics in DATA/proc_data."
)
MARKETS = ("ca", "de", "fr", "in", "jp", "mx", "uk")


@dataclass(frozen=True)
class Xmarket(Histories):
    """134,845 ratings, each of which counts as having bought the item, a marketplace a domain.

    Of the 8,304 items, 3,708 are in two marketplaces or more. A user of two marketplaces counts as two. Dates
    are days, so that the order of what was rated on one day is that of the file. There are no categories.

    Parameters
    ----------
    history, split, examples, min_history, core, repeats, period, val_from, test_from, seed
        As in :class:`scenarios.datasets.histories.Histories`; times are in months of 30 days by default.
    markets : sequence of str
        Which ones.
    root : str, Path or None
        Data folder; its folder ``xmarket_electronics`` holds ``ca_5core.txt.gz`` and so on.

    Notes
    -----
    Bonab et al., "Cross-Market Product Recommendation" (CIKM 2021).
    """

    period: float | None = 30.0
    markets: Sequence[str] = MARKETS
    root: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("markets", self.markets, MARKETS)
        if len(set(self.markets)) < len(self.markets):
            raise ValueError(f"markets: one is named twice in {', '.join(self.markets)}; use each once")

    def load(self) -> HistoryDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        users, items, times, before = [], [], [], 0
        for market in self.markets:
            path = find("xmarket", self.root, f"xmarket_electronics/{market}_5core.txt.gz", SOURCE)
            table = Table.read(path, ("userId", "itemId", "date"), sep=" ")
            user, names = table.codes("userId")
            users.append(before + user)
            items.append(table.cells["itemId"].to_numpy(dtype=str))
            times.append(table.days("date"))
            before += len(names)
        catalogue, item = np.unique(np.concatenate(items), return_inverse=True)
        return self.cut(
            "xmarket",
            Events(
                user=np.concatenate(users),
                item=item + 1,
                time=np.concatenate(times),
                domain=np.repeat(np.arange(len(users)), [len(user) for user in users]),
                domains=tuple(self.markets),
                category=np.zeros(len(catalogue) + 1, dtype=np.int64),
            ),
        )
