"""The inputs of nodes, prepared on the whole graph as each client would prepare them on its own part."""

import pickle
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from scipy import sparse

from clients.errors import ClientError
from clients.models.graph_encodings import degrees, return_probabilities, spectral
from clients.models.graphsage import GraphSAGE
from clients.models.largegt import LargeGT
from clients.models.largegt_sampling import hop_features, neighbour_lists
from clients.models.mlp import MLP
from clients.tasks.node_classification import NodeClassification
from clients.training import Training, evaluate
from fedbench.engine.serial import SerialGrid
from strategies import RuleClient
from strategies.arrays import record, tensors_of
from strategies.client import Job, train_client
from strategies.cohort import alone_because
from strategies.functional import Stateless
from strategies.local import LocalRule, Round
from strategies.optim import Adam

EVERY = ("x", "seq", "pos_enc", "node", "mean", "near", "near_mean", "near_mask")
N, F, K, G = 50, 5, 6, 4


class Graph(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    x: np.ndarray


def graph_of(adjacency, x):
    adjacency = sparse.csr_array(adjacency)
    adjacency.sum_duplicates()
    return Graph(adjacency.indptr, adjacency.indices, x)


def random_adjacency(n=N, edges=90, seed=0):
    source, target = np.random.default_rng(seed).integers(n, size=(2, edges))
    ends = (np.concatenate([source, target]), np.concatenate([target, source]))
    return sparse.csr_array((np.ones(2 * edges), ends), shape=(n, n))


def features(n=N, seed=0):
    return np.random.default_rng(seed).normal(size=(n, F)).astype(np.float32)


def task_of(graph, inputs=EVERY, **options):
    return NodeClassification(graph, inputs, neighbours=K, encoding_dim=G, **options)


def batch_of(task, x, nodes):
    y = np.zeros(len(x), np.int64)
    return task.gather({"x": x, "y": y, "node": np.arange(len(x))}, np.asarray(nodes))


def test_every_input_is_what_its_name_says():
    x, adjacency = features(), random_adjacency()
    graph, nodes = graph_of(adjacency, x), np.array([7, 3, 3, 40])
    task = task_of(graph)
    given = dict(zip(EVERY, task.inputs(batch_of(task, x, nodes)), strict=True))
    shapes = {"x": (4, F), "seq": (4, 3 * K, F), "pos_enc": (4, G), "node": (4,), "mean": (4, F)}
    shapes |= {"near": (4, K, F), "near_mean": (4, K, F), "near_mask": (4, K)}
    assert {k: tuple(v.shape) for k, v in given.items()} == shapes
    assert given["node"].tolist() == nodes.tolist()
    np.testing.assert_array_equal(given["x"], x[nodes])
    lists, hops = neighbour_lists(adjacency, K, 0), hop_features(adjacency, x)
    np.testing.assert_array_equal(given["seq"], hops[lists[nodes]].reshape(4, 3 * K, F))
    np.testing.assert_array_equal(given["pos_enc"], return_probabilities(adjacency, G, 0)[nodes])
    A = (adjacency.toarray() != 0).astype(float)
    means = (A @ x) / np.maximum(A.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(given["mean"], means[nodes], atol=1e-6)
    for row, v in enumerate(nodes):
        neighbours = np.flatnonzero(A[v])
        taken = given["near_mask"][row].bool()
        assert taken.sum() == min(len(neighbours), K)
        for vector, mean in zip(given["near"][row][taken], given["near_mean"][row][taken], strict=True):
            (u,) = (u for u in neighbours if np.array_equal(vector, x[u]))
            np.testing.assert_allclose(mean, means[u], atol=1e-6)


def test_inputs_come_in_the_order_asked_for_and_nothing_else_is_prepared():
    x = features()
    task = task_of(graph_of(random_adjacency(), x), ("node", "x"))
    node, own = task.inputs(batch_of(task, x, [4, 2]))
    assert node.tolist() == [4, 2]
    np.testing.assert_array_equal(own, x[[4, 2]])
    assert not task.tables
    assert task_of(graph_of(random_adjacency(), x), ("mean",)).tables.keys() == {"means"}


def test_a_clients_inputs_are_those_of_its_own_part():
    """Other clients' edges and features change nothing, not even for a node that has no edges."""
    x, other = features(2 * N), features(2 * N, seed=1)
    other[:N] = x[:N]
    mine = random_adjacency().tolil()
    mine[5, :] = mine[:, 5] = 0
    found = []
    for seed, whole in ((1, x), (2, other)):
        both = sparse.block_diag([mine, random_adjacency(seed=seed)])
        task = task_of(graph_of(both, whole))
        found.append(task.inputs(batch_of(task, whole, np.arange(N))))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    seq, mask = found[0][EVERY.index("seq")][5], found[0][EVERY.index("near_mask")][5]
    np.testing.assert_array_equal(seq, np.tile(x[5], (3 * K, 1)))
    assert mask.sum() == 0


@pytest.mark.parametrize("encoding", ["degree", "spectral"])
def test_encodings_can_be_chosen(encoding):
    x, adjacency = features(), random_adjacency()
    task = task_of(graph_of(adjacency, x), ("pos_enc",), encoding=encoding)
    (found,) = task.inputs(batch_of(task, x, np.arange(N)))
    want = {"degree": degrees, "spectral": spectral}[encoding](adjacency, G)
    np.testing.assert_array_equal(found, want)


def test_a_task_travels_as_arrays_alone():
    x = features()
    task = task_of(graph_of(random_adjacency(), x))
    batch = batch_of(task, x, np.arange(N))
    before = task.inputs(batch)
    buffers = []
    packed = pickle.dumps(task, protocol=5, buffer_callback=buffers.append)
    assert len(packed) < 10_000  # all else is out of band, and so can be shared
    frozen = [memoryview(bytes(b)) for b in buffers]
    copy = pickle.loads(packed, buffers=frozen)
    assert not any(t.flags.writeable for t in copy.tables.values())
    assert all(torch.equal(a, b) for a, b in zip(copy.inputs(batch), before, strict=True))


def test_batches_without_nodes_serve_models_of_features_alone():
    arrays = {"x": features(), "y": np.zeros(N, np.int64)}
    alone = task_of(graph_of(random_adjacency(), arrays["x"]), ("x",))
    assert alone.gather(arrays, slice(None)).keys() == {"x", "y"}
    with pytest.raises(ClientError, match="inputs: x, mean are of nodes of the graph"):
        task_of(graph_of(random_adjacency(), arrays["x"]), ("x", "mean")).gather(arrays, slice(None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ("x", "hops")}, "inputs: each must be one of x, seq, .*, got 'hops'"),
        ({"inputs": ()}, "inputs: each must be one of x, seq, .*, got none"),
        ({"neighbours": 0}, "neighbours: must be 1 or more, got 0"),
        ({"encoding": "laplacian"}, "encoding: must be one of return, .*, got 'laplacian'"),
        ({"inputs": ("pos_enc",), "encoding": "none"}, "encoding: is none, but inputs has pos_enc"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message):
    with pytest.raises(ClientError, match=message) as caught:
        NodeClassification(graph_of(random_adjacency(), features()), **options)
    assert "\n" not in str(caught.value)


def test_clients_train_together_on_nodes():
    """GraphSAGE without dropout, whose inputs are put together inside a vectorised step."""
    x = features()
    task = task_of(graph_of(random_adjacency(), x), ("x", "mean", "near", "near_mean", "near_mask"))
    arrays = {"x": x, "y": np.arange(N) % 3, "node": np.arange(N)}
    torch.manual_seed(0)
    model = GraphSAGE((F,), 3, width=8, dropout=0.0)
    assert alone_because(Stateless(model)) is None
    client = RuleClient(LocalRule(), model, task.loss, task.inputs)
    strategy, grid = FedAvg(min_train_nodes=2), SerialGrid(ClientApp, [1] * 2)
    messages = list(strategy.configure_train(1, record(Stateless(model).initial()), ConfigRecord(), grid))
    jobs = [
        Job(m, Context(0, 0, {}, RecordDict(), {}), task.gather(arrays, rows), [np.arange(25)] * 3, 0.1)
        for m, rows in zip(messages, np.array_split(np.arange(N), 2), strict=True)
    ]
    together = client.train_together(jobs)
    for (reply, _), job in zip(together, jobs, strict=True):
        alone, _ = client.train_together([job])[0]
        want = tensors_of(alone.content["arrays"])
        for name, value in tensors_of(reply.content["arrays"]).items():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value, model.state_dict()[name])


def blocks(n=2000):
    """Four communities in a graph of 10 edges a node, with features in which they overlap (spec 10)."""
    rng = np.random.default_rng(0)
    label = rng.integers(4, size=n)
    source = rng.integers(n, size=n * 5)
    members = [np.flatnonzero(label == c) for c in range(4)]
    inside = np.array([rng.choice(members[label[s]]) for s in source])
    target = np.where(rng.random(len(source)) < 0.7, inside, rng.integers(n, size=len(source)))
    apart = source != target
    ends = (np.concatenate([source[apart], target[apart]]), np.concatenate([target[apart], source[apart]]))
    adjacency = sparse.csr_array((np.ones(2 * apart.sum()), ends), shape=(n, n))
    x = (rng.normal(size=(4, 16))[label] + 2 * rng.normal(size=(n, 16))).astype(np.float32)
    return graph_of(adjacency, x), {"x": x, "y": label, "node": np.arange(n)}, rng.permutation(n)


@pytest.mark.slow
def test_models_that_see_the_graph_beat_one_that_does_not(capsys):
    graph, arrays, order = blocks()
    models = {
        "LargeGT": (
            lambda: LargeGT((16,), 4, hidden_dim=32, global_dim=8, num_centroids=32),
            ("seq", "x", "pos_enc"),
        ),
        "GraphSAGE": (lambda: GraphSAGE((16,), 4), ("x", "mean", "near", "near_mean", "near_mask")),
        "MLP": (lambda: MLP((16,), 4, (64,)), ("x",)),
    }
    accuracy = {}
    for name, (make, inputs) in models.items():
        task = NodeClassification(graph, inputs)
        torch.manual_seed(1)
        model = Stateless(make(), task.inputs)
        train, test = (
            task.gather(arrays, rows) | {"weight": torch.ones(len(rows))}
            for rows in (order[:1000], order[1500:])
        )
        training = Training(optimizer="adam", batch_size=128, steps=None, epochs=5)
        plan = training.plan(1000, np.random.default_rng(1), 2)
        now = Round(model, task.loss, model.initial(), model.trainable, data=train, optimizer=Adam(), lr=1e-3)
        params, _ = train_client(LocalRule(), replace(now, steps=len(plan)), plan)
        sums = evaluate(task, partial(model.frozen, params), test)
        accuracy[name] = task.scores(sums)["accuracy"]
    with capsys.disabled():
        print("\naccuracy after 5 epochs:", accuracy)
    assert accuracy["LargeGT"] >= 0.93
    assert accuracy["GraphSAGE"] >= 0.93
    assert accuracy["MLP"] < 0.85
