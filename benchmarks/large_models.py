"""What graphs of a million nodes and catalogues of a hundred thousand items take on one machine.

The whole path of ``fedbench run`` on the serial engine, each model in a process of its own: a block model
of a million nodes and ten million edges for LargeGT and GraphSAGE, held by one client; 600,000 events of
20,000 users with 100,000 items, on ten clients, for IDNP and HCN, with a hundred negatives an example in
place of a softmax over all items. The table shows the seconds until the first round begins (data, split,
what the task prepares), the seconds of an optimiser step, those of a full evaluation, and the most memory
that the process took (the proportional set size of Linux).

    python benchmarks/large_models.py            # a quarter of an hour
    python benchmarks/large_models.py --quick    # a tenth of everything; nothing written

Writes ``benchmarks/results/large_models.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import measure_apart, show
from machine import describe, load, write_table
from population import MemoryWatch

NODES, DEGREE = 1_000_000, 20
USERS, EACH, ITEMS, NEGATIVES = 20_000, 30, 100_000, 100
STEPS, ROUNDS = 20, 2
GRAPH = ("largegt", "graphsage")
RECOMMENDATION = ("idnp", "hcn")


def child(client: str, scale: float) -> dict[str, float]:
    """Seconds until the first round, of a step, and of an evaluation."""
    started = time.perf_counter()
    from fedbench import run as fedbench_run
    from fedbench.config.compose import plan

    train, evaluation, begun = [], [], []

    class TimedRun(fedbench_run.Run):
        """A run that notes how long its rounds and evaluations take."""

        def _one_round(self, *given: Any) -> Any:
            begun.append(time.perf_counter())
            arrays = super()._one_round(*given)
            train.append(time.perf_counter() - begun[-1])
            return arrays

        def _evaluate(self, *given: Any) -> None:
            before = time.perf_counter()
            super()._evaluate(*given)
            evaluation.append(time.perf_counter() - before)

    fedbench_run.Run = TimedRun
    with tempfile.TemporaryDirectory() as directory:
        chosen = graph(scale) if client in GRAPH else events(client, scale, Path(directory))
        overrides = [
            f"client={client}",
            "strategy=fedavg",
            "engine=serial",
            f"rounds={ROUNDS}",
            f"eval_every={ROUNDS}",
            f"client.steps={STEPS}",
            *chosen,
        ]
        fedbench_run.run(plan(overrides)[0], Path(directory) / "run")
    clients = 1 if client in GRAPH else 10
    return {
        "start": begun[0] - started,
        "step": train[0] / (STEPS * clients),
        "evaluation": evaluation[-1],
    }


def graph(scale: float) -> list[str]:
    """One client with a block model; a hundredth of the nodes each for validation and test."""
    return [
        "data=block_model",
        "data.domains=1",
        f"data.nodes={int(NODES * scale)}",
        f"data.degree={DEGREE}",
        "scenario=central",
        "scenario.val_fraction=0.01",
        "scenario.test_fraction=0.01",
    ]


def events(client: str, scale: float, directory: Path) -> list[str]:
    """Ten clients with users whose items follow Zipf's law."""
    rng = np.random.default_rng(0)
    users, items = int(USERS * scale), int(ITEMS * scale)
    weights = 1 / np.arange(1, items + 1)
    item = rng.choice(items, size=users * EACH, p=weights / weights.sum())
    item[:items] = np.arange(items)  # each is there
    user, when = np.repeat(np.arange(users), EACH), rng.uniform(0, 3e7, users * EACH).astype(int)
    table = np.stack([user, rng.permutation(item), when], 1)
    path = directory / "events.csv"
    np.savetxt(path, table, "%d", delimiter=",", header="user,item,time", comments="")
    return [
        "data=interactions",
        f"data.path={path}",
        "data.repeats=true",
        f"data.examples={'positions' if client == 'hcn' else 'sequences'}",
        "scenario=iid",
        f"client.task.negatives={NEGATIVES if client == 'idnp' else NEGATIVES // 10}",
    ]


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything; writes nothing")
    options = parser.parse_args()
    before, scale = load(), 0.1 if options.quick else 1.0
    rows = []
    for client in (*GRAPH, *RECOMMENDATION):
        with MemoryWatch() as memory:
            found = measure_apart(__file__, client, scale)
        size = (
            f"{int(NODES * scale):,} nodes, {int(NODES * scale * DEGREE / 2):,} edges"
            if client in GRAPH
            else f"{int(ITEMS * scale):,} items, {int(USERS * scale):,} users"
        )
        rows.append(
            {
                "client": client,
                "data": size,
                "build and start s": f"{found['start']:.1f}",
                "step s": f"{found['step']:.3f}",
                "evaluation s": f"{found['evaluation']:.1f}",
                "peak memory GB": f"{memory.peak / 1e9:.2f}",
            }
        )
    show("Large graphs and catalogues", rows)
    if options.quick:
        return
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        "Serial engine, one process; batches of 128 nodes, and of 64 users. An evaluation is of the model "
        f"on {int(0.01 * NODES):,} nodes, twice, or of all users on full rankings, three of each. A row of a "
        f"batch has {NEGATIVES} negatives (IDNP), and a batch {NEGATIVES // 10} for each row (HCN).",
    ]
    print(write_table("large_models", "Large graphs and catalogues", rows, notes))


if __name__ == "__main__":
    main()
