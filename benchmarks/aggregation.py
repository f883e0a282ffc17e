"""What GGEUR's server does between uploads and delivery, beside a plain loop of NumPy calls.

Step B of GGEUR (arXiv 2503.06457): pool the clients' moments of each class (Eq. 4), and decompose each pooled
covariance. On one side the whole of it as ``strategies.ggeur.GGEUR`` does it, from the clients' replies to
``query.ggeur_statistics`` to the message that delivers the geometry: unpacking triangles, pooling,
eigendecomposition, domain means, packing and hashing. On the other side the formulas alone, class by class in
NumPy, on covariances that lie ready as float32 matrices; nothing is unpacked or packed there. Both have one
thread, and each side runs in a process of its own, so that the memory that it needs at most can be told too.
Eigenvalues and the covariances that the eigenpairs make must agree, or the script fails.

    python benchmarks/aggregation.py            # some ten minutes; wants a quiet machine with 24 GiB
    python benchmarks/aggregation.py --quick    # small matrices, nothing written

Writes ``benchmarks/results/aggregation.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
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
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from harness import measure_apart, show
from machine import describe, load, write_table

from fedbench.engine.serial import SerialGrid
from strategies.ggeur import GGEUR
from strategies.ggeur.client import PACK
from strategies.ggeur.moments import class_moments, pack_triangle

Float32 = npt.NDArray[np.float32]
Moments = tuple[int, Float32, Float32]
"""Count, mean and covariance, as a client sends them."""
SIDES = ("loop", "fedbench")
CLOSE = 1e-4
"""Largest relative difference: both send float32."""


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


def uploads(size: Size, client: int) -> dict[int, Moments]:
    """A client's moments of synthetic embeddings whose spectrum falls off, as embeddings' spectra do."""
    rng = np.random.default_rng(client)
    scales = np.geomspace(1, 0.01, size.dim)
    sent = {}
    for label in range(size.classes):
        x = rng.standard_normal((size.rows, size.dim)) * scales + rng.standard_normal(size.dim)
        m = class_moments(x, np.full(size.rows, label))[label]
        sent[label] = (m.count, m.mean.astype(np.float32), m.cov.astype(np.float32))
    return sent


# --- the loop ---------------------------------------------------------------------------------------------


def loop(sent: list[dict[int, Moments]]) -> dict[int, tuple[Float32, Float32]]:
    """Step B as its formulas read: N, mu and Sigma of each class, symmetrised, decomposed, descending."""
    shapes = {}
    for label in sent[0]:
        total = sum(client[label][0] for client in sent)
        mean = sum(client[label][0] * client[label][1].astype(np.float64) for client in sent) / total
        cov = np.zeros((len(mean), len(mean)))
        for count, own_mean, own_cov in (client[label] for client in sent):
            cov += count * own_cov.astype(np.float64)
            cov += count * np.outer(own_mean - mean, own_mean - mean)
        cov /= total
        values, vectors = np.linalg.eigh((cov + cov.T) / 2)
        values = np.maximum(values[::-1], 0)
        shapes[label] = values.astype(np.float32), vectors[:, ::-1].astype(np.float32)
    return shapes


def run_loop(size: Size) -> tuple[list[float], dict[int, tuple[Float32, Float32]]]:
    """Seconds of each repeat, and the shapes."""
    sent = [uploads(size, client) for client in range(size.clients)]
    seconds: list[float] = []
    for _ in range(size.repeats):
        began = time.perf_counter()
        shapes = loop(sent)
        seconds.append(time.perf_counter() - began)
    return seconds, shapes


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
    contents = []
    for client in range(size.clients):
        arrays = {}
        for label, (count, mean, cov) in uploads(size, client).items():
            arrays[f"count/{label}"] = Array(np.asarray(count, np.int64))
            arrays[f"mean/{label}"] = Array(mean)
            arrays[f"cov/{label}"] = Array(pack_triangle(cov, np.float32))
        domain = ConfigRecord({"domain": f"domain {client}"})
        contents.append(RecordDict({"moments": ArrayRecord(arrays), "config": domain}))
    app = ClientApp()

    @app.query("ggeur_statistics")
    def statistics(message: Message, context: Context) -> Message:
        return Message(contents[int(context.node_config["partition-id"])], reply_to=message)

    @app.query("ggeur_deliver")
    def deliver(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def run_fedbench(size: Size) -> tuple[list[float], dict[int, tuple[Float32, Float32]]]:
    """Seconds of each repeat between the replies and the delivery, and the shapes delivered."""
    app = recorded(size)
    seconds: list[float] = []
    for _ in range(size.repeats):
        grid = Clocked(lambda: app, [size.rows * size.classes] * size.clients)
        strategy = GGEUR(FedAvg(fraction_evaluate=0.0), policy="multi")
        strategy.prepare(grid, ArrayRecord())
        (_, answered), (delivered, _) = grid.exchanges
        seconds.append(delivered - answered)
    assert strategy.delivery is not None
    pack = strategy.delivery.array_records[PACK]
    shapes = {c: (pack[f"values/{c}"].numpy(), pack[f"vectors/{c}"].numpy()) for c in range(size.classes)}
    return seconds, shapes


def child(side: str, size: dict[str, int], path: str) -> dict[str, Any]:
    """Measure one side in this process, and leave some of the shapes in a file."""
    seconds, shapes = (run_loop if side == "loop" else run_fedbench)(Size(**size))
    few = dict(list(shapes.items())[:10])
    np.savez(
        path, **{f"values/{c}": v for c, (v, _) in few.items()}, **{str(c): u for c, (_, u) in few.items()}
    )
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


# --- the table --------------------------------------------------------------------------------------------


def difference(one: Path, other: Path) -> float:
    """Largest relative difference of the covariances that eigenpairs make, over classes."""
    worst = 0.0
    with np.load(one) as a, np.load(other) as b:
        for label in (key for key in a if "/" not in key):
            made = [(f[label] * f[f"values/{label}"]) @ f[label].T for f in (a, b)]
            worst = max(worst, float(np.linalg.norm(made[0] - made[1]) / np.linalg.norm(made[1])))
    return worst


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
            "side": "NumPy loop, formulas alone" if side == "loop" else "fedbench, replies to delivery",
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
        "One thread. apart: relative difference of the covariances that both sides' eigenpairs make; peak: "
        "most memory of the process, uploads included.",
    ]
    print("\n".join(notes))
    if not options.quick:
        path = write_table("aggregation", "GGEUR: pooling and eigendecomposition", rows, notes)
        print(f"written to {path} and .csv")


if __name__ == "__main__":
    main()
