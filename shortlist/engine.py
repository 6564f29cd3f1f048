"""The same task over many items: in this process or in several of this machine."""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from traceback import format_exc
from typing import Any, Literal, TypeVar, final

from shortlist.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

Engine = Literal["local", "ray"]

TRIES = 3
"""How many processes one item may end before it is given up."""


def spread(
    task: Callable[[T], R], items: Iterable[T], *, engine: Engine = "local", workers: int | None = None
) -> Iterator[R]:
    """Yield `task(item)` of every item, in the order in which they finish.

    Items are drawn as they are needed: at most `workers` are drawn and not yet yielded, and one more. Closing the
    iterator ends the processes at once; what they were doing is lost.

    Args:
        task: picklable. Every process receives it once and keeps it, so what is costly to load belongs in attributes
            that fill at the first call.
        engine: `local` for processes of this machine.
        workers: how many items are worked on at a time; the processes share the GPUs, and the threads that this one
            would use. With 1 the task runs in this very process. None: one process per GPU, or this one.

    Raises:
        UserError: an item has ended three processes, or there are no workers.
        Exception: whatever the task raised, in whichever process.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers; expected at least 1.")
    devices = _devices() if workers != 1 else []
    workers = workers or max(1, len(devices))
    return (task(item) for item in items) if workers == 1 else _in_processes(task, items, workers, devices)


def _in_processes(task: Callable[[T], R], items: Iterable[T], workers: int, devices: list[str]) -> Iterator[R]:
    stream = iter(items)
    pickled, threads = pickle.dumps(task), _threads(workers)
    made: list[_Worker] = []
    try:
        for slot, item in enumerate(islice(stream, workers)):
            device = devices[slot % len(devices)] if devices else None
            made.append(_Worker(item, (pickled, threads, device)))
        for worker in made:  # once all are starting, as a process takes a large item only when it is up
            worker.send()
        busy: dict[Any, _Worker] = {worker.pipe: worker for worker in made}
        while busy:
            for pipe in wait(list(busy)):
                worker = busy.pop(pipe)
                try:
                    result = worker.receive()
                except _DiedError:
                    worker.try_again()
                    busy[worker.pipe] = worker
                    continue
                for item in islice(stream, 1):  # now, so that the process works while the caller does
                    worker.give(item)
                    busy[worker.pipe] = worker
                yield result
    finally:
        for worker in made:
            worker.process.kill()
        for worker in made:
            worker.process.join()
            worker.pipe.close()


class _DiedError(Exception):
    """A process ended before it answered."""


@final
class _Worker:
    """A process that holds the task, and the item that it is working on."""

    def __init__(self, item: object, args: tuple[bytes, int, str | None]):
        self.item, self.args, self.deaths = item, args, 0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=_serve, args=(theirs, *self.args), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def give(self, item: object) -> None:
        self.item, self.deaths = item, 0
        self.send()

    def send(self) -> None:
        with suppress(OSError):  # a process that has ended is noticed by `receive`
            self.pipe.send_bytes(pickle.dumps(self.item, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        """The result; or raise what the task raised, or _DiedError."""
        try:
            answer = self.pipe.recv_bytes()
        except (EOFError, OSError):
            raise _DiedError from None
        return _result(pickle.loads(answer))

    def try_again(self) -> None:
        """Give the item to a fresh process.

        Raises:
            UserError: it has ended enough of them.
        """
        self.process.join()
        self.pipe.close()
        self.deaths += 1
        if self.deaths == TRIES:
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise UserError(
                f"the same piece of work ended {TRIES} processes; the last one {how}. "
                "Memory is the usual reason (SIGKILL): use fewer workers, or smaller pieces."
            )
        self._start()
        self.send()


def _serve(pipe: Connection, pickled: bytes, threads: int, device: str | None) -> None:
    """What a process does: answer every item until it is ended."""
    Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    task: Callable[[Any], Any] | None = None
    with suppress(EOFError, BrokenPipeError):  # the parent has ended, and so will this process
        while True:
            item = pipe.recv_bytes()
            try:
                task = task or _load(pickled, threads)
                answer = pickle.dumps((True, task(pickle.loads(item))), pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                answer = pickle.dumps((False, _portable(error)))
            pipe.send_bytes(answer)


def _load(pickled: bytes, threads: int) -> Callable[[Any], Any]:
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    task = pickle.loads(pickled)
    if torch := sys.modules.get("torch"):  # it may have been imported before it could read the environment
        torch.set_num_threads(threads)
    return task


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even killed."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _result(answer: tuple[bool, Any]) -> Any:
    done, value = answer
    if not done:
        raise value
    return value


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it: a UserError as it is, any other with its traceback as a note."""
    if not isinstance(error, UserError):
        error.add_note(format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(format_exc())
    return error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started within never see Ctrl-C: it is answered here, by ending them."""
    resource_tracker.ensure_running()  # starting it unblocks, and so must not be left to the first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _threads(workers: int) -> int:
    """A worker's share of the threads that this process would use."""
    import torch

    return max(1, torch.get_num_threads() // workers)


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()  # does not initialise CUDA
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
