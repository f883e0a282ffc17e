"""Parts of a model that are statistics, pooled as such: a mean of variances is no variance of the whole.

A codebook of running sums and counts, say: means of both are the sums and counts of all clients' examples
together, but the mean of the clients' codes is not the ratio of the two, and the mean of their variances
leaves out how far their means lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from .arrays import numpy_of, record, tensors_of
from .functional import Params
from .method import with_content


@dataclass(frozen=True)
class Pooling:
    """What of a model is not pooled by its mean.

    Parameters
    ----------
    derive : callable
        ``derive(averaged) -> changed``: from all averaged tensors, which it must not write to, those that
        follow from others, by name. Tensors that a method keeps with the clients are not among them.
    moments : mapping of str to str
        For the name of a variance, that of its mean.
    """

    derive: Callable[[Params], Mapping[str, Tensor]]
    moments: Mapping[str, str] = field(default_factory=dict)


def pooled(strategy: Strategy, pooling: Pooling) -> Strategy:
    """The strategy, from whose averages statistics come out as those of all clients' examples together.

    Each client's variance is first replaced by that around the mean of all clients' means, ``var_i + (mean_i
    - mean)^2``, whose mean is the variance of the whole (law of total variance). The strategy then averages
    as it does, and what follows from the average is derived from it. Clients and messages are as they were.

    Parameters
    ----------
    strategy : Strategy
        Any that has records ``arrays`` and examples ``num-examples``, Flower's own included. It is changed.
    pooling : Pooling
        What the model says of itself.

    Notes
    -----
    Exact where the strategy takes the weighted mean, of replies that were not merged on their way; in merged
    ones, and where clients are asked one by one, the spread of means is missing between those merged, and
    altogether. What is derived is right for any strategy. A strategy that bounds what a single reply can do
    (privacy, robust ones) needs a :class:`Pooling` without ``moments``, since each variance here hangs on
    the means of all.
    """
    aggregate = strategy.aggregate_train

    def aggregate_train(
        server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        spread = iter(_around_one_mean([r for r in replies if r.has_content()], pooling.moments))
        arrays, metrics = aggregate(server_round, [next(spread) if r.has_content() else r for r in replies])
        return None if arrays is None else _derived(arrays, pooling), metrics

    strategy.aggregate_train = aggregate_train  # type: ignore[method-assign]
    return strategy


def _derived(arrays: ArrayRecord, pooling: Pooling) -> ArrayRecord:
    """The averaged record, in its order, with what follows from others put right."""
    averaged = tensors_of(arrays)
    changed = pooling.derive(averaged)
    return record({k: changed[k].to(v.dtype) if k in changed else v for k, v in averaged.items()})


def _around_one_mean(replies: Sequence[Message], moments: Mapping[str, str]) -> list[Message]:
    """Replies whose variances are around the mean of all."""
    if not moments:
        return list(replies)
    contents: list[Any] = [r.content for r in replies]
    arrays = [numpy_of(content["arrays"]) for content in contents]
    examples = [float(next(iter(c.metric_records.values()))["num-examples"]) for c in contents]
    for var, mean in moments.items():
        if not arrays or not all(var in own and mean in own for own in arrays):
            continue  # a method keeps it with the clients
        centre = np.average([own[mean].astype(np.float64) for own in arrays], axis=0, weights=examples)
        for own in arrays:
            own[var] = (own[var] + (own[mean] - centre) ** 2).astype(own[var].dtype)
    return [
        with_content(r, {**r.content, "arrays": record(own)}) for r, own in zip(replies, arrays, strict=True)
    ]
