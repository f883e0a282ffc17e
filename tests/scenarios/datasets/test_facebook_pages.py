import gzip

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.facebook_pages import FacebookPages
from scenarios.skews.label_skew import LabelSkew


@pytest.fixture(scope="module")
def pages(data_root):
    return FacebookPages(root=data_root).load()


def test_pages_and_likes(pages):
    assert pages.arrays["x"].shape == (22_470, 128)
    assert len(pages.shared["indices"]) == 2 * (171_002 - 179)  # pages that like themselves
    assert pages.domains == ("facebook_pages",)
    assert np.bincount(pages.arrays["y"]).tolist() == [6495, 6880, 5768, 3327]
    assert pages.meta.classes == ("company", "government", "politician", "tvshow")
    # The first lines of the file.
    assert pages.arrays["y"][:3].tolist() == [3, 1, 0]


def test_pages_of_a_type_like_each_other(pages):
    degree = np.diff(pages.shared["indptr"])
    source = np.repeat(pages.arrays["y"], degree)
    assert (source == pages.arrays["y"][pages.shared["indices"]]).mean() == pytest.approx(0.885, abs=0.005)
    few, many = (build_federation(pages, LabelSkew(4, alpha), 0).dataset.notes for alpha in (0.05, 100.0))
    assert few["edges_dropped"] < 0.5 * many["edges_dropped"]


def test_bad_files(tmp_path):
    with pytest.raises(ScenarioError, match=r"nothing at .*facebook_pages/edges.csv.gz"):
        FacebookPages(root=tmp_path).load()
    folder = tmp_path / "facebook_pages"
    folder.mkdir()
    for part in ("edges.csv", "features.json"):
        (folder / f"{part}.gz").touch()
    for lines in ("0,tvshow\n2,company\n", "0,tvshow\n1,shop\n"):
        (folder / "target.csv.gz").write_bytes(gzip.compress(f"id,page_type\n{lines}".encode()))
        with pytest.raises(ScenarioError, match=r"target.csv.gz: does not give each page 0, 1, ... a type"):
            FacebookPages(root=tmp_path).load()
