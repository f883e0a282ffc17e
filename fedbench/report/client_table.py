"""How each client fares under each method, for one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .captioned import captioned
from .comparison import score_digits

_MOST = 20
"""Clients that a terminal table shows; the rest is in ``metrics.jsonl`` and ``summary.json``."""


def client_table(summaries: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Table | None:
    """Score of every client on its own test rows, one column a method.

    Parameters
    ----------
    summaries : sequence of mapping
        Contents of ``summary.json``, all of one split: seeds and scenarios the same.
    labels : sequence of str
        Name of each method.

    Returns
    -------
    Table or None
        ``None`` where the splits differ, where clients are too many to be listed, or where each domain is one
        client and the main table says it all.
    """
    first = summaries[0]
    if isinstance(first["split"], Mapping):
        return None
    same_split = all(s["split"] == first["split"] and s["seed"] == first["seed"] for s in summaries)
    domains = [c["domain"] for c in first["split"]]
    if not same_split or len(domains) == 1 or len(set(domains)) == len(domains):
        return None
    percent, digits = 100 if first["headline"] == "accuracy" else 1, score_digits(first["headline"])
    nodes: Sequence[int] = range(len(domains))
    if len(domains) > _MOST:  # not all may have been asked
        nodes = sorted({int(node) for s in summaries for node in s["final"]["clients"]}) or nodes
    shown = nodes[:_MOST]
    caption = f"{first['headline']} after the last round on each client's own test rows"
    if len(shown) < len(domains):
        caption += f"; the first {len(shown)} of {len(domains)} clients"
    table = captioned(
        caption,
        ("client", "domain", "rows", *labels),
        words="domain",
    )
    for node in shown:
        scores = [s["final"]["clients"].get(str(node)) for s in summaries]
        texts = ["-" if score is None else f"{percent * score:.{digits}f}" for score in scores]
        table.add_row(str(node), domains[node], str(first["split"][node]["rows"]), *texts)
    return table
