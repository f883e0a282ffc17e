"""GGEUR's server half: a Flower strategy that aligns clients' data once and then is another strategy."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.arrays import LazyArray
from strategies.errors import StrategyError
from strategies.ggeur import secure_sum
from strategies.ggeur.augment import Policy, Scale
from strategies.ggeur.client import OPTIONS, PACK
from strategies.ggeur.geometry import Boost, eigen_geometry
from strategies.ggeur.moments import ClassMoments, from_sums, guides, merge, merge_means
from strategies.ggeur.privacy import GaussianMechanism
from strategies.local import LocalRule
from strategies.state import load_state_dict, state_dict

PolicyChoice = Literal["auto", "none", "single", "multi", "code_digits", "code_lds"]
Statistics = dict[int, dict[int, ClassMoments]]


@dataclass(frozen=True)
class _Collected:
    """Outcome of step A.

    Parameters
    ----------
    statistics : dict
        Moments by node and class, packed; those of a secure sum stand under the first node of its group.
    domains : dict
        Domain of every node that takes part.
    clients : dict
        How many clients are in a secure sum; one where it says nothing.
    """

    statistics: Statistics = field(default_factory=dict)
    domains: dict[int, str] = field(default_factory=dict)
    clients: dict[int, int] = field(default_factory=dict)


class GGEUR(Strategy):
    r"""Geometric distribution alignment around any other strategy.

    Ma, Dai, Huang and Chen, "Geometric Knowledge-Guided Localized Global Distribution Alignment for
    Federated Learning", CVPR 2025, arXiv 2503.06457. Before round 1 clients upload count, mean and
    covariance of each class of their frozen embeddings; the server pools them exactly (eq. 4) and
    decomposes each class's covariance once; clients then add vectors shaped by it (eq. 5) around their
    own embeddings (Algorithm 1) and around other domains' class means (Algorithm 2). Rounds are the
    wrapped strategy's own. With nothing to add, ``GGEUR(X)`` is ``X`` bit for bit.

    Departures from the paper's text, where its published code or arithmetic speaks against it: noise is
    scaled by the root of the eigenvalues unless ``scale="linear"``; single-domain targets are the global
    class sizes; all clients enter the pooled covariance unless ``guide_fraction`` is below 1; clients do
    receive the global model.

    Parameters
    ----------
    strategy : Strategy
        What trains; not changed.
    policy : {"auto", "single", "multi", "code_digits", "code_lds", "none"}
        How many vectors a client adds. ``auto``: ``single`` for one domain; for several, ``multi`` with
        500 + 500 (each other domain), or with 50 + 50 where some client uploads nothing of some class.
    own, foreign : int or None
        ``single``: total of each class (T). ``multi``: total around own samples (T1), and number around
        each other domain's mean (M; 0 is the ablation "step 1 only"). ``None`` takes the policy's default.
    scale : {"sqrt", "linear", "sqrt_code_md", "iso", "gauss", "none"}
        Shape of the noise; ``none`` is class-balanced duplication, ``iso`` isotropic noise of the same
        trace, ``gauss`` samples of N(mean, covariance) of the class: the control arms.
    spectrum_boost : {"none", "code", "top10"}
        Inflate ten eigenvalues: the smallest (as the published code does) or the largest.
    jitter : float
        Isotropic variance added to the noise.
    rank : int or None
        Leading eigenpairs to keep; ``None`` keeps the numerical rank.
    rank_tol : float or None
        Eigenvalues up to this share of the largest are dropped; ``None`` is 1e-10 for float64 on the
        wire and 1e-6 for float32.
    guide_fraction : float
        Share of a class that the largest clients must cover to stand for all; 1 takes every client.
    n_min_upload : int
        Smaller (client, class) cells are withheld, because 2 samples can be read off their moments.
    between : bool
        Count the scatter between clients' means (eq. 4); ``False`` is an ablation.
    wire_dtype : {"float32", "float64"}
        Width of statistics and geometry on the wire.
    weighting : {"original", "augmented", "uniform"}
        Number of examples that a client reports for averaging: by default its own, so that the wrapped
        strategy weighs clients as it would without alignment.
    epsilon, delta : float or None, float
        Clients make their statistics (epsilon, delta)-differentially private for each of their examples, as
        :mod:`strategies.ggeur.privacy` accounts for; ``None`` sends exact ones. The rounds are not covered.
        Eigenvalues that the noise could make by itself are dropped.
    clip : float or None
        With ``epsilon``: L2 norm to which feature vectors are shortened for the statistics; training uses
        them as they are.
    secure : bool
        The server learns the sum of the statistics over clients alone, or over the clients of each domain
        where the policy needs their class means: two messages, see :mod:`strategies.ggeur.secure_sum`.
        ``auto`` then looks for classes that are missing in a domain, not at a client.
    classes : int or None
        Number of classes, needed with ``epsilon`` or ``secure``: which of them a client has must not show.

    Raises
    ------
    ValueError
        For an option out of range, in one line.

    Notes
    -----
    Sent once: up ``4 (d(d+1)/2 + d) + 8`` bytes a class at float32, or ``8 (d+1)(d+2)/2`` for each of
    ``classes`` with ``secure``; down ``4 (d r + r)`` a class and ``4 d`` for each prototype. Counts and means
    are exposed to the server unless hidden by the options above, domains' means also to other clients.
    With ``epsilon`` or ``secure``, clients do not report how many vectors they made.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        policy: PolicyChoice = "auto",
        own: int | None = None,
        foreign: int | None = None,
        scale: Scale = "sqrt",
        spectrum_boost: Boost = "none",
        jitter: float = 0.0,
        rank: int | None = None,
        rank_tol: float | None = None,
        guide_fraction: float = 1.0,
        n_min_upload: int = 1,
        between: bool = True,
        wire_dtype: Literal["float32", "float64"] = "float32",
        weighting: Literal["original", "augmented", "uniform"] = "original",
        epsilon: float | None = None,
        delta: float = 1e-5,
        clip: float | None = None,
        secure: bool = False,
        classes: int | None = None,
    ) -> None:
        if not 0 < guide_fraction <= 1:
            raise ValueError(f"guide_fraction: must be above 0 and at most 1, got {guide_fraction}")
        for name, value, low in (
            ("n_min_upload", n_min_upload, 1),
            ("rank", rank, 1),
            ("jitter", jitter, 0),
            ("classes", classes, 1),
        ):
            if value is not None and value < low:
                raise ValueError(f"{name}: must be {low} or more, got {value}")
        Policy.of("multi" if policy == "auto" else policy, own, foreign)
        if (epsilon is None) != (clip is None):
            raise ValueError(
                f"clip: epsilon needs it and nothing else does, got {clip} with epsilon {epsilon}"
            )
        if classes is None and (secure or epsilon is not None):
            raise ValueError("classes: epsilon and secure need the number of classes, got none")
        if secure and guide_fraction < 1:
            raise ValueError(f"guide_fraction: secure sums are over all clients, got {guide_fraction}; use 1")
        if secure and not between:
            raise ValueError("between: secure sums do not show the scatter between clients; use true")
        self.strategy = strategy
        self.policy, self.own, self.foreign = policy, own, foreign
        self.scale, self.spectrum_boost, self.jitter = scale, spectrum_boost, jitter
        self.rank = rank
        self.rank_tol = rank_tol if rank_tol is not None else (1e-6 if wire_dtype == "float32" else 1e-10)
        self.guide_fraction, self.n_min_upload, self.between = guide_fraction, n_min_upload, between
        self.wire_dtype, self.weighting = wire_dtype, weighting
        self.secure, self.classes = secure, classes
        self.mechanism = None
        if epsilon is not None and clip is not None:
            self.mechanism = GaussianMechanism(float(epsilon), delta, float(clip))
        if scale == "sqrt_code_md":
            self.spectrum_boost = "code"
        self.delivery: RecordDict | None = None
        self.diagnostics: dict[str, float] = {}
        self._delivered: set[int] = set()
        self._resumed = False

    # --- the phase before the rounds -------------------------------------------------------------

    def prepare(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Collect, pool, decompose and deliver (steps A and B); returns ``arrays`` for round 1."""
        inner: Callable[..., ArrayRecord] | None = getattr(self.strategy, "prepare", None)
        arrays = inner(grid, arrays) if inner else arrays
        if self._resumed:
            self._resumed = False
            return arrays
        nodes = _connected(grid, getattr(self.strategy, "min_available_nodes", 1))
        collected = self._secure_sums(grid, nodes) if self.secure else self._collect(grid, nodes)
        self.delivery = self._geometry(collected)
        _refuse_silence(self._deliver(grid, list(collected.domains)), "query.ggeur_deliver")
        return arrays

    def _query(self) -> dict[str, Any]:
        """What clients need to know of the options for step A."""
        config: dict[str, Any] = {"n-min-upload": self.n_min_upload, "wire-dtype": self.wire_dtype}
        if self.secure or self.mechanism:
            config["classes"] = self.classes
        return config | (asdict(self.mechanism) if self.mechanism else {})

    def _collect(self, grid: Grid, nodes: list[int]) -> _Collected:
        """Step A with each client's own statistics."""
        query = RecordDict({"config": ConfigRecord(self._query())})
        replies = _ask(grid, nodes, "query.ggeur_statistics", query)
        collected = _Collected()
        for node, content in _answers(replies, "query.ggeur_statistics").items():
            collected.statistics[node] = _read_moments(content.array_records["moments"])
            collected.domains[node] = str(content.config_records["config"]["domain"])
        return collected

    def _secure_sums(self, grid: Grid, nodes: list[int]) -> _Collected:
        """Step A with sums over all clients, or over each domain's where their means are needed.

        Raises
        ------
        StrategyError
            If a group has a single client, whose sum would be its own, or lost one.
        """
        replies = _answers(_ask(grid, nodes, "query.ggeur_keys", RecordDict()), "query.ggeur_keys")
        told = {node: content.config_records["config"] for node, content in replies.items()}
        collected = _Collected(domains={node: str(config["domain"]) for node, config in told.items()})
        by_domain = self._policy({}, collected.domains).foreign > 0
        groups: dict[str, list[int]] = defaultdict(list)
        for node, domain in collected.domains.items():
            groups[domain if by_domain else ""].append(node)
        messages = []
        for domain, members in groups.items():
            if len(members) < 2:
                where = f"domain '{domain}' has a single client" if by_domain else "there is a single client"
                raise StrategyError(
                    f"GGEUR: {where}, so that a secure sum would be its own statistics; "
                    + ("set foreign=0 or secure=false" if by_domain else "set secure=false")
                )
            config = ConfigRecord(self._query() | {"keys": [told[node]["public"] for node in members]})
            query = RecordDict({"config": config})
            messages += [Message(query, node, "query.ggeur_statistics") for node in members]
        answers = list(grid.send_and_receive(messages))
        uploads = {
            r.metadata.src_node_id: r.content.array_records["moments"]["masked"].numpy()
            for r in answers
            if r.has_content()
        }
        if len(uploads) < len(told):
            raise StrategyError(
                f"GGEUR: {len(told) - len(uploads)} of {len(told)} clients gave a key but no statistics "
                f"({_reason(answers)}), so the others' masks do not cancel; run again or set secure=false"
            )
        for members in groups.values():
            sums = secure_sum.total(uploads[node] for node in members)
            collected.statistics[members[0]] = {
                label: from_sums(row) for label, row in enumerate(sums) if round(row[0]) > 0
            }
            collected.clients[members[0]] = len(members)
        return collected

    def _geometry(self, collected: _Collected) -> RecordDict:
        """Step B: pooled moments, one eigendecomposition a class, prototypes a domain (eq. 4)."""
        statistics, domains = collected.statistics, collected.domains
        by_class: dict[int, list[tuple[int, ClassMoments]]] = defaultdict(list)
        for node, classes in statistics.items():
            for label, moments in classes.items():
                by_class[label].append((node, moments))
        if not by_class:
            raise StrategyError(
                f"GGEUR: no client has a class with {self.n_min_upload} or more samples; lower n_min_upload"
            )
        policy = self._policy(statistics, domains)
        arrays = ArrayRecord()
        ranks, effective = [], []

        def put(key: str, value: np.ndarray[Any, Any]) -> None:
            arrays[key] = LazyArray(np.ascontiguousarray(value, dtype=self.wire_dtype))

        for label, parts in sorted(by_class.items()):
            chosen = guides([m.count for _, m in parts], self.guide_fraction)
            pooled = merge((parts[i][1] for i in chosen), between=self.between)
            floor = 0.0
            if self.mechanism:
                noisy = sum(collected.clients.get(parts[i][0], 1) for i in chosen)
                floor = self.mechanism.edge(pooled.mean.size, noisy, pooled.count)
            geometry = eigen_geometry(
                pooled,
                sum(m.count for _, m in parts),
                rank=self.rank,
                rank_tol=self.rank_tol,
                floor=floor,
                spectrum_boost=self.spectrum_boost,
            )
            put(f"values/{label}", geometry.values)
            put(f"vectors/{label}", geometry.vectors)
            if self.scale == "gauss":
                put(f"mean/{label}", pooled.mean)
            if policy.foreign:
                for domain in sorted({domains[node] for node, _ in parts}):
                    own = [m for node, m in parts if domains[node] == domain]
                    put(f"prototype/{label}/{domain}", merge_means(own))
            ranks.append(geometry.rank)
            effective.append(geometry.effective_rank)
        self.diagnostics = self._diagnose(collected, len(by_class), policy) | {
            "ggeur_rank": float(np.mean(ranks)),
            "ggeur_effective_rank": float(np.mean(effective)),
        }
        options = self._options(policy, by_class)
        digest = hashlib.blake2b(repr(sorted(options.items())).encode(), digest_size=16)
        for key, array in arrays.items():
            digest.update(f"{key}{array.shape}".encode())
            digest.update(array.numpy().data)
        options["hash"] = digest.hexdigest()
        return RecordDict({PACK: arrays, OPTIONS: ConfigRecord(options)})

    def _diagnose(self, collected: _Collected, classes: int, policy: Policy) -> dict[str, float]:
        """What a report says of the statistics and of what clients make of them."""
        told = {"ggeur_foreign": float(policy.foreign)}
        if policy.own is not None:
            told["ggeur_own"] = float(policy.own)
        if not self.secure:
            told |= _cell_sizes(collected.statistics, classes)
        if self.mechanism:
            told |= {
                "ggeur_epsilon": self.mechanism.epsilon,
                "ggeur_delta": self.mechanism.delta,
                "ggeur_privacy_std": self.mechanism.std,
            }
        return told

    def _options(self, policy: Policy, by_class: dict[int, list[tuple[int, ClassMoments]]]) -> dict[str, Any]:
        """What clients need to know for step D."""
        options: dict[str, Any] = {
            "policy": policy.name,
            "own": -1 if policy.own is None else policy.own,
            "foreign": policy.foreign,
            "total": -1 if policy.total is None else policy.total,
            "drops": policy.drops,
            "scale": self.scale,
            "jitter": float(self.jitter),
            "weighting": self.weighting,
            "classes": sorted(by_class),
            "counts": [sum(m.count for _, m in by_class[label]) for label in sorted(by_class)],
        }
        if self.secure or self.mechanism:
            options["quiet"] = True
        return options

    def _policy(self, statistics: Statistics, domains: dict[int, str]) -> Policy:
        if self.policy != "auto":
            return Policy.of(self.policy, self.own, self.foreign)
        if len(set(domains.values())) == 1:
            return Policy.of("single", self.own)
        every = set().union(*statistics.values())
        size = 500 if all(set(classes) == every for classes in statistics.values()) else 50
        return Policy.of(
            "multi",
            size if self.own is None else self.own,
            size if self.foreign is None else self.foreign,
        )

    def _deliver(self, grid: Grid, nodes: list[int]) -> list[Message]:
        assert self.delivery is not None
        replies = _ask(grid, nodes, "query.ggeur_deliver", self.delivery)
        self._delivered |= {reply.metadata.src_node_id for reply in replies if reply.has_content()}
        return replies

    # --- the rounds: the wrapped strategy's ------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of the wrapped strategy, after a delivery to clients that had none yet.

        A client that could not take its delivery is left out of the round.
        """
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        new = sorted({m.metadata.dst_node_id for m in messages} - self._delivered)
        if self.delivery is None:
            return messages
        if new:
            self._deliver(grid, new)
        return [m for m in messages if m.metadata.dst_node_id in self._delivered]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the wrapped strategy."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the wrapped strategy."""
        self.strategy.summary()

    @property
    def personal(self) -> bool:
        """As the wrapped strategy."""
        return bool(getattr(self.strategy, "personal", False))

    @property
    def client_half(self) -> type[LocalRule]:
        """As the wrapped strategy."""
        half: type[LocalRule] = getattr(self.strategy, "client_half", LocalRule)
        return half

    def finish(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """As the wrapped strategy."""
        inner: Callable[..., ArrayRecord] | None = getattr(self.strategy, "finish", None)
        return inner(grid, arrays) if inner else arrays

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Prepare, run the rounds as Flower does, and finish."""
        result = super().start(grid, self.prepare(grid, initial_arrays), *args, **kwargs)
        result.arrays = self.finish(grid, result.arrays)
        return result

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Delivered geometry and options, with the wrapped strategy's own state."""
        state: dict[str, Any] = {
            "strategy": state_dict(self.strategy),
            "diagnostics": dict(self.diagnostics),
        }
        if self.delivery is not None:
            state["pack"] = {k: v.numpy() for k, v in self.delivery.array_records[PACK].items()}
            state["options"] = dict(self.delivery.config_records[OPTIONS])
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; :meth:`prepare` then has nothing to do.

        Clients are sent the geometry anew before they next train: whether they still have it is not known.
        """
        self._resumed = "pack" in state
        self._delivered = set()
        self.diagnostics = dict(state["diagnostics"])
        if "pack" in state:
            pack = ArrayRecord({k: Array(v) for k, v in state["pack"].items()})
            self.delivery = RecordDict({PACK: pack, OPTIONS: ConfigRecord(state["options"])})
        load_state_dict(self.strategy, state["strategy"])


def _connected(grid: Grid, minimum: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < minimum:
        time.sleep(1)
    return nodes


def _ask(grid: Grid, nodes: list[int], message_type: str, content: RecordDict) -> list[Message]:
    return list(grid.send_and_receive([Message(content, node, message_type) for node in nodes]))


def _answers(replies: list[Message], message_type: str) -> dict[int, RecordDict]:
    """Contents by node of the clients that answered; raises StrategyError if none did."""
    _refuse_silence(replies, message_type)
    return {reply.metadata.src_node_id: reply.content for reply in replies if reply.has_content()}


def _refuse_silence(replies: list[Message], message_type: str) -> None:
    """Raise StrategyError if no client answered, because nothing can then be aligned."""
    if any(reply.has_content() for reply in replies):
        return
    raise StrategyError(
        f"GGEUR: none of {len(replies)} clients answered '{message_type}' ({_reason(replies)}); their "
        "ClientApp must register the actions of the client half, strategies.GGEURClient"
    )


def _reason(replies: list[Message]) -> str:
    """Last line of the first error."""
    errors = [str(reply.error.reason) for reply in replies if reply.has_error()]
    return errors[0].strip().splitlines()[-1] if errors else "no reply"


def _read_moments(arrays: ArrayRecord) -> dict[int, ClassMoments]:
    classes = {}
    for key in arrays:
        kind, label = key.split("/")
        if kind == "count":
            mean = arrays[f"mean/{label}"].numpy().astype(np.float64)
            classes[int(label)] = ClassMoments(
                int(arrays[f"count/{label}"].numpy()), mean, arrays[f"cov/{label}"].numpy()
            )
    return classes


def _cell_sizes(statistics: Statistics, classes: int) -> dict[str, float]:
    """Histogram of samples a (client, class) cell; the small ones leak their rows."""
    counts = [m.count for cells in statistics.values() for m in cells.values()]
    counts += [0] * (len(statistics) * classes - len(counts))
    edges = [("0", 0, 0), ("1_2", 1, 2), ("3_9", 3, 9), ("10_49", 10, 49), ("50_up", 50, np.inf)]
    return {f"ggeur_cells_{name}": float(sum(a <= n <= b for n in counts)) for name, a, b in edges}
