"""What graphs become when clients hold parts of them."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from scenarios import ClientSplit, ClientSplits, ScenarioError, build_federation
from scenarios.datasets.block_model import BlockModel
from scenarios.datasets.graphs import node_dataset, projected, read_active, read_edges, undirected
from scenarios.datasets.planetoid import Planetoid
from scenarios.skews.community import Community
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_skew import LabelSkew

# 0 - 1 - 2 - 3 - 4, 1 - 5, 3 - 5, 5 - 6, 6 - 7, and 8 - 9 apart
EDGES = np.array([(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (3, 5), (5, 6), (6, 7), (8, 9)])


def toy(y, **splits):
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    splits = {name: np.array(rows) for name, rows in splits.items()}
    return node_dataset("toy", x, np.array(y), (EDGES[:, 0], EDGES[:, 1]), ("a", "b"), splits=splits)


def split(train, val=(), test=()):
    return ClientSplit(*(np.array(rows, dtype=np.int64) for rows in (train, val, test)), domain=0)


def edges_of(data):
    source = np.repeat(np.arange(len(data)), np.diff(data.shared["indptr"]))
    target = data.shared["indices"]
    return set(zip(source.tolist(), target.tolist(), strict=True))


def both(pairs):
    return {end for a, b in pairs for end in ((a, b), (b, a))}


def test_edges_in_any_order_become_a_simple_graph():
    source, target = np.array([3, 0, 1, 0, 2, 0, 0]), np.array([1, 2, 3, 2, 0, 1, 0])
    indptr, indices = undirected(source, target, 5)
    assert indptr.tolist() == [0, 2, 4, 5, 6, 6]
    assert indices.tolist() == [1, 2, 0, 3, 0, 1]
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)


def test_many_equal_edges_are_one():
    ones = np.ones(256, dtype=np.int64)
    assert undirected(ones, 0 * ones, 2)[1].tolist() == [1, 0]


def test_a_graph_that_does_not_fit_the_nodes_is_refused():
    data = toy([0] * 10)
    with pytest.raises(ScenarioError, match=r"a graph of 10 nodes has an indptr of 11 entries"):
        type(data)(**{**vars(data), "shared": {**data.shared, "indptr": np.zeros(10, dtype=np.int64)}})


def test_models_are_told_of_the_graph():
    data = toy([0] * 5 + [1] * 5)
    facts = data.facts
    assert (facts["shape"], facts["classes"]) == ((2,), 2)
    assert facts["graph"].x is data.arrays["x"]
    assert facts["graph"].indptr is data.shared["indptr"]
    assert facts["graph"].indices is data.shared["indices"]


def test_edges_between_clients_and_to_nodes_of_nobody_are_dropped():
    clients = ClientSplits.of([split([0, 1], [5]), split([2, 3], test=[6, 7]), split([9])])
    held = toy([0] * 10).localised(clients)  # nobody holds 4 and 8
    assert edges_of(held) == both([(0, 1), (1, 5), (2, 3), (6, 7)])
    assert held.notes == {"edges": 9, "edges_dropped": 5}
    assert held.arrays["node"].tolist() == list(range(10))


def test_nodes_in_no_split_go_where_most_of_their_neighbours_are():
    data = toy([0, -1, 0, -1, 0, -1, 0, -1, -1, -1])
    assert data.train.tolist() == [0, 2, 4, 6]
    assert data.arrays["y"].min() == 0
    # Node 1 is between clients 0 and 1, node 3 between two nodes of client 0.
    held = data.localised(ClientSplits.of([split([2, 4]), split([0]), split([6])]))
    assert edges_of(held) == both([(1, 2), (2, 3), (3, 4), (5, 6), (6, 7)])
    # Here 5 and 7 follow 6, then 1 and 3 follow 5, then 0 and 2; nobody is given the test node 4.
    data = toy([0, -1, -1, -1, 0, -1, 0, -1, -1, -1], train=[6], test=[4])
    held = data.localised(ClientSplits.of([split([]), split([6])]))
    assert edges_of(held) == both(EDGES.tolist()) - both([(3, 4), (8, 9)])


def test_nodes_that_a_skew_leaves_out_are_nobodys():
    data = toy([0, 0, 0, 0, 0, 0, 0, 0, -1, -1])
    held = data.localised(ClientSplits.of([split([0, 1, 2])]))
    assert edges_of(held) == both([(0, 1), (1, 2)])


@pytest.mark.parametrize("official", [True, False])
def test_only_rows_of_the_splits_are_trained_or_tested_on(official):
    y = np.tile([0, 1, -1], 100)
    usable = np.flatnonzero(y >= 0)
    splits = {"train": np.arange(150), "val": np.arange(150, 200), "test": np.arange(250, 300)}
    none = (np.empty(0, dtype=np.int64),) * 2
    data = node_dataset(
        "toy", np.zeros((300, 1), np.float32), y, none, ("a", "b"), splits=splits if official else None
    )
    federation = build_federation(data, Iid(3), 0, test_fraction=0.25)
    parts = [getattr(federation.clients, name).rows for name in ("train", "val", "test")]
    if official:
        for part, name in zip(parts, splits, strict=True):
            assert sorted(part) == np.intersect1d(splits[name], usable).tolist()
    else:
        assert sorted(np.concatenate(parts)) == usable.tolist()
        assert len(parts[2]) == 50
        assert federation.tests["toy"].tolist() == sorted(parts[2])


@pytest.fixture(scope="module")
def graphs(data_root):
    return {
        "blocks": BlockModel(nodes=300).load(),
        "public": Planetoid("citeseer", root=data_root).load(),
        "random": Planetoid("citeseer", "random", root=data_root).load(),
    }


def holders(data, clients):
    """Client of every node, or None, found node by node."""
    holder = dict.fromkeys(range(len(data)))
    for index, client in enumerate(clients):
        holder |= dict.fromkeys(np.concatenate([client.train, client.val, client.test]).tolist(), index)
    neighbours = {node: [] for node in holder}
    for a, b in edges_of(data):
        neighbours[a].append(b)
    splits = [rows for rows in (data.train, data.val, data.test) if rows is not None]
    free = set() if data.train is None else set(holder) - set(np.concatenate(splits).tolist())
    while True:
        votes = {node: Counter(holder[b] for b in neighbours[node]) for node in free if holder[node] is None}
        found = {}
        for node, vote in votes.items():
            vote.pop(None, None)
            if vote:
                found[node] = min(vote, key=lambda client: (-vote[client], client))
        if not found:
            return holder
        holder |= found


@pytest.mark.parametrize("skew", [Iid(4), LabelSkew(6, 0.3), Community(3), DomainSkew(2, rate=0.5)])
@pytest.mark.parametrize("name", ["blocks", "public", "random"])
def test_each_client_has_the_subgraph_of_its_nodes(graphs, name, skew):
    data = graphs[name]
    if isinstance(skew, DomainSkew) and len(data.domains) == 1:
        pytest.skip("one domain")
    federation = build_federation(data, skew, 0)
    held, holder = federation.dataset, holders(data, federation.clients)
    before, after = edges_of(data), edges_of(held)
    assert after == {(a, b) for a, b in before if holder[a] == holder[b] is not None}
    assert after == {(b, a) for a, b in after}
    graph = (np.ones(len(after)), held.shared["indices"], held.shared["indptr"])
    assert sparse.csr_array(graph, (len(data), len(data))).has_canonical_format
    dropped = len(before - after) / 2
    assert held.notes == {"edges": len(before) / 2, "edges_dropped": dropped}


def test_a_single_client_keeps_all_that_it_reaches(graphs):
    assert build_federation(graphs["random"], Iid(1), 0).dataset.notes["edges_dropped"] == 0
    data = graphs["public"]
    held = build_federation(data, Iid(1), 0).dataset
    n = len(data)
    matrix = sparse.csr_array((np.ones(2 * 4552), data.shared["indices"], data.shared["indptr"]), (n, n))
    part = sparse.csgraph.connected_components(matrix)[1]
    reached = np.isin(part, part[np.concatenate([data.train, data.val, data.test])])
    assert edges_of(held) == {(a, b) for a, b in edges_of(data) if reached[a]}
    assert 0 < held.notes["edges_dropped"] < 200


def test_a_projection_is_the_same_for_all_and_keeps_distances():
    dense = (np.random.default_rng(0).random((40, 600)) < 0.1).astype(np.float32)
    x = sparse.csr_array(dense)
    made = projected(x, 256, 7)
    assert (made.shape, made.dtype) == ((40, 256), np.float32)
    np.testing.assert_allclose(projected(x[30:], 256, 7), made[30:], rtol=1e-6)
    assert abs(projected(x, 256, 8) - made).max() > 0.1
    squares = ((dense[1:] - dense[0]) ** 2).sum(1)
    assert ((made[1:] - made[0]) ** 2).sum(1) == pytest.approx(squares, rel=0.35)
    np.testing.assert_array_equal(projected(x, None, 7), dense)


def test_damaged_files_get_one_line(tmp_path):
    edges, active = tmp_path / "edges.csv.gz", tmp_path / "active.json.gz"
    for text, problem in [
        ("a,b\n0,1\n1,7\n", "holds edges of nodes 0 to 7, not 0 to 4"),
        ("a,b\n0,x\n", r"cannot be read as CSV \("),
        ("a\n0\n", "holds 1 columns, not the two ends of edges"),
        ("", r"cannot be read as CSV \(No columns"),
    ]:
        edges.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(ScenarioError, match=f"edges.csv.gz: {problem}.*; fetch the file again$"):
            read_edges(edges, 5)
    for content, problem in [
        ({"0": [1], "1": [4]}, "holds features 1 to 4, not 0 to 3"),
        ({"0": [1]}, "holds 1 nodes, not 2"),
        ({"0": [1], "2": [1]}, r"not lists of numbers for nodes 0, 1, ... \(KeyError\('1'\)\)"),
        ([1, 2], "not lists of numbers"),
    ]:
        active.write_bytes(gzip.compress(json.dumps(content).encode()))
        with pytest.raises(ScenarioError, match=f"active.json.gz: {problem}.*; fetch the file again$"):
            read_active(active, 2, 4)
    active.write_bytes(gzip.compress(b'{"1": [3, 3], "0": []}'))
    assert read_active(active, 2, 4).toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
