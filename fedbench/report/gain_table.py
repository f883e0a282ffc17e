"""What clients' own models gain over the global one, on the same test rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .captioned import captioned
from .comparison import grouped, score_digits
from .statistics import Paired, paired

Summary = Mapping[str, Any]


def gain(summaries: Sequence[Summary]) -> Paired | None:
    """Own minus global score of every client of every run, as pairs; None where no run has both.

    Parameters
    ----------
    summaries : sequence of mapping
        Contents of ``summary.json`` of one method, a seed each.

    Notes
    -----
    Clients of a run share a global model, so that they are no independent draws: the signed-rank test over
    them describes this federation, and says nothing of another.
    """
    own: dict[tuple[int, str], float | None] = {}
    shared: dict[tuple[int, str], float | None] = {}
    for summary in summaries:
        final = summary.get("final") or {}
        if final.get("global"):
            own |= {(summary["seed"], node): score for node, score in final["clients"].items()}
            shared |= {(summary["seed"], node): s for node, s in final["global"]["clients"].items()}
    return paired(own, shared) if own else None


def gain_table(summaries: Sequence[Summary]) -> Table | None:
    """A row for each method with a global model and models of the clients' own: means over clients and seeds.

    Parameters
    ----------
    summaries : sequence of mapping
        Contents of ``summary.json``.

    Returns
    -------
    Table or None
        ``None`` where no run has both.
    """
    rows = [(label, group, gain(group)) for label, group in grouped(summaries)]
    known = [(label, group, found) for label, group, found in rows if found is not None]
    if not known:
        return None
    headline = summaries[0]["headline"]
    percent, digits = 100 if headline == "accuracy" else 1, score_digits(headline)
    table = captioned(
        f"{headline} of the global model and of clients' own on the clients' test rows, mean over "
        "clients, last round; better: share of the clients that gain; p: signed-rank test over clients",
        ("method", "global", "own", "gain", "better", "p"),
        words="method",
    )
    for label, group, found in known:
        means = [
            statistics.fmean(s["final"]["global"]["mean_client"] for s in group if s["final"]["global"]),
            statistics.fmean(s["final"]["mean_client"] for s in group if s["final"]["global"]),
        ]
        texts = [f"{percent * mean:.{digits}f}" for mean in means]
        mean = found.difference.mean
        texts.append("-" if mean is None else f"{percent * mean:+.{digits}f}")
        texts.append(_share(found, group[0]["higher_is_better"]))
        texts.append("-" if found.wilcoxon_p is None else f"{found.wilcoxon_p:.2g}")
        table.add_row(label, *texts)
    return table


def _share(found: Paired, higher_is_better: bool) -> str:
    if found.superiority is None:
        return "-"
    return f"{found.superiority if higher_is_better else 1 - found.superiority:.0%}"
