"""Many clients trained together: one vectorised step moves them all.

Parameters lie stacked on a leading client axis, over which ``torch.func.vmap`` carries any :class:`LocalRule`
unchanged. Clients may differ in their number of rows and steps: batches are padded to the longest with rows
of weight 0, and a client that has taken its last step stays where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from .functional import Batch, Params, Stateless, differentiate_functionally
from .local import LocalRule, Phase, Plan, Round, Upload
from .optim import State
from .timing import LOAD, timed

if TYPE_CHECKING:
    from torch.fx import GraphModule

_RECORD_AFTER = 200
"""Calls of a step with the same shapes before it is recorded, which takes as long as some hundred calls."""
_MOST_GRAPHS = 4
"""Recordings of a function with the same shapes; where settings change all the time, none pays off."""


@dataclass(frozen=True)
class Member:
    """A client of a cohort.

    Parameters
    ----------
    round : Round
        As for the client alone. All members of a cohort share ``received``, ``sent`` and ``config``.
    plan : sequence of ndarray
        Row positions of every batch; one at least.
    """

    round: Round
    plan: Plan


@dataclass(frozen=True)
class Stacked:
    """What a cohort hands back: every tensor has a leading axis of clients, in the order of the members.

    Parameters
    ----------
    upload : Upload
        The rule's uploads.
    loss : Tensor, shape (clients,)
        Mean loss over each client's steps.
    """

    upload: Upload
    loss: Tensor

    def of(self, client: int) -> Upload:
        """Upload of one client."""
        stacked = self.upload
        return Upload(
            arrays={k: v[client] for k, v in stacked.arrays.items()},
            kept={k: v[client] for k, v in stacked.kept.items()},
            extra={name: {k: v[client] for k, v in r.items()} for name, r in stacked.extra.items()},
            metrics={k: v[client] for k, v in stacked.metrics.items()},  # type: ignore[index]
        )


def alone_because(model: Stateless, *, forced: bool = False) -> str | None:
    """Why clients with this model train one at a time, if they do.

    Parameters
    ----------
    model : Stateless
        The model.
    forced : bool
        Pass over reasons that are a matter of speed.
    """
    layers = list(model.module.modules())
    if model.has_batch_norm:
        return "BatchNorm changes running statistics in training, which no vectorised step can"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in layers):
        return "each client's dropout has random numbers of its own"
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in layers)
    if convolves and model.device.type == "cpu" and not forced:
        return "on a CPU, convolutions with kernels for each client are slower together than apart"
    return None


def alike(round: Round, phases: Sequence[Phase]) -> tuple[Any, ...]:
    """What must be equal for clients that got the same message to train together."""
    kept = tuple((k, v.shape, v.dtype) for k, v in round.kept.items())
    return kept, tuple(phase.moving for phase in phases)


class CohortTrainer:
    """Trains cohorts by one rule.

    A step that is called often is recorded as a flat graph of tensor operations (``make_fx``). The same
    operations run then, without the cost of dispatching them through ``vmap`` and ``grad``, which for small
    models is the greater part. What a recording depends on (shapes, settings) is compared before each call.

    Parameters
    ----------
    rule : LocalRule
        Client half of the method.
    """

    def __init__(self, rule: LocalRule) -> None:
        self.rule = rule
        self._calls: Counter[Any] = Counter()
        self._graphs: dict[Any, list[_Graph]] = {}

    def train(self, members: Sequence[Member]) -> Stacked:
        """Train all members.

        Their rules' phases must move the same tensors, and they must keep tensors of the same shapes
        (:func:`alike`).

        Raises
        ------
        RuntimeError
            Of torch's own, where model or rule do what ``vmap`` cannot: draw random numbers, or decide by the
            value of a tensor.
        """
        cohort = _Cohort(members)
        phases = [self.rule.phases(m.round) for m in members]
        params = self._begin(cohort)
        total = torch.zeros(len(members), device=cohort.device)
        taken = np.zeros(len(members), dtype=np.int64)
        for phase in zip(*phases, strict=True):
            moving, lengths = phase[0].moving, np.array([p.steps for p in phase])
            state = cohort.initial_state({k: v for k, v in params.items() if k in moving})

            def step(own: Any, now: Round, moving: frozenset[str] = moving) -> tuple[Params, State, Tensor]:
                return self.rule.step(own["params"], own["state"], moving, own["batch"], now)

            for batch, live in cohort.batches(taken, lengths):
                own = {"params": params, "state": state, "batch": batch}
                after = self._call(cohort, ("step", moving), step, own)
                if live is not None:
                    before = (params, state, torch.zeros_like(total))
                    after = pytree.tree_map(lambda a, b, live=live: _where(live, a, b), after, before)
                params, state, loss = after
                total += loss
            taken += lengths
        return Stacked(self._end(cohort, params), total / cohort.steps)

    def _begin(self, cohort: _Cohort) -> Params:
        if type(self.rule).begin is LocalRule.begin:
            return cohort.repeat(cohort.template.received)
        begun: Params = self._call(cohort, "begin", lambda _, now: dict(self.rule.begin(now)), {})
        return begun

    def _end(self, cohort: _Cohort, params: Params) -> Upload:
        if type(self.rule).end is LocalRule.end:
            return Upload(params, cohort.mine["kept"])
        own = {"params": params}
        return Upload(
            **self._call(cohort, "end", lambda own, now: _flat(self.rule.end(own["params"], now)), own)
        )

    def _call(self, cohort: _Cohort, name: Any, function: Callable[[Any, Round], Any], own: Any) -> Any:
        """``function(own, round)`` for every client; leaves of ``own`` are stacked."""
        config = _Watched(cohort.template.config)

        def vectorised(own: Any, mine: Any, shared: Any) -> Any:
            def one(own: Any, mine: Any) -> Any:
                return function(own, cohort.now(mine, shared, config))

            return vmap(one)(own, mine)

        leaves, spec = pytree.tree_flatten(own)
        shapes = tuple(leaf.shape for leaf in leaves)
        leaves += cohort.leaves
        key = (name, spec, shapes, cohort.key)
        graphs = self._graphs.setdefault(key, [])
        for graph in graphs:
            if graph.fits(leaves, cohort.template.config):
                return graph(leaves)
        self._calls[key] += 1
        if self._calls[key] <= _RECORD_AFTER or len(graphs) == _MOST_GRAPHS:
            outputs = vectorised(own, cohort.mine, cohort.shared)
            return pytree.tree_map(torch.Tensor.contiguous, outputs)

        def flat(*leaves: Tensor) -> Any:
            split = spec.num_leaves
            own = pytree.tree_unflatten(leaves[:split], spec)
            return vectorised(own, *pytree.tree_unflatten(leaves[split:], cohort.spec))

        graphs.append(_Graph(flat, leaves, config))
        return graphs[-1](leaves)


class _Cohort:
    """Stacked inputs of a cohort, and the round that a rule sees under ``vmap``."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.template = members[0].round
        rounds = [m.round for m in members]
        like = next(iter(self.template.received.values()))
        self.device = like.device
        self.size = len(members)
        self._plans = [m.plan for m in members]
        steps = torch.tensor([len(plan) for plan in self._plans])
        self.steps = steps.to(self.device)
        rates = [r.lr for r in rounds]
        self.shared: dict[str, Any] = {"received": self.template.received, "sent": dict(self.template.sent)}
        self.mine: dict[str, Any] = {
            "kept": {k: torch.stack([r.kept[k] for r in rounds]) for k in self.template.kept},
            "data": stack_rows([r.data for r in rounds]),
            "steps": self.steps,
        }
        rate = torch.tensor(rates, dtype=like.dtype, device=self.device)
        if len(set(rates)) == 1:
            self.shared["lr"] = rate[0]
        else:
            self.mine["lr"] = rate
        self.leaves, self.spec = pytree.tree_flatten((self.mine, self.shared))
        self.key = (self.spec, self.size, self.template.optimizer)

    def repeat(self, tensors: Params) -> Params:
        """The same tensors for every client."""
        return {k: v.expand(self.size, *v.shape).contiguous() for k, v in tensors.items()}

    def initial_state(self, params: Params) -> State:
        """The optimiser's state before its first step, which depends on shapes alone."""
        state = self.template.optimizer.init({k: v[0] for k, v in params.items()})
        return {name: self.repeat(part) for name, part in state.items()}

    def now(self, mine: dict[str, Any], shared: dict[str, Any], config: Mapping[str, Any]) -> Round:
        """The round of one client, inside ``vmap``."""
        return replace(
            self.template,
            **mine,
            **shared,
            config=config,
            differentiate=differentiate_functionally,
            generator=None,
        )

    def batches(
        self, taken: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
    ) -> Iterator[tuple[Batch, Tensor | None]]:
        """Padded batches of a phase, and who still takes part; ``None`` where all do."""
        data, most = self.mine["data"], int(lengths.max())
        plans = [p[a : a + n] for p, a, n in zip(self._plans, taken, lengths, strict=True)]
        width = max((len(chosen) for plan in plans for chosen in plan), default=0)
        index = np.zeros((most, len(plans), width), dtype=np.int64)
        real = np.zeros(index.shape, dtype=bool)
        for client, plan in enumerate(plans):
            for t, chosen in enumerate(plan):
                index[t, client, : len(chosen)] = chosen
                real[t, client, : len(chosen)] = True
        rows = {k: v.flatten(0, 1) for k, v in data.items()}
        index += len(rows["weight"]) // len(plans) * np.arange(len(plans))[:, None]
        where = torch.from_numpy(index.reshape(most, -1)).to(self.device)
        mask = torch.from_numpy(real).to(self.device)
        full, shortest = bool(real.all()), int(lengths.min())
        for t in range(most):
            batch = {
                k: v.index_select(0, where[t]).view(len(plans), width, *v.shape[1:]) for k, v in rows.items()
            }
            if not full:
                batch["weight"] = batch["weight"] * mask[t]
            yield batch, None if t < shortest else torch.from_numpy(lengths > t).to(self.device)


