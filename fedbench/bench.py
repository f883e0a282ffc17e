"""From a composed config to the parts of a run: federation, client app, strategy and engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.serverapp.strategy import FedAvg, Strategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from clients.app import ClientSpec, make_client_app
from clients.features.base import cached_features
from clients.tasks.base import Task
from clients.training import Training
from scenarios import Dataset, Federation
from scenarios.federation import Names
from strategies.asynchronous import Asynchronous
from strategies.attacks import Attack, attackers
from strategies.errors import StrategyError
from strategies.functional import Stateless
from strategies.keep_local import KeepLocal, local_names
from strategies.local import LocalRule
from strategies.method import Method, may_merge
from strategies.niw.rule import names_in_scope
from strategies.pooling import Pooling, pooled
from strategies.seeding import generator, torch_seed
from strategies.seen_rows import SeenRows, averaging_seen_rows

from . import checks
from .checks import personal
from .config.objects import call, check_options, contents, load, make, options_of, parameters
from .engine.grid import EngineGrid, Observer
from .engine.system import System, SystemGrid
from .errors import NotApplicable, UserError

log = logging.getLogger("fedbench")

_NAMED = 1_000
"""Attackers that the log names."""


@dataclass(frozen=True)
class Bench:
    """The parts of one run.

    Parameters
    ----------
    config : DictConfig
        What it was built from.
    federation : Federation
        Data and split.
    spec : ClientSpec
        What a node needs.
    strategy : Strategy
        Server half.
    make_grid : callable
        ``make_grid(observer)`` starts the engine.
    """

    config: DictConfig
    federation: Federation
    spec: ClientSpec
    strategy: Strategy
    make_grid: Callable[[Observer], EngineGrid]

    @property
    def label(self) -> str:
        """Short name of the method, e.g. ``fedprox+ggeur``."""
        chosen = self.config.choices
        around = [chosen.align, chosen.personalization]
        return "+".join(
            [chosen.strategy, *(name for name in around if name not in ("none", chosen.strategy))]
        )

    @property
    def asynchronous(self) -> bool:
        """Whether the strategy asks clients one by one, whenever one is done."""
        return isinstance(_unaligned(self.config, self.strategy), Asynchronous)

    @property
    def personal(self) -> bool:
        """Whether clients predict with models of their own, so that there is no global model to test."""
        return self.spec.row_domain is not None

    @property
    def attackers(self) -> list[int]:
        """Partition ids of the malicious clients, in order."""
        return sorted(self.spec.attackers)


def build(config: DictConfig) -> Bench:
    """Build all parts of a run, and find every mistake that can be found before it starts.

    Raises
    ------
    UserError, ScenarioError, ClientError
        For a choice that cannot be, in one line.
    """
    _check_run(config)
    _check_engine(config)
    strategy = _strategy(config)
    system = _system(config, strategy)
    attack = _attack(config)
    _check_privacy_options(config)
    dataset = make(config.data, "data").load()
    _check_kind(config, dataset)
    dataset = _with_features(config, dataset)
    federation = _federation(config, dataset)
    task = _made_for(federation.dataset.facts, config.client.task, "client.task")
    spec = _client_spec(config, federation, task, strategy, attack)
    checks.check_fit(config, spec)
    checks.check_alignment(config, federation)
    checks.check_rule(config, spec)
    checks.check_attack(config, spec)
    sizes = federation.sizes
    taking_part = len(sizes) - len(spec.new)
    if config.clients_per_round is not None and not 1 <= config.clients_per_round <= taking_part:
        raise UserError(
            f"clients_per_round={config.clients_per_round}: must be between 1 and the {taking_part} clients"
        )
    sampled = config.clients_per_round or taking_part
    method = _unaligned(config, strategy)
    checks.check_evaluation(config, spec, method)
    checks.check_patience(config, method)
    checks.check_robust(config, method, sampled)
    checks.check_privacy(config, spec, method)
    if config.privacy.get("_target_"):
        strategy = _strategy(config, sampled)

    engine = config.engine
    if config.client.seen_rows:
        strategy = averaging_seen_rows(strategy)
    pooling: Pooling | None = getattr(spec.model(), "pooling", None)
    if pooling is not None:
        bounded = bool(config.privacy.get("_target_")) or isinstance(method, checks.BOUNDED)
        strategy = pooled(strategy, replace(pooling, moments={}) if bounded else pooling)
    single = config.client.seen_rows or config.personalization.get("_target_") or pooling is not None
    if engine.get("partial_sums") and (single or not may_merge(method)):
        engine = OmegaConf.merge(engine, {"partial_sums": False})

    def make_grid(observer: Observer) -> EngineGrid:
        _say(config, spec, method, len(sizes))  # not above, because a run keeps a log from its start on
        factory = partial(make_client_app, spec)
        grid: EngineGrid = make(engine, "engine", app_factory=factory, sizes=sizes, observer=observer)
        if system is None:
            return grid
        work = partial(_work, spec.training, grid.sizes)
        return SystemGrid(grid, system, work, config.seed, observer, config.clients_per_round)

    return Bench(config, federation, spec, strategy, make_grid)


def _check_run(config: DictConfig) -> None:
    for name, low in (("rounds", 1), ("seed", 0), ("eval_every", 1)):
        if config[name] < low:
            raise UserError(f"{name}={config[name]}: must be {low} or more")
    if not 0 <= config.max_failures <= 1:
        raise UserError(f"max_failures={config.max_failures}: must be between 0 and 1")


def _check_engine(config: DictConfig) -> None:
    engine, options = load(config.engine._target_, "engine"), options_of(config.engine)
    check_options(engine, options, "engine", {"app_factory", "sizes", "observer"})
    call(engine.check, "engine", options)
    if _on_gpu(config) and not torch.cuda.is_available():
        raise UserError(
            f"engine.gpus_per_worker={options['gpus_per_worker']}: torch finds no GPU here; use 0 for CPUs"
        )


def _on_gpu(config: DictConfig) -> bool:
    return bool(config.engine.get("gpus_per_worker", 0) > 0)


def _strategy(config: DictConfig, sampled: int | None = None) -> Strategy:
    """Server half, inside its alignment and its personalization if there are any.

    Privacy lies between the two, because it hides an alignment's phases, and is left out where the number of
    clients of a round is not known yet.
    """
    node, privacy, align = config.strategy, config.privacy, config.align
    strategy: Strategy = make({"_target_": node._target_, **options_of(node, "rule")}, "strategy")
    if sampled is not None:
        wrapper = {"_target_": privacy._target_, **options_of(privacy, "mods")}
        strategy = make(wrapper, "privacy", strategy, num_sampled_clients=sampled)
    if align.get("_target_"):
        strategy = make({"_target_": align._target_, **options_of(align, "client")}, "align", strategy)
    around = config.personalization
    if around.get("_target_"):
        wrapper = {"_target_": around._target_, **options_of(around, "rule")}
        strategy = make(wrapper, "personalization", strategy)
    return strategy


def _unaligned(config: DictConfig, strategy: Strategy) -> Strategy:
    """The strategy that an alignment, and personalization, are around."""
    for group in (config.personalization, config.align):
        if group.get("_target_"):
            strategy = getattr(strategy, "strategy", strategy)
    return strategy


def _system(config: DictConfig, strategy: Strategy) -> System | None:
    """Devices and networks, if there are any, held against the way in which the strategy asks clients."""
    name, chosen, count = config.choices.strategy, config.choices.system, config.clients_per_round
    asynchronous = isinstance(_unaligned(config, strategy), Asynchronous)
    if not config.system.get("_target_"):
        if asynchronous:
            raise NotApplicable(
                f"strategy={name} is asynchronous and needs a clock, but system={chosen} has none; choose "
                "another, e.g. system=cross_device"
            )
        return None
    system: System = make(config.system, "system")
    if asynchronous and count is not None:
        raise NotApplicable(
            f"strategy={name} asks clients one by one, so clients_per_round={count} says nothing; "
            "set strategy.concurrency"
        )
    if system.over_sampling and count is None:
        raise NotApplicable(
            f"system.over_sampling={system.over_sampling}: asks for more than clients_per_round, which "
            f"{f'strategy={name} has none of' if asynchronous else 'is null'}; use 0"
        )
    return system


def _work(training: Training, sizes: npt.NDArray[np.int64], partition: int) -> int:
    """Examples that a client trains on in a round."""
    return training.examples(int(sizes[partition]))


def _attack(config: DictConfig) -> Attack | None:
    node = config.attack
    if not node.get("_target_"):
        return None
    check_options(attackers, {"share": node.share}, "attack", {"seed", "clients"})
    attack: Attack = make({"_target_": node._target_, **options_of(node, "share")}, "attack")
    return attack


def _check_privacy_options(config: DictConfig) -> None:
    """Find mistakes in options before the data are read; the wrapper is made once clients are counted."""
    node = config.privacy
    if node.get("_target_"):
        given = {"strategy", "num_sampled_clients"}
        check_options(load(node._target_, "privacy"), options_of(node, "mods"), "privacy", given)


def _check_kind(config: DictConfig, dataset: Dataset) -> None:
    node = contents(config.client.task, "client.task")
    kind = load(node.get("_target_", ""), "client.task").kind
    if kind != dataset.meta.task:
        raise UserError(
            f"client={config.choices.client} is made for {kind}, but data={config.choices.data} is "
            f"{dataset.meta.task}; see fedbench list data"
        )


def _made_for(facts: Mapping[str, Any], node: Any, where: str) -> Any:
    """A task or a model, told of the data what its constructor has a name for."""
    known = parameters(load(node.get("_target_", ""), where))
    return make(node, where, **{name: value for name, value in facts.items() if name in known})


def _with_features(config: DictConfig, dataset: Dataset) -> Dataset:
    """The data set with ``x`` replaced by frozen features."""
    if not config.features.get("_target_"):
        return dataset
    if "x" not in dataset.arrays:
        raise NotApplicable(
            f"features={config.choices.features} works on images or vectors, but data={config.choices.data} "
            f"has neither; set features=none"
        )
    extractor = make(config.features, "features")
    x = cached_features(extractor, dataset.arrays["x"], dataset.fingerprint(), config.cache_dir)
    meta = replace(dataset.meta, shape=x.shape[1:])
    return replace(dataset, arrays={**dataset.arrays, "x": x}, meta=meta)


def _federation(config: DictConfig, dataset: Dataset) -> Federation:
    fractions = {k: config.scenario[k] for k in ("val_fraction", "test_fraction") if k in config.scenario}
    node = {"_target_": config.scenario._target_, **options_of(config.scenario, *fractions)}
    skew = make(node, "scenario")
    build_node = {"_target_": "scenarios.build_federation", **fractions}
    federation: Federation = make(build_node, "scenario", dataset, skew, config.seed)
    if not all(len(rows) for rows in federation.tests.values()):
        raise UserError(
            f"scenario.test_fraction={fractions.get('test_fraction')}: leaves some domain without test rows, "
            f"and data={config.choices.data} has no official ones; raise it"
        )
    return federation


def _domains(federation: Federation) -> Names:
    """Domain of each client; where some mix domains, all count as mixed, a pure one being so by chance."""
    names = federation.domains
    return replace(names, places=np.full_like(names.places, -1)) if names.places.min() < 0 else names


def _client_spec(
    config: DictConfig, federation: Federation, task: Task, strategy: Strategy, attack: Attack | None
) -> ClientSpec:
    client = config.client
    options = options_of(client, "model", "task", "local", "seen_rows")
    training = make({"_target_": "clients.training.Training", **options}, "client")
    meta = federation.meta
    module = partial(
        make_module,
        contents(client.model, "client.model"),
        federation.dataset.facts,
        torch_seed(config.seed, "init"),
    )
    model = Stateless(module())  # one that does not fit the data says so here, before anything starts
    rule, local = _rule(config, strategy, model, task)
    personalised = bool(config.personalization.get("_target_")) or "rule" in config.personalization
    if personalised:
        rule = _personalised(config, strategy, rule, model)
    return ClientSpec(
        arrays={**federation.dataset.arrays, **federation.dataset.shared},
        splits=federation.clients,
        domains=_domains(federation),
        model=module,
        task=task,
        training=training,
        rule=rule,
        data_rule=make(config.align.client, "align.client") if config.align.get("client") else None,
        seed=config.seed,
        device="cuda" if _on_gpu(config) else "cpu",
        row_domain=federation.dataset.domain if local or personalised or personal(strategy) else None,
        attack=attack,
        attackers=_attackers(config, len(federation.clients)),
        classes=len(meta.classes),
        new=_new_clients(config, len(federation.clients)),
        support=tuple(config.support),
        local=local,
        mods=[load(name, "privacy.mods") for name in config.privacy.get("mods", [])],
    )


def _rule(
    config: DictConfig, strategy: Strategy, model: Stateless, task: Task
) -> tuple[LocalRule, frozenset[str]]:
    """Client half, and which parts of the model it keeps with the client whatever the method.

    The half is the one that the server half names, or for Flower's own strategies the one configured.
    """
    if "rule" in config.strategy:
        rule: LocalRule = make(config.strategy.rule, "strategy.rule")
    else:
        half: type[LocalRule] = getattr(strategy, "client_half", LocalRule)
        rule = half()
    client = config.client
    try:
        local = local_names(model.shared, list(client.local))
        tables = local_names([name for name in model.shared if name not in local], list(client.seen_rows))
        if local:
            rule = KeepLocal(rule, local)
    except StrategyError as error:
        raise NotApplicable(f"client={config.choices.client}: {error}") from error
    if not tables:
        return rule, local
    if not task.ids:
        raise NotApplicable(
            f"client.seen_rows={list(client.seen_rows)}: client={config.choices.client} has no ids of "
            "rows in its examples; use []"
        )
    return SeenRows(rule, dict.fromkeys(sorted(tables), task.ids)), local


def _attackers(config: DictConfig, clients: int) -> frozenset[int]:
    if not config.attack.get("_target_"):
        return frozenset()
    chosen: frozenset[int] = call(attackers, "attack", {"share": config.attack.share}, config.seed, clients)
    return chosen


def _personalised(config: DictConfig, strategy: Strategy, rule: LocalRule, model: Stateless) -> LocalRule:
    """The client half that goes around a method's, as the server half around it says, or as configured."""
    node = config.personalization
    if "rule" in node:
        half: LocalRule = make(node.rule, "personalization.rule", rule)
        return half
    try:
        names_in_scope(sorted(model.trainable), node.scope)
        half = strategy.client_rule(rule)  # type: ignore[attr-defined]
    except StrategyError as error:
        raise NotApplicable(f"personalization={config.choices.personalization}: {error}") from error
    return half


