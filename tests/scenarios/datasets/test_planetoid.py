import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.planetoid import Planetoid
from scenarios.skews.label_skew import LabelSkew


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "words", "sizes"),
    [
        ("cora", 2708, 5278, 1433, [351, 217, 418, 818, 426, 298, 180]),
        ("citeseer", 3327, 4552, 3703, [249, 590, 668, 701, 596, 508]),
    ],
)
def test_public_split(data_root, name, nodes, edges, words, sizes):
    data = Planetoid(name, root=data_root).load()
    assert data.arrays["x"].shape == (nodes, words)
    assert len(data.shared["indices"]) == 2 * edges
    assert len(data.meta.classes) == len(sizes)
    assert (len(data.val), len(data.test)) == (500, 1000)
    assert np.bincount(data.arrays["y"][data.train]).tolist() == [20] * len(sizes)
    federation = build_federation(data, LabelSkew(3, 1.0), 0)
    assert federation.sizes.sum() == 20 * len(sizes)
    assert sorted(federation.clients.val.rows) == data.val.tolist()
    assert sorted(federation.clients.test.rows) == data.test.tolist()
    whole = Planetoid(name, split="random", normalise=False, root=data_root).load()
    labelled = np.arange(nodes) if whole.train is None else whole.train
    assert np.bincount(whole.arrays["y"][labelled]).tolist() == sizes
    assert whole.test is whole.val is None
    np.testing.assert_array_equal(data.arrays["x"] > 0, whole.arrays["x"] == 1)
    sums = data.arrays["x"].sum(1)
    assert sums[whole.arrays["x"].any(1)] == pytest.approx(1, rel=1e-5)


def test_papers_without_a_class_are_in_no_split(data_root):
    data = Planetoid("citeseer", "random", root=data_root).load()
    alone = np.setdiff1d(np.arange(3327), data.train)
    assert len(alone) == 15
    assert not data.arrays["x"][alone].any()
    federation = build_federation(data, LabelSkew(3, 1.0), 0, test_fraction=0.5)
    assert federation.tests["citeseer"].size == 1656
    assert not np.isin(alone, federation.tests["citeseer"]).any()
    assert not np.isin(alone, federation.clients.train.rows).any()


def test_bad_options_and_files(tmp_path):
    with pytest.raises(ValueError, match=r"^name: unknown, got 'pubmed'; use cora or citeseer$"):
        Planetoid("pubmed")
    with pytest.raises(ValueError, match=r"^split: unknown, got 'publik'.*did you mean 'public'"):
        Planetoid(split="publik")
    with pytest.raises(ScenarioError, match=r"data 'cora': nothing at .*planetoid/cora.npz"):
        Planetoid(root=tmp_path).load()
    path = tmp_path / "planetoid" / "cora.npz"
    path.parent.mkdir()
    for content in (b"", b"PK\x03\x04", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(ScenarioError, match=r"cora.npz: not the arrays of a network \(.*fetch the file"):
            Planetoid(root=tmp_path).load()
