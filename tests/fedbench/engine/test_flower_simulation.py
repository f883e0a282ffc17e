"""The same ClientApp and strategy under Flower's own simulation end at the same weights."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedbench.config.compose import plan
from fedbench.results.run_dir import load_weights
from fedbench.run import run

OVERRIDES = [
    "data=gaussian_domains", "data.domains=4", "data.classes=5", "data.dim=8", "data.train_per_class=20",
    "data.test_per_class=10", "scenario=domain_skew", "client=linear", "client.steps=4", "rounds=3",
    "engine=serial", "strategy=fedavg",
]  # fmt: skip

FLOWER = """
import sys
import numpy as np
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from clients.app import make_client_app
from fedbench.bench import build
from fedbench.config.compose import plan
from strategies.client import record
from strategies.functional import Stateless

target, *overrides = sys.argv[1:]
bench = build(plan(overrides)[0])
model = Stateless(bench.spec.model(), bench.spec.task.inputs)
server = ServerApp()

@server.main()
def main(grid, context):
    result = bench.strategy.start(grid, record(model.initial()), num_rounds=3)
    np.savez(target, **{k: v.numpy() for k, v in result.arrays.items()})

run_simulation(server, make_client_app(bench.spec), num_supernodes=4,
               backend_config={"client_resources": {"num_cpus": 1}})
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_flowers_own_simulation_ends_at_the_same_weights(tmp_path):
    thresholds = [f"strategy.min_{what}_nodes=4" for what in ("train", "evaluate", "available")]
    done = subprocess.run(
        [sys.executable, "-c", FLOWER, str(tmp_path / "flower.npz"), *OVERRIDES, *thresholds],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run(plan(OVERRIDES)[0], tmp_path / "run")
    ours = load_weights(tmp_path / "run/checkpoint/round-000003.safetensors")
    theirs = np.load(tmp_path / "flower.npz")
    assert set(theirs.files) == set(ours)
    for name, weights in ours.items():
        np.testing.assert_allclose(theirs[name], weights, rtol=0, atol=1e-6)
