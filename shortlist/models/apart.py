"""Batches of small models, each computed by one core by itself.

So no core waits for another within a batch, which costs much where something else keeps one of them busy.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

WIDEST = 512
"""Most dimensions of a model whose batches are computed apart; the products of wider ones keep several cores busy."""

_STARTING = Lock()


def runs_apart(model: Any) -> bool:
    """Whether batches of this model are computed by one core each."""
    weight = next(model.parameters())
    width = getattr(model.backbone.config, "hidden_size", WIDEST + 1)
    return weight.device.type == "cpu" and width <= WIDEST and torch.get_num_threads() > 1


def on_cores_of_their_own(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield `work(item)` of every item, in order, with one core for each item.

    A result depends neither on the number of cores nor on what else they do.
    """
    count, stream = torch.get_num_threads(), iter(items)
    with _STARTING:
        pool = _pool(count, os.getpid())
    futures: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(stream, 2 * count))
    try:
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(work, item) for item in islice(stream, 1))
            yield result
    finally:
        for future in futures:
            future.cancel()


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Return threads that compute with one core each; a process always gets the same.

    A process that was forked has none of its parent's threads.
    """
    pool = ThreadPoolExecutor(count, "model", initializer=_use_one_core)
    all_here = Barrier(count)
    for future in [pool.submit(all_here.wait) for _ in range(count)]:
        future.result()
    torch.set_num_threads(count)  # the setting is of this thread and of those that start later
    return pool


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread reads the setting once, at its first use
