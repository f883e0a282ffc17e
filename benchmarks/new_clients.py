"""How methods that personalise serve clients that never trained, by the rows of their own that they bring.

Half of forty clients of four domains (ten each, every domain with a mix of classes of its own) train; the
others get the model afterwards, with 0, 1, 5 and 20 rows. On four sources of handwritten digits and on PACS.

    python benchmarks/new_clients.py                # three seeds of both, a quarter of an hour
    python benchmarks/new_clients.py --quick        # one seed of the digits, few rounds; nothing written

Writes ``benchmarks/results/new_clients.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from machine import describe, load, write_table

from fedbench.config.compose import plan
from fedbench.run import run

COMMON = [
    "scenario=label_domain_skew",
    "scenario.clients_per_domain=10",
    "new_clients=0.5",
    "support=[0,1,5,20]",
    "client.task.calibration=true",
    "engine=serial",
]
DATA = {
    "digits4": ["data=digits4", "client=mlp", "rounds=30"],
    "pacs": [
        "data=pacs",
        "features.size=16",
        "client=mlp",
        "client.lr=0.03",
        "rounds=60",
        "scenario.alpha=0.5",
    ],
}
METHODS = {
    "FedAvg": ["strategy=fedavg"],
    "FedAvg, fine-tuned": ["strategy=fedavg", "personalization=finetune"],
    "Ditto": ["strategy=ditto"],
    "Per-FedAvg": ["strategy=perfedavg_fo"],
    "FedRep": ["strategy=fedrep"],
    "NIW-Meta, head": ["strategy=fedavg", "personalization=niw"],
    "NIW-Meta, head, 10 draws": ["strategy=fedavg", "personalization=niw", "personalization.samples=10"],
}
MEASURES = {"accuracy": "accuracy", "loss": "NLL", "ece": "ECE"}


def main() -> None:
    """Run everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="one seed, the digits, 3 rounds; writes nothing")
    quick = parser.parse_args().quick
    before, rows = load(), []
    for data, chosen in list(DATA.items())[: 1 if quick else None]:
        for method, options in METHODS.items():
            found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for seed in range(1 if quick else 3):
                words = [*COMMON, *chosen, *options, f"seed={seed}", *(["rounds=3"] if quick else [])]
                config = plan(words)[0]
                config.eval_every = config.rounds
                with tempfile.TemporaryDirectory() as directory:
                    final = run(config, Path(directory) / "run")["final"]
                for shots, scores in final["new_clients"].items():
                    for measure in MEASURES:
                        found[shots][measure].append(scores[measure])
            for shots, scores in found.items():
                row = {"data": data, "method": method, "own rows": shots}
                row |= {name: _text(scores[measure]) for measure, name in MEASURES.items()}
                print(", ".join(row.values()), flush=True)
                rows.append(row)
    if not quick:
        about = f"{describe()}. Load average before: {before:.2f}."
        print(f"written to {write_table('new_clients', 'New clients', rows, [about, NOTE])} and .csv")


NOTE = (
    "Mean ± standard deviation over seeds 0, 1, 2, all new clients' test rows together, after the last of 30 "
    "(PACS: 60) rounds of 20 steps; a network of two layers on pixels (PACS: 16 x 16). Who trains and who is "
    "new is drawn for each seed. Fine-tuning takes 20 steps at the rate of the rounds; Ditto and FedRep "
    "train a round on the client's rows, as a client of theirs would. PACS has the scenario at alpha 0.5, "
    "for at 0.1 so small a network does not learn it."
)


def _text(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}" + (
        f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    )


if __name__ == "__main__":
    main()
