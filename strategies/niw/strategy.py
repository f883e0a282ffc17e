"""NIW-Meta's and FedHB's server halves: any other strategy, and a learned prior of the part in scope.

Kim and Hospedales, "A Hierarchical Bayesian Model for (Deep) Few-Shot Meta Learning", ICLR 2024, arXiv
2306.09702, and "FedHB: Hierarchical Bayesian Federated Learning", arXiv 2305.04979. RECONSTRUCTED: neither
text was available; see `posterior`, `server` and `fedhb` for what is derived. That a prior of a part of the
model goes beside any method for the rest is ours.
"""

from __future__ import annotations

import logging
import statistics
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from ..arrays import Arrays, LazyArray, numpy_of, record
from ..asynchronous import Asynchronous
from ..errors import StrategyError
from ..functional import Params
from ..local import LocalRule, part
from ..method import with_content
from ..optim import Adam, State
from ..state import load_state_dict, state_dict
from .adapt import TestPrior
from .fedhb import server_update, spike_moments
from .objective import PriorGradient
from .posterior import Family, Prior, hyper_prior
from .rule import (
    BUFFERS,
    GRADIENT,
    MOMENTS,
    PRIOR,
    SPIKE,
    Estimator,
    FedHBRule,
    NIWRule,
    Options,
    Personalise,
    names_in_scope,
    scope_pattern,
)
from .server import (
    Moments,
    averaging_rate,
    gradient_state,
    gradient_update,
    mean_gradient,
    moments_update,
    running_average,
)

log = logging.getLogger("fedbench.niw")

_MOST_CLIPPED, _BALANCED = 0.5, (1e-3, 1e3)
"""Share of clipped curvatures, and median A/P, beyond which a bound or one of the two decides everything."""


