"""Federations hold any number of clients in a few arrays."""

import pickle
import time

import numpy as np
import pytest

from scenarios import ClientSplit, ClientSplits, Dataset, Federation, Meta, build_federation
from scenarios.federation import Names, Parts
from scenarios.skews.base import ClientRows, Holdings
from scenarios.skews.domain_skew import DomainSkew
from scenarios.skews.iid import Iid
from scenarios.skews.label_skew import LabelSkew
from scenarios.skews.quantity_skew import QuantitySkew


def rows(*values):
    return np.array(values, dtype=np.int64)


SPLITS = [
    ClientSplit(rows(0, 4, 7), rows(1), rows(9), 1),
    ClientSplit(rows(2), rows(), rows(), -1),
    ClientSplit(rows(3, 5), rows(6), rows(8, 10), 0),
]


def listed(splits):
    return [(s.train.tolist(), s.val.tolist(), s.test.tolist(), s.domain) for s in splits]


def toy(size, classes=5, domains=2):
    rng = np.random.default_rng(0)
    labels, domain = rng.integers(0, classes, size), rng.integers(0, domains, size)
    meta = Meta("classification", (1,), tuple(f"c{c}" for c in range(classes)))
    names = tuple(f"d{d}" for d in range(domains))
    return Dataset("toy", {"y": labels}, domain, names, meta, np.arange(size // 20))


def test_splits_are_a_sequence_of_views():
    clients = ClientSplits.of(SPLITS)
    assert len(clients) == 3
    assert listed(clients) == listed(SPLITS)
    assert listed(clients[1:]) == listed(SPLITS[1:])
    assert listed(clients[::-2]) == listed(SPLITS[::-2])
    assert listed([clients[-1], clients[np.int64(0)]]) == listed([SPLITS[-1], SPLITS[0]])
    assert listed(reversed(clients)) == listed(SPLITS[::-1])
    assert type(clients[0].domain) is int
    assert np.shares_memory(clients[2].train, clients.train.rows)
    for outside in (3, -4):
        with pytest.raises(IndexError):
            clients[outside]


def test_no_clients():
    clients = ClientSplits.of([])
    assert (len(clients), list(clients), clients.train.sizes.tolist()) == (0, [], [])


def test_parts_are_cut_gathered_and_sorted():
    assert [p.tolist() for p in Parts.cut(rows(5, 3, 9, 1), rows(2, 0, 2))] == [[5, 3], [], [9, 1]]
    parts = Parts.gather(rows(5, 3, 9, 1, 4), rows(2, 0, 2, 0, 2), 4)
    assert [p.tolist() for p in parts] == [[1, 3], [], [4, 5, 9], []]
    assert parts.sizes.tolist() == [2, 0, 3, 0]
    assert parts.owner.tolist() == [0, 0, 2, 2, 2]
    assert [p.tolist() for p in Parts.of([rows(5, 3), rows(), rows(9, 1)]).sort()] == [[3, 5], [], [1, 9]]
    assert [p.tolist() for p in Parts.gather(rows(), rows(), 2)] == [[], []]


def test_sizes_and_domains_of_a_federation():
    data = Dataset("toy", {}, np.zeros(11, np.int64), ("u", "v"), Meta("any", (1,)))
    federation = Federation(data, ClientSplits.of(SPLITS), {})
    assert federation.sizes.tolist() == [3, 1, 2]
    assert list(federation.domains) == ["v", "mixed", "u"]
    assert [federation.domain_of(client) for client in range(3)] == ["v", "mixed", "u"]
    assert (len(federation.domains), federation.domains[1:]) == (3, ["mixed", "u"])
    assert Names(("a", "b"), rows(1, -1, 0))[1] == "b"


def test_single_clients_are_laid_out_and_what_is_laid_out_stays():
    held = Holdings.of([ClientRows(rows(7, 2), 1), ClientRows(rows(4), -1)])
    assert [(client.rows.tolist(), client.domain) for client in held] == [([2, 7], 1), ([4], -1)]
    assert Holdings.of(held) is held


def test_a_list_of_clients_gives_what_a_compact_split_gives():
    class Listed:
        def split(self, *given):
            return [ClientRows(rows[::-1], domain) for rows, domain in LabelSkew(20, 0.5).split(*given)]

    data = toy(2_000)
    one, other = (build_federation(data, skew, 3) for skew in (LabelSkew(20, 0.5), Listed()))
    assert listed(one.clients) == listed(other.clients)


def test_many_clients_travel_as_a_few_buffers():
    clients = build_federation(toy(60_000), Iid(20_000), 0).clients
    buffers = []
    head = pickle.dumps(clients, protocol=5, buffer_callback=buffers.append)
    assert len(head) < 2_000
    assert len(buffers) == 7
    copy = pickle.loads(head, buffers=buffers)
    assert listed(copy[::5_000]) == listed(clients[::5_000])
    assert np.shares_memory(copy.train.rows, clients.train.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "skew",
    [Iid(200_000), QuantitySkew(200_000, 1.0), DomainSkew(100_000), LabelSkew(200_000, 5.0, min_per_class=1)],
    ids=lambda skew: type(skew).__name__,
)
def test_two_hundred_thousand_clients_take_seconds(skew):
    data = toy(1_400_000)
    started = time.process_time()
    federation = build_federation(data, skew, 0)
    assert time.process_time() - started < 20  # some 2; loops over clients took minutes
    assert len(federation.clients) == 200_000
    assert federation.sizes.min() >= 1
    train, val, test = (getattr(federation.clients, kind).rows for kind in ("train", "val", "test"))
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(70_000, 1_400_000))
    assert np.array_equal(np.sort(test), np.arange(70_000))
