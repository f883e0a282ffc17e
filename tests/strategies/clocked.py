"""Quadratic clients on a clock, and the same events by hand: what asynchronous methods are tested with."""

from flwr.app import ConfigRecord
from quadratic import vector

from fedbench.engine.system import System, SystemGrid

SYSTEM = {
    "devices": {"one": {"share": 1, "examples_per_second": 10}},
    "networks": {"one": {"share": 1, "down_mbps": 1e9, "up_mbps": 1e9, "latency": 0}},
}
"""Ten examples a second; what is sent takes no time that matters."""


def clocked(case, strategy, tenths, seen=None, **options):
    """An engine on which client ``i`` takes ``tenths[i]`` tenths of a second."""
    inner = case.grid(type(strategy).client_half())
    system = System(**{**SYSTEM, **options})
    return SystemGrid(inner, system, lambda p: tenths[p], 0, None if seen is None else seen.append)


def rounds_of(case, strategy, grid, rounds, arrays=None, first=1):
    """Models after each round as vectors, and when each was made."""
    arrays = case.initial() if arrays is None else arrays
    trace = []
    for t in range(first, first + rounds):
        replies = strategy.exchange(t, arrays, ConfigRecord(), grid)
        arrays = strategy.aggregate_train(t, replies)[0]
        trace.append((vector(arrays), grid.now))
    case.arrays = arrays
    return trace


def by_hand(case, tenths, rounds, buffer, train, update):
    """All clients under way at all times, each started again with the model as it is then.

    ``train(client, x)`` is where a client ends that starts at ``x``; ``update(x, answers)`` is the server's
    step, each answer being (client, model that it started from, where it came to, age).
    """
    x = case.start
    under_way, trace, answers, now = {}, [], [], 0
    version = 0
    while len(trace) < rounds:
        for i in range(len(tenths)):
            under_way.setdefault(i, (now + tenths[i], x, version))
        client = min(under_way, key=lambda i: under_way[i][0])
        now, start, started = under_way.pop(client)
        answers.append((client, start, train(client, start), started))
        if len(answers) == buffer:
            x = update(x, [(c, s, y, version - v) for c, s, y, v in answers])
            version, answers = version + 1, []
            trace.append((x, now / 10))
    return trace
