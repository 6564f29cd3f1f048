"""Threads that each compute whole products."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar, final

import torch

from shortlist.math.products import SharedSetting

THREADS = 4
"""The most threads that multiply different pieces; they share the cores. More would wait for each other."""

T = TypeVar("T")


@final
class SameThread(Executor):
    """Does each piece of work at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def product_threads() -> Iterator[Executor]:
    """Yield a pool of threads that each compute whole products.

    Threads that share a small product mostly wait for each other. One thread alone would only be waited for.
    """
    with _THREADS.changed() as cores:  # during another search, this thread might count fewer
        threads = min(cores, THREADS)
        if threads == 1:
            yield SameThread()
            return
        torch.set_num_threads(cores // threads)  # in this thread too: its OpenMP threads would wait by spinning
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,)) as pool:
                yield pool
        finally:
            torch.set_num_threads(cores)  # otherwise threads that start later would use the lower number


def work_in_threads(work: Callable[[T], None], blocks: Iterable[Sequence[T]], *, ahead: int) -> None:
    """Run the work on the pieces of each block in threads.

    At most `ahead` blocks are unfinished when the next one is read.
    """
    under_way: deque[list[Future[None]]] = deque()
    with product_threads() as pool:
        for pieces in blocks:
            under_way.append([pool.submit(work, piece) for piece in pieces])
            while len(under_way) > ahead:
                for piece in under_way.popleft():
                    piece.result()
        for piece in chain(*under_way):
            piece.result()


_THREADS = SharedSetting(torch.get_num_threads, torch.set_num_threads)
