"""A client that follows a rule: between Flower's messages on one side and pure functions on the other.

Any ClientApp can use it::

    client = RuleClient(ScaffoldRule(), Net(), weighted_cross_entropy)

    @app.train()
    def train(message, context):
        data = {"x": x, "y": y}
        return client.train(message, context, data, batches(len(y), size=32), lr=0.05)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from .arrays import record, tensors_of
from .cohort import CohortTrainer, Member, alike
from .errors import StrategyError
from .functional import Batch, Params, Stateless, weighted_mean
from .local import FineTune, LocalRule, Plan, Round, Upload
from .optim import SGD, Optimizer
from .timing import BROADCAST, LOAD, UPLOAD, timed

KEPT = "local-rule-kept"
"""Key in a client's state of the tensors that its rule keeps."""
RULE = "local-rule"
"""Key of the config record in which a reply names the rule that made it."""


Answered = tuple[Message | None, dict[str, float]]


@dataclass(frozen=True)
class Job:
    """A training message and what its client trains on; see :meth:`RuleClient.train`.

    Parameters
    ----------
    message, context, data, plan, lr, weight, corrupt
        As there.
    generator : callable or None
        Makes the source of the rule's own draws, which a cohort has no use for.
    """

    message: Message
    context: Context
    data: Mapping[str, Tensor]
    plan: Plan
    lr: float
    weight: int | None = None
    generator: Callable[[], torch.Generator] | None = None
    corrupt: Callable[[Upload, Round], Upload] | None = None

    def numbers(self, now: Round, loss: float) -> dict[str, float]:
        """What every reply reports."""
        rows = len(now.data["weight"]) if self.weight is None else self.weight
        return {"num-examples": rows, "train_loss": loss, "local_steps": len(self.plan)}


