"""A worker: one process's ClientApp, run over a list of messages."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from threadpoolctl import threadpool_limits

from .grid import FIRST_NODE_ID, RUN_ID, Outcome, partition_of

CLIENT_FAILED = 1
"""Error code of a reply whose client raised."""

AppFactory = Callable[[], ClientApp]


def single_thread() -> None:
    """Let this process compute with one thread, in torch and in NumPy's BLAS.

    Threads inside an operation wait for each other on shared virtual CPUs, and their number changes the last
    bits of a sum: the same run would differ from machine to machine.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)


def run_client(app: ClientApp, message: Message, state: RecordDict, num_partitions: int) -> Outcome:
    """Run one message on one client; exceptions pass through."""
    partition = partition_of(message)
    context = Context(
        run_id=RUN_ID,
        node_id=FIRST_NODE_ID + partition,
        node_config={"partition-id": partition, "num-partitions": num_partitions},
        state=state,
        run_config={},
    )
    started = time.perf_counter()
    reply = app(message, context)
    return Outcome(reply, time.perf_counter() - started)


def failure(message: Message, error: Exception) -> Message:
    """Reply that carries a client's exception with its traceback."""
    reason = "".join(traceback.format_exception(error))
    return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=message)
