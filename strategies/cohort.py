"""Many clients trained together: one vectorised step moves them all.

Parameters lie stacked on a leading client axis, over which ``torch.func.vmap`` carries any :class:`LocalRule`
unchanged. Clients may differ in their number of rows and steps: batches are padded to the longest with rows
of weight 0, and a client that has taken its last step stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .functional import Batch, Params, Stateless, differentiate_functionally
from .local import LocalRule, Phase, Plan, Round, Upload
from .optim import State
from .recording import Groups, Recorder
from .timing import LOAD, timed

_SENT, _EXTRA, _STATE = "sent ", "extra ", "state "
"""Before the names of further groups of tensors."""

_GATHERED_BYTES = 1 << 20
"""Batches that are gathered at once take no more, so that they stay in a cache until they are used."""

Function = Callable[[Groups, Round], Groups]


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
    """Trains cohorts by one rule; steps that are called often run from recordings.

    Parameters
    ----------
    rule : LocalRule
        Client half of the method.
    """

    def __init__(self, rule: LocalRule) -> None:
        self.rule = rule
        self._recorder = Recorder()

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
            lengths = np.array([p.steps for p in phase])
            step = self._step(phase[0].moving)
            changing = {"params": params} | cohort.initial_state(params, phase[0].moving)
            for batch, live in cohort.batches(taken, lengths):
                before = None if live is None else {name: _clones(group) for name, group in changing.items()}
                after = self._call(
                    cohort, ("step", phase[0].moving), step, changing | {"batch": batch}, owned=[*changing]
                )
                loss = after.pop("loss")["loss"]
                if live is not None and before is not None:
                    after = {
                        name: {k: _where(live, v, before[name][k]) for k, v in group.items()}
                        for name, group in after.items()
                    }
                    loss = _where(live, loss, torch.zeros_like(loss))
                changing = after
                total += loss
            params = changing["params"]
            taken += lengths
        return Stacked(self._end(cohort, params), total / cohort.steps)

    def _begin(self, cohort: _Cohort) -> Params:
        if type(self.rule).begin is LocalRule.begin:
            return cohort.repeat(cohort.template.received)
        begun = self._call(cohort, "begin", lambda _, now: {"params": dict(self.rule.begin(now))}, {})
        return _clones(begun["params"])  # what the client keeps, say, is not to be written to

    def _step(self, moving: frozenset[str]) -> Function:
        def step(own: Groups, now: Round) -> Groups:
            state = {k.removeprefix(_STATE): v for k, v in own.items() if k.startswith(_STATE)}
            params, state, loss = self.rule.step(own["params"], state, moving, own["batch"], now)
            return {"params": params, **{_STATE + k: v for k, v in state.items()}, "loss": {"loss": loss}}

        return step

    def _end(self, cohort: _Cohort, params: Params) -> Upload:
        if type(self.rule).end is LocalRule.end:
            return Upload(params, cohort.mine["kept"])
        own = {"params": params}
        ended = self._call(cohort, "end", lambda own, now: _flat(self.rule.end(own["params"], now)), own)
        return Upload(
            ended["arrays"],
            ended["kept"],
            {k.removeprefix(_EXTRA): v for k, v in ended.items() if k.startswith(_EXTRA)},
            ended["metrics"],
        )

    def _call(
        self, cohort: _Cohort, name: Any, function: Function, own: Groups, owned: Sequence[str] = ()
    ) -> dict[str, Params]:
        """``function(own, round)`` for every client; all of ``own`` is stacked."""

        def vectorised(inputs: Groups, config: Mapping[str, Any]) -> Groups:
            stacked = [{k: inputs[k] for k in groups} for groups in (own, cohort.mine)]
            shared = {k: inputs[k] for k in cohort.shared}
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels do not vectorise over clients
                return vmap(lambda own, mine: function(own, cohort.now(mine, shared, config)))(*stacked)

        inputs = {**own, **cohort.mine, **cohort.shared}
        key = (name, cohort.size, cohort.template.optimizer)
        return self._recorder.call(key, vectorised, inputs, cohort.template.config, owned)


class _Cohort:
    """Stacked inputs of a cohort, and the round that a rule sees under ``vmap``."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.template = members[0].round
        rounds = [m.round for m in members]
        like = next(iter(self.template.received.values()))
        self.device = like.device
        self.size = len(members)
        self._plans = [m.plan for m in members]
        self.steps = torch.tensor([len(plan) for plan in self._plans]).to(self.device)
        rates = torch.tensor([r.lr for r in rounds], dtype=like.dtype, device=self.device)
        one_rate = len({r.lr for r in rounds}) == 1
        self.mine: dict[str, Params] = {
            "kept": {k: torch.stack([r.kept[k] for r in rounds]) for k in self.template.kept},
            "data": stack_rows([r.data for r in rounds]),
            "own": {"steps": self.steps} if one_rate else {"steps": self.steps, "lr": rates},
        }
        self.shared: dict[str, Params] = {
            "received": self.template.received,
            "all": {"lr": rates[0]} if one_rate else {},
            **{_SENT + name: dict(record) for name, record in self.template.sent.items()},
        }

    def repeat(self, tensors: Params) -> Params:
        """The same tensors for every client."""
        return _clones({k: v.expand(self.size, *v.shape) for k, v in tensors.items()})

    def initial_state(self, params: Params, moving: frozenset[str]) -> State:
        """The optimiser's state before its first step, which depends on shapes alone."""
        state = self.template.optimizer.init({k: v[0] for k, v in params.items() if k in moving})
        return {_STATE + name: self.repeat(part) for name, part in state.items()}

    def now(self, mine: Groups, shared: Groups, config: Mapping[str, Any]) -> Round:
        """The round of one client, inside ``vmap``."""
        return replace(
            self.template,
            kept=mine["kept"],
            data=mine["data"],
            **{**mine["own"], **shared["all"]},  # type: ignore[arg-type]
            received=shared["received"],
            sent={k.removeprefix(_SENT): v for k, v in shared.items() if k.startswith(_SENT)},
            config=config,
            differentiate=differentiate_functionally,
            generator=None,
        )

    def batches(
        self, taken: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
    ) -> Iterator[tuple[Batch, Tensor | None]]:
        """Padded batches of a phase, and who still takes part; ``None`` where all do."""
        plans = [p[a : a + n] for p, a, n in zip(self._plans, taken, lengths, strict=True)]
        clients, most, shortest = len(plans), int(lengths.max()), int(lengths.min())
        if most == 0:
            return
        sizes = np.zeros((clients, most), dtype=np.int64)
        for mine, plan in zip(sizes, plans, strict=True):
            mine[: len(plan)] = [len(chosen) for chosen in plan]
        width = int(sizes.max())
        real = np.arange(width) < sizes[:, :, None]
        index = np.zeros(real.shape, dtype=np.int64)
        index[real] = np.concatenate([chosen for plan in plans for chosen in plan])
        rows = {k: v.flatten(0, 1) for k, v in self.mine["data"].items()}
        index += len(rows["weight"]) // clients * np.arange(clients)[:, None, None]
        where = torch.from_numpy(index.swapaxes(0, 1).reshape(most, -1)).to(self.device)
        mask = None if real.all() else torch.from_numpy(real.swapaxes(0, 1)).to(self.device)
        step_bytes = where.shape[1] * sum(v[0].numel() * v.element_size() for v in rows.values())
        at_once = max(1, _GATHERED_BYTES // step_bytes)
        for start in range(0, most, at_once):
            chosen = where[start : start + at_once].flatten()
            several = {
                k: v.index_select(0, chosen).view(-1, clients, width, *v.shape[1:]) for k, v in rows.items()
            }
            if mask is not None:
                several["weight"] *= mask[start : start + at_once]
            for t in range(start, min(start + at_once, most)):
                batch = {k: v[t - start] for k, v in several.items()}
                yield batch, None if t < shortest else torch.from_numpy(lengths > t).to(self.device)


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


def _clones(tensors: Params) -> Params:
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def _where(live: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(live.view(-1, *[1] * (new.ndim - 1)), new, old)


def _flat(upload: Upload) -> Groups:
    """An upload as groups of tensors, which ``vmap`` can carry."""
    return {
        "arrays": dict(upload.arrays),
        "kept": dict(upload.kept),
        "metrics": {k: torch.as_tensor(v) for k, v in upload.metrics.items()},
        **{_EXTRA + name: dict(record) for name, record in upload.extra.items()},
    }
