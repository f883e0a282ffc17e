"""A client that follows a rule: between Flower's messages on one side and pure functions on the other.

Any ClientApp can use it::

    client = RuleClient(ScaffoldRule(), Net(), weighted_cross_entropy)

    @app.train()
    def train(message, context):
        data = {"x": x, "y": y}
        return client.train(message, context, data, batches(len(y), size=32), lr=0.05)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn
from torch.nn import functional

from .errors import StrategyError
from .functional import Batch, Params, Stateless
from .local import FineTune, LocalRule, Round, Upload
from .optim import SGD, Optimizer

Plan = Sequence[npt.NDArray[np.int64]]
"""Row positions of every batch of a round, in order."""

KEPT = "local-rule-kept"
"""Key in a client's state of the tensors that its rule keeps."""
RULE = "local-rule"
"""Key of the config record in which a reply names the rule that made it."""


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
        records = {k: self._tensors(r) for k, r in message.content.array_records.items()}
        if "arrays" not in records:
            raise StrategyError(
                "the message has no record 'arrays'; the strategy's arrayrecord_key must be 'arrays'"
            )
        received = self.model.to_device(self.model.initial() | records.pop("arrays"))
        kept = context.state.array_records.get(KEPT)
        return Round(
            model=self.model,
            task_loss=self.loss,
            received=received,
            trainable=self.model.trainable,
            head=self.model.head,
            norms=self.model.norms,
            data=self._weighted(data),
            kept=self.rule.keep(received) if kept is None else self._tensors(kept),
            sent=records,
            config=dict(message.content.config_records.get("config", {})),
            steps=steps,
            lr=lr,
            optimizer=self.optimizer,
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
        now = self.round(message, context, data, steps=len(plan), lr=lr, generator=generator)
        params, loss = train_client(self.rule, now, plan)
        rows = len(now.data["weight"]) if weight is None else weight
        numbers = {"num-examples": rows, "train_loss": loss, "local_steps": len(plan)}
        upload = self.rule.end(params, now)
        return self._reply(message, context, corrupt(upload, now) if corrupt else upload, numbers)

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

    def _reply(
        self, message: Message, context: Context, upload: Upload, numbers: Mapping[str, float]
    ) -> Message:
        if upload.kept:
            context.state[KEPT] = record(upload.kept)
        metrics: dict[str, Any] = {**numbers, **{k: float(v) for k, v in upload.metrics.items()}}
        content = RecordDict({"arrays": record(upload.arrays), "metrics": MetricRecord(metrics)})
        for key, extra in upload.extra.items():
            content[key] = record(extra)
        if type(self.rule) is not LocalRule:
            content[RULE] = ConfigRecord({"name": type(self.rule).__name__})
        return Message(content, reply_to=message)

    def _tensors(self, arrays: ArrayRecord) -> Params:
        return {k: torch.from_numpy(v.numpy()).to(self.model.device) for k, v in arrays.items()}

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


def weighted_cross_entropy(output: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of logits over the rows that are no padding; 0 where all are."""
    losses = functional.cross_entropy(output, batch["y"], reduction="none")
    weight = batch["weight"]
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def record(params: Mapping[str, Tensor]) -> ArrayRecord:
    """An array record of tensors, in their order."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in params.items()})
