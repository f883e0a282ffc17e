"""The server half of a method whose clients follow a rule: Flower's FedAvg with a few doors opened."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAvg,
    FedAvgM,
    FedProx,
    Result,
    Strategy,
)

from .arrays import Arrays, numpy_of, record
from .client import RULE
from .errors import StrategyError
from .local import LocalRule

_MEANS = (FedAvg, FedProx, FedAvgM)
"""Flower's strategies that look at nothing but the weighted mean. So do its adaptive ones, but they divide by
roots of sums that start at 0, and would magnify the last digits in which a mean of means differs."""


def may_merge(strategy: Strategy) -> bool:
    """Whether a strategy may be given means of several clients in place of single replies.

    Flower's wrappers, which clip each reply, may not.
    """
    declared = strategy.only_averages if isinstance(strategy, Method) else type(strategy) in _MEANS
    return declared and getattr(strategy, "weighted_by_key", None) == "num-examples"


@dataclass(frozen=True)
class Answer:
    """What one client sent back in a round, beside the record that is averaged.

    Parameters
    ----------
    node : int
        Node id.
    weight : float
        Share of the client in the average; all shares of a round add up to 1.
    arrays : dict of ndarray
        The record that is averaged.
    extra : dict of dict of ndarray
        Further array records, by key.
    metrics : dict of float
        Scalar metrics.
    """

    node: int
    weight: float
    arrays: Arrays
    extra: dict[str, Arrays]
    metrics: dict[str, float]


class Method(FedAvg):
    """Base of the server halves in this package.

    A subclass names its client half, sets the numbers that clients need as ``settings``, and overrides
    :meth:`extra` for further records to send, :meth:`combine` for what becomes of the average, and
    :meth:`finish` for a phase after the last round. What it must remember lies in ``state``.

    Parameters
    ----------
    **flower
        Options of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    client_half: ClassVar[type[LocalRule]] = LocalRule

    only_averages: ClassVar[bool] = False
    """Whether the method looks at nothing of a round but the weighted mean; see :func:`may_merge`."""
    personal: bool = False
    """Whether clients predict with models of their own, so that there is no global model to test."""

    def __init__(self, **flower: Any) -> None:
        super().__init__(**flower)
        self.settings: dict[str, int | float | str] = {}
        """Sent to clients with every message, such as ``{"moon-mu": 1.0}``."""
        self.population = 0
        """Number of all clients, sampled or not."""
        self.state: dict[str, Arrays] = {}
        """What the server remembers between rounds, as named groups of arrays."""
        self.sent: Arrays = {}
        """The arrays that this round's clients started from."""

    # --- doors for methods -----------------------------------------------------------------------

    def extra(self) -> Mapping[str, Arrays]:
        """Records to send with the model, by key; called after ``self.sent`` is set."""
        return {}

    def combine(self, mean: Arrays, answers: list[Answer]) -> Arrays:  # noqa: ARG002 - part of the contract
        """Arrays after a round, from the weighted mean of the clients' and all that they sent."""
        return mean

    def finish(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:  # noqa: ARG002
        """Arrays after the last round; :meth:`start` calls it once."""
        return arrays

    # --- Flower's hooks --------------------------------------------------------------------------

    def prepare(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Count the clients before round 1; :meth:`start` calls it."""
        while len(nodes := list(grid.get_node_ids())) < self.min_available_nodes:
            time.sleep(1)
        self.population = max(self.population, len(nodes))
        return arrays

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Prepare, run the rounds as Flower does, and finish."""
        result = super().start(grid, self.prepare(grid, initial_arrays), *args, **kwargs)
        result.arrays = self.finish(grid, result.arrays)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, with the method's settings and records in every message."""
        self.population = max(self.population, len(list(grid.get_node_ids())))
        self.sent = numpy_of(arrays)
        messages = super().configure_train(server_round, arrays, self._with_settings(config), grid)
        return self._with_extra(list(messages))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, with the method's settings and records in every message."""
        self.sent = numpy_of(arrays)
        messages = super().configure_evaluate(server_round, arrays, self._with_settings(config), grid)
        return self._with_extra(list(messages))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg on the record ``arrays``; then :meth:`combine`.

        Raises
        ------
        StrategyError
            If a client trained without the method's client half.
        """
        replies = list(replies)
        answers = self._answers([r for r in replies if r.has_content()])
        mean, metrics = super().aggregate_train(server_round, [self._averaged(r) for r in replies])
        if mean is None:
            return mean, metrics
        combined = self.combine(numpy_of(mean), answers)
        return record(combined), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As FedAvg, on the metrics that all clients report: not all have rows of every domain."""
        return super().aggregate_evaluate(server_round, with_common_metrics(replies))

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the next round depends on besides the arrays, as scalars and arrays."""
        return {"population": self.population, "state": {k: dict(v) for k, v in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.population = int(state["population"])
        self.state = {k: dict(v) for k, v in state["state"].items()}

    # --- between messages and arrays -------------------------------------------------------------

    def _with_settings(self, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**config, **self.settings})

    def _with_extra(self, messages: list[Message]) -> list[Message]:
        if messages:
            # FedAvg's messages share one content, and an engine sends what is shared only once.
            for key, arrays in self.extra().items():
                messages[0].content[key] = record(arrays)
        return messages

    def _answers(self, replies: list[Message]) -> list[Answer]:
        for reply in replies:
            self._require_rule(reply)
        weights = np.array([self._metrics(r)[self.weighted_by_key] for r in replies], dtype=np.float64)
        answers = []
        for reply, weight in zip(replies, weights / weights.sum() if len(weights) else [], strict=True):
            records = {k: numpy_of(r) for k, r in reply.content.array_records.items()}
            arrays = records.pop(self.arrayrecord_key)
            answers.append(
                Answer(reply.metadata.src_node_id, float(weight), arrays, records, self._metrics(reply))
            )
        return answers

    @staticmethod
    def _metrics(reply: Message) -> dict[str, float]:
        numbers = next(iter(reply.content.metric_records.values()))
        return {k: float(v) for k, v in numbers.items() if not isinstance(v, list)}

    def _require_rule(self, reply: Message) -> None:
        if self.client_half is LocalRule:
            return
        wanted = self.client_half.__name__
        about = reply.content.config_records.get(RULE)
        made_by = about["name"] if about else LocalRule.__name__
        if made_by != wanted:
            raise StrategyError(
                f"{type(self).__name__}: node {reply.metadata.src_node_id} trained with {made_by!s}, so the "
                f"method's client half is missing; train with strategies.{wanted}, for example "
                f"strategies.RuleClient({wanted}(), module, loss) in the ClientApp"
            )

    def _averaged(self, reply: Message) -> Message:
        """The reply with nothing but what FedAvg averages."""
        if not reply.has_content():
            return reply
        content = reply.content
        return with_content(
            reply,
            {self.arrayrecord_key: content[self.arrayrecord_key], **content.metric_records},
        )


def with_content(reply: Message, records: Mapping[str, Any]) -> Message:
    """A reply with other records, which leaves the one given as it is."""
    shell = copy.copy(reply)
    shell.content = RecordDict(dict(records))
    return shell


def with_common_metrics(replies: Iterable[Message]) -> list[Message]:
    """Replies with nothing but the metrics that all of them have, which Flower's strategies insist on."""
    replies = list(replies)
    told = [m.keys() for r in replies if r.has_content() for m in r.content.metric_records.values()]
    common = set.intersection(*map(set, told)) if told else set()
    return [_with_metrics(reply, common) for reply in replies]


def _with_metrics(reply: Message, keys: set[str]) -> Message:
    """The reply with nothing but some of its metrics."""
    if not reply.has_content():
        return reply
    metrics = reply.content.metric_records.items()
    return with_content(
        reply, {name: MetricRecord({k: v for k, v in m.items() if k in keys}) for name, m in metrics}
    )
