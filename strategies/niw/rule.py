"""NIW-Meta's and FedHB's client halves: another method's rule, and a posterior of the part in scope.

Kim and Hospedales, arXiv 2306.09702 and 2305.04979; see `posterior`, `estimators` and `adapt` for what is
reconstructed and what derived. The part in scope starts every round at the prior's mean ``m0``, which comes
with the message. The other method neither sees nor sends it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import StrategyError
from ..functional import Batch, Forward, Params, differentiate_functionally
from ..keep_local import KeepLocal, _Completed
from ..local import FineTune, LocalRule, Phase, Round, Upload, part, prefixed, sent, setting
from ..optim import State
from ..personal import PersonalRule
from ..wrapped import WrappedRule
from .adapt import TestPrior, closed_form, fixed_prior, personalise, prior_predictive, variational
from .estimators import (
    GGN,
    OFFICIAL_LIKE,
    PLAIN,
    Curvature,
    Descent,
    Fisher,
    Loss,
    Newton,
    Output,
    adapted,
    laplace,
    map_estimate,
    resting,
    sgld_moments,
    tensorwise,
)
from .fedhb import client_spike
from .objective import health, meta_gradient
from .posterior import Family, Gaussian, Prior, Quadratic, local_posterior, standard_normal
from .server import moments

PRIOR = "niw-prior"
"""Key of the record with ``m0.<name>`` and ``logp.<name>``, the latter a scalar where one serves a tensor."""
MOMENTS, GRADIENT, SPIKE = "niw-moments", "niw-gradient", "niw-spike"
"""Keys of the records in which clients answer: ``s1.`` and ``s2.``; ``m0.`` and ``logp.``; ``s1.`` alone."""
BUFFERS = r"(^|\.)running_(mean|var)$"
"""Names of floating buffers, which belong to no scope: the server cannot tell them from parameters."""

Estimator = Literal["auto", "newton", "laplace", "adapted", "tensorwise", "sgld"]
Personalise = Literal["map", "closed", "variational", "none"]

_PREFIX, _FEATURES, _DRAW = "niw-", "niw-features", "niw-draw-"
_MOST_AUTOMATIC = 1024
"""Most weights for which ``estimator="auto"`` takes Newton's method, whose steps are cubic in them."""
_CHUNK = 512
"""Rows whose representations are computed at a time."""


@dataclass(frozen=True)
class Options:
    """What the server half tells clients; `NIWMeta` and `FedHB` describe it.

    Raises
    ------
    ValueError
        If a value cannot be, in one line that starts with the option's name.
    """

    protocol: Literal["moments", "gradient", "fedhb"] = "moments"
    n0: float = 1e3
    l0: float = 1e3
    family: Family = "diag"
    estimator: Estimator = "auto"
    curvature: Literal["fisher", "ggn"] = "fisher"
    steps: int = 30
    lr: float = 0.02
    max_curvature: float = 1e4
    burnin: int = 0
    alpha: float = 1e-3
    chain: Literal["langevin", "official-like"] = "langevin"
    noise: bool = True
    body: Literal["received", "trained"] = "received"
    train_scope: bool = True
    loss_scale: float = 1.0
    personalise: Personalise = "map"
    personal_steps: int = 100
    samples: int = 0
    average: Literal["probabilities", "outputs"] = "probabilities"
    test_prior: TestPrior = "train"
    keep: float = 1.0
    keep_variance: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if (value := getattr(self, name)) not in kind:
                raise ValueError(f"{name}: must be one of {', '.join(kind)}, got {value!r}")
        for name, least in (("steps", 1), ("burnin", 0), ("personal_steps", 1), ("samples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be {least} or more, got {getattr(self, name)}")
        for name in ("n0", "lr", "max_curvature", "alpha", "loss_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: must lie in (0, 1], got {self.keep}")
        if self.estimator == "sgld" and self.burnin >= self.steps:
            raise ValueError(f"burnin: must lie in [0, steps = {self.steps}), got {self.burnin}")

    def record(self) -> dict[str, Any]:
        """For the config record."""
        return {_PREFIX + f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)}


