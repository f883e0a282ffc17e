"""GGEUR's two halves together, over a grid."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from clients.app import ClientSpec, make_client_app
from clients.models.mlp import MLP
from clients.tasks.classification import Classification
from clients.training import Training
from fedbench.engine.grid import FIRST_NODE_ID, payload_bytes
from fedbench.engine.serial import SerialGrid
from fedbench.engine.worker import Outcome, failure
from strategies import GGEUR, FedProxRule, GGEURClient, LocalRule
from strategies.client import record
from strategies.functional import Stateless
from strategies.ggeur.augment import Policy

DIM, CLASSES = 5, 3
DOMAINS = ["art", "photo", "photo"]
COUNTS = np.array([[20, 12, 9], [15, 30, 8], [10, 0, 25]])
"""Rows of every (client, class); client 2 has none of class 1."""
ANY = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


@dataclass(frozen=True)
class Rows:
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def model():
    torch.manual_seed(3)
    return MLP((DIM,), CLASSES, hidden=(6,))


def spec(rule=None, data_rule=None):
    rng = np.random.default_rng(0)
    node, label = (np.repeat(k, COUNTS.ravel()) for k in np.divmod(np.arange(COUNTS.size), CLASSES))
    x = rng.normal(size=(len(label), DIM)) * (1 + np.arange(DIM)) + 3 * label[:, None] + node[:, None]
    rows = [np.flatnonzero(node == k) for k in range(len(COUNTS))]
    return ClientSpec(
        arrays={"x": x.astype(np.float32), "y": label},
        splits=[Rows(mine, mine[:4], mine[:0]) for mine in rows],
        domains=DOMAINS,
        model=model,
        task=Classification(),
        training=Training(lr=0.05, batch_size=8),
        rule=rule or LocalRule(),
        data_rule=data_rule,
        seed=5,
    )


def serial(spec, exchanges=None, grid=SerialGrid):
    observer = None if exchanges is None else exchanges.append
    return grid(partial(make_client_app, spec), [len(s.train) for s in spec.splits], observer)


def initial():
    return record(Stateless(model()).initial())


def raw(arrays):
    return {k: (v.dtype, v.data) for k, v in arrays.items()}


def one_round(strategy, grid, arrays, server_round):
    replies = grid.send_and_receive(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
    arrays = strategy.aggregate_train(server_round, replies)[0]
    replies = grid.send_and_receive(strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid))
    strategy.aggregate_evaluate(server_round, replies)
    return arrays


def run(strategy, grid, rounds=3):
    """As ``fedbench run`` does."""
    arrays = initial()
    if hasattr(strategy, "prepare"):
        arrays = strategy.prepare(grid, arrays)
    for server_round in range(1, rounds + 1):
        arrays = one_round(strategy, grid, arrays, server_round)
    return raw(arrays)


def aligned(strategy=None, exchanges=None, data_rule=None, **options):
    """GGEUR around FedAvg, prepared on a grid of all clients."""
    strategy = GGEUR(strategy or FedAvg(**ANY), **options)
    grid = serial(spec(data_rule=data_rule or GGEURClient()), exchanges)
    strategy.prepare(grid, initial())
    return strategy, grid


# --- with nothing to add, GGEUR(X) is X ----------------------------------------------------------

INNER = [
    (FedAvg, LocalRule, {}),
    (FedProx, FedProxRule, {"proximal_mu": 0.5}),
    (FedAvgM, LocalRule, {"server_learning_rate": 0.7, "server_momentum": 0.9}),
    (FedAdam, LocalRule, {"eta": 0.05}),
    (FedYogi, LocalRule, {"eta": 0.05}),
    (FedAdagrad, LocalRule, {"eta": 0.05}),
]


@pytest.mark.parametrize(("inner", "rule", "options"), INNER, ids=[c.__name__ for c, _, _ in INNER])
def test_with_nothing_to_add_the_weights_are_those_of_the_inner_strategy(inner, rule, options):
    plain = run(inner(**ANY, **options), serial(spec(rule())))
    around = GGEUR(inner(**ANY, **options), policy="single", own=1)
    assert run(around, serial(spec(rule(), GGEURClient()))) == plain
    assert plain != raw(initial())
    assert len(around._delivered) == 3


@pytest.mark.parametrize(("inner", "rule", "options"), INNER, ids=[c.__name__ for c, _, _ in INNER])
def test_flowers_own_loop_gives_the_same(inner, rule, options):
    plain = inner(**ANY, **options).start(serial(spec(rule())), initial(), num_rounds=3)
    around = GGEUR(inner(**ANY, **options), policy="single", own=1)
    result = around.start(serial(spec(rule(), GGEURClient())), initial(), num_rounds=3)
    assert raw(result.arrays) == raw(plain.arrays)
    assert raw(result.arrays) == run(inner(**ANY, **options), serial(spec(rule())))


def test_with_something_to_add_they_are_not():
    plain = run(FedAvg(**ANY), serial(spec()))
    around = run(GGEUR(FedAvg(**ANY)), serial(spec(data_rule=GGEURClient())))
    assert around != plain
    flower = GGEUR(FedAvg(**ANY)).start(serial(spec(data_rule=GGEURClient())), initial(), num_rounds=3)
    assert raw(flower.arrays) == around


# --- what clients train on -----------------------------------------------------------------------


def deliveries(exchanges):
    return {e.node: e.metrics for e in exchanges if e.phase == "query.ggeur_deliver"}


def test_single_fills_every_class_up_to_its_global_count():
    exchanges = []
    aligned(exchanges=exchanges, policy="single")
    told = deliveries(exchanges)
    for node, counts in enumerate(COUNTS):
        assert told[node]["ggeur_originals"] == counts.sum()
        missing = np.where(counts > 0, COUNTS.sum(0) - counts, 0).sum()
        assert told[node]["ggeur_synthetic"] == missing
        assert told[node]["ggeur_noise_ratio"] > 0


def test_multi_adds_vectors_around_the_other_domains_means():
    exchanges = []
    aligned(exchanges=exchanges, policy="multi", own=30, foreign=4)
    told = deliveries(exchanges)
    for node, counts in enumerate(COUNTS):
        own = np.where(counts > 0, np.maximum(30 - counts, 0), 0).sum()
        assert told[node]["ggeur_synthetic"] == own + 4 * CLASSES


@pytest.mark.parametrize(
    ("counts", "domains", "policy"),
    [
        (COUNTS, DOMAINS, Policy.of("multi", 50, 50)),
        (COUNTS[:2], DOMAINS[:2], Policy.of("multi", 500, 500)),
        (COUNTS[1:], DOMAINS[1:], Policy.of("single")),
    ],
    ids=["a class is missing", "every class everywhere", "one domain"],
)
def test_auto_follows_the_domains_and_classes(counts, domains, policy):
    statistics = {k: {c: None for c in range(CLASSES) if row[c]} for k, row in enumerate(counts)}
    assert GGEUR(FedAvg())._policy(statistics, dict(enumerate(domains))) == policy


@pytest.mark.parametrize("weighting", ["augmented", "original", "uniform"])
def test_weighting_sets_the_number_of_examples(weighting):
    exchanges = []
    strategy, grid = aligned(exchanges=exchanges, policy="multi", own=30, foreign=4, weighting=weighting)
    one_round(strategy, grid, initial(), 1)
    told = deliveries(exchanges)
    for e in exchanges:
        if e.phase == "train":
            originals, made = told[e.node]["ggeur_originals"], told[e.node]["ggeur_synthetic"]
            want = {"augmented": originals + made, "original": originals, "uniform": 1}[weighting]
            assert e.metrics["num-examples"] == want


class Recording(GGEURClient):
    """Notes every training set that it hands out."""

    def __init__(self, cache_bytes):
        super().__init__(cache_bytes)
        self.sets = {}

    def training_set(self, context, examples):
        made = super().training_set(context, examples)
        self.sets.setdefault(examples.node, []).append((made.x.tobytes(), made.y.tobytes()))
        return made


def training_sets(order, cache_bytes):
    client = Recording(cache_bytes)
    _, grid = aligned(data_rule=client, policy="multi", own=40, foreign=6)
    content = RecordDict({"arrays": initial(), "config": ConfigRecord({"server-round": 1})})
    for node in order:
        grid.send_and_receive([Message(content, FIRST_NODE_ID + node, "train")])
    return client.sets


def test_aligned_sets_depend_on_neither_order_nor_cache():
    first = training_sets([0, 1, 2], 1 << 30)
    assert len({sets[0] for sets in first.values()}) == 3
    for cache_bytes in (0, 1 << 30):
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 1, 2, 2, 0, 1]):
            for node, sets in training_sets(order, cache_bytes).items():
                assert set(sets) == {first[node][0]}


def test_a_small_cache_keeps_one_set_and_a_large_one_all():
    for cache_bytes, kept in ((0, 1), (1 << 30, 3)):
        client = GGEURClient(cache_bytes)
        aligned(data_rule=client, policy="single")
        assert len(client._sets) == kept


def test_weights_depend_on_neither_cache_nor_process():
    runs = [
        run(GGEUR(FedAvg(**ANY)), serial(spec(data_rule=GGEURClient(cache_bytes))))
        for cache_bytes in (0, 1 << 30, 1 << 30)
    ]
    assert runs[0] == runs[1] == runs[2]


# --- what is exchanged ---------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float64", 8)])
def test_bytes_of_the_statistics(dtype, width):
    exchanges = []
    aligned(exchanges=exchanges, wire_dtype=dtype)
    up = {e.node: e.up for e in exchanges if e.phase == "query.ggeur_statistics"}
    for node, counts in enumerate(COUNTS):
        classes = np.count_nonzero(counts)
        assert up[node] == classes * (width * (DIM * (DIM + 1) // 2 + DIM) + 8) + len(DOMAINS[node])


@pytest.mark.parametrize("rank", [None, 2])
def test_bytes_of_the_delivery(rank):
    exchanges = []
    strategy, _ = aligned(exchanges=exchanges, policy="multi", rank=rank)
    pack, options = strategy.delivery["ggeur-pack"], strategy.delivery["ggeur-options"]
    r = rank or DIM  # every class has more samples than dimensions
    prototypes = CLASSES * len(set(DOMAINS))
    arrays = payload_bytes(RecordDict({"ggeur-pack": pack}))
    assert arrays == 4 * CLASSES * (DIM * r + r) + prototypes * 4 * DIM
    down = [e.down for e in exchanges if e.phase == "query.ggeur_deliver"]
    assert down == [arrays + payload_bytes(RecordDict({"ggeur-options": options}))] * 3


def test_without_foreign_vectors_no_means_are_sent():
    strategy, _ = aligned(policy="multi", own=30, foreign=0)
    pack = strategy.delivery["ggeur-pack"]
    assert {k.split("/")[0] for k in pack} == {"values", "vectors"}
    assert payload_bytes(RecordDict({"ggeur-pack": pack})) == 4 * CLASSES * (DIM * DIM + DIM)


def test_small_cells_are_withheld():
    exchanges = []
    aligned(exchanges=exchanges, n_min_upload=10)
    up = {e.node: e.up for e in exchanges if e.phase == "query.ggeur_statistics"}
    a_class = 4 * (DIM * (DIM + 1) // 2 + DIM) + 8
    assert up == {k: (row >= 10).sum() * a_class + len(DOMAINS[k]) for k, row in enumerate(COUNTS)}


def test_one_exchange_each_before_the_rounds_and_none_in_them():
    exchanges = []
    run(GGEUR(FedAvg(**ANY)), serial(spec(data_rule=GGEURClient()), exchanges), rounds=2)
    assert [(e.phase, e.node) for e in exchanges] == [
        (phase, node)
        for phase in ("query.ggeur_statistics", "query.ggeur_deliver", *["train", "evaluate"] * 2)
        for node in range(3)
    ]


def test_clients_that_come_later_get_the_delivery_before_their_first_training():
    exchanges = []
    strategy, grid = (
        GGEUR(FedAvg(**ANY), weighting="augmented"),
        serial(spec(data_rule=GGEURClient()), exchanges),
    )
    with grid.cohort([0, 1]):
        arrays = strategy.prepare(grid, initial())
    del exchanges[:]
    for server_round, nodes in enumerate([[0, 1], [1, 2], [0, 1, 2]], start=1):
        with grid.cohort(nodes):
            arrays = one_round(strategy, grid, arrays, server_round)
    phases = [(e.phase, e.node) for e in exchanges if e.phase != "evaluate"]
    assert phases == [
        ("train", 0),
        ("train", 1),
        ("query.ggeur_deliver", 2),
        ("train", 1),
        ("train", 2),
        ("train", 0),
        ("train", 1),
        ("train", 2),
    ]
    late = deliveries(exchanges)[2]
    assert late["ggeur_synthetic"] > 0
    trained = [e.metrics["num-examples"] for e in exchanges if (e.phase, e.node) == ("train", 2)]
    assert trained == [late["ggeur_originals"] + late["ggeur_synthetic"]] * 2


def test_state_is_given_and_taken():
    strategy, grid = aligned()
    arrays = one_round(strategy, grid, initial(), 1)
    resumed = GGEUR(FedAvg(**ANY))
    resumed.load_state_dict(strategy.state_dict())
    assert raw(one_round(resumed, grid, arrays, 2)) == raw(one_round(strategy, grid, arrays, 2))
    assert resumed.state_dict().keys() == strategy.state_dict().keys()
    assert resumed.delivery["ggeur-options"] == strategy.delivery["ggeur-options"]


def test_before_any_delivery_clients_train_on_their_own_rows():
    plain = run(FedAvg(**ANY), serial(spec()))
    assert run(FedAvg(**ANY), serial(spec(data_rule=GGEURClient()))) == plain


# --- what goes wrong -----------------------------------------------------------------------------


class ReplyingGrid(SerialGrid):
    """A client's exception becomes an error reply, as on Ray and under ``flwr run``."""

    def execute(self, messages):
        outcomes = []
        for message in messages:
            try:
                outcomes += super().execute([message])
            except ValueError as error:
                outcomes.append(Outcome(failure(message, error), 0.0))
        return outcomes


