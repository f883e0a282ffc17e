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
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, MultiKrum, Strategy
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

from .config.objects import call, check_options, contents, load, make, parameters
from .engine.grid import EngineGrid, Observer
from .engine.system import System, SystemGrid
from .errors import NotApplicable, UserError

log = logging.getLogger("fedbench")

_NAMED = 1_000
"""Attackers that the log names."""

_MAX_ALIGNED_DIMENSION = 4096
"""An eigendecomposition of this size takes half a minute a class; beyond it, features are needed."""


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
    _check_fit(config, spec)
    _check_alignment(config, federation)
    _check_rule(config, spec)
    _check_attack(config, spec)
    sizes = federation.sizes
    taking_part = len(sizes) - len(spec.new)
    if config.clients_per_round is not None and not 1 <= config.clients_per_round <= taking_part:
        raise UserError(
            f"clients_per_round={config.clients_per_round}: must be between 1 and the {taking_part} clients"
        )
    sampled = config.clients_per_round or taking_part
    method = _unaligned(config, strategy)
    _check_evaluation(config, spec, method)
    _check_patience(config, method)
    _check_robust(config, method, sampled)
    _check_privacy(config, spec, method)
    if config.privacy.get("_target_"):
        strategy = _strategy(config, sampled)

    engine = config.engine
    if config.client.seen_rows:
        strategy = averaging_seen_rows(strategy)
    pooling: Pooling | None = getattr(spec.model(), "pooling", None)
    if pooling is not None:
        bounded = bool(config.privacy.get("_target_")) or isinstance(method, _BOUNDED)
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


def _personal(strategy: Strategy) -> bool:
    return bool(getattr(strategy, "personal", False))


def _check_run(config: DictConfig) -> None:
    for name, low in (("rounds", 1), ("seed", 0), ("eval_every", 1)):
        if config[name] < low:
            raise UserError(f"{name}={config[name]}: must be {low} or more")
    if not 0 <= config.max_failures <= 1:
        raise UserError(f"max_failures={config.max_failures}: must be between 0 and 1")


def _check_engine(config: DictConfig) -> None:
    engine, options = load(config.engine._target_, "engine"), _options(config.engine)
    check_options(engine, options, "engine", {"app_factory", "sizes", "observer"})
    call(engine.check, "engine", options)
    if _on_gpu(config) and not torch.cuda.is_available():
        raise UserError(
            f"engine.gpus_per_worker={options['gpus_per_worker']}: torch finds no GPU here; use 0 for CPUs"
        )


def _on_gpu(config: DictConfig) -> bool:
    return bool(config.engine.get("gpus_per_worker", 0) > 0)


def _options(node: Any, *without: str) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(node, resolve=True)
    return {k: v for k, v in options.items() if k not in ("_target_", *without)}


def _strategy(config: DictConfig, sampled: int | None = None) -> Strategy:
    """Server half, inside its alignment and its personalization if there are any.

    Privacy lies between the two, because it hides an alignment's phases, and is left out where the number of
    clients of a round is not known yet.
    """
    node, privacy, align = config.strategy, config.privacy, config.align
    strategy: Strategy = make({"_target_": node._target_, **_options(node, "rule")}, "strategy")
    if sampled is not None:
        wrapper = {"_target_": privacy._target_, **_options(privacy, "mods")}
        strategy = make(wrapper, "privacy", strategy, num_sampled_clients=sampled)
    if align.get("_target_"):
        strategy = make({"_target_": align._target_, **_options(align, "client")}, "align", strategy)
    personal = config.personalization
    if personal.get("_target_"):
        wrapper = {"_target_": personal._target_, **_options(personal, "rule")}
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
    attack: Attack = make({"_target_": node._target_, **_options(node, "share")}, "attack")
    return attack