_CHOICES: dict[str, tuple[str, ...]] = {
    "protocol": ("moments", "gradient", "fedhb"),
    "family": get_args(Family),
    "estimator": get_args(Estimator),
    "curvature": ("fisher", "ggn"),
    "chain": ("langevin", "official-like"),
    "body": ("received", "trained"),
    "personalise": get_args(Personalise),
    "average": ("probabilities", "outputs"),
    "test_prior": get_args(TestPrior),
}


def scope_pattern(scope: str) -> re.Pattern[str]:
    """What names in scope match; raises ValueError for what is no regular expression."""
    try:
        return re.compile({"head": r"^head\.", "all": ""}.get(scope, scope))
    except re.error as error:
        raise ValueError(
            f"scope: must be 'head', 'all' or a regular expression, got {scope!r} ({error})"
        ) from error


def names_in_scope(names: Iterable[str], scope: str, buffers: str = BUFFERS) -> frozenset[str]:
    """Names of the parameters that a scope means.

    Parameters
    ----------
    names : iterable of str
        All of a model's.
    scope : str
        ``head`` (names that start with ``head.``), ``all``, or a regular expression that is searched for.
    buffers : str
        Regular expression of names that belong to no scope.

    Raises
    ------
    ValueError
        As `scope_pattern`.
    StrategyError
        If it matches nothing.
    """
    names, wanted = list(names), scope_pattern(scope)
    found = frozenset(k for k in names if wanted.search(k) and not re.search(buffers, k))
    if not found:
        raise StrategyError(f"scope {scope!r} matches no parameter; the model has {', '.join(names)}")
    return found


@dataclass(frozen=True)
class _TaskGGN(GGN):
    """Gauss-Newton matrix with the output's Hessian of the task's own loss, found by autograd."""

    criterion: Callable[[Tensor, Batch], Tensor] | None = None

    def _roots(self, params: Params, rows: Batch) -> Params:
        def root(row: Batch) -> Params:
            one = {k: v[None] for k, v in row.items()}
            shape: list[torch.Size] = []

            def flat(p: Params) -> Tensor:
                out = self.output(p, one)
                shape.append(out.shape)
                return out.flatten()

            def loss(out: Tensor) -> Tensor:
                assert self.criterion is not None
                return self.criterion(out.reshape(shape[0]), one)

            out, pull = torch.func.vjp(flat, params)[:2]
            hessian = torch.func.jacrev(torch.func.grad(loss))(out.detach())
            values, vectors = torch.linalg.eigh(hessian)
            pulled: Params = torch.func.vmap(pull)((vectors * values.clamp(min=0).sqrt()).T)[0]
            return pulled

        roots: Params = torch.func.vmap(root)(rows)
        return roots


@dataclass(frozen=True)
class _Problem:
    """A client's loss as a function of the part in scope: a sum over its rows.

    Parameters
    ----------
    loss, output : callable
        Of parameters in scope and rows.
    data : dict of Tensor
        All training rows; with representations, where the part is a linear head.
    criterion : callable
        Summed loss of an output.
    linear : bool
        Whether the part is a linear layer whose output is the model's.
    """

    loss: Loss
    output: Output
    data: Batch
    criterion: Callable[[Tensor, Batch], Tensor]
    linear: bool

    @property
    def rows(self) -> int:
        """Number of rows, padding included."""
        return len(self.data["weight"]) if "weight" in self.data else 0

    @property
    def ggn(self) -> GGN:
        """Exact Gauss-Newton curvature."""
        return _TaskGGN(self.output, criterion=self.criterion, chunk=256)

    def curvature(self, options: Options) -> Curvature:
        """The one that was asked for."""
        return self.ggn if options.curvature == "ggn" else Fisher(self.loss)

    def estimator(self, prior: Prior, options: Options) -> str:
        """What ``auto`` means here."""
        if options.estimator != "auto":
            return options.estimator
        if not self.linear:
            return "adapted"
        return "newton" if prior.d <= _MOST_AUTOMATIC else "laplace"

    def solver(self, prior: Prior, options: Options, steps: int) -> Descent | Newton:
        """Newton's method where the estimator is, else ``steps`` of Adam."""
        if self.estimator(prior, options) == "newton":
            return Newton(self.ggn)
        return Descent(steps, options.lr)


