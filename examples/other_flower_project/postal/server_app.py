"""The server: runs the chosen method, prints the accuracy of each round and saves what came out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from .methods import server_half
from .model import Reader

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    config = context.run_config
    method = str(config["method"])
    strategy = server_half(method, int(config["nodes"]), float(config["fraction-evaluate"]))
    torch.manual_seed(int(config["seed"]))
    initial = ArrayRecord(Reader().state_dict())
    result = strategy.start(grid, initial, num_rounds=int(config["rounds"]))

    accuracy = {n: float(found["accuracy"]) for n, found in result.evaluate_metrics_clientapp.items()}
    for server_round, value in accuracy.items():
        print(f"{method}, round {server_round}: accuracy {100 * value:.1f} %")
    if config["output"]:
        folder = Path(str(config["output"]))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "final.npz", **{k: v.numpy() for k, v in result.arrays.items()})
        about = {"method": method, "nodes": config["nodes"], "accuracy": accuracy}
        (folder / "results.json").write_text(json.dumps(about, indent=1))
