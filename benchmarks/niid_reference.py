"""FedAvg on MNIST with Dirichlet(0.5) label skew, beside the accuracy that Flower's niid_bench publishes.

The preset ``niid_mnist`` is the baseline's setting: 10 clients, all in every round, 10 local epochs,
50 rounds; its published accuracy is 98.89 ± 0.07 %, the best over the 50 rounds on the test set, mean and
standard deviation over seeds. First one local epoch is timed, which gives an estimate of the whole. Then the
script runs ``--rounds`` of them and prints the accuracy of every round, the best so far and how far that is
from the reference. MNIST must lie under the folder that ``FEDBENCH_DATA`` names.

    python benchmarks/niid_reference.py                            # 10 rounds
    python benchmarks/niid_reference.py --rounds 50                # the whole; written to benchmarks/results/
    python benchmarks/niid_reference.py --rounds 1 client.epochs=1 # a smoke test, with overrides
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, load, write_table
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fedbench.config.compose import plan
from fedbench.errors import RunFailed, UserError
from fedbench.run import run, stamp
from scenarios import ScenarioError

PRESET = "experiment=niid_mnist"
REFERENCE, DEVIATION = 98.89, 0.07
WHOLE = 50
"""Rounds of the reference."""


def compose(*overrides: str) -> DictConfig:
    """The one run that the preset is, with overrides."""
    (config,) = plan([PRESET, *overrides])
    return config


def seconds_a_round(overrides: list[str], epochs: int) -> float:
    """Estimated seconds of a round, from one local epoch with workers that are up already."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("cold", "warm"):
            timed = compose(*overrides, "rounds=1", "client.epochs=1")
            timing = run(timed, Path(directory) / name)["timing"]
    seconds: float = timing["train"] * epochs + timing["aggregate"] + timing["evaluate"]
    return seconds


def rows_of(summary: dict[str, Any]) -> list[dict[str, object]]:
    """One line a round: accuracy, the best so far, and its distance from the reference."""
    rows: list[dict[str, object]] = []
    best = 0.0
    for point in summary["history"]:
        accuracy = 100 * point["avg"]
        best = max(best, accuracy)
        rows.append(
            {
                "round": point["round"],
                "accuracy %": f"{accuracy:.2f}",
                "best so far %": f"{best:.2f}",
                f"reference after {WHOLE} %": f"{REFERENCE} ± {DEVIATION}",
                "best - reference": f"{best - REFERENCE:+.2f}",
            }
        )
    return rows


def main() -> None:
    """Estimate, run, print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=10, help=f"rounds to run; the reference is at {WHOLE}")
    parser.add_argument("--out", type=Path, help="run directory; default runs/TIME-niid_mnist")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the preset, e.g. seed=1"
    )
    options = parser.parse_args()
    try:
        measure(options.rounds, options.overrides, options.out or Path("runs") / f"{stamp()}-niid_mnist")
    except (UserError, ScenarioError, RunFailed) as error:
        sys.exit(str(error))


def measure(rounds: int, overrides: list[str], directory: Path) -> None:
    """Run the preset and print its rounds beside the reference."""
    config = compose(*overrides, f"rounds={rounds}")
    before = load()
    seconds = seconds_a_round(overrides, config.client.epochs)
    print(
        f"estimate: {seconds:.0f} s a round of {config.client.epochs} local epochs, "
        f"{rounds * seconds / 60:.1f} min for {rounds} rounds, {WHOLE * seconds / 60:.0f} min for all {WHOLE}"
    )
    summary = run(config, directory)
    rows, timing = rows_of(summary), summary["timing"]
    table = Table(*rows[0], title="FedAvg, MNIST, Dirichlet(0.5), 10 clients")
    for values in rows:
        table.add_row(*map(str, values.values()))
    Console().print(table)
    took = sum(timing[k] for k in ("train", "aggregate", "evaluate")) / rounds
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"Measured: {took:.1f} s a round. Overrides: {' '.join(overrides) or 'none'}.",
    ]
    print("\n".join([*notes, f"Run directory: {directory}"]))
    if rounds >= WHOLE:
        print(f"written to {write_table('niid_reference', 'Reference: niid_bench, MNIST', rows, notes)}")


if __name__ == "__main__":
    main()