class RuleClient:
    """One process's resident model, trained by a rule for whichever client a message is for.

    Parameters
    ----------
    rule : LocalRule
        Client half of the strategy.
    module : nn.Module
        The model; its last layer is called ``head`` where the method needs to know it.
    loss : callable
        ``loss(output, batch) -> scalar``, weighted by ``batch["weight"]``, such as
        :func:`weighted_cross_entropy`.
    inputs : callable, optional
        ``inputs(batch)``: arguments of the model's ``forward``; ``(batch["x"],)`` by default.
    optimizer : Optimizer
        Local optimiser, made anew in each round.
    device : torch device
        Where the model computes.
    """

    def __init__(
        self,
        rule: LocalRule,
        module: nn.Module,
        loss: Callable[[Tensor, Batch], Tensor],
        inputs: Callable[[Batch], tuple[Tensor, ...]] | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rule = rule
        self.model = Stateless(module, inputs, device)
        self.loss = loss
        self.optimizer = optimizer or SGD()
        self._trainer = CohortTrainer(rule)
        self._last: tuple[RecordDict, Round] | None = None

    def round(
        self,
        message: Message,
        context: Context,
        data: Mapping[str, Tensor],
        *,
        steps: int = 0,
        lr: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Round:
        """What the rule may look at.

        Raises
        ------
        StrategyError
            If the message has no record ``arrays``.
        """
        now = self._opened(message)
        return replace(
            now,
            data=self._weighted(data),
            kept=self._kept(context, now.received),
            steps=steps,
            lr=lr,
            generator=generator,
        )

    def train(
        self,
        message: Message,
        context: Context,
        data: Mapping[str, Tensor],
        plan: Plan,
        lr: float,
        *,
        weight: int | None = None,
        generator: torch.Generator | None = None,
        corrupt: Callable[[Upload, Round], Upload] | None = None,
    ) -> Message:
        """Answer a training message.

        Parameters
        ----------
        message, context : Message, Context
            As the ClientApp got them; what the rule keeps is left in ``context.state``.
        data : mapping of Tensor
            All training rows, ``x`` and ``y`` say.
        plan : sequence of ndarray
            Row positions of each batch.
        lr : float
            Learning rate.
        weight : int or None
            Number of examples to report; ``None`` counts the rows.
        generator : torch.Generator, optional
            For the rule's own draws.
        corrupt : callable, optional
            ``corrupt(upload, round)`` goes up in place of the rule's upload: see :mod:`strategies.attacks`.
        """
        made = None if generator is None else (lambda: generator)
        job = Job(message, context, data, plan, lr, weight, made, corrupt)
        reply, _ = self.train_together([job])[0]
        assert reply is not None
        return reply

    def answer(
        self,
        action: str,
        message: Message,
        context: Context,
        data: Mapping[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Message:
        """Answer one of the rule's queries."""
        now = self.round(message, context, data, generator=generator)
        upload = self.rule.queries()[action](now)
        return self._reply(message, context, upload, {"num-examples": len(now.data["weight"])})

    def predictor(
        self,
        message: Message,
        context: Context,
        data: Mapping[str, Tensor] | None = None,
        plan: Callable[[FineTune], Plan] = lambda _: [],
        lr: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Callable[[Batch], Tensor]:
        """The function ``batch -> output`` with which this client predicts, fine-tuned where the rule says.

        Parameters
        ----------
        message, context, data
            As for :meth:`train`; nothing is kept. A rule that does not fine-tune needs no data, and none of
            the following.
        plan : callable
            Gives the batches of a fine-tuning.
        lr : float
            Learning rate of fine-tuning that names none.
        """
        now = self.round(message, context, data or {}, lr=lr, generator=generator)
        params = self.rule.predictor(now)
        tune = self.rule.fine_tune(now)
        if tune is not None:
            if tune.lr is not None:
                now = replace(now, lr=tune.lr, optimizer=SGD())
            batches = plan(tune)
            params, _ = train_client(_From(params), replace(now, steps=len(batches)), batches)

        def predict(batch: Batch) -> Tensor:
            with torch.no_grad():
                return self.rule.output(params, batch, now)

        return predict

    def train_together(self, jobs: Sequence[Job], *, merge: bool = False) -> list[Answered]:
        """Answer training messages with the same content, whose clients train step by step together.

        Clients that cannot (without a batch, or the only one to keep tensors of its shapes) train alone.

        Parameters
        ----------
        jobs : sequence of Job
            One a client.
        merge : bool
            Send one reply for all that trained together: their mean, weighted by numbers of examples, as
            FedAvg goes on to weight it. For strategies that look at nothing but the mean.

        Returns
        -------
        list of (Message or None, dict of float)
            Reply and metrics of each job. Where replies are merged, the first client of those has it.
        """
        opened = self._opened(jobs[0].message)
        rounds = [
            replace(
                opened,
                data=self._weighted(job.data),
                kept=self._kept(job.context, opened.received),
                steps=len(job.plan),
                lr=job.lr,
            )
            for job in jobs
        ]
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, (job, now) in enumerate(zip(jobs, rounds, strict=True)):
            groups[alike(now, self.rule.phases(now)) if job.plan else i].append(i)
        answers: list[Answered] = [(None, {})] * len(jobs)
        for group in groups.values():
            mine = [jobs[i] for i in group]
            done = (
                self._cohort(mine, [rounds[i] for i in group], merge)
                if len(group) > 1
                else [self._alone(mine[0], rounds[group[0]])]
            )
            for i, answer in zip(group, done, strict=True):
                answers[i] = answer
        return answers

    def _alone(self, job: Job, now: Round) -> Answered:
        now = replace(now, generator=job.generator() if job.generator else None)
        params, loss = train_client(self.rule, now, job.plan)
        upload = self.rule.end(params, now)
        if job.corrupt:
            upload = job.corrupt(upload, now)
        metrics = job.numbers(now, loss) | {k: float(v) for k, v in upload.metrics.items()}
        return self._reply(job.message, job.context, upload, metrics), metrics

    def _cohort(self, jobs: Sequence[Job], rounds: Sequence[Round], merge: bool) -> list[Answered]:
        members = [Member(now, job.plan) for now, job in zip(rounds, jobs, strict=True)]
        stacked = self._trainer.train(members)
        if any(job.corrupt for job in jobs):
            arrays = {k: v.clone() for k, v in stacked.upload.arrays.items()}  # they may be kept, too
            for i, (job, now) in enumerate(zip(jobs, rounds, strict=True)):
                for k, v in job.corrupt(stacked.of(i), now).arrays.items() if job.corrupt else ():
                    arrays[k][i] = v
            stacked = replace(stacked, upload=replace(stacked.upload, arrays=arrays))
        reported = {k: v.tolist() for k, v in stacked.upload.metrics.items()}  # type: ignore[union-attr]
        metrics = [
            job.numbers(now, loss) | {k: v[i] for k, v in reported.items()}
            for i, (job, now, loss) in enumerate(zip(jobs, rounds, stacked.loss.tolist(), strict=True))
        ]
        if merge:
            for i, job in enumerate(jobs):
                self._keep(job.context, {k: v[i].clone() for k, v in stacked.upload.kept.items()})
            weight = [m["num-examples"] for m in metrics]
            mean = {k: np.average([m[k] for m in metrics], weights=weight) for k in metrics[0]}
            total = mean | {"num-examples": sum(weight)}
            merged = Upload(_mean(stacked.upload.arrays, weight))
            reply = self._reply(jobs[0].message, jobs[0].context, merged, total)
            return [(reply if i == 0 else None, m) for i, m in enumerate(metrics)]
        return [
            (self._reply(job.message, job.context, stacked.of(i), m), m)
            for i, (job, m) in enumerate(zip(jobs, metrics, strict=True))
        ]

    @timed(BROADCAST)
    def _opened(self, message: Message) -> Round:
        """What a message tells all clients that get it; most get what the client before them got."""
        if self._last is not None and self._last[0] is message.content:
            return self._last[1]
        records = {k: self._tensors(r) for k, r in message.content.array_records.items()}
        if "arrays" not in records:
            raise StrategyError(
                "the message has no record 'arrays'; the strategy's arrayrecord_key must be 'arrays'"
            )
        opened = Round(
            model=self.model,
            task_loss=self.loss,
            received=self.model.to_device(self.model.initial() | records.pop("arrays")),
            trainable=self.model.trainable,
            head=self.model.head,
            norms=self.model.norms,
            sent=records,
            config=dict(message.content.config_records.get("config", {})),
            optimizer=self.optimizer,
        )
        self._last = (message.content, opened)
        return opened

    @timed(LOAD)
    def _kept(self, context: Context, received: Params) -> Params:
        if KEPT not in context.state:
            return self.rule.keep(received)
        kept: Any = context.state[KEPT]
        return self._tensors(kept)

    @timed(UPLOAD)
    def _keep(self, context: Context, kept: Params) -> None:
        if kept:
            context.state[KEPT] = record(kept)

    @timed(UPLOAD)
    def _reply(
        self, message: Message, context: Context, upload: Upload, numbers: Mapping[str, float]
    ) -> Message:
        self._keep(context, upload.kept)
        metrics: dict[str, Any] = {k: float(v) for k, v in upload.metrics.items()} | dict(numbers)
        content = RecordDict({"arrays": record(upload.arrays), "metrics": MetricRecord(metrics)})
        for key, extra in upload.extra.items():
            content[key] = record(extra)
        if self.rule.name != LocalRule.__name__:
            content[RULE] = ConfigRecord({"name": self.rule.name})
        return Message(content, reply_to=message)

    def _tensors(self, arrays: ArrayRecord) -> Params:
        return {k: v.to(self.model.device) for k, v in tensors_of(arrays).items()}

    def _weighted(self, data: Mapping[str, Tensor]) -> Batch:
        moved = {k: v.to(self.model.device) for k, v in data.items()}
        if moved and "weight" not in moved:
            moved["weight"] = torch.ones(len(next(iter(moved.values()))), device=self.model.device)
        return moved


class _From(LocalRule):
    """Plain training from given tensors."""

    def __init__(self, start: Params) -> None:
        self._start = start

    def begin(self, round: Round) -> Params:  # noqa: ARG002
        return self._start


def train_client(rule: LocalRule, round: Round, plan: Plan) -> tuple[Params, float]:
    """Train one client through its plan of batches.

    Parameters
    ----------
    rule, round
        The method's client half, and what the client knows of this round.
    plan : sequence of ndarray
        Row positions in ``round.data`` of every batch.

    Returns
    -------
    params, loss
        Where training ended, and the mean loss over the steps.
    """
    device = round.data["weight"].device
    params = {k: v.detach().clone() for k, v in rule.begin(round).items()}
    total = torch.zeros((), device=device)
    batches = iter(plan)
    for phase in rule.phases(round) if plan else ():
        state = round.optimizer.init({k: v for k, v in params.items() if k in phase.moving})
        for _, rows in zip(range(phase.steps), batches, strict=False):
            index = torch.from_numpy(rows).to(device)
            batch = {k: v[index] for k, v in round.data.items()}
            params, state, loss = rule.step(params, state, phase.moving, batch, round)
            total += loss
    return params, float(total) / max(len(plan), 1)


@timed(UPLOAD)
def _mean(stacked: Params, weight: Sequence[float]) -> Params:
    """Weighted mean over the leading axis."""
    share = torch.tensor(weight, dtype=torch.float64)
    share = share / share.sum()
    return {k: torch.tensordot(share.to(v.device, v.dtype), v, 1) for k, v in stacked.items()}


def weighted_cross_entropy(output: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of logits over the rows that are no padding; 0 where all are."""
    # Not cross_entropy: its ignored class, and softmax along so few classes, cost a cohort a tenth of a step.
    losses = output.logsumexp(dim=-1) - output.gather(-1, batch["y"].unsqueeze(-1)).squeeze(-1)
    return weighted_mean(losses, batch)