def test_a_client_app_without_the_client_half_is_an_error_that_says_so():
    said = r"none of 3 clients answered 'query\.ggeur_statistics' \(.*must register .*GGEURClient$"
    with pytest.raises(RuntimeError, match=said):
        GGEUR(FedAvg(**ANY)).prepare(serial(spec(), grid=ReplyingGrid), initial())


def test_nothing_to_align_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match=r"class with 100 or more samples; lower n_min_upload$"):
        aligned(n_min_upload=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide_fraction": 0.0}, r"^guide_fraction: must be above 0 and at most 1, got 0.0$"),
        ({"guide_fraction": 1.5}, r"^guide_fraction: must be above 0 and at most 1, got 1.5$"),
        ({"n_min_upload": 0}, r"^n_min_upload: must be 1 or more, got 0$"),
        ({"rank": 0}, r"^rank: must be 1 or more, got 0$"),
        ({"jitter": -0.1}, r"^jitter: must be 0 or more, got -0.1$"),
        ({"policy": "double"}, r"^policy: unknown, got 'double'"),
        ({"policy": "single", "foreign": 3}, r"^foreign: policy 'single' fixes it, got 3"),
        ({"policy": "single", "own": -1}, r"^own: must not be negative, got -1"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        GGEUR(FedAvg(), **options)


def test_a_client_that_cannot_take_its_delivery_is_left_out_of_the_round():
    class OneIsDeaf(SerialGrid):
        def execute(self, messages):
            deaf = [
                m.metadata.message_type == "query.ggeur_deliver"
                and m.metadata.dst_node_id == FIRST_NODE_ID + 2
                for m in messages
            ]
            heard = iter(super().execute([m for m, d in zip(messages, deaf, strict=True) if not d]))
            return [
                Outcome(failure(m, OSError("deaf")), 0.0) if d else next(heard)
                for m, d in zip(messages, deaf, strict=True)
            ]

    exchanges = []
    strategy, grid = GGEUR(FedAvg(**ANY)), serial(spec(data_rule=GGEURClient()), exchanges, OneIsDeaf)
    arrays = strategy.prepare(grid, initial())
    one_round(strategy, grid, arrays, 1)
    assert [e.node for e in exchanges if e.phase == "train"] == [0, 1]
    assert [e.node for e in exchanges if e.error] == [2, 2]  # asked again before its round


def test_a_resumed_strategy_collects_nothing_anew():
    first, _ = aligned()
    exchanges = []
    second, grid = GGEUR(FedAvg(**ANY)), serial(spec(data_rule=GGEURClient()), exchanges)
    second.load_state_dict(first.state_dict())
    arrays = initial()
    assert second.prepare(grid, arrays) is arrays
    one_round(second, grid, arrays, 1)
    assert [e.phase for e in exchanges[:4]] == ["query.ggeur_deliver"] * 3 + ["train"]
