import numpy as np

from fedbench.results.split import LISTED, describe_split
from scenarios import ClientSplit, ClientSplits, Dataset, Federation, Meta


def federation(clients):
    """Client c holds c + 1 rows; every third mixes domains."""
    none, ends = np.empty(0, np.int64), np.cumsum(np.arange(1, clients + 1))
    data = Dataset("toy", {}, np.zeros(ends[-1], np.int64), ("u", "v"), Meta("any", (1,)))
    splits = (
        ClientSplit(np.arange(end - c - 1, end), none, none, c % 3 - 1) for c, end in enumerate(ends.tolist())
    )
    return Federation(data, ClientSplits.of(splits), {})


def test_some_clients_are_listed():
    assert describe_split(federation(4)) == [
        {"domain": "mixed", "rows": 1},
        {"domain": "u", "rows": 2},
        {"domain": "v", "rows": 3},
        {"domain": "mixed", "rows": 4},
    ]
    assert len(describe_split(federation(LISTED))) == LISTED


def test_more_are_described_by_domain():
    found = describe_split(federation(LISTED + 2))  # 1 to 1002 rows, 334 clients each
    assert found["clients"] == 1_002
    assert list(found["domains"]) == ["mixed", "u", "v"]
    assert found["domains"]["u"] == {
        "clients": 334, "rows": sum(range(2, 1_002, 3)), "smallest": 2, "median": 501.5, "largest": 1_001,
    }  # fmt: skip
    assert sum(d["rows"] for d in found["domains"].values()) == 1_002 * 1_003 // 2