def _check_privacy_options(config: DictConfig) -> None:
    """Find mistakes in options before the data are read; the wrapper is made once clients are counted."""
    node = config.privacy
    if node.get("_target_"):
        given = {"strategy", "num_sampled_clients"}
        check_options(load(node._target_, "privacy"), _options(node, "mods"), "privacy", given)


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
    node = {"_target_": config.scenario._target_, **_options(config.scenario, *fractions)}
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
    options = _options(client, "model", "task", "local", "seen_rows")
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
        row_domain=federation.dataset.domain if local or personalised or _personal(strategy) else None,
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


def _check_fit(config: DictConfig, spec: ClientSpec) -> None:
    """Let the model predict two rows, so that one that does not fit the data or the task says so at once."""
    rows = spec.splits[0].train[:2]
    model = Stateless(spec.model(), spec.task.inputs)
    batch = spec.task.gather(spec.arrays, rows)
    batch["weight"] = torch.ones(len(rows))
    try:
        with torch.no_grad():
            spec.task.metrics(model.frozen(model.initial(), batch), batch)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"client.model: cannot take what client.task makes of data={config.choices.data} ({reason}); see "
            f"fedbench run client={config.choices.client} --cfg"
        ) from error


def _check_rule(config: DictConfig, spec: ClientSpec) -> None:
    """Refuse a client that the method cannot train."""
    name, rule = config.choices.strategy, spec.rule
    if rule.sgd_only and spec.training.optimizer != "sgd":
        raise NotApplicable(
            f"strategy={name} is derived for SGD, but client.optimizer={spec.training.optimizer}; "
            "set client.optimizer=sgd"
        )
    if rule.needs_classes and not spec.classes:
        raise NotApplicable(
            f"strategy={name} works on class labels, but data={config.choices.data} has none; choose a "
            "method such as fedavg, fedprox or scaffold"
        )
    model, client = Stateless(spec.model()), config.choices.client
    if rule.needs_norms and not model.norms:
        raise NotApplicable(
            f"strategy={name} keeps normalisation layers with the clients, but client={client} has none; "
            "set client.model.norm=batch, or layer"
        )
    if rule.cuts_model and (not model.head or model.head == set(model.shared)):
        raise NotApplicable(
            f"strategy={name} cuts a model into body and head, but client={client} has no "
            f"{'body below its' if model.head else 'layer called'} head; choose a client such as mlp"
        )


def _check_attack(config: DictConfig, spec: ClientSpec) -> None:
    """Refuse an attack on labels that the data do not have."""
    attack = spec.attack
    if attack is None or not attack.needs_labels:
        return
    if not spec.classes:
        raise NotApplicable(
            f"attack={config.choices.attack} changes class labels, but data={config.choices.data} have none; "
            "choose an attack on updates such as sign_flip"
        )
    one_each = {"y": torch.arange(spec.classes)}
    call(lambda **_: attack.poison(one_each, spec.classes), "attack", _options(config.attack))


def _check_evaluation(config: DictConfig, spec: ClientSpec, strategy: Strategy) -> None:
    count, clients = config.eval_clients, len(spec.splits) - len(spec.new)
    if count is None:
        return
    if not 0 <= count <= clients:
        raise UserError(
            f"eval_clients={count}: must be between 1 and the {clients} clients, 0 for none or null for all"
        )
    if count == 0 and (spec.local or _personal(strategy)):
        whose = (
            f"client.local={list(config.client.local)}"
            if spec.local
            else f"strategy={config.choices.strategy}"
        )
        raise NotApplicable(
            f"eval_clients=0 tests the global model alone, but {whose} leaves clients models of their own; "
            "use null or a number of clients"
        )


def _check_patience(config: DictConfig, strategy: Strategy) -> None:
    if config.patience is None:
        return
    if config.patience < 1:
        raise UserError(f"patience={config.patience}: must be 1 evaluation or more, or null for never")
    finish = getattr(type(strategy), "finish", Method.finish)
    if finish is not Method.finish:
        raise NotApplicable(
            f"patience={config.patience} may stop a run early, but strategy={config.choices.strategy} has "
            "work to do after a last round that is known; set patience=null"
        )


