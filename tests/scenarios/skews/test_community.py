from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fedbench
from scenarios import Dataset, Meta, ScenarioError, build_federation
from scenarios.datasets.graphs import node_dataset
from scenarios.datasets.planetoid import Planetoid
from scenarios.skews.community import Community
from scenarios.skews.iid import Iid

CLIQUES = (9, 8, 6, 5, 4)


def cliques(domains=1):
    """Five cliques in a ring, whose nodes are numbered at random; and which clique a node is in."""
    number = np.random.default_rng(0).permutation(sum(CLIQUES))
    clique = np.repeat(np.arange(5), CLIQUES)
    a, b = np.triu_indices(len(clique), 1)
    inside = clique[a] == clique[b]
    first = np.cumsum(CLIQUES) - CLIQUES
    source = number[np.concatenate([a[inside], first])]
    target = number[np.concatenate([b[inside], np.roll(first, 1)])]
    of_node = np.empty(len(clique), dtype=np.int64)
    of_node[number] = clique
    y = np.arange(len(clique)) % 2
    x = np.zeros((len(y), 1), dtype=np.float32)
    domain = of_node // 3 if domains == 2 else 0 * y
    names = ("s", "t")[:domains]
    return node_dataset("ring", x, y, (source, target), ("a", "b"), domain=domain, domains=names), of_node


def split(data, clients, pool=None, **options):
    pool = np.arange(len(data)) if pool is None else pool
    return Community(clients, **options).split(data, pool, np.random.default_rng(0))


def test_communities_go_to_the_smallest_client_the_largest_first():
    data, clique = cliques(domains=2)
    held = split(data, 3)  # 9, then 8, then 6 and 5; 4 goes to the client with 8
    assert [np.unique(clique[part.rows]).tolist() for part in held] == [[0], [1, 4], [2, 3]]
    assert held.parts.sizes.tolist() == [9, 12, 11]
    assert held.domain.tolist() == [0, -1, -1]


def test_sizes_are_those_of_rows_to_train_on():
    data, clique = cliques()
    pool = np.flatnonzero((clique != 0) | (np.cumsum(clique == 0) <= 1))  # one of the largest clique
    held = split(data, 2, pool)
    assert [np.unique(clique[part.rows]).tolist() for part in held] == [[1, 4], [0, 2, 3]]
    assert np.sort(held.parts.rows).tolist() == pool.tolist()


def test_too_few_communities_and_how_to_get_more():
    data, _ = cliques()
    with pytest.raises(
        ScenarioError,
        match=r"^community: data 'ring' have 5 communities .* 6 clients; raise resolution \(1.0\)",
    ):
        split(data, 6)
    assert len(split(data, 6, resolution=20.0)) == 6


def test_data_without_a_graph():
    data = Dataset(
        "plain", {"y": np.zeros(9, np.int64)}, np.zeros(9, np.int64), ("d",), Meta("classification", (1,))
    )
    with pytest.raises(
        ScenarioError, match=r"^community: data 'plain' have no graph; use data that have one"
    ):
        split(data, 2)


def test_bad_options():
    with pytest.raises(ValueError, match=r"^clients: not a possible number, got 0"):
        Community(0)
    for value in (0, -1.0, float("inf"), True, "high"):
        with pytest.raises(ValueError, match=r"^resolution: not a possible number, got .*; use one above 0"):
            Community(2, value)


def test_the_config_states_the_defaults():
    config = OmegaConf.load(Path(fedbench.__file__).parent / "config" / "scenario" / "community.yaml")
    assert {config.pop(key) for key in ("val_fraction", "test_fraction")} == {0.1, 0.3}
    assert instantiate(config) == Community()
    assert set(config) == {"_target_", *(field.name for field in fields(Community))}


def test_on_a_citation_network(data_root):
    data = Planetoid("cora", "random", root=data_root).load()
    one, again = (build_federation(data, Community(5), 3) for _ in range(2))
    for a, b in zip(one.clients, again.clients, strict=True):
        np.testing.assert_array_equal(a.train, b.train)
    assert one.sizes.max() <= 1.05 * one.sizes.min()

    def cut(federation):
        """Share of the edges between nodes to train on that run between clients."""
        held = np.full(len(data), -1)
        held[federation.clients.train.rows] = federation.clients.train.owner
        source = np.repeat(held, np.diff(data.shared["indptr"]))
        target = held[data.shared["indices"]]
        both = (source >= 0) & (target >= 0)
        return (source != target)[both].mean()

    assert cut(one) < 0.15 < 0.7 < cut(build_federation(data, Iid(5), 3))


def test_held_out_nodes_stay_in_their_community():
    data, clique = cliques()
    federation = build_federation(data, Community(5), 0)
    assert federation.dataset.notes == {"edges": len(data.shared["indices"]) / 2, "edges_dropped": 5}
    for client in federation.clients:
        assert len(np.unique(clique[np.concatenate([client.train, client.val, client.test])])) == 1
    assert sorted(federation.clients.test.rows) == federation.tests["s"].tolist()


def test_communities_without_rows_to_train_on_come_last():
    data, clique = cliques()
    held = split(data, 2, np.flatnonzero(clique >= 3))
    # 9 goes to the client that has the clique of 4, then 8 to the one that has that of 5.
    assert [np.unique(clique[held.owner == client]).tolist() for client in (0, 1)] == [[1, 2, 3], [0, 4]]