class _Hierarchical(Strategy):
    """What `NIWMeta` and `FedHB` share: the wrapped strategy's rounds, and a prior that goes with them.

    Outside, arrays hold the whole model, in which the part in scope is ``m0``. Inside, the strategy neither
    sees nor averages that part.
    """

    rule: type[NIWRule]

    def __init__(self, strategy: Strategy, scope: str, buffers: str, options: Options, least_rate: float):
        if isinstance(strategy, Asynchronous):
            raise ValueError(  # noqa: TRY004 - an option's value
                f"strategy: must ask its clients in rounds, because moments are about one m0; "
                f"{type(strategy).__name__} asks them one by one"
            )
        if not 0 < least_rate <= 1:
            raise ValueError(f"least_rate: must lie in (0, 1], got {least_rate}")
        self.strategy = strategy
        self.scope, self.buffers, self.options, self.least_rate = scope, buffers, options, least_rate
        self.population = 0
        """Number of all clients, sampled or not."""
        self.updates = 0
        """How often the prior was updated."""
        self.log_precision: Params = {}
        """``log P`` by name, in float64; empty before the prior is first needed."""
        self._kept: Moments | None = None
        self._sent: Prior | None = None
        self._order: list[str] = []
        self._health: dict[str, float] = {}
        self._told: set[str] = set()
        scope_pattern(scope)  # a mistake says so here

    # --- doors for the two -----------------------------------------------------------------------

    @property
    @abstractmethod
    def _key(self) -> str:
        """Key of the record in which clients answer."""

    @abstractmethod
    def _first(self, m0: Params) -> Params:
        """``log P`` before the first round."""

    @abstractmethod
    def _next(self, prior: Prior, answers: list[Params]) -> Prior:
        """The prior after a round, from the one that was sent and the clients' records."""

    # --- the rounds ------------------------------------------------------------------------------

    def prepare(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """As the wrapped strategy, after the clients are counted."""
        self._split(arrays)  # a scope that matches nothing says so here
        inner: Callable[..., ArrayRecord] | None = getattr(self.strategy, "prepare", None)
        arrays = self._joined(inner(grid, self._rest(arrays)), arrays) if inner else arrays
        self.population = max(self.population, len(list(grid.get_node_ids())))
        return arrays

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of the wrapped strategy, without the part in scope and with the prior."""
        self.population = max(self.population, len(list(grid.get_node_ids())))
        self._sent = self._prior(arrays)
        messages = self.strategy.configure_train(
            server_round, self._rest(arrays), self._with_options(config), grid
        )
        return self._with_prior(list(messages), arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of the wrapped strategy, without the part in scope and with the prior."""
        self._prior(arrays)  # which settles FedHB's degrees of freedom
        messages = self.strategy.configure_evaluate(
            server_round, self._rest(arrays), self._with_options(config), grid
        )
        return self._with_prior(list(messages), arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The wrapped strategy's arrays with the new ``m0``.

        Raises
        ------
        StrategyError
            If a client trained without this method's client half.
        """
        replies = list(replies)
        # In the order of nodes, so that sums do not depend on who was first.
        given = sorted((r for r in replies if r.has_content()), key=lambda r: r.metadata.src_node_id)
        for reply in given:
            self._require(reply)
        plain = [
            with_content(r, {k: v for k, v in r.content.items() if k != self._key}) if r.has_content() else r
            for r in replies
        ]
        arrays, metrics = self.strategy.aggregate_train(server_round, plain)
        if arrays is None or not given or self._sent is None:
            return arrays, metrics
        told = [numpy_of(r.content.array_records[self._key]) for r in given]
        dtype = next(iter(told[0].values())).dtype
        self.updates += 1
        prior = self._next(self._sent, [_wide(arrays) for arrays in told])
        self.log_precision = dict(prior.log_precision)
        self.options = replace(self.options, n0=float(prior.n0), l0=float(prior.l0))
        m0 = record({k: v.numpy().astype(dtype) for k, v in prior.m0.items()})
        self._watch(given)
        return self._joined(arrays, m0), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the wrapped strategy."""
        self.strategy.summary()

    def finish(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """As the wrapped strategy."""
        inner: Callable[..., ArrayRecord] | None = getattr(self.strategy, "finish", None)
        return self._joined(inner(grid, self._rest(arrays)), arrays) if inner else arrays

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Prepare, run the rounds as Flower does, and finish."""
        result = super().start(grid, self.prepare(grid, initial_arrays), *args, **kwargs)
        result.arrays = self.finish(grid, result.arrays)
        return result

    # --- what others ask -------------------------------------------------------------------------

    @property
    def personal(self) -> bool:
        """Whether clients predict with a part, or by a method, of their own."""
        return self.options.personalise != "none" or bool(getattr(self.strategy, "personal", False))

    @property
    def client_half(self) -> type[LocalRule]:
        """The wrapped strategy's, which goes into `client_rule`."""
        half: type[LocalRule] = getattr(self.strategy, "client_half", LocalRule)
        return half

    def client_rule(self, rule: LocalRule) -> NIWRule:
        """The client half of the prior around that of the wrapped strategy."""
        return self.rule(rule, self.scope, self.buffers)

    @property
    def min_available_nodes(self) -> int:
        """As the wrapped strategy."""
        return int(getattr(self.strategy, "min_available_nodes", 1))

    @property
    def diagnostics(self) -> dict[str, float]:
        """What a report says of the prior, and of the wrapped strategy."""
        return {**getattr(self.strategy, "diagnostics", {}), **self._health}

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All of the prior but ``m0``, which the arrays hold, with the wrapped strategy's own state."""
        kept = self._kept
        return {
            "strategy": state_dict(self.strategy),
            "population": self.population,
            "updates": self.updates,
            "n0": self.options.n0,
            "l0": self.options.l0,
            "log_precision": _arrays(self.log_precision),
            "moments": {"first": _arrays(kept.first), "second": _arrays(kept.second)} if kept else {},
            "health": dict(self._health),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        load_state_dict(self.strategy, state["strategy"])
        self.population, self.updates = int(state["population"]), int(state["updates"])
        self.options = replace(self.options, n0=float(state["n0"]), l0=float(state["l0"]))
        self.log_precision = _wide(state["log_precision"])
        kept = state["moments"]
        self._kept = Moments(_wide(kept["first"]), _wide(kept["second"]), 1) if kept else None
        self._health = dict(state["health"])

    # --- arrays ----------------------------------------------------------------------------------

    def _split(self, arrays: ArrayRecord) -> frozenset[str]:
        """Names in scope."""
        floating = [k for k, v in arrays.items() if np.issubdtype(np.dtype(v.dtype), np.floating)]
        return names_in_scope(floating, self.scope, self.buffers)

    def _rest(self, arrays: ArrayRecord) -> ArrayRecord:
        """What the wrapped strategy sees."""
        names, rest = self._split(arrays), ArrayRecord()
        self._order = list(arrays)
        for k, v in arrays.items():
            if k not in names:
                rest[k] = v
        return rest

    def _joined(self, rest: ArrayRecord, other: ArrayRecord) -> ArrayRecord:
        """The wrapped strategy's arrays with the part in scope of others, in the model's order."""
        names, whole = self._split(other), ArrayRecord()
        for k in [*self._order, *(k for k in rest if k not in self._order)]:
            if k in names:
                whole[k] = other[k]
            elif k in rest:
                whole[k] = rest[k]
        return whole

    def _prior(self, arrays: ArrayRecord) -> Prior:
        names = self._split(arrays)
        m0 = _wide({k: v for k, v in numpy_of(arrays).items() if k in names})
        if not self.log_precision:
            self.log_precision = self._first(m0)
        return Prior(m0, self.log_precision, self.options.n0, self.options.l0, self.options.family)

    def _with_options(self, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**config, **self.options.record()})

    def _with_prior(self, messages: list[Message], arrays: ArrayRecord) -> list[Message]:
        """Messages with the prior; those that share a content, as Flower's do, get it once."""
        prior, sent = self._prior(arrays), ArrayRecord()
        for k, p in prior.log_precision.items():
            sent[f"m0.{k}"] = arrays[k]
            sent[f"logp.{k}"] = LazyArray(p.numpy().astype(arrays[k].dtype))
        for content in {id(m.content): m.content for m in messages}.values():
            content[PRIOR] = sent
        return messages

    # --- clients ---------------------------------------------------------------------------------

    def _require(self, reply: Message) -> None:
        if self._key in reply.content.array_records:
            return
        half = self.rule.__name__
        raise StrategyError(
            f"{type(self).__name__}: node {reply.metadata.src_node_id} sent no record '{self._key}', so the "
            f"method's client half is missing; train with strategies.{half}, for example "
            f"strategies.RuleClient({half}(LocalRule(), scope={self.scope!r}), module, loss)"
        )

    def _mean(self, sums: Moments) -> Moments:
        """Means over clients: this round's, or running ones where not all took part."""
        everyone = float(sums.count) >= self.population
        rate = 1.0 if everyone else averaging_rate(self.updates, self.least_rate)
        return running_average(self._kept, sums, rate)

    def _keep(self, mean: Moments, old: Prior, new: Prior) -> None:
        """Keep the means about the new centre."""
        kept = mean.recentred({k: v - old.m0[k] for k, v in new.m0.items()})
        second = {k: v.mean() if new.log_precision[k].ndim < v.ndim else v for k, v in kept.second.items()}
        self._kept = replace(kept, second=second)

    def _watch(self, replies: list[Message]) -> None:
        """Note what tells a working run from one that a bound or the prior decides; warn of the latter."""
        numbers = [next(iter(r.content.metric_records.values())) for r in replies]
        told = {k for m in numbers for k in m if k.startswith("niw_")}
        self._health = {
            k: statistics.median(float(m[k]) for m in numbers if k in m)  # type: ignore[arg-type]
            for k in sorted(told)
        }
        variance = torch.cat([(-p).exp().flatten() for p in self.log_precision.values()])
        self._health |= {
            "niw_variance_median": float(variance.median()),
            "niw_variance_largest": float(variance.max()),
            **{f"niw_precision {k}": float(p.exp().median()) for k, p in self.log_precision.items()},
        }
        clipped = self._health.get("niw_clip_fraction", 0.0)
        ratio = self._health.get("niw_curvature_over_precision", 1.0)
        low, high = _BALANCED
        if clipped > _MOST_CLIPPED:
            self._warn(
                "clipped", f"{clipped:.0%} of the curvatures lie at max_curvature, which decides: raise it"
            )
        if not low <= ratio <= high:
            who = "data" if ratio > high else "prior"
            self._warn(
                who,
                f"the median curvature is {ratio:.2g} times the prior's precision, so that the {who} alone "
                f"decides; look at the estimator, loss_scale and the precision to start with",
            )

    def _warn(self, what: str, text: str) -> None:
        if what not in self._told:
            log.warning("%s: %s", type(self).__name__, text)
        self._told.add(what)


class NIWMeta(_Hierarchical):
    r"""NIW-Meta around any other strategy: clients' parts are drawn from a prior that all of them teach.

    Each client's weights in scope are drawn from :math:`N(m_0, 1/P)`. Clients compute a posterior
    :math:`N(m_i, V_i)` of theirs; the server learns :math:`m_0` and :math:`P` from it, and a client predicts
    with its own. The rest of the model is the wrapped strategy's. Clients count alike in the prior, whatever
    their size: what they know enters through the curvature of their loss.

    Parameters
    ----------
    strategy : Strategy
        What trains the rest; not changed. None that asks its clients one by one.
    scope : str
        What has a prior: ``head``, ``all`` parameters, or a regular expression that is searched for in their
        names. With ``all`` and no buffers, clients take no steps but the estimator's.
    buffers : str
        Regular expression of floating buffers, which are left to the wrapped strategy.
    protocol : {"moments", "gradient"}
        Clients send the moments of their posterior, and the server takes a step of expectation-maximisation;
        or the gradient of the objective, for a step of Adam. Where few steps are taken in a network, moments
        make clients look more alike than they are, and the gradient does not.
    estimator : {"auto", "newton", "laplace", "adapted", "tensorwise", "sgld"}
        ``newton`` and ``laplace``: Laplace's method at the MAP (E3), found by Newton's method or by Adam.
        ``adapted``: Adam on the loss alone (E2); ``tensorwise``: with one curvature a tensor (E4). ``sgld``:
        the papers' Langevin chain (E1). ``auto``: ``newton`` for a linear head of at most 1024 weights,
        ``laplace`` for larger ones, else ``adapted``.
    curvature : {"fisher", "ggn"}
        Squares of single rows' gradients, or the exact Gauss-Newton diagonal, which takes a pass for each
        output; ``newton`` always has the latter.
    steps, lr : int, float
        Of the estimator's Adam, or the number of the chain's steps.
    max_curvature : float
        Bound of the curvature.
    burnin, alpha, chain : int, float, {"langevin", "official-like"}
        ``sgld``: steps that are not counted, step size times number of rows, and whether steps are plain or
        Adam's, as the official code is said to take; that samples from nothing in particular.
    noise : bool
        ``gradient``: take the loss at a draw from the posterior; without, at its mean, better for regression.
    body : {"received", "trained"}
        The rest of the model under which the posterior is computed.
    train_scope : bool
        Let the part move beside the rest in local training; else it stays at ``m0`` there.
    loss_scale : float
        From a row's loss to its negative log-likelihood: 1 for cross-entropy, ``h / (2 sigma^2)`` for a mean
        squared error over h values.
    precision : float
        ``P`` to start with.
    scalar_precision : bool
        One precision a tensor.
    n0 : float
        Degrees of freedom; fixed, because they have no finite optimum. They matter for ``test_prior`` alone.
    least_variance : float
        ``moments``: least ``1/P``.
    least_rate : float
        ``moments``: where not all clients take part, least share of a round in the running averages; the
        first rounds have more, 1/round.
    server_lr, server_lr_precision : float
        ``gradient``: rates of ``m0`` and of ``log P``.
    personalise : {"map", "closed", "variational", "none"}
        How a client adapts its part before it predicts: by the MAP (Newton's method or Adam), by the
        estimator's closed form, by the papers' variational problem; or not at all.
    personal_steps : int
        Steps of that Adam.
    samples : int
        Draws of the part over which predictions are averaged; 0 predicts with its mean.
    average : {"probabilities", "outputs"}
        What is averaged: a softmax's probabilities, for logits, or outputs.
    test_prior : {"train", "mode"}
        Precision that clients are given to predict: ``n0/V0``, or that at the mode of the papers.

    Raises
    ------
    ValueError
        For an option out of range, in one line.

    Notes
    -----
    Sent, for d weights in scope at float32: ``8 d`` bytes down and up, or ``4 d + 4`` a tensor, with one
    precision a tensor. Clients keep nothing of the part. A client's posterior tells what its data say of
    every weight; the moments are additive, and so go through secure sums. Rows that an alignment adds count
    as observations. What the wrapped strategy weighs by examples is not touched.
    """

    rule = NIWRule

    def __init__(
        self,
        strategy: Strategy,
        *,
        scope: str = "head",
        buffers: str = BUFFERS,
        protocol: Literal["moments", "gradient"] = "moments",
        estimator: Estimator = "auto",
        curvature: Literal["fisher", "ggn"] = "fisher",
        steps: int = 30,
        lr: float = 0.02,
        max_curvature: float = 1e4,
        burnin: int = 0,
        alpha: float = 1e-3,
        chain: Literal["langevin", "official-like"] = "langevin",
        noise: bool = True,
        body: Literal["received", "trained"] = "received",
        train_scope: bool = True,
        loss_scale: float = 1.0,
        precision: float = 1.0,
        scalar_precision: bool = False,
        n0: float = 1e3,
        least_variance: float = 1e-6,
        least_rate: float = 0.2,
        server_lr: float = 1e-2,
        server_lr_precision: float = 2e-2,
        personalise: Personalise = "map",
        personal_steps: int = 100,
        samples: int = 0,
        average: Literal["probabilities", "outputs"] = "probabilities",
        test_prior: TestPrior = "train",
    ) -> None:
        if protocol not in ("moments", "gradient"):
            raise ValueError(f"protocol: must be moments or gradient, got {protocol!r}")
        for name, value in (
            ("precision", precision),
            ("least_variance", least_variance),
            ("server_lr", server_lr),
            ("server_lr_precision", server_lr_precision),
        ):
            if not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        options = Options(
            protocol=protocol,
            n0=n0,
            l0=n0,
            estimator=estimator,
            curvature=curvature,
            steps=steps,
            lr=lr,
            max_curvature=max_curvature,
            burnin=burnin,
            alpha=alpha,
            chain=chain,
            noise=noise,
            body=body,
            train_scope=train_scope,
            loss_scale=loss_scale,
            personalise=personalise,
            personal_steps=personal_steps,
            samples=samples,
            average=average,
            test_prior=test_prior,
        )
        super().__init__(strategy, scope, buffers, options, least_rate)
        self.precision, self.scalar_precision = precision, scalar_precision
        self.least_variance = least_variance
        self.server_lr, self.server_lr_precision = server_lr, server_lr_precision
        self._optimizer: dict[str, State] = {}

    @property
    def _key(self) -> str:
        return MOMENTS if self.options.protocol == "moments" else GRADIENT

    def _first(self, m0: Params) -> Params:
        like = {k: v.new_empty(()) for k, v in m0.items()} if self.scalar_precision else m0
        return {k: torch.full_like(v, self.precision).log() for k, v in like.items()}

    def _next(self, prior: Prior, answers: list[Params]) -> Prior:
        if self.options.protocol == "gradient":
            gradients = [PriorGradient(part("m0.", a), part("logp.", a)) for a in answers]
            state = self._optimizer or gradient_state(prior, Adam())
            new, self._optimizer = gradient_update(
                prior, mean_gradient(gradients), Adam(), state, self.server_lr, self.server_lr_precision
            )
            return new
        mean = self._mean(_sum(Moments(part("s1.", a), part("s2.", a), 1) for a in answers))
        new = moments_update(prior, mean, self.least_variance)
        self._keep(mean, prior, new)
        return new

    def state_dict(self) -> dict[str, Any]:
        """As any prior's, with the optimiser's moments."""
        optimizer = {
            which: {name: _arrays(values) for name, values in state.items()}
            for which, state in self._optimizer.items()
        }
        return super().state_dict() | {"optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._optimizer = {
            which: {name: _wide(values) for name, values in kept.items()}
            for which, kept in state["optimizer"].items()
        }


class FedHB(_Hierarchical):
    r"""FedHB around any other strategy: as `NIWMeta`, with FedHB's local posteriors and its server's block.

    A client's posterior is a spike for each weight, and the server's ``q(phi)`` the conjugate posterior of
    the clients' spikes under a fixed hyper-prior, whose centre is the model to start with (or 0, as in the
    papers).

    Parameters
    ----------
    strategy, scope, buffers, body, train_scope, loss_scale, personalise, personal_steps, samples, average
        As in `NIWMeta`.
    estimator, curvature, steps, lr, max_curvature
        As in `NIWMeta`, for the spike (``newton`` or Adam on loss and pull) and for ``keep_variance``.
    family : {"diag", "full"}
        In the full one the pull on a client grows with d and all but switches personalisation off.
    keep : float
        Probability with which dropout keeps a weight.
    spike_variance : float
        ``eps^2``.
    keep_variance : bool
        Send the moments of normal posteriors in place of spikes, which make clients look more alike than
        they are; ``keep`` is then 1.
    centre : {"initial", "zeros"}
        ``mu0``. Zeros shrink the mean by N/(N + 1).
    variance : float
        ``Sigma0``, 1 in the papers; about ``variance / (N + 3)`` is the least variance that N clients can
        learn, so that a network needs less.
    lambda0 : float
        Pseudo-observations of the mean.
    nu0 : float or None
        Degrees of freedom of the hyper-prior; ``d + 2`` in the full family and 3 in the other.
    least_rate : float
        As in `NIWMeta`; N is then the number of all clients. The papers' rule for rounds in which not all
        take part is not known.
    test_prior : {"mode", "train"}
        As in `NIWMeta`.

    Raises
    ------
    ValueError
        For an option out of range, in one line.

    Notes
    -----
    Sent, for d weights in scope at float32: ``8 d`` bytes down, ``4 d`` up (``8 d`` with ``keep_variance``).
    """

    rule = FedHBRule

    def __init__(
        self,
        strategy: Strategy,
        *,
        scope: str = "head",
        buffers: str = BUFFERS,
        estimator: Literal["auto", "newton", "laplace"] = "auto",
        curvature: Literal["fisher", "ggn"] = "fisher",
        steps: int = 50,
        lr: float = 0.02,
        max_curvature: float = 1e4,
        body: Literal["received", "trained"] = "received",
        train_scope: bool = True,
        loss_scale: float = 1.0,
        family: Family = "diag",
        keep: float = 1.0,
        spike_variance: float = 1e-8,
        keep_variance: bool = False,
        centre: Literal["initial", "zeros"] = "initial",
        variance: float = 1.0,
        lambda0: float = 1.0,
        nu0: float | None = None,
        least_rate: float = 0.2,
        personalise: Personalise = "map",
        personal_steps: int = 100,
        samples: int = 0,
        average: Literal["probabilities", "outputs"] = "probabilities",
        test_prior: TestPrior = "mode",
    ) -> None:
        if estimator not in ("auto", "newton", "laplace"):
            raise ValueError(f"estimator: must be one of auto, newton, laplace, got {estimator!r}")
        if centre not in ("initial", "zeros"):
            raise ValueError(f"centre: must be initial or zeros, got {centre!r}")
        if keep_variance and keep < 1:
            raise ValueError(f"keep: must be 1 with keep_variance, got {keep}")
        for name, value in (("variance", variance), ("spike_variance", spike_variance)):
            if not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        if not lambda0 >= 0:
            raise ValueError(f"lambda0: must be 0 or more, got {lambda0}")
        options = Options(
            protocol="fedhb",
            family=family,
            estimator=estimator,
            curvature=curvature,
            steps=steps,
            lr=lr,
            max_curvature=max_curvature,
            body=body,
            train_scope=train_scope,
            loss_scale=loss_scale,
            personalise=personalise,
            personal_steps=personal_steps,
            samples=samples,
            average=average,
            test_prior=test_prior,
            keep=keep,
            keep_variance=keep_variance,
        )
        super().__init__(strategy, scope, buffers, options, least_rate)
        self.spike_variance, self.centre, self.variance = spike_variance, centre, variance
        self.lambda0, self.nu0 = lambda0, nu0
        self._hyper: Prior | None = None

    @property
    def _key(self) -> str:
        return MOMENTS if self.options.keep_variance else SPIKE

    def _first(self, m0: Params) -> Params:
        self._hyper = self._around({k: v if self.centre == "initial" else v * 0 for k, v in m0.items()})
        self.options = replace(self.options, n0=float(self._hyper.n0), l0=float(self._hyper.l0))
        return self._hyper.log_precision

    def _around(self, centre: Params) -> Prior:
        return hyper_prior(centre, self.options.family, self.variance, self.lambda0, self.nu0)

    def _next(self, prior: Prior, answers: list[Params]) -> Prior:
        assert self._hyper is not None
        keep, variance = self.options.keep, self.spike_variance
        if self.options.keep_variance:
            each = [Moments(part("s1.", a), part("s2.", a), 1) for a in answers]
        else:
            spikes = [{k: prior.m0[k] + away for k, away in part("s1.", a).items()} for a in answers]
            each = [spike_moments(spike, prior.m0, keep, variance) for spike in spikes]
        mean = self._mean(_sum(each))
        new = server_update(self._hyper, mean.times(max(len(answers), self.population)), prior.m0)
        self._keep(mean, prior, new)
        return new

    def state_dict(self) -> dict[str, Any]:
        """As any prior's, with the hyper-prior's centre."""
        return super().state_dict() | {"centre": _arrays(self._hyper.m0) if self._hyper else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._hyper = self._around(_wide(state["centre"])) if state["centre"] else None


def _sum(each: Iterable[Moments]) -> Moments:
    return reduce(Moments.__add__, each)


def _wide(arrays: Mapping[str, Any]) -> Params:
    """Arrays as float64 tensors, in which the server computes."""
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in arrays.items()}


def _arrays(params: Mapping[str, Tensor]) -> Arrays:
    return {k: v.numpy() for k, v in params.items()}