class _Watched(Mapping[str, Any]):
    """A config that remembers what was read from it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = self._config.get(key)
        return self._config[key]

    def __contains__(self, key: object) -> bool:
        self.read[str(key)] = self._config.get(str(key))
        return key in self._config

    def __iter__(self) -> Iterator[str]:
        self.read |= self._config
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


class _Graph:
    """A recorded function, and what the recording depends on."""

    def __init__(self, function: Callable[..., Any], leaves: Sequence[Tensor], config: _Watched) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        out_spec: list[Any] = []

        def flat(*leaves: Tensor) -> list[Tensor]:
            outputs, structure = pytree.tree_flatten(function(*leaves))
            out_spec.append(structure)
            return [output.contiguous() for output in outputs]

        # Clones, because a tensor that stands in two places would be recorded as one input.
        self._run = make_fx(flat)(*(leaf.clone() for leaf in leaves))
        _drop_idle(self._run, leaves)
        self._out_spec = out_spec[0]
        inputs = [node for node in self._run.graph.nodes if node.op == "placeholder"]
        self._needs = [(i, leaves[i].shape, leaves[i].dtype) for i, node in enumerate(inputs) if node.users]
        self._config = config.read

    def fits(self, leaves: Sequence[Tensor], config: Mapping[str, Any]) -> bool:
        return all(leaves[i].shape == s and leaves[i].dtype == d for i, s, d in self._needs) and all(
            config.get(k) == v for k, v in self._config.items()
        )

    def __call__(self, leaves: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            return pytree.tree_unflatten(self._run(*leaves), self._out_spec)


def _drop_idle(recorded: GraphModule, leaves: Sequence[Tensor]) -> None:
    """Take out what changes nothing: unused results, and ``vmap``'s reshaping to the same shape."""
    from torch.fx.passes.shape_prop import ShapeProp

    aten = torch.ops.aten
    reshaping = {aten.expand.default, aten.view.default, aten._unsafe_view.default}
    ShapeProp(recorded).propagate(*leaves)
    for node in list(recorded.graph.nodes):
        times_one = node.target == aten.mul.Scalar and node.args[1] == 1
        if times_one or node.target in reshaping:
            before, after = node.args[0].meta["tensor_meta"], node.meta["tensor_meta"]
            if (before.shape, before.stride, before.dtype) == (after.shape, after.stride, after.dtype):
                node.replace_all_uses_with(node.args[0])
    recorded.graph.eliminate_dead_code()
    recorded.recompile()


