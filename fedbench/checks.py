"""What cannot be combined: each check refuses, in one line that says what would be right."""

from __future__ import annotations

import torch
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum, Strategy
from omegaconf import DictConfig

from clients.app import ClientSpec
from scenarios import Federation
from strategies.functional import Stateless
from strategies.method import Method

from .config.objects import call, options_of
from .errors import NotApplicable, UserError

_MAX_ALIGNED_DIMENSION = 4096
"""An eigendecomposition of this size takes half a minute a class; beyond it, features are needed."""
BOUNDED = (MultiKrum, Bulyan, FedTrimmedAvg, FedMedian)
"""Strategies, beside those with privacy, in which a single reply must not have a say in others."""
_DOORS = ("prepare", "extra", "combine", "finish")
"""Where a method does more than average; Flower's privacy wrappers hide the first and the last."""


def personal(strategy: Strategy) -> bool:
    """Whether a strategy leaves clients models of their own."""
    return bool(getattr(strategy, "personal", False))


def check_fit(config: DictConfig, spec: ClientSpec) -> None:
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


def check_rule(config: DictConfig, spec: ClientSpec) -> None:
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


def check_attack(config: DictConfig, spec: ClientSpec) -> None:
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
    call(lambda **_: attack.poison(one_each, spec.classes), "attack", options_of(config.attack))


def check_evaluation(config: DictConfig, spec: ClientSpec, strategy: Strategy) -> None:
    """Refuse a number of clients that cannot evaluate, or none where only they can."""
    count, clients = config.eval_clients, len(spec.splits) - len(spec.new)
    if count is None:
        return
    if not 0 <= count <= clients:
        raise UserError(
            f"eval_clients={count}: must be between 1 and the {clients} clients, 0 for none or null for all"
        )
    if count == 0 and (spec.local or personal(strategy)):
        whose = (
            f"client.local={list(config.client.local)}"
            if spec.local
            else f"strategy={config.choices.strategy}"
        )
        raise NotApplicable(
            f"eval_clients=0 tests the global model alone, but {whose} leaves clients models of their own; "
            "use null or a number of clients"
        )


def check_patience(config: DictConfig, strategy: Strategy) -> None:
    """Refuse to stop early where that leaves a method unfinished."""
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


def check_robust(config: DictConfig, strategy: Strategy, clients: int) -> None:
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


def check_privacy(config: DictConfig, spec: ClientSpec, strategy: Strategy) -> None:
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
    own = personal(strategy)
    opened = [d for d in _DOORS if getattr(type(strategy), d, None) not in (None, getattr(Method, d))]
    if own or opened:
        what = "leaves clients models of their own" if own else "does more than average what they send"
        raise NotApplicable(
            f"{privacy} covers the mean of clients' models, but strategy={config.choices.strategy} {what}; "
            "choose a strategy such as fedavg or fedprox"
        )
    if config.privacy.get("noise_multiplier") and Stateless(spec.model()).has_batch_norm:
        raise NotApplicable(
            f"{privacy} adds noise to all that is averaged, but client={config.choices.client} has running "
            "variances of BatchNorm, which must stay positive; choose another client.model.norm"
        )


def check_alignment(config: DictConfig, federation: Federation) -> None:
    """Refuse data on whose examples alignments cannot work."""
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