class NIWRule(WrappedRule):
    """Any client half, beside which the part in scope gets a posterior under the server's prior.

    The part starts every round at ``m0`` and takes plain steps beside the rest, so that the rest is trained
    with it. After that, its posterior is computed afresh from *all* training rows, with the rest as it was
    received, and what the prior needs of it is sent: moments about ``m0``, or the prior's gradient. Nothing
    of the part goes into what is averaged, and nothing of it is kept.

    A client predicts with the part adapted to its own training rows under the prior, and with ``m0`` where
    it has none. The rest is the method's, which does not fine-tune unless ``personalise`` is ``none``.

    Parameters
    ----------
    rule : LocalRule
        The method's client half.
    scope, buffers : str
        As given to the server half; see `names_in_scope`.

    Raises
    ------
    StrategyError
        For a method whose clients train several models, in steps of its own.

    Notes
    -----
    Where the part is ``head``, a linear layer whose output is the model's, representations are computed once
    and the body is not run again. The estimators need ``torch.func.vmap`` over rows, which recurrent layers
    do not have. Those that draw (``sgld``, ``noise``, ``keep``) make clients train one at a time.
    """

    protocols: ClassVar[tuple[str, ...]] = ("moments", "gradient")
    """Those that this half answers."""
    server_half: ClassVar[str] = "strategies.NIWMeta"

    def __init__(self, rule: LocalRule, scope: str = "head", buffers: str = BUFFERS) -> None:
        super().__init__(rule)
        self.needs_all_rows = True  # type: ignore[misc]
        self.scope, self.buffers = scope, buffers
        self._local = frozenset[str]()
        while isinstance(rule, WrappedRule):
            if isinstance(rule, KeepLocal):
                self._local |= rule.names
            rule = rule.rule
        if isinstance(rule, PersonalRule) or type(rule).step is not LocalRule.step:
            raise StrategyError(f"{rule.name} trains several models in a client, so no part can have a prior")
        self._linear: bool | None = None

    # --- the method, without the part in scope ---------------------------------------------------

    @property
    def fine_tunes(self) -> bool:
        """Training rows are needed to predict."""
        return True

    def inner(self, round: Round) -> Round:
        """The round of a model without the part in scope."""
        m0 = self._m0(round)
        names = frozenset(m0)
        return replace(
            round,
            model=_Completed(round.model, m0),
            received=_without(names, round.received),
            trainable=round.trainable - names,
            head=round.head - names,
            norms=round.norms - names,
        )

    def keep(self, received: Params) -> Params:
        """What the rule keeps."""
        names = names_in_scope(received.keys() - self._local, self.scope, self.buffers)
        return self.rule.keep(_without(names, received))

    def begin(self, round: Round) -> Params:
        """What the rule begins with, and ``m0``."""
        return super().begin(round) | self._m0(round)

    def phases(self, round: Round) -> tuple[Phase, ...]:
        """The rule's, in all of which the part moves too; none where there is nothing but the part."""
        self._check(round)
        names = frozenset(self._m0(round))
        if not round.received.keys() - names:
            return ()
        moving = names if self._options(round).train_scope else frozenset[str]()
        phases = (replace(p, moving=p.moving | moving) for p in super().phases(round))
        return tuple(p for p in phases if p.moving)

    def step(
        self, params: Params, state: State, moving: frozenset[str], batch: Batch, round: Round
    ) -> tuple[Params, State, Tensor]:
        """A step of all parts."""
        return LocalRule.step(self, params, state, moving, batch, round)

    def gradient(self, grads: Params, params: Params, round: Round) -> Params:
        """The rule's for what it knows; the part's own."""
        names = self._m0(round).keys()
        own = {k: v for k, v in grads.items() if k in names}
        return super().gradient(_without(names, grads), _without(names, params), round) | own

    def end(self, params: Params, round: Round) -> Upload:
        """What the rule sends, and what the prior needs."""
        options, prior = self._options(round), self.prior(round)
        upload = super().end(_without(prior.m0, params), round)
        source = params if options.body == "trained" else super().begin(round)
        rest = {k: source[k] for k in round.received if k not in prior.m0}
        problem = self._problem(rest, prior.m0, round, options)
        key, answer, metrics = self._answer(problem, prior, round, options)
        if not rest:  # no step was taken
            summed = problem.loss(prior.m0, problem.data) / options.loss_scale
            metrics["train_loss"] = summed / round.data["weight"].sum().clamp(min=1)
        return replace(upload, extra={**upload.extra, key: answer}, metrics={**upload.metrics, **metrics})

    # --- the posterior ---------------------------------------------------------------------------

    def prior(self, round: Round) -> Prior:
        """The prior that the server sent."""
        record = sent(round, PRIOR, self, self.server_half)
        n0, l0, family = (
            setting(round, _PREFIX + name, self, self.server_half) for name in ("n0", "l0", "family")
        )
        return Prior(part("m0.", record), part("logp.", record), n0, l0, family)

    def _answer(
        self, problem: _Problem, prior: Prior, round: Round, options: Options
    ) -> tuple[str, Params, dict[str, Tensor | float]]:
        """Key and contents of the record that goes up, and numbers to report."""
        q, quadratic = self._posterior(problem, prior, round, options)
        metrics = {f"niw_{k}": v for k, v in health(prior, quadratic, q).items()}
        if options.protocol == "gradient":
            noise = standard_normal(prior.m0, self._generator(round)) if options.noise else None
            gradient, _, f = meta_gradient(
                problem.loss, prior, quadratic, problem.data, noise, differentiate_functionally
            )
            answer = prefixed("m0.", gradient.m0) | prefixed("logp.", gradient.log_precision)
            return GRADIENT, answer, metrics | {"niw_loss": f}
        return MOMENTS, _as_moments(q, prior), metrics

    def _posterior(
        self, problem: _Problem, prior: Prior, round: Round, options: Options
    ) -> tuple[Gaussian, Quadratic]:
        """By the estimator that was asked for."""
        loss, data, most = problem.loss, problem.data, options.max_curvature
        if not problem.rows:
            return _unseen(prior)
        name = problem.estimator(prior, options)
        if name in ("newton", "laplace"):
            curvature = problem.ggn if name == "newton" else problem.curvature(options)
            solver = problem.solver(prior, options, options.steps)
            return laplace(loss, prior, data, curvature, solver=solver, max_curvature=most)
        if name == "sgld":
            optimizer = OFFICIAL_LIKE if options.chain == "official-like" else PLAIN
            quadratic = sgld_moments(
                loss,
                prior.m0,
                data,
                steps=options.steps,
                burnin=options.burnin,
                alpha=options.alpha,
                max_curvature=most,
                optimizer=optimizer,
                generator=self._generator(round),
            )
        else:
            solver = Descent(options.steps, options.lr)
            quadratic = adapted(
                loss, prior.m0, data, problem.curvature(options), solver=solver, max_curvature=most
            )
            quadratic = tensorwise(quadratic) if name == "tensorwise" else quadratic
        return local_posterior(prior, quadratic), quadratic

    def _problem(self, rest: Params, m0: Params, round: Round, options: Options) -> _Problem:
        """The client's loss, with the rest of the model fixed."""
        model, data = round.model.frozen, round.data

        def criterion(out: Tensor, batch: Batch) -> Tensor:
            # The task's loss is a mean, the posterior needs a sum.
            return options.loss_scale * batch["weight"].sum() * round.task_loss(out, batch)

        def through(params: Params, batch: Batch) -> Tensor:
            return model(rest | params, batch)

        linear = bool(self._linear)
        if linear and len(data.get("weight", ())):
            data = data | {_FEATURES: _representations(model, rest | m0, data)}
        output: Output = _linear_head if linear else through
        return _Problem(lambda p, rows: criterion(output(p, rows), rows), output, data, criterion, linear)

    # --- prediction ------------------------------------------------------------------------------

    def predictor(self, round: Round) -> Params:
        """The rule's model with the part adapted to this client; draws of it under names of their own."""
        self._check(round)
        options, prior = self._options(round), self.prior(round)
        rest = _without(prior.m0.keys(), super().predictor(round))
        if options.personalise == "none":
            return rest | prior.m0
        problem = self._problem(rest, prior.m0, round, options)
        q = self._personal(problem, prior, round, options)
        params = rest | q.mean
        for s in range(options.samples):
            params |= prefixed(f"{_DRAW}{s}/", q.at(standard_normal(q.mean, self._generator(round))))
        return resting(params)

    def _personal(self, problem: _Problem, prior: Prior, round: Round, options: Options) -> Gaussian:
        """What this client's part is, given its rows."""
        loss, data, test_prior = problem.loss, problem.data, options.test_prior
        fixed = fixed_prior(prior, test_prior)
        if not problem.rows:
            return prior_predictive(fixed)
        if options.personalise == "closed":
            quadratic = self._posterior(problem, prior, round, options)[1]
            return closed_form(prior, quadratic, test_prior)
        if options.personalise == "variational":
            return variational(
                loss,
                prior,
                data,
                solver=Descent(options.personal_steps, options.lr),
                test_prior=test_prior,
                generator=self._generator(round),
            )
        solver = problem.solver(prior, options, options.personal_steps)
        if not options.samples:  # the mean will do
            return Gaussian(map_estimate(loss, prior.m0, fixed.precision, data, solver), {})
        curvature = problem.ggn if isinstance(solver, Newton) else problem.curvature(options)
        return personalise(loss, prior, data, curvature, solver=solver, test_prior=test_prior)

    def fine_tune(self, round: Round) -> FineTune | None:
        """The rule's, where the part is not adapted."""
        return super().fine_tune(round) if self._options(round).personalise == "none" else None

    def output(self, params: Params, batch: Batch, round: Round) -> Tensor:
        """The rule's output, averaged over draws if there are any.

        Averaged probabilities are given as their logarithms, which a softmax turns back.
        """
        options = self._options(round)
        mean = {k: v for k, v in params.items() if not k.startswith(_DRAW)}
        if not options.samples or options.personalise == "none":
            return super().output(mean, batch, round)
        outs = torch.stack(
            [
                super(NIWRule, self).output(mean | part(f"{_DRAW}{s}/", params), batch, round)
                for s in range(options.samples)
            ]
        )
        if options.average == "outputs":
            return outs.mean(0)
        return outs.log_softmax(-1).logsumexp(0) - math.log(len(outs))

    # --- what the server sent --------------------------------------------------------------------

    def _m0(self, round: Round) -> Params:
        return part("m0.", sent(round, PRIOR, self, self.server_half))

    def _options(self, round: Round) -> Options:
        given = {
            f.name: setting(round, _PREFIX + f.name.replace("_", "-"), self, self.server_half)
            for f in fields(Options)
        }
        return Options(**given)

    def _generator(self, round: Round) -> torch.Generator:
        if round.generator is None:  # as inside vmap, where clients are then repeated one at a time
            raise StrategyError(
                f"{type(self).__name__} draws random numbers with these options; pass generator= to "
                "RuleClient.train and RuleClient.predictor"
            )
        return round.generator

    def _check(self, round: Round) -> None:
        """Hold the prior against this half's scope and the model; never inside vmap.

        Raises
        ------
        StrategyError
            If they do not fit.
        """
        m0, name = self._m0(round), type(self).__name__
        protocol = self._options(round).protocol
        if protocol not in self.protocols:
            raise StrategyError(f"{name} does not know protocol {protocol!r}; use {self.server_half}")
        own = names_in_scope(round.received.keys() - self._local, self.scope, self.buffers)
        if own != m0.keys():
            raise StrategyError(
                f"{name}: scope {self.scope!r} means {', '.join(sorted(own))} here, but the server's prior "
                f"is of {', '.join(sorted(m0))}; give both halves the same scope"
            )
        if fixed := own - round.trainable:
            raise StrategyError(
                f"{name}: scope {self.scope!r} holds {', '.join(sorted(fixed))}, no trainable parameters of "
                "the model; give both halves a scope, or buffers, that leaves them out"
            )
        if self._linear is None and len(round.data.get("weight", ())):
            self._linear = _is_linear_head(round, super().begin(round), m0)