@timed(LOAD)
def stack_rows(batches: Sequence[Batch]) -> Batch:
    """Rows of several clients on a leading client axis, filled up with rows of zeros to the longest.

    Parameters
    ----------
    batches : sequence of dict of Tensor
        The same keys in each; ``weight`` is among them, so that what is filled up has weight 0.
    """
    lengths = [len(b["weight"]) for b in batches]
    most = max(lengths)
    stacked = {}
    for key, first in batches[0].items():
        if min(lengths) == most:
            stacked[key] = torch.stack([b[key] for b in batches])
            continue
        stacked[key] = first.new_zeros((len(batches), most, *first.shape[1:]))
        for client, (batch, length) in enumerate(zip(batches, lengths, strict=True)):
            stacked[key][client, :length] = batch[key]
    return stacked


def _where(live: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(live.view(-1, *[1] * (new.ndim - 1)), new, old)


def _flat(upload: Upload) -> dict[str, Any]:
    """An upload as nested dicts of tensors, which ``vmap`` can carry."""
    return {
        "arrays": dict(upload.arrays),
        "kept": dict(upload.kept),
        "extra": {k: dict(v) for k, v in upload.extra.items()},
        "metrics": {k: torch.as_tensor(v) for k, v in upload.metrics.items()},
    }
