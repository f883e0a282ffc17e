import gzip

import numpy as np
import pytest

from scenarios import ScenarioError, build_federation
from scenarios.datasets.twitch import COUNTRIES, Twitch
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.label_skew import LabelSkew

NODES = [9498, 7126, 4648, 6549, 1912, 4385, 2772]
EDGES = [153138, 35324, 59382, 112666, 31299, 37304, 63462]


@pytest.fixture(scope="module")
def twitch(data_root):
    return Twitch(root=data_root).load()


def test_seven_networks_side_by_side(twitch):
    assert len(twitch) == 36_890
    assert len(twitch.shared["indices"]) == 2 * 492_575
    assert twitch.domains == COUNTRIES
    assert np.bincount(twitch.domain).tolist() == NODES
    degree = np.diff(twitch.shared["indptr"])
    source = np.repeat(twitch.domain, degree)
    np.testing.assert_array_equal(source, twitch.domain[twitch.shared["indices"]])
    assert (np.bincount(source) // 2).tolist() == EDGES
    rate = [twitch.arrays["y"][twitch.domain == d].mean() for d in range(7)]
    assert (min(rate), max(rate)) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.61, abs=0.01))
    assert twitch.arrays["x"].shape == (36_890, 128)


def test_a_country_a_client_loses_no_edge(twitch):
    federation = build_federation(twitch, DomainSkew(), 0)
    assert federation.dataset.notes == {"edges": 492_575, "edges_dropped": 0}
    assert list(federation.domains) == list(COUNTRIES)
    mixed = build_federation(twitch, LabelSkew(5, 1.0), 0)
    assert mixed.dataset.notes["edges_dropped"] > 200_000


def test_some_countries_with_all_features(twitch, data_root):
    data = Twitch(features=None, countries=["PTBR", "FR"], root=data_root).load()
    assert data.arrays["x"].shape == (1912 + 6549, 3170)
    assert np.unique(data.arrays["x"]).tolist() == [0, 1]
    assert data.domains == ("PTBR", "FR")
    # The two projections are one, and a country is the same whatever stands beside it.
    part = Twitch(countries=["PTBR"], root=data_root).load()
    np.testing.assert_allclose(part.arrays["x"], twitch.arrays["x"][twitch.domain == 4], rtol=1e-5, atol=1e-6)
    fr = twitch.arrays["y"][twitch.domain == 3]
    np.testing.assert_array_equal(data.arrays["y"][1912:], fr)
    assert fr[[3754, 1018]].tolist() == [1, 1]  # in the file twice


def test_bad_options_and_files(tmp_path):
    with pytest.raises(ValueError, match=r"^countries: unknown, got 'UK'; use DE or"):
        Twitch(countries=["UK"])
    with pytest.raises(ValueError, match=r"^countries: 'DE' is named twice; use each once$"):
        Twitch(countries=["DE", "FR", "DE"])
    with pytest.raises(ValueError, match=r"^features: above the 3170 that there are, got 4000; null keeps"):
        Twitch(features=4000)
    with pytest.raises(ValueError, match=r"^features: not a possible number, got 0; .* or null for all"):
        Twitch(features=0)
    with pytest.raises(ScenarioError, match=r"data 'twitch': nothing at .*twitch/DE_edges.csv.gz"):
        Twitch(root=tmp_path).load()
    (tmp_path / "twitch").mkdir()
    for part in ("edges.csv", "features.json"):
        (tmp_path / "twitch" / f"RU_{part}.gz").touch()
    target = tmp_path / "twitch" / "RU_target.csv.gz"
    target.write_bytes(gzip.compress(b"new_id,mature\n0,True\n1,False\n1,True\n"))
    with pytest.raises(ScenarioError, match=r"RU_target.csv.gz: column 'new_id' does not give each node"):
        Twitch(countries=["RU"], root=tmp_path).load()