class FedHBRule(NIWRule):
    """FedHB's client half: `NIWRule` with FedHB's local posterior, a spike for each weight.

    It minimises the loss under dropout of the part's weights (those kept with probability ``keep``) and the
    prior's pull, and sends ``m_i - m0``; with ``keep_variance`` the moments of a normal in place of it.
    """

    protocols = ("fedhb",)
    server_half = "strategies.FedHB"

    def _answer(
        self, problem: _Problem, prior: Prior, round: Round, options: Options
    ) -> tuple[str, Params, dict[str, Tensor | float]]:
        if options.keep_variance:
            return super()._answer(problem, prior, round, options)
        at = prior.m0
        if problem.rows:
            masks = self._generator(round) if options.keep < 1 else None
            solver = problem.solver(prior, options, options.steps)
            if masks is not None:
                solver = Descent(options.steps, options.lr)
            at = client_spike(problem.loss, prior, problem.data, options.keep, solver, generator=masks)
        away = {k: at[k] - m0 for k, m0 in prior.m0.items()}
        way = torch.cat([(v.abs() * prior.precision[k].sqrt()).flatten() for k, v in away.items()])
        return SPIKE, prefixed("s1.", away), {"niw_way": way.median()}


def _without(names: Iterable[str], params: Mapping[str, Tensor]) -> Params:
    return {k: v for k, v in params.items() if k not in names}


