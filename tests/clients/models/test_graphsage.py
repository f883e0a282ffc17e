"""GraphSAGE written out node by node, and the neighbours that are drawn for it."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn.functional import normalize

from clients.errors import ClientError
from clients.models.graphsage import GraphSAGE, direct_neighbours, neighbour_means
from strategies.functional import Stateless

STAR = [(0, 1), (0, 2), (0, 3), (2, 3)]  # and node 4, alone


def graph(edges, n):
    source, target = np.array(edges).T
    ends = (np.concatenate([source, target]), np.concatenate([target, source]))
    return sparse.csr_array((np.ones(2 * len(source), bool), ends), shape=(n, n))


@pytest.mark.parametrize("norm", ["none", "l2"])
def test_it_is_algorithm_1_where_all_neighbours_are_drawn(norm):
    torch.manual_seed(0)
    adjacency = graph(STAR, 5)
    model = GraphSAGE((6,), 3, width=8, norm=norm).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    h = x
    for layer in model.layers:
        W, b = layer.linear.weight, layer.linear.bias
        new = []
        for v in range(5):
            near = [h[u] for u in adjacency.indices[adjacency.indptr[v] : adjacency.indptr[v + 1]]]
            mean = torch.stack(near).mean(0) if near else torch.zeros_like(h[v])
            new.append((W @ torch.cat([h[v], mean]) + b).relu())
        h = torch.stack(new)
        if norm == "l2":
            h = normalize(h, dim=1)
    near, number = direct_neighbours(adjacency, 4, seed=0)
    mean = torch.from_numpy(neighbour_means(adjacency, x.numpy()))
    mask = torch.from_numpy(np.arange(4) < number[:, None]).double()
    torch.testing.assert_close(model(x, mean, x[near], mean[near], mask), model.head(h))


def test_its_last_layer_is_the_head_that_methods_look_for():
    model = Stateless(GraphSAGE((6,), 3, width=8, norm="layer"))
    assert model.head == {"head.weight", "head.bias"}
    assert model.norms == {f"layers.{i}.norm.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


def test_drawn_neighbours_are_neighbours_and_none_is_drawn_twice():
    rng = np.random.default_rng(0)
    adjacency = graph(rng.integers(60, size=(300, 2)), 60)
    adjacency.sum_duplicates()
    near, number = direct_neighbours(adjacency, 8, seed=0)
    for v in range(60):
        neighbours = set(adjacency.indices[adjacency.indptr[v] : adjacency.indptr[v + 1]].tolist())
        drawn = near[v, : number[v]].tolist()
        assert len(set(drawn)) == len(drawn) == min(len(neighbours), 8)
        assert neighbours.issuperset(drawn)
        assert (near[v, number[v] :] == v).all()


def test_draws_are_uniform_and_no_affair_of_other_parts():
    hub = graph([(0, leaf) for leaf in range(1, 11)], 20)
    drawn = np.bincount(
        np.concatenate([direct_neighbours(hub, 3, seed)[0][0] for seed in range(1000)]), minlength=11
    )
    assert drawn[0] == 0
    assert abs(drawn[1:11] - 300).max() < 5 * np.sqrt(300 * 0.7)
    with_others = graph([(0, leaf) for leaf in range(1, 11)] + [(12, 13), (13, 14), (15, 19)], 20)
    np.testing.assert_array_equal(
        direct_neighbours(hub, 3, 7)[0][:11], direct_neighbours(with_others, 3, 7)[0][:11]
    )


def test_blocks_of_nodes_draw_as_all_at_once(monkeypatch):
    adjacency = graph(np.random.default_rng(0).integers(60, size=(300, 2)), 60)
    adjacency.sum_duplicates()
    whole = direct_neighbours(adjacency, 4, seed=0)
    monkeypatch.setattr("clients.models.graphsage._ROWS", 7)
    for found, wanted in zip(direct_neighbours(adjacency, 4, seed=0), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 8), {}, r"examples of shape \(3, 8, 8\)"),
        ((4,), {"width": 0}, "width: must be 1"),
        ((4,), {"dropout": 1.0}, "dropout: must be at least 0 and below 1, got 1.0"),
        ((4,), {"norm": "batch"}, "norm: must be one of none, l2, layer, got 'batch'"),
    ],
)
def test_mistakes_are_told_in_one_line(shape, options, message):
    with pytest.raises(ClientError, match=message) as caught:
        GraphSAGE(shape, 3, **options)
    assert "\n" not in str(caught.value)
