"""What GGEUR's server does between uploads and delivery, beside a plain loop of NumPy calls.

Step B of GGEUR (arXiv 2503.06457): pool the clients' moments of each class (Eq. 4), and decompose each pooled
covariance. On one side the whole of it as ``strategies.ggeur.GGEUR`` does it, from the clients' replies to
``query.ggeur_statistics`` to the message that delivers the geometry: reading, pooling, eigendecomposition,
domain means, hash and diagnostics. On the other side the formulas as they read, class by class in NumPy, from
the same replies to a record of the same arrays: eigenpairs up to the numerical rank, and domain means. Both
have one thread, and each side runs in a process of its own, so that the memory that it needs at most can be
told too. Ranks, domain means and the covariances that the eigenpairs make must agree, or the script fails.

    python benchmarks/aggregation.py            # some ten minutes; wants a quiet machine with 24 GiB
    python benchmarks/aggregation.py --quick    # small matrices, nothing written

Writes ``benchmarks/results/aggregation.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from harness import measure_apart, show
from machine import describe, load, write_table

from fedbench.engine.serial import SerialGrid
from strategies.arrays import Arrays, LazyArray, numpy_of
from strategies.ggeur import GGEUR
from strategies.ggeur.client import PACK
from strategies.ggeur.moments import class_moments, pack_triangle

SIDES = ("loop", "fedbench")
CLOSE = 1e-4
"""Largest relative difference: both send float32."""
RANK_TOL = 1e-6
"""Smaller eigenvalues, relative to the largest, are dropped, as GGEUR does for float32."""


@dataclass(frozen=True)
class Size:
    """``clients`` have ``rows`` samples of each of ``classes`` in ``dim`` dimensions, a domain each."""

    classes: int
    dim: int
    clients: int
    rows: int
    repeats: int

    def __str__(self) -> str:
        return f"{self.classes} classes x {self.dim}, {self.clients} clients"


SIZES = (Size(65, 512, 4, 42, 5), Size(345, 768, 4, 250, 1))
QUICK = (Size(10, 64, 4, 30, 2),)


def uploads(size: Size) -> list[ArrayRecord]:
    """Clients' moments of synthetic embeddings whose spectrum falls off, as embeddings' spectra do.

    They come as clients in this process send them, not serialised.
    """
    scales = np.geomspace(1, 0.01, size.dim)
    sent = []
    for client in range(size.clients):
        rng = np.random.default_rng(client)
        arrays = ArrayRecord()
        for label in range(size.classes):
            x = rng.standard_normal((size.rows, size.dim)) * scales + rng.standard_normal(size.dim)
            m = class_moments(x, np.full(size.rows, label))[label]
            arrays[f"count/{label}"] = LazyArray(np.asarray(m.count, np.int64))
            arrays[f"mean/{label}"] = LazyArray(m.mean.astype(np.float32))
            arrays[f"cov/{label}"] = LazyArray(pack_triangle(m.cov, np.float32))
        sent.append(arrays)
    return sent


# --- the loop ---------------------------------------------------------------------------------------------


def loop(size: Size, sent: list[ArrayRecord]) -> ArrayRecord:
    """Step B as its formulas read: N, mu and Sigma of each class, decomposed, descending, cut at the rank.

    Each client is a domain, so that its means are the domain's.
    """
    made = ArrayRecord()
    upper = np.triu_indices(size.dim)
    for label in range(size.classes):
        counts = [int(client[f"count/{label}"].numpy()) for client in sent]
        means = [client[f"mean/{label}"].numpy().astype(np.float64) for client in sent]
        total = sum(counts)
        mean = sum(n * own for n, own in zip(counts, means, strict=True)) / total
        cov = np.zeros((size.dim, size.dim))
        for client, count, own in zip(sent, counts, means, strict=True):
            triangle = np.zeros((size.dim, size.dim))
            triangle[upper] = client[f"cov/{label}"].numpy()
            cov += count * (triangle + np.triu(triangle, 1).T)
            cov += count * np.outer(own - mean, own - mean)
        values, vectors = np.linalg.eigh(cov / total)
        rank = min(int((values > RANK_TOL * values[-1]).sum()), total - 1)
        made[f"values/{label}"] = LazyArray(values[::-1][:rank].astype(np.float32))
        made[f"vectors/{label}"] = LazyArray(vectors[:, ::-1][:, :rank].astype(np.float32, order="C"))
        for client, own in enumerate(means):
            made[f"prototype/{label}/domain {client}"] = LazyArray(own.astype(np.float32))
    return made


def run_loop(size: Size) -> tuple[list[float], Arrays]:
    """Seconds of each repeat, and what it makes."""
    sent = uploads(size)
    seconds: list[float] = []
    for _ in range(size.repeats):
        began = time.perf_counter()
        made = loop(size, sent)
        seconds.append(time.perf_counter() - began)
    return seconds, numpy_of(made)


# --- fedbench ---------------------------------------------------------------------------------------------


class Clocked(SerialGrid):
    """A grid that notes when it was asked and when it answered."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """As the serial grid, between two looks at the clock."""
        asked = time.perf_counter()
        replies = super().send_and_receive(messages, timeout=timeout)
        self.exchanges = [*getattr(self, "exchanges", []), (asked, time.perf_counter())]
        return replies


def recorded(size: Size) -> ClientApp:
    """A ClientApp that answers GGEUR's queries with uploads made beforehand, and keeps nothing."""
    contents = [
        RecordDict({"moments": arrays, "config": ConfigRecord({"domain": f"domain {client}"})})
        for client, arrays in enumerate(uploads(size))
    ]
    app = ClientApp()

    @app.query("ggeur_statistics")
    def statistics(message: Message, context: Context) -> Message:
        return Message(contents[int(context.node_config["partition-id"])], reply_to=message)

    @app.query("ggeur_deliver")
    def deliver(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def run_fedbench(size: Size) -> tuple[list[float], Arrays]:
    """Seconds of each repeat between the replies and the delivery, and what is delivered."""
    app = recorded(size)
    seconds: list[float] = []
    for _ in range(size.repeats):
        grid = Clocked(lambda: app, [size.rows * size.classes] * size.clients)
        strategy = GGEUR(FedAvg(fraction_evaluate=0.0), policy="multi")
        strategy.prepare(grid, ArrayRecord())
        (_, answered), (delivered, _) = grid.exchanges
        seconds.append(delivered - answered)
    assert strategy.delivery is not None
    return seconds, numpy_of(strategy.delivery.array_records[PACK])


def child(side: str, size: dict[str, int], path: str) -> dict[str, Any]:
    """Measure one side in this process, and leave what it made of the first ten classes in a file."""
    seconds, made = (run_loop if side == "loop" else run_fedbench)(Size(**size))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    few: dict[str, Any] = {k: v for k, v in made.items() if int(k.split("/")[1]) < 10}
    np.savez(path, **few)
    return {"seconds": seconds, "peak": peak}


# --- the table --------------------------------------------------------------------------------------------


def difference(one: Path, other: Path) -> float:
    """Largest relative difference of domain means, eigenvalues and the covariances that eigenpairs make.

    Infinite where the sides made other arrays or kept other ranks.
    """
    with np.load(one) as a, np.load(other) as b:
        made = [dict(a), dict(b)]
    if {k: v.shape for k, v in made[0].items()} != {k: v.shape for k, v in made[1].items()}:
        return math.inf
    for arrays in made:
        for key in [k for k in arrays if k.startswith("vectors/")]:
            vectors = arrays[key]
            arrays[key] = (vectors * arrays[key.replace("vectors", "values")]) @ vectors.T
    return max(float(np.linalg.norm(made[0][k] - v) / np.linalg.norm(v)) for k, v in made[1].items())


def compare(size: Size) -> list[dict[str, object]]:
    """Lines of the table for one size."""
    measured = {}
    with tempfile.TemporaryDirectory() as directory:
        paths = {side: Path(directory) / f"{side}.npz" for side in SIDES}
        for side, path in paths.items():
            measured[side] = measure_apart(__file__, side, asdict(size), str(path))
            print(f"{size}: {side} {median(measured[side]['seconds']):.3f} s", file=sys.stderr)
        apart = difference(paths["fedbench"], paths["loop"])
    if not apart < CLOSE:
        raise SystemExit(f"{size}: the two sides disagree, relative difference {apart:.1e}")
    middle = {side: median(m["seconds"]) for side, m in measured.items()}
    return [
        {
            "size": str(size),
            "side": "NumPy loop, replies to record" if side == "loop" else "fedbench, replies to delivery",
            "s": f"{middle[side]:.3f}",
            "loop / this": f"{middle['loop'] / middle[side]:.2f}",
            "ms a class": f"{1e3 * middle[side] / size.classes:.1f}",
            "peak GiB": f"{measured[side]['peak']:.1f}",
            "apart": f"{apart:.0e}",
            "repeats": size.repeats,
        }
        for side in SIDES
    ]


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small matrices; writes nothing")
    options = parser.parse_args()
    before = load()
    rows = [line for size in (QUICK if options.quick else SIZES) for line in compare(size)]
    show("GGEUR, step B: pooling and eigendecomposition", rows, "size")
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        "One thread. apart: largest relative difference of what both sides make, the eigenpairs' covariances "
        "among it; peak: "
        "most memory of the process, uploads included.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("aggregation", "GGEUR: pooling and eigendecomposition", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
