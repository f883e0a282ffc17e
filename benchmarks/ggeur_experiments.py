"""GGEUR with all control arms: the controlled experiments E1 to E3, and real data.

Runs presets (``experiment=ggeur_e1`` and so on), several runs side by side, and writes to
``benchmarks/results/``: one Markdown and one CSV table a preset, mean and standard deviation over seeds of
the last five rounds' mean. For the controlled experiments it then checks what must hold, and exits with 1
if something does not. Runs that the same commit finished
under ``--runs`` are not run again.

    python benchmarks/ggeur_experiments.py                  # E1, E2, E3: about half an hour on two cores
    python benchmarks/ggeur_experiments.py digits4 fashion_mnist office_caltech10
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import describe, write_table
from presets import run_all

from fedbench.config.compose import plan
from fedbench.report.comparison import compare, markdown, megabytes

Check = tuple[str, bool]
Means = dict[tuple[str, str], float]
"""AVG in % (mean over seeds) by (setting, arm)."""


def arm_of(summary: dict[str, Any]) -> str:
    """Name of the arm, as the tables of the method's specification call it."""
    if summary["choices"]["scenario"] == "central":
        return "central"
    align, options = summary["choices"]["align"], summary["settings"]
    if options.get("align.policy") == "code_lds":
        return "code"
    if options.get("align.between") is False:
        return "within"
    return {"none": "raw", "ggeur_linear": "linear", "ggeur_step1": "step1"}.get(align, align)


def setting_of(summary: dict[str, Any]) -> str:
    """The part of a setting that an experiment varies besides the arm."""
    options, scenario = summary["settings"], summary["choices"]["scenario"]
    if summary["choices"]["data"] == "gaussian_domains" and scenario in ("domain_skew", "central"):
        shapes = "shared" if options["data.rerandomise"] == 0 else "rerandomised"
        return f"{shapes} {options['data.train_per_class']} rows"
    alpha = f" alpha {options['scenario.alpha']}" if "scenario.alpha" in options else ""
    return f"{scenario}{alpha}"


def check_e1(avg: Means) -> list[Check]:
    gain = {
        a: avg[f"label_skew alpha {a}", "ggeur"] - avg[f"label_skew alpha {a}", "raw"]
        for a in (0.02, 0.05, 0.1, 0.5, 5.0)
    }
    over = {
        arm: fmean(avg[f"label_skew alpha {a}", "ggeur"] - avg[f"label_skew alpha {a}", arm] for a in gain)
        for arm in ("dup", "linear")
    }
    return [
        (f"gain over raw is 4 or more at alpha 0.02: {gain[0.02]:+.1f}", gain[0.02] >= 4),
        (f"gain is within 1.5 of 0 at alpha 0.5: {gain[0.5]:+.1f}", abs(gain[0.5]) <= 1.5),
        (f"gain is within 1.5 of 0 at alpha 5: {gain[5.0]:+.1f}", abs(gain[5.0]) <= 1.5),
        (f"noise beats duplication on average: {over['dup']:+.1f}", over["dup"] >= 0),
        (f"sqrt beats linear on average: {over['linear']:+.1f}", over["linear"] >= 0),
    ]


def check_e2(avg: Means) -> list[Check]:
    # The specification's accuracies are those of 30 rows a class where shapes are shared, else of 60.
    gain = {s: avg[s, "ggeur"] - avg[s, "raw"] for s, arm in avg if arm == "raw"}
    shared, gone = gain["shared 30 rows"], gain["rerandomised 60 rows"]
    checks = [
        (f"gain is 1.5 or more where shapes are shared (30 rows): {shared:+.1f}", shared >= 1.5),
        (f"gain is gone (below 1.5) where they are not (60 rows): {gone:+.1f}", gone < 1.5),
    ]
    for rows in (30, 60):
        more = gain[f"shared {rows} rows"] - gain[f"rerandomised {rows} rows"]
        checks.append((f"sharing adds to the gain at {rows} rows: {more:+.1f}", more > 0))
    return checks


def check_e3(avg: Means, std: Means) -> list[Check]:
    checks = []
    for a in (0.05, 0.1, 0.5):
        s = f"label_domain_skew alpha {a}"
        raw, full = avg[s, "raw"], avg[s, "ggeur"]
        checks.append((f"gain over raw is 6 or more at {s}: {full - raw:+.1f}", full - raw >= 6))
        checks.append(
            (
                f"duplication does about nothing at {s}: {avg[s, 'dup'] - raw:+.1f}",
                abs(avg[s, "dup"] - raw) <= 2,
            )
        )
        between = full - avg[s, "within"]
        checks.append((f"between-domain scatter helps at {s}: {between:+.1f}", between > 0))
        spread = std[s, "ggeur"] - std[s, "raw"]
        checks.append((f"STD over domains falls at {s}: {spread:+.1f}", spread < 0))
        if a <= 0.1:
            step1 = avg[s, "step1"] - raw
            checks.append((f"step 1 alone does harm at {s}: {step1:+.1f}", step1 < 0))
    return checks