def _new_clients(config: DictConfig, clients: int) -> frozenset[int]:
    """Clients that take no part in training: a function of the seed and their number."""
    share = config.new_clients
    if not 0 <= share < 1:
        raise UserError(f"new_clients={share}: must be 0 or more and below 1, a share of the clients")
    if any(rows < 0 for rows in config.support) or not config.support:
        raise UserError(f"support={list(config.support)}: must be numbers of rows, 0 or more")
    if not share:
        return frozenset()
    count = max(1, round(share * clients))
    if count >= clients:
        raise UserError(f"new_clients={share}: leaves none of the {clients} clients to train")
    if config.system.get("_target_"):
        raise NotApplicable(
            f"new_clients={share}: system={config.choices.system} does not tell them from others; use "
            "system=none"
        )
    chosen = generator(config.seed, "new clients").choice(clients, count, replace=False)
    return frozenset(chosen.tolist())


def _say(config: DictConfig, spec: ClientSpec, strategy: Strategy, clients: int) -> None:
    """Log who attacks, and what privacy does not keep."""
    chosen = config.choices
    if spec.attackers:
        who = ", ".join(map(str, sorted(spec.attackers)[:_NAMED])) + ", ..." * (len(spec.attackers) > _NAMED)
        log.info("attack=%s: %d of %d clients: %s", chosen.attack, len(spec.attackers), clients, who)
    if config.engine.get("partial_sums") and not may_merge(strategy):
        log.info("engine.partial_sums: of no effect, strategy=%s looks at single updates", chosen.strategy)
    mean = type(strategy).aggregate_train in (FedAvg.aggregate_train, Method.aggregate_train)
    weighting = spec.training.weighting
    if config.privacy.get("noise_multiplier") and not (mean and weighting == "uniform"):
        log.warning(
            "privacy=%s: its noise is meant for a mean of equally weighted clients, but strategy=%s with "
            "client.weighting=%s takes another, so noise_multiplier promises more than is kept",
            chosen.privacy,
            chosen.strategy,
            weighting,
        )


def make_module(node: dict[str, Any], facts: Mapping[str, Any], seed: int) -> nn.Module:
    """A client's model with its initial weights, the same in every process and for every method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = _made_for(facts, node, "client.model")
    return module
