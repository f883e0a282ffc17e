"""Secure sums of GGEUR's statistics: masks, fixed point, and the two messages over a grid."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from nodes import CLASSES, COUNTS, DIM, DOMAINS, Nodes, delivered, error, examples, prepared, uploads
from scipy import stats
from test_ggeur_strategy import ANY, deliveries, run, serial, spec

from fedbench.engine.grid import FIRST_NODE_ID
from fedbench.engine.worker import Outcome, failure
from strategies import GGEUR, GGEURClient
from strategies.errors import StrategyError
from strategies.ggeur.moments import class_moments, to_sums
from strategies.ggeur.secure_sum import encode, mask, new_key, public_key, total

WIDTH = (DIM + 1) * (DIM + 2) // 2
SECURE = {"secure": True, "classes": CLASSES}


def masked(values, keys=None):
    keys = keys or [new_key() for _ in values]
    public = [public_key(key) for key in keys]
    return [mask(encode(v, len(values)), key, public) for v, key in zip(values, keys, strict=True)]


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [2, 3, 7])
def test_masks_cancel_in_the_sum_and_in_no_other(clients):
    values = np.random.default_rng(0).normal(size=(clients, 4, 30)) * 1e5
    sent = masked(values)
    assert np.abs(total(sent) - values.sum(axis=0)).max() <= clients * 2.0**-33 + 1e-9
    assert np.array_equal(total(sent), total(sent[::-1]))
    assert np.array_equal(total(sent), total(masked(values)))  # whatever the keys
    for upload, again, value in zip(sent, masked(values), values, strict=True):
        assert not (upload == encode(value, clients)).any()
        assert not (upload == again).any()
    assert np.abs(total(sent[:-1])).mean() > 1e8  # one missing: nothing but masks


def test_an_upload_looks_uniformly_random():
    values = np.random.default_rng(1).normal(size=(2, 10, 3000))
    for upload, value in zip(masked(values), values, strict=True):
        counts = np.bincount(np.ascontiguousarray(upload).view(np.uint8).ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
        assert stats.kstest(upload.ravel() / 2.0**64, "uniform").pvalue > 1e-4
        signed = upload.view(np.int64).astype(np.float64).ravel()
        assert abs(np.corrcoef(signed, value.ravel())[0, 1]) < 5 / np.sqrt(signed.size)
        assert abs(np.corrcoef(signed[1:], signed[:-1])[0, 1]) < 5 / np.sqrt(signed.size)
    plain = np.ascontiguousarray(encode(values[0], 2)).view(np.uint8).ravel()
    assert stats.chisquare(np.bincount(plain, minlength=256)).pvalue < 1e-9  # the test can tell


def test_fixed_point_is_exact_for_counts_and_near_for_the_rest():
    counts = np.array([[0.0, 1.0, 12345.0, -7.0]])
    assert np.array_equal(total([encode(counts, 3)] * 3), 3 * counts)
    x = np.random.default_rng(2).normal(size=(1, 1000)) * 100
    assert np.abs(total([encode(x, 1)]) - x).max() <= 2.0**-33


@pytest.mark.parametrize(("clients", "limit"), [(1, 2.0**31), (4, 2.0**29)])
def test_values_that_could_pass_the_range_are_refused(clients, limit):
    encode(np.array([[-limit * (1 - 1e-9)]]), clients)
    for value in (limit, -limit, np.nan, np.inf):
        with pytest.raises(StrategyError, match=rf"of {clients} clients can hold; .*set secure=false$"):
            encode(np.array([[value]]), clients)


def test_keys_must_be_those_of_a_group_with_this_client_in_it():
    mine, other, third = (new_key() for _ in range(3))
    own, theirs = public_key(mine), public_key(other)
    values = encode(np.ones((1, 3)), 2)
    for keys in ([], [own], [own, own], [theirs, public_key(third)], [own, theirs, theirs]):
        with pytest.raises(StrategyError, match=r"not those of two or more clients, this one among them$"):
            mask(values, mine, keys)


# --- over a grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"policy": "single"}, {"policy": "multi"}, {"foreign": 0}, {}])
@pytest.mark.parametrize("data", [{}, {"offset": 100.0}, {"scale": 0.02}])
def test_secure_sums_give_what_plain_statistics_give(options, data):
    plain = prepared(Nodes(examples(**data)), **options)
    secure = prepared(Nodes(examples(**data)), **options, **SECURE)
    (covariances, prototypes), (expected, means) = delivered(secure), delivered(plain)
    assert covariances.keys() == expected.keys() == {0, 1, 2}
    assert prototypes.keys() == means.keys()
    assert bool(means) == (options not in ({"policy": "single"}, {"foreign": 0}))
    assert secure.delivery["ggeur-options"]["counts"] == plain.delivery["ggeur-options"]["counts"]
    for label, cov in expected.items():
        assert error(covariances[label], cov) < 1e-6
    for key, mean in means.items():
        assert error(prototypes[key], mean) < 1e-6


def test_small_cells_are_withheld_from_the_sum_too():
    plain, secure = (prepared(Nodes(examples()), n_min_upload=10, **o) for o in ({}, SECURE))
    (covariances, _), (expected, _) = delivered(secure), delivered(plain)
    counts = np.where(COUNTS >= 10, COUNTS, 0).sum(axis=0)[:3].tolist()
    assert secure.delivery["ggeur-options"]["counts"] == counts
    for label, cov in expected.items():
        assert error(covariances[label], cov) < 1e-6


def test_noise_goes_under_the_masks():
    noise = {"epsilon": 30.0, "clip": 12.0, "classes": CLASSES, "policy": "multi", "n_min_upload": 4}
    plain, secure = (prepared(Nodes(examples()), **noise, secure=secure) for secure in (False, True))
    exact = prepared(Nodes(examples()), policy="multi", **SECURE)
    (_, prototypes), (_, expected) = delivered(secure), delivered(plain)
    assert secure.delivery["ggeur-options"]["counts"] == plain.delivery["ggeur-options"]["counts"]
    assert prototypes.keys() == expected.keys()
    for key, mean in expected.items():
        assert error(prototypes[key], mean) < 1e-6
        assert error(prototypes[key], delivered(exact)[1][key]) > 1e-3
    assert secure.diagnostics["ggeur_epsilon"] == 30.0


def test_clients_send_nothing_but_masked_sums_of_every_class():
    exchanges = []
    grid = Nodes(examples(), exchanges.append)
    strategy = prepared(grid, policy="multi", **SECURE)
    phases = ["query.ggeur_keys", "query.ggeur_statistics", "query.ggeur_deliver"]
    assert [e.phase for e in exchanges] == [phase for phase in phases for _ in DOMAINS]
    for e, upload in zip(examples(), uploads(grid), strict=True):
        assert upload.keys() == {"masked"}
        assert upload["masked"].shape == (CLASSES, WIDTH)
        assert upload["masked"].dtype == np.uint64
        for label, m in class_moments(e.x, e.y).items():
            truth = to_sums(m)
            assert not (upload["masked"][label] == encode(truth[None], len(DOMAINS))[0]).any()
    # an absent class shows as little as any other
    assert (np.stack([u["masked"] for u in uploads(grid)]) > 2**32).mean() > 0.99
    assert not any(deliveries(exchanges).values())
    assert not any("cells" in key for key in strategy.diagnostics)
    up = {phase: [e.up for e in exchanges if e.phase == phase] for phase in phases}
    assert up["query.ggeur_keys"] == [32 + len(domain) for domain in DOMAINS]
    assert up["query.ggeur_statistics"] == [8 * CLASSES * WIDTH + len(domain) for domain in DOMAINS]
    words = len("float64") + 8 * len(["n-min-upload", "classes"])
    down = [e.down for e in exchanges if e.phase == "query.ggeur_statistics"]
    assert down == [words + 32 * DOMAINS.count(domain) for domain in DOMAINS]


def test_a_key_masks_one_upload_and_is_gone():
    grid = Nodes(examples())
    first = prepared(grid, **SECURE)
    assert not any("ggeur-secret" in grid.state_of(node) for node in range(len(DOMAINS)))
    sent = uploads(grid)
    second = prepared(grid, **SECURE)
    for a, b in zip(sent, uploads(grid), strict=True):
        assert not (a["masked"] == b["masked"]).any()
    assert first.delivery["ggeur-options"] == second.delivery["ggeur-options"]  # the hash too

    class Once(Nodes):
        def execute(self, messages):
            if messages[0].metadata.message_type == "query.ggeur_statistics":
                super().execute(messages)
            return super().execute(messages)

    with pytest.raises(StrategyError, match=r"no key for the secure sum; ask for 'ggeur_keys' first$"):
        prepared(Once(examples()), **SECURE)


@pytest.mark.parametrize("when", ["keys", "statistics"])
def test_a_client_that_falls_silent_between_the_messages_ends_the_run(when):
    class OneIsSilent(Nodes):
        def execute(self, messages):
            outcomes = super().execute(messages)
            return [
                Outcome(failure(m, OSError("gone home")), 0.0)
                if m.metadata.dst_node_id == FIRST_NODE_ID + 3
                and m.metadata.message_type == f"query.ggeur_{when}"
                else outcome
                for m, outcome in zip(messages, outcomes, strict=True)
            ]

    if when == "keys":  # it is then no part of the sum
        counts = np.delete(COUNTS, 3, axis=0).sum(axis=0)[:3].tolist()
        strategy = prepared(OneIsSilent(examples()), policy="single", **SECURE)
        assert strategy.delivery["ggeur-options"]["counts"] == counts
        return
    said = (
        r"^GGEUR: 1 of 5 clients gave a key but no statistics \(OSError: gone home\), .* or set secure=false$"
    )
    with pytest.raises(StrategyError, match=said):
        prepared(OneIsSilent(examples()), **SECURE)


def test_a_group_of_one_is_refused():
    lone = examples(domains=("art", "photo", "photo"))
    said = r"^GGEUR: domain 'art' has a single client, .*; set foreign=0 or secure=false$"
    with pytest.raises(StrategyError, match=said):
        prepared(Nodes(lone), **SECURE)
    prepared(Nodes(lone), foreign=0, **SECURE)
    prepared(Nodes(lone), policy="single", **SECURE)
    with pytest.raises(StrategyError, match=r"^GGEUR: there is a single client, .*; set secure=false$"):
        prepared(Nodes(lone[:1]), **SECURE)


def test_weights_do_not_depend_on_the_keys():
    options = {"policy": "single", "secure": True, "classes": 3}
    runs = [run(GGEUR(FedAvg(**ANY), **options), serial(spec(data_rule=GGEURClient()))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != run(FedAvg(**ANY), serial(spec()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secure": True}, r"^classes: epsilon and secure need the number of classes, got none$"),
        (
            {**SECURE, "guide_fraction": 0.8},
            r"^guide_fraction: secure sums are over all clients, got 0.8; use 1$",
        ),
        ({**SECURE, "between": False}, r"^between: secure sums do not show the scatter between clients; use"),
    ],
)
def test_options_that_a_sum_cannot_serve_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        GGEUR(FedAvg(), **options)
