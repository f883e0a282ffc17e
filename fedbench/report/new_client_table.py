"""How clients that took no part in training fare, by the rows from which they personalise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .captioned import captioned
from .comparison import grouped, score_digits


def new_client_table(summaries: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row for each method and number of rows of support: means over seeds, of all new clients' test rows.

    Parameters
    ----------
    summaries : sequence of mapping
        Contents of ``summary.json``.

    Returns
    -------
    Table or None
        ``None`` where no run had new clients.
    """
    known = [s for s in summaries if (s["final"] or {}).get("new_clients")]
    if not known:
        return None
    headline = known[0]["headline"]
    first = next(iter(known[0]["final"]["new_clients"].values()))
    measures = [headline, *(m for m in ("loss", "ece") if m in first and m != headline)]
    table = captioned(
        "new clients, after the last round, by the number of own rows from which they personalise; "
        "loss: negative log-likelihood",
        ("method", "rows", *measures),
        words="method",
    )
    for label, group in grouped(known):
        for shots in group[0]["final"]["new_clients"]:
            found = [s["final"]["new_clients"][shots] for s in group if shots in s["final"]["new_clients"]]
            table.add_row(label, shots, *(_text(m, [scores[m] for scores in found]) for m in measures))
            label = ""
    return table


def _text(measure: str, values: list[float]) -> str:
    percent, digits = (100, 2) if measure == "accuracy" else (1, max(3, score_digits(measure)))
    text = f"{percent * statistics.fmean(values):.{digits}f}"
    return f"{text} ± {percent * statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
