"""Tables of which each client knows a few rows, averaged row by row over those who saw the row.

A table of items in a federation of shops, say: a plain average would mix into an item's vector those of all
clients that never met it. As in the usual federated training of sparse embeddings, each row is averaged
over the clients that touched it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from .arrays import numpy_of, record
from .errors import StrategyError
from .functional import Batch, Params
from .local import LocalRule, Round, Upload
from .method import with_content
from .wrapped import WrappedRule

SEEN = "seen-rows"
"""Key of the record in which a client says which rows it saw."""


class SeenRows(WrappedRule):
    """Any client half, which leaves rows that its client never saw as received, and says which it saw.

    A softmax over all items moves every row of a table. Rows of items that are not among the client's own
    examples are put back before they are sent.

    Parameters
    ----------
    rule : LocalRule
        The method's client half.
    tables : mapping of str to sequence of str
        For each table of the model, by name, the columns of a batch that hold numbers of its rows.

    Notes
    -----
    Sent, besides: a byte for each row. It tells the server which items a client's examples hold, as the
    updates of a sparse table do anyway.
    """

    def __init__(self, rule: LocalRule, tables: Mapping[str, Sequence[str]]) -> None:
        super().__init__(rule)
        self.needs_all_rows = True  # type: ignore[misc]
        self.tables = tables

    def end(self, params: Params, round: Round) -> Upload:
        """What the rule sends, in which unseen rows are as received."""
        upload = super().end(params, round)
        arrays, masks = dict(upload.arrays), {}
        for table, columns in self.tables.items():
            if table not in arrays:
                continue
            seen = self._seen(len(arrays[table]), columns, round.data)
            shape = (-1, *[1] * (arrays[table].ndim - 1))
            arrays[table] = torch.where(seen.view(shape), arrays[table], round.received[table])
            masks[table] = seen.to(torch.uint8)
        return Upload(arrays, upload.kept, {**upload.extra, SEEN: masks}, upload.metrics)

    @staticmethod
    def _seen(rows: int, columns: Sequence[str], data: Batch) -> Tensor:
        """Whether each row is in one of the columns of a row that is no padding; shape (rows,)."""
        real = data["weight"] > 0
        count = real.new_zeros(rows, dtype=torch.float32)
        for column in columns:
            ids = data[column].view(len(real), -1)
            count = count.index_add(0, ids.flatten(), real[:, None].expand_as(ids).flatten().float())
        return count > 0


def averaging_seen_rows(strategy: Strategy) -> Strategy:
    """The strategy, which now takes a row of a table from the clients that saw it and from no other.

    In the update of a client that did not see a row, the row is replaced by the mean of those that did,
    weighted by examples. Whatever the strategy does with updates, an unseen row then has no say in it.

    Parameters
    ----------
    strategy : Strategy
        Any that has records ``arrays`` and examples ``num-examples``, Flower's own included. It is changed.
    """
    aggregate = strategy.aggregate_train

    def aggregate_train(
        server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        filled = iter(_filled([r for r in replies if r.has_content()]))
        return aggregate(server_round, [next(filled) if r.has_content() else r for r in replies])

    strategy.aggregate_train = aggregate_train  # type: ignore[method-assign]
    return strategy


def _filled(replies: Sequence[Message]) -> list[Message]:
    """Replies whose unseen rows hold the mean of those who saw them, without the record of what was seen."""
    contents: list[Any] = [r.content for r in replies]
    if not all(SEEN in content.array_records for content in contents):
        raise StrategyError("a client did not say which rows it saw; train with strategies.SeenRows")
    arrays = [numpy_of(content["arrays"]) for content in contents]
    masks = [numpy_of(content[SEEN]) for content in contents]
    examples = [float(next(iter(c.metric_records.values()))["num-examples"]) for c in contents]
    for table in masks[0] if masks else ():
        total = np.zeros_like(arrays[0][table], dtype=np.float64)
        weight = np.zeros((len(total), *[1] * (total.ndim - 1)))
        seen = [mask[table].astype(bool).reshape(weight.shape) for mask in masks]
        for own, saw, n in zip(arrays, seen, examples, strict=True):
            total += n * np.where(saw, own[table], 0)
            weight += n * saw
        mean = (total / np.maximum(weight, 1e-300)).astype(arrays[0][table].dtype)
        for own, saw in zip(arrays, seen, strict=True):
            own[table] = np.where(saw | (weight == 0), own[table], mean)
    return [
        with_content(r, {k: v for k, v in r.content.items() if k != SEEN} | {"arrays": record(own)})
        for r, own in zip(replies, arrays, strict=True)
    ]