CHECKS: dict[str, Callable[[Means, Means], list[Check]]] = {
    "e1": lambda avg, _: check_e1(avg),
    "e2": lambda avg, _: check_e2(avg),
    "e3": check_e3,
}


# Four seeds leave this gain, near 1.3, too uncertain to tell on which side of 1.5 it lies.
MORE_SEEDS = {
    "e1": [
        ["scenario.alpha=5.0", "scenario.min_per_class=1", f"align={align}", "strategy=fedavg"]
        for align in ("none", "ggeur")
    ]
}


def run_preset(name: str, runs: Path, jobs: int) -> list[dict[str, Any]]:
    """Summaries of all runs of a preset, in the order of its sweep."""
    preset = [f"experiment=ggeur_{name}", "engine=serial"]
    configs = plan(preset)
    for cell in MORE_SEEDS.get(name, []):
        configs += plan([*preset, *cell, "seed=4,5,6,7,8,9,10,11"], multirun=True)
    return run_all(name, configs, runs, jobs, lambda s: f"{setting_of(s)} {arm_of(s)}")


def tabulate(summaries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Means, Means]:
    """Rows (setting, arm, mean, deviation over seeds, ...) and the means by (setting, arm)."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for s in summaries:
        groups.setdefault((setting_of(s), arm_of(s)), []).append(s)
    rows = []
    for (setting, arm), group in groups.items():
        values = [100 * s["last_5"]["avg"] for s in group]
        metric = {
            k: fmean(s["client_metrics"].get(f"query.ggeur_deliver/{k}", 0.0) for s in group)
            for k in ("ggeur_synthetic", "ggeur_noise_ratio")
        }
        rows.append(
            {
                "setting": setting,
                "arm": arm,
                "seeds": len(group),
                "avg": round(fmean(values), 2),
                "sd_seeds": round(stdev(values), 2) if len(values) > 1 else "",
                "std_domains": round(100 * fmean(s["last_5"]["std"] for s in group), 2),
                "round_1": round(100 * fmean(s["history"][0]["avg"] for s in group), 2),
                "steps": group[0]["client_metrics"]["train/local_steps"],
                "synthetic_per_client": round(metric["ggeur_synthetic"]),
                "noise_ratio": round(metric["ggeur_noise_ratio"], 3),
                "rank": round(fmean(s["diagnostics"].get("ggeur_rank", 0.0) for s in group), 1),
                "MB": round(fmean(megabytes(s) for s in group), 2),
            }
        )
    avg = {k: fmean(100 * s["last_5"]["avg"] for s in g) for k, g in groups.items()}
    std = {k: fmean(100 * s["last_5"]["std"] for s in g) for k, g in groups.items()}
    return rows, avg, std


def write(
    name: str, rows: list[dict[str, Any]], summaries: list[dict[str, Any]], checks: list[Check]
) -> None:
    """Write the tables of one preset."""
    notes = [
        f"{describe()}.",
        "AVG over domains of the accuracy in %, mean of the last 5 rounds and over seeds.",
    ]
    path = write_table(f"ggeur_{name}", f"GGEUR: {name}", rows, notes)
    text = path.read_text()
    if checks:
        text += "\nWhat must hold:\n\n" + "".join(
            f"- {'holds' if ok else '**fails**'}: {t}\n" for t, ok in checks
        )
    else:
        text += "\nBy domain:\n\n" + markdown(compare(summaries, "last_5"))
    path.write_text(text)


def main() -> int:
    """Run the presets named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "presets", nargs="*", default=["e1", "e2", "e3"], help="e1, e2, e3 or a real data set"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ggeur_experiments"), help="where runs are kept"
    )
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.presets:
        summaries = run_preset(name, arguments.runs, arguments.jobs)
        rows, avg, std = tabulate(summaries)
        checks = CHECKS[name](avg, std) if name in CHECKS else []
        write(name, rows, summaries, checks)
        for text, ok in checks:
            print(f"{'holds' if ok else 'FAILS'}: {text}")
            failed += not ok
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
