"""A cluster of two nodes, both on this machine: more machines are a setting, not other code."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fedbench.config.compose import plan
from fedbench.run import run

OVERRIDES = [
    "data=digits", "scenario=label_domain_skew", "strategy=scaffold", "client.steps=5", "rounds=2",
]  # fmt: skip

DRIVER = """
import json, sys, time
import ray
from fedbench.config.compose import plan
from fedbench.engine.ray import RayGrid, start_ray
from fedbench.run import run

used = set()
submit = RayGrid._submit

def watched(self, index, work, refs):
    ref = submit(self, index, work, refs)
    used.add(self._workers[index]._actor_id.hex())
    return ref

RayGrid._submit = watched
directory, address, *overrides = sys.argv[1:]
start_ray(address)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
summary = run(plan([*overrides, "engine=ray", f"engine.address={address}"])[0], directory)
table = ray._private.state.actors()
nodes = {table[actor]["Address"]["NodeID"] for actor in used}
print(json.dumps({"sha": summary["weights_sha256"], "nodes": len(nodes)}))
"""


ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(address):
    host, port = address.split(":")
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"no Ray head came up at {address}")


@pytest.fixture
def cluster(tmp_path):
    """Address of a cluster of two nodes with one CPU each."""
    address = f"127.0.0.1:{free_port()}"
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus=1", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    head = ["--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
    nodes = []
    with tempfile.TemporaryDirectory(prefix="ray-") as own_files:
        # Ray leaves the address of the last cluster in its directory, for any process that asks for one.
        environment = ENVIRONMENT | {"RAY_TMPDIR": own_files}
        try:
            for own in (head, [f"--address={address}"]):
                with (tmp_path / f"node-{len(nodes)}.log").open("w") as out:
                    command = [ray, "start", *own, *common]
                    nodes.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
                if own is head:
                    wait_for(address)
            yield address
        finally:
            for node in reversed(nodes):
                node.terminate()
            for node in nodes:
                node.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_run_on_two_nodes_ends_at_the_weights_of_one_process(cluster, tmp_path):
    overrides = [*OVERRIDES, "engine.cohort=1"]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "cluster"), cluster, *overrides],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    summary = run(plan([*overrides, "engine=serial"])[0], tmp_path / "serial")
    assert told == {"sha": summary["weights_sha256"], "nodes": 2}
