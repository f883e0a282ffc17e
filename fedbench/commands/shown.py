"""What is shown of finished runs on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def show(summaries: list[dict[str, Any]], title: str) -> None:
    """Print the tables of finished runs."""
    from rich.console import Console

    from fedbench.report.client_table import client_table
    from fedbench.report.comparison import compare, table, verdict
    from fedbench.report.gain_table import gain_table
    from fedbench.report.new_client_table import new_client_table

    console = Console()
    comparison = compare(summaries)
    console.print(table(comparison, title, console.width))
    if clients := client_table(summaries, [s["label"] for s in summaries]):
        console.print(clients)
    if gained := gain_table(summaries):
        console.print(gained)
    if newcomers := new_client_table(summaries):
        console.print(newcomers)
    if said := verdict(comparison):
        console.print(said, highlight=False, markup=False)


def show_profiles(directories: list[Path]) -> None:
    """Print where the time of the profiled runs among these went."""
    profiles = [d / "profile" for d in directories if (d / "profile/table.csv").exists()]
    if not profiles:
        return
    from rich.console import Console

    from fedbench.report.profile_table import profile_table, read_csv

    console = Console()
    for profile in profiles:
        title = profile.parent.name if len(directories) > 1 else "where the rounds' time went"
        console.print(profile_table(read_csv(profile / "table.csv"), title))
        console.print(f"trace: {profile / 'trace.json'}", highlight=False, markup=False, soft_wrap=True)