def _check_robust(config: DictConfig, strategy: Strategy, clients: int) -> None:
    """Refuse what Flower lets pass: with too few clients, its robust strategies withstand nothing."""
    name = config.choices.strategy
    if isinstance(strategy, MultiKrum | Bulyan):
        bad = strategy.num_malicious_nodes
        factor = 4 if isinstance(strategy, Bulyan) else 2
        if bad < 0:
            raise UserError(f"strategy.num_malicious_nodes={bad}: must be 0 or more")
        if clients < factor * bad + 3:
            raise NotApplicable(
                f"strategy={name} with strategy.num_malicious_nodes={bad} needs {factor} * {bad} + 3 = "
                f"{factor * bad + 3} clients a round, but there are {clients}"
            )
    if isinstance(strategy, MultiKrum):
        honest, chosen = clients - strategy.num_malicious_nodes, strategy.num_nodes_to_select
        if not 1 <= chosen <= honest:
            raise UserError(
                f"strategy.num_nodes_to_select={chosen}: must be between 1 and the {honest} clients of a "
                "round that are not malicious"
            )
    if isinstance(strategy, FedTrimmedAvg) and strategy.beta and int(strategy.beta * clients) == 0:
        raise NotApplicable(
            f"strategy={name} with strategy.beta={strategy.beta} cuts off less than one of {clients} "
            "clients, so none; raise one of the two"
        )


_BOUNDED = (MultiKrum, Bulyan, FedTrimmedAvg, FedMedian)
"""Strategies, beside those with privacy, in which a single reply must not have a say in others."""
_DOORS = ("prepare", "extra", "combine", "finish")
"""Where a method does more than average; Flower's privacy wrappers hide the first and the last."""


def _check_privacy(config: DictConfig, spec: ClientSpec, strategy: Strategy) -> None:
    """Refuse a method of which Flower's wrappers would clip and blur a part only."""
    privacy = f"privacy={config.choices.privacy}"
    if not config.privacy.get("_target_"):
        return
    if config.personalization.get("_target_"):
        raise NotApplicable(
            f"{privacy} covers the mean of clients' models, but personalization="
            f"{config.choices.personalization} sends more; use personalization=none or finetune"
        )
    if config.client.seen_rows:
        raise NotApplicable(f"{privacy} hides what clients have, but client.seen_rows tells it; use []")
    personal = _personal(strategy)
    opened = [d for d in _DOORS if getattr(type(strategy), d, None) not in (None, getattr(Method, d))]
    if personal or opened:
        what = "leaves clients models of their own" if personal else "does more than average what they send"
        raise NotApplicable(
            f"{privacy} covers the mean of clients' models, but strategy={config.choices.strategy} {what}; "
            "choose a strategy such as fedavg or fedprox"
        )
    if config.privacy.get("noise_multiplier") and Stateless(spec.model()).has_batch_norm:
        raise NotApplicable(
            f"{privacy} adds noise to all that is averaged, but client={config.choices.client} has running "
            "variances of BatchNorm, which must stay positive; choose another client.model.norm"
        )


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


def _check_alignment(config: DictConfig, federation: Federation) -> None:
    if not config.align.get("_target_"):
        return
    shape = federation.meta.shape
    if not federation.meta.classes:
        raise NotApplicable(
            f"align={config.choices.align} aligns what clients hold of each class, but "
            f"data={config.choices.data} ({federation.meta.task}) has no classes; set align=none"
        )
    if len(shape) != 1:
        raise NotApplicable(
            f"align={config.choices.align} works on feature vectors, but client={config.choices.client} with "
            f"features={config.choices.features} trains on examples of shape {shape}; choose a client such "
            "as mlp or linear, with features=pixels or another extractor"
        )
    if shape[0] > _MAX_ALIGNED_DIMENSION:
        size = shape[0] ** 2 * 8 / 1e9
        raise NotApplicable(
            f"align={config.choices.align}: a covariance of {shape[0]} features takes {size:.1f} GB a class; "
            f"use at most {_MAX_ALIGNED_DIMENSION} features, e.g. features.size=32 or features=torchvision"
        )
