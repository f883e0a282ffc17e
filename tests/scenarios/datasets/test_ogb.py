import gzip

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.ogb import Ogb
from scenarios.skews.iid import Iid

FILES = {
    "raw/edge": "0,1\n1,0\n2,1\n3,4\n4,5\n5,5\n",
    "raw/node-feat": "0.5,1\n1.5,2\n-1,3\n0,4\n2,5\n1e-3,6\n",
    "raw/node-label": "0.0\n2.0\n\n1.0\n0.0\n2.0\n",
    "raw/num-node-list": "6\n",
    "split/time/train": "0\n1\n2\n",
    "split/time/valid": "3\n",
    "split/time/test": "5\n4\n",
}


@pytest.fixture
def write(tmp_path):
    def change(**files):
        for name, text in (FILES | files).items():
            path = tmp_path / "ogbn_tiny" / f"{name}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(text.encode()))
        return tmp_path

    return change


def test_files_as_published(write):
    data = Ogb("ogbn-tiny", root=write()).load()
    assert data.arrays["x"].tolist() == [[0.5, 1], [1.5, 2], [-1, 3], [0, 4], [2, 5], [np.float32(1e-3), 6]]
    assert data.arrays["y"].tolist() == [0, 2, 0, 1, 0, 2]
    assert data.meta.classes == ("class_0", "class_1", "class_2")
    assert data.shared["indptr"].tolist() == [0, 1, 3, 4, 5, 7, 8]
    assert data.shared["indices"].tolist() == [1, 0, 2, 1, 4, 3, 5, 4]
    # Node 2 has no label, so it is in no split although it is in a file.
    assert [rows.tolist() for rows in (data.train, data.val, data.test)] == [[0, 1], [3], [5, 4]]
    federation = build_federation(data, Iid(1), 0)
    # Class 1 is not trained on, so nobody validates on node 3, nor has its edge.
    assert federation.clients[0].train.tolist() == [0, 1]
    assert federation.dataset.notes == {"edges": 4, "edges_dropped": 1}


def test_a_scheme_is_named_where_there_are_several(write):
    root = write(**{f"split/other/{part}": "1\n" for part in ("train", "valid", "test")})
    with pytest.raises(
        ScenarioError, match=r"^data 'ogbn_tiny': name one of its splits by scheme; there are other, time$"
    ):
        Ogb("ogbn_tiny", root=root).load()
    assert Ogb("ogbn_tiny", "other", root=root).load().train.tolist() == [1]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(write, name):
    root = write()
    (root / "ogbn_tiny" / f"{name}.csv.gz").unlink()
    with pytest.raises(
        ScenarioError, match=f"^data 'ogbn-tiny': nothing at .*/ogbn_tiny/{name}.csv.gz"
    ) as caught:
        Ogb("ogbn-tiny", root=root).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("raw/edge", "0,6\n", "edge.csv.gz: holds edges of nodes 0 to 6, not 0 to 5"),
        ("raw/node-feat", "1,2\n", "node-feat.csv.gz: holds 1 nodes, num-node-list.csv.gz says 6"),
        ("raw/node-feat", "1,a\n" * 6, r"node-feat.csv.gz: cannot be read as CSV \("),
        ("raw/node-label", "1,0\n" * 6, "node-label.csv.gz: holds 2 labels a node; must be one"),
        ("raw/num-node-list", "3\n3\n", "num-node-list.csv.gz: holds numbers of nodes for 2 graphs; must be"),
        ("split/time/test", "6\n", "test.csv.gz: holds nodes 6 to 6, not 0 to 5"),
    ],
)
def test_other_forms_and_damaged_files_get_one_line(write, name, text, message):
    with pytest.raises(ScenarioError, match=message):
        Ogb("ogbn_tiny", root=write(**{name: text})).load()


def test_needs_a_data_set():
    with pytest.raises(ValueError, match=r"^dataset: not a name, got ''"):
        Ogb("")
