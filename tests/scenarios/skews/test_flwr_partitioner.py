import subprocess
import sys

import numpy as np
import pytest

from scenarios import Dataset, Meta, ScenarioError
from scenarios.skews.flwr_partitioner import FlwrPartitioner

SHARDS = {
    "num_partitions": 10,
    "partition_by": "label",
    "num_classes_per_partition": 3,
    "class_assignment_mode": "first-deterministic",
}


def toy(rows=1000, classes=10):
    labels, domain = np.arange(rows) % classes, np.sort(np.arange(rows) % 2)
    return Dataset(
        "toy", {"y": labels}, domain, ("a", "b"), Meta("classification", (1,), tuple("0123456789"))
    )


def split(partitioner, options, pool=None, seed=0):
    pool = np.arange(1000) if pool is None else pool
    parts = FlwrPartitioner(partitioner, options).split(toy(), pool, np.random.default_rng(seed))
    rows = np.concatenate([part.rows for part in parts])
    assert len(np.unique(rows)) == len(rows)
    assert np.isin(rows, pool).all()
    return parts


def test_pathological_gives_k_classes_to_every_client():
    data, pool = toy(), np.arange(150, 1000)
    parts = split("PathologicalPartitioner", SHARDS, pool)
    assert [len(np.unique(data.arrays["y"][part.rows])) for part in parts] == [3] * 10
    # In this mode every class is used, so no row is left out.
    assert sum(len(part.rows) for part in parts) == len(pool)
    # Rows are shuffled first: else the first holder of a class would get the first of the two domains.
    assert {part.domain for part in parts} == {-1}


def test_the_seed_follows_the_generator():
    first, again, other = (
        [part.rows.tolist() for part in split("PathologicalPartitioner", SHARDS, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again
    labels = toy().arrays["y"]
    chosen = [[set(labels[rows]) for rows in parts] for parts in (first, other)]
    assert chosen[0] != chosen[1]  # the classes, not only the rows


def test_a_partitioner_without_seed_and_the_domain_column():
    parts = split("NaturalIdPartitioner", {"partition_by": "domain"})
    assert sorted(part.domain for part in parts) == [0, 1]
    assert [len(part.rows) for part in parts] == [500, 500]


def test_mistakes_are_worded():
    with pytest.raises(ValueError, match=r"^partitioner: unknown, got 'Nope'; use one of .*IidPartitioner"):
        split("Nope", {})
    with pytest.raises(
        ValueError, match=r"^options: IidPartitioner does not take \['parts'\]; .*num_partitions"
    ):
        split("IidPartitioner", {"parts": 3})
    with pytest.raises(
        ScenarioError, match=r"PathologicalPartitioner cannot divide data 'toy': .*20 is greater"
    ):
        split("PathologicalPartitioner", SHARDS | {"num_classes_per_partition": 20})
    with pytest.raises(ScenarioError, match=r"IidPartitioner cannot divide data 'toy': .*num_partitions"):
        split("IidPartitioner", {})


@pytest.mark.parametrize(
    ("partitioner", "options", "field"),
    [("", {}, "partitioner"), (3, {}, "partitioner"), ("IidPartitioner", [1], "options"),
     ("PathologicalPartitioner", {"seed": 1}, "options")],
)  # fmt: skip
def test_bad_options(partitioner, options, field):
    with pytest.raises(ValueError, match=f"^{field}: .* got .*; (use|leave)"):
        FlwrPartitioner(partitioner, options)


def test_scenarios_imports_nothing_heavy():
    code = "import sys, scenarios, scenarios.skews.flwr_partitioner as _; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "sklearn", "datasets", "flwr", "flwr_datasets", "matplotlib"} & set(loaded)