def _unseen(prior: Prior) -> tuple[Gaussian, Quadratic]:
    """Posterior and quadratic of a client without rows."""
    flat = {k: torch.zeros_like(v) for k, v in prior.m0.items()}
    return prior_predictive(prior), Quadratic(prior.m0, flat)


def _as_moments(q: Gaussian, prior: Prior) -> Params:
    """``delta`` and ``delta^2 + V``, the latter a tensor's mean where its precision is one number."""
    about = moments(q, prior.m0)
    second = {k: v if prior.log_precision[k].shape == v.shape else v.mean() for k, v in about.second.items()}
    return prefixed("s1.", about.first) | prefixed("s2.", second)


def _linear_head(params: Params, batch: Batch) -> Tensor:
    return functional.linear(batch[_FEATURES], params["head.weight"], params.get("head.bias"))


def _representations(model: Forward, params: Params, data: Batch) -> Tensor:
    """What goes into the head, (n, features), some rows at a time."""
    starts = range(0, len(data["weight"]), _CHUNK)
    return torch.cat(
        [model.embed(params, {k: v[i : i + _CHUNK] for k, v in data.items()})[0].detach() for i in starts]
    )


def _is_linear_head(round: Round, rest: Params, m0: Params) -> bool:
    """Whether the part in scope is one linear layer whose output is the model's, tried on a few rows."""
    if (
        "head.weight" not in m0
        or m0["head.weight"].ndim != 2
        or not m0.keys() <= {"head.weight", "head.bias"}
    ):
        return False
    rows = {k: v[:4] for k, v in round.data.items()}
    with torch.no_grad():
        z, out = round.model.frozen.embed(rest | m0, rows)
        if z.ndim != 2 or z.shape[1] != m0["head.weight"].shape[1]:
            return False
        linear = _linear_head(m0, {_FEATURES: z})
        return linear.shape == out.shape and torch.allclose(linear, out, rtol=1e-3, atol=1e-4)
