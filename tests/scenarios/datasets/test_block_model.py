import numpy as np
import pytest

from scenarios import build_federation
from scenarios.datasets.block_model import BlockModel
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.label_skew import LabelSkew


def ends(data):
    return np.repeat(np.arange(len(data)), np.diff(data.shared["indptr"])), data.shared["indices"]


def test_degree_and_homophily_are_those_asked_for():
    data = BlockModel(nodes=4000).load()
    source, target = ends(data)
    assert (data.domain[source] == data.domain[target]).all()
    same = data.arrays["y"][source] == data.arrays["y"][target]
    for domain, degree, p_in in [(0, 10, 0.7), (1, 20, 0.35), (2, 5, 0.525)]:
        inside = data.domain[source] == domain
        assert inside.sum() / 4000 == pytest.approx(degree, rel=0.015)
        assert same[inside].mean() == pytest.approx(p_in + (1 - p_in) / 4, abs=0.015)


def test_classes_have_means_that_domains_share_but_for_an_offset():
    data = BlockModel(nodes=8000, noise=0.5).load()
    y, x = data.arrays["y"], data.arrays["x"]
    means = np.array([[x[(data.domain == d) & (y == c)].mean(0) for c in range(4)] for d in range(3)])
    offset = means - means[0]
    assert abs(offset - offset.mean(1, keepdims=True)).max() < 0.08
    assert np.sqrt((offset[1:] ** 2).mean()) == pytest.approx(1.0, abs=0.4)
    assert abs(offset[1] - offset[2]).max() > 0.5
    spread = np.mean([x[(data.domain == 2) & (y == c)].std(0) for c in range(4)])
    assert spread == pytest.approx(0.5, abs=0.01)
    assert np.bincount(y) == pytest.approx(6000, rel=0.05)
    assert means[0].std() == pytest.approx(1.0, abs=0.3)


def test_a_domain_does_not_depend_on_the_others():
    one, three = BlockModel(nodes=200, domains=1).load(), BlockModel(nodes=200).load()
    np.testing.assert_array_equal(three.arrays["x"][:200], one.arrays["x"])
    np.testing.assert_array_equal(three.shared["indptr"][:201], one.shared["indptr"])
    np.testing.assert_array_equal(
        three.shared["indices"][: len(one.shared["indices"])], one.shared["indices"]
    )
    assert BlockModel(nodes=200, seed=1).load().fingerprint() != three.fingerprint()


def test_domain_skew_keeps_all_edges_and_label_skew_does_not():
    data = BlockModel(nodes=500).load()
    assert build_federation(data, DomainSkew(), 0).dataset.notes["edges_dropped"] == 0
    federation = build_federation(data, LabelSkew(4, 0.5), 0)
    assert 0.4 < federation.dataset.notes["edges_dropped"] / federation.dataset.notes["edges"] < 0.9


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"nodes": 0}, "nodes: not a possible number, got 0; use a whole number of at least 1"),
        ({"classes": 1}, "classes: not a possible number, got 1; use a whole number of at least 2"),
        ({"p_in": 1.5}, "p_in: not a possible number, got 1.5; use one from 0 to 1"),
        ({"degree": -1}, "degree: not a possible number, got -1; use one from 0"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        BlockModel(**option)
