"""Eight base methods with and without GGEUR, in the shape of the tables of GGEUR's paper.

FedAvg, FedProx, SCAFFOLD, MOON, FedDyn, FedOpt (server Adam), FedProto (with averaged models, so that there
is a model to test on every domain) and FedNTD, each plain and aligned: label skew on Fashion-MNIST (14 x 14
pixels), domain skew and both skews on digits4 and Office-Caltech-10. Columns by domain, AVG and STD over
domains (ddof 0); mean of the last five rounds, mean and standard deviation over three seeds; every method as
its configuration has it, tuned for none of these data. Writes ``benchmarks/results/strategies_*``.

    python benchmarks/strategy_table.py                        # all: about half an hour on two quiet cores
    python benchmarks/strategy_table.py digits4
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import describe, write_table
from presets import run_all

from fedbench.config.compose import plan
from fedbench.report.comparison import megabytes

PRESETS = ("fashion_mnist", "digits4", "office_caltech10")
Group = list[dict[str, Any]]


def base_of(summary: dict[str, Any]) -> str:
    """Name of the base method, as the paper's tables have it."""
    return {"fedadam": "fedopt"}.get(summary["choices"]["strategy"], summary["choices"]["strategy"])


def setting_of(summary: dict[str, Any]) -> str:
    """The skew."""
    alpha = summary["settings"].get("scenario.alpha")
    return summary["choices"]["scenario"] + (f" {alpha}" if alpha is not None else "")


def words(summary: dict[str, Any]) -> str:
    return f"{setting_of(summary)} {base_of(summary)} {summary['choices']['align']}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, of shares as %."""
    percent = [100 * v for v in values]
    return f"{fmean(percent):.2f} ± {stdev(percent):.2f}" if len(percent) > 1 else f"{percent[0]:.2f}"


def tabulate(summaries: Group) -> list[dict[str, Any]]:
    """A row for each (skew, base, with or without GGEUR), with GGEUR's gain, paired by seed."""
    groups: dict[tuple[str, str, str], Group] = {}
    for s in summaries:
        groups.setdefault((setting_of(s), base_of(s), s["choices"]["align"]), []).append(s)
    rows = []
    for (setting, base, align), group in groups.items():
        plain = {s["seed"]: s["last_5"]["avg"] for s in groups[setting, base, "none"]}
        gains = [s["last_5"]["avg"] - plain[s["seed"]] for s in group]
        domains = group[0]["last_5"]["domains"]
        row = {"skew": setting, "base": base, "align": align}
        if len(domains) > 1:
            row |= {d: spread([s["last_5"]["domains"][d] for s in group]) for d in domains}
        row["AVG"] = spread([s["last_5"]["avg"] for s in group])
        if len(domains) > 1:
            row["STD"] = spread([s["last_5"]["std"] for s in group])
        row["gain"] = "" if align == "none" else spread(gains)
        row["worst client"] = spread([s["last_5"]["worst_client"] for s in group])
        row["MB"] = f"{fmean(megabytes(s) for s in group):.1f}"
        rows.append(row)
    return rows


def main() -> None:
    """Run the presets named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", default=PRESETS, metavar="DATA", help=", ".join(PRESETS))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/strategy_table"), help="where runs are kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.presets) - set(PRESETS):
        parser.error(f"no such data: {', '.join(sorted(unknown))}; one of: {', '.join(PRESETS)}")
    for name in arguments.presets:
        configs = plan([f"experiment=strategies_{name}", "engine=serial"])
        rows = tabulate(run_all(name, configs, arguments.runs, arguments.jobs, words))
        notes = [
            f"{describe()}.",
            "Accuracy in %, mean of the last 5 rounds, mean ± standard deviation over seeds; gain: of GGEUR "
            "over the same base, paired by seed; STD: over domains (ddof 0); fedproto averages models too.",
        ]
        print(write_table(f"strategies_{name}", f"Base methods with and without GGEUR: {name}", rows, notes))


if __name__ == "__main__":
    main()
