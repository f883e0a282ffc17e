import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from labelled import (
    CLASSES,
    assert_halves_are_named,
    assert_lowered_by_training,
    assert_padding_counts_for_nothing,
    assert_resumes,
    skewed,
)
from quadratic import SERVER
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from strategies import FPL, FPLRule, LocalRule
from strategies.fpl import cluster_contrast, cluster_means, first_neighbours


def partition(x):
    """FINCH's first partition by its adjacency matrix, as sets of indices."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    everyone = range(len(x))
    nearest = [max((j for j in everyone if j != i), key=lambda j, i=i: unit[i] @ unit[j]) for i in everyone]
    linked = [
        [j == nearest[i] or i == nearest[j] or nearest[i] == nearest[j] for j in everyone] for i in everyone
    ]
    _, labels = connected_components(csr_array(np.array(linked)), directed=False)
    return {tuple(np.flatnonzero(labels == c)) for c in set(labels)}


def as_sets(cluster):
    return {tuple(np.flatnonzero(cluster == c)) for c in set(cluster)}


@pytest.mark.parametrize("n", [2, 3, 4, 7, 20, 50])
@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_finchs_first_partition(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    cluster = first_neighbours(x)
    assert as_sets(cluster) == partition(x)
    assert all(cluster[members[0]] == members[0] for members in as_sets(cluster))


@pytest.mark.parametrize(
    ("x", "clusters"),
    [
        ([[1.0, 0.0]], {(0,)}),
        ([[1.0, 0.0], [-1.0, 0.0]], {(0, 1)}),
        ([[1.0, 0.0], [9.0, 0.1], [0.0, 1.0], [0.1, 5.0]], {(0, 1), (2, 3)}),
        ([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], {(0, 1, 2)}),
    ],
    ids=["one", "two", "two pairs by angle", "zeros"],
)
def test_small_sets_of_vectors(x, clusters):
    assert as_sets(first_neighbours(np.array(x))) == clusters


def test_a_domain_with_many_clients_counts_as_much_as_one_with_few():
    angle = np.array([0.0, 0.01, 0.03, 0.06, 1.5, 1.55])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(cluster_means(x), [x[:4].mean(0), x[4:].mean(0)])


def contrast(z, y, clusters, tau):
    """CPCL of one row by its formula; 0 for a class without clusters."""
    if not any(label == y for label, _ in clusters):
        return 0 * z.sum()
    e = [torch.exp(z @ c / (z.norm() * c.norm()) / tau) for _, c in clusters]
    own = sum(v for v, (label, _) in zip(e, clusters, strict=True) if label == y)
    return -torch.log(own / sum(e))


def test_the_contrast_is_the_formulas():
    rng = np.random.default_rng(0)
    z, means = torch.from_numpy(rng.normal(size=(5, 4))), torch.from_numpy(rng.normal(size=(6, 4)))
    labels, y = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([0, 1, 2, 3, 0])
    clusters = list(zip(labels.tolist(), means, strict=True))
    want = torch.stack([contrast(a, int(b), clusters, 0.1) for a, b in zip(z, y, strict=True)])
    torch.testing.assert_close(cluster_contrast(z, y, means, labels, 0.1), want, rtol=0, atol=1e-12)


def test_rows_of_unknown_classes_have_no_gradient_and_small_temperatures_have_one():
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, 0.0]], requires_grad=True)
    means, labels = torch.eye(2), torch.tensor([0, 2])
    rows = cluster_contrast(z, torch.tensor([1, 2, 0]), means, labels, 1e-3)
    assert rows[0] == 0
    (grads,) = torch.autograd.grad(rows.sum(), z)
    assert (grads[0] == 0).all()
    assert torch.isfinite(grads).all()


class ByHand:
    """Both terms row by row, and clusters from the modules of a round."""

    def __init__(self, case, tau=0.02):
        self.case, self.tau = case, tau
        self.clusters = []

    def __call__(self, step):
        rows = []
        for z, label in zip(step.now.body(step.x), step.y.tolist(), strict=True):
            own = [c for other, c in self.clusters if other == label]
            row = contrast(z, label, self.clusters, self.tau)
            rows.append(row + ((z - torch.stack(own).mean(0)) ** 2).mean() if own else row)
        return torch.stack(rows).mean()

    def after(self, modules):
        made = []
        for label in range(CLASSES):
            has = [c for c in modules if (self.case.y[c] == label).any()]
            if not has:
                made += [(other, c) for other, c in self.clusters if other == label]
                continue
            x = torch.stack([self.case.class_mean(modules[c], c, label) for c in has])
            sets = partition(x.numpy()) if len(has) > 1 else {(0,)}
            made += [(label, x[list(members)].mean(0)) for members in sorted(sets)]
        self.clusters = made


@pytest.mark.parametrize(("rounds", "tau"), [(1, 0.02), (3, 0.02), (3, 0.5)])
def test_rounds_equal_the_formula_by_hand(rounds, tau):
    case = skewed(8)
    case.lr = 0.05
    strategy = FPL(tau=tau, **SERVER)
    got, grid, _ = case.run(strategy, rounds=rounds)
    hand = ByHand(case, tau)
    np.testing.assert_allclose(got, case.by_hand(rounds, hand, hand.after), rtol=0, atol=1e-10)
    found = strategy.state["fpl-clusters"]
    assert found["labels"].tolist() == [label for label, _ in hand.clusters]
    assert len(hand.clusters) > CLASSES
    np.testing.assert_allclose(
        found["means"], torch.stack([c for _, c in hand.clusters]).numpy(), rtol=0, atol=1e-10
    )
    assert not grid.client_states()


def test_a_class_that_nobody_brings_keeps_its_clusters():
    case, chosen = skewed(5), [[0, 1, 4], [3], [0, 3], [1, 2]]
    case.lr = 0.05
    got, _, _ = case.run(FPL(**SERVER), rounds=4, chosen=chosen)
    hand = ByHand(case)
    np.testing.assert_allclose(got, case.by_hand(4, hand, hand.after, chosen), rtol=0, atol=1e-10)


def test_a_class_that_nobody_ever_had_has_no_clusters():
    case = skewed(3)
    strategy = FPL(**SERVER)
    case.run(strategy, rounds=2, chosen=[[0], [0]])
    assert strategy.state["fpl-clusters"]["labels"].tolist() == [0, 1]


def test_the_first_round_is_fedavgs():
    case = skewed()
    got, _, _ = case.run(FPL(**SERVER), rounds=1)
    plain, _, _ = case.run(FedAvg(**SERVER), LocalRule(), rounds=1)
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12)


def test_training_fits_representations_to_their_classes():
    case = skewed(4)
    hand = ByHand(case, 0.5)
    hand.after({c: case.trained(c, case.module()) for c in range(4)})
    assert_lowered_by_training(case, hand, case.module())


def test_state_is_given_and_taken():
    case = skewed(4)
    case.lr = 0.05
    assert_resumes(case, lambda: FPL(**SERVER))


def test_padding_counts_for_nothing():
    case = skewed()
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)))
    sent = {"fpl-clusters": {"means": means, "labels": torch.tensor([0, 0, 2, 2])}}
    assert_padding_counts_for_nothing(case, FPLRule(), sent=sent, config={"fpl-tau": 0.1})


def test_a_missing_half_is_named():
    assert_halves_are_named(FPL(**SERVER))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="tau: must be above 0"):
        FPL(tau=0.0)
