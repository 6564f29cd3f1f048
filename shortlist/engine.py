"""The same task over many items: in this process, in several of this machine, or on the machines of a Ray cluster."""

import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib import import_module
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from traceback import format_exc
from typing import Any, Literal, Protocol, TypeVar, final

from shortlist.errors import UserError
from shortlist.progress import say

T = TypeVar("T")
R = TypeVar("R")

Engine = Literal["local", "ray"]
Wait = Callable[[list[Any]], list[Any]]

TRIES = 3
"""How many processes one item may end before it is given up."""


def spread(
    task: Callable[[T], R], items: Iterable[T], *, engine: Engine = "local", workers: int | None = None
) -> Generator[R, None, None]:
    """Yield `task(item)` of every item, in the order in which they finish.

    Items are drawn as they are needed: at most `workers` are drawn and not yet yielded, and one more. Closing the
    iterator ends the processes at once; what they were doing is lost.

    Args:
        task: picklable. Every process receives it once and keeps it, so what is costly to load belongs in attributes
            that fill at the first call.
        engine: `local` for this machine. `ray` for the cluster of RAY_ADDRESS or `ray start`, or else one of this
            machine alone; shortlist and the files that the task names must be on every node.
        workers: how many items are worked on at a time. On this machine, processes that share its GPUs and the threads
            that this one would use; with 1 the task runs in this very process; None: one per GPU, or this process. On
            Ray each has a GPU, or a share of the CPUs of a node; None: one per GPU, or per node.

    Raises:
        UserError: an item has ended three processes, there are no workers, or Ray is missing or does not answer.
        Exception: whatever the task raised, in whichever process.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers; expected at least 1.")
    if engine == "ray":
        return _on_ray(_ray(), task, items, workers)
    devices = _devices() if workers != 1 else []
    workers = workers or max(1, len(devices))
    return (task(item) for item in items) if workers == 1 else _in_processes(task, items, workers, devices)


@contextmanager
def joined() -> Iterator[Any]:
    """Ray, joined to a cluster as `spread` does it: for what is no task over items.

    Raises:
        UserError: Ray is missing or does not answer.
    """
    ray = _ray()
    with _cluster(ray):
        yield ray


def _in_processes(
    task: Callable[[T], R], items: Iterable[T], workers: int, devices: list[str]
) -> Generator[R, None, None]:
    pickled, threads = pickle.dumps(task), _threads(workers)
    places = [devices[number % len(devices)] if devices else None for number in range(workers)]
    return _drive([partial(_Process, device, pickled, threads) for device in places], items, wait)


def _on_ray(ray: Any, task: Callable[[T], R], items: Iterable[T], workers: int | None) -> Generator[R, None, None]:
    with _cluster(ray):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        workers, cpus, gpus = _shares(nodes, workers)
        pickled = ray.cloudpickle.dumps(task)
        # An actor and not a Ray task: a process that keeps its task keeps its GPU too. Ray hands the processes of tasks
        # another GPU with every item, which what is loaded there cannot follow.
        actor = ray.remote(_Server).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        starts = [lambda: _Actor(ray, actor.remote(pickled, max(1, cpus)))] * workers
        yield from _drive(starts, items, lambda pending: ray.wait(pending)[0])


@final
class _Server:
    """What a worker is on either engine: the task, and answers to one item after another."""

    def __init__(self, pickled: bytes, threads: int):
        self.pickled, self.threads = pickled, threads

    @cached_property
    def task(self) -> Callable[[Any], Any]:
        os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        task = pickle.loads(self.pickled)
        if torch := sys.modules.get("torch"):  # it may have been imported before it could read the environment
            torch.set_num_threads(self.threads)
        return task

    def answer(self, item: bytes) -> bytes:
        """The result, or the error that the task raised."""
        try:
            return pickle.dumps((True, self.task(pickle.loads(item))), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return pickle.dumps((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it: a UserError as it is, any other with its traceback as a note."""
    if not isinstance(error, UserError):
        error.add_note(format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(format_exc())
    return error


def _result(answer: bytes) -> Any:
    done, value = pickle.loads(answer)
    if not done:
        raise value
    return value


class _DiedError(Exception):
    """A place ended before it answered; says how."""


class _Place(Protocol):
    """Where a worker is: a process that holds the task and answers one item at a time."""

    pending: Any
    """What to wait for until it has answered."""

    def send(self, item: Any) -> None: ...

    def receive(self) -> bytes: ...

    def end(self) -> None: ...


@final
class _Worker:
    """Works at one item at a time, in a fresh place where the last one died."""

    def __init__(self, start: Callable[[], _Place]):
        self.start, self.place = start, start()

    def give(self, item: Any) -> None:
        self.item, self.deaths = item, 0
        self.place.send(item)

    def draw(self, stream: Iterator[Any]) -> bool:
        """Work at the next item; False where there is none."""
        for item in stream:
            self.give(item)
            return True
        return False

    def receive(self) -> bytes | None:
        """The answer; None where the place has died and the item was given to another.

        Raises:
            UserError: it has died of this item too often.
        """
        try:
            return self.place.receive()
        except _DiedError as died:
            self.place.end()
            self.deaths += 1
            if self.deaths == TRIES:
                raise UserError(
                    f"the same piece of work ended {TRIES} processes ({died}). "
                    "Where they were killed, memory is the usual reason: use fewer workers, or smaller pieces."
                ) from None
        self.place = self.start()
        self.place.send(self.item)
        return None


def _drive(starts: Iterable[Callable[[], _Place]], items: Iterable[Any], wait: Wait) -> Generator[Any, None, None]:
    """Keep a worker busy for each way to start one; one that has no more to do makes room for the others."""
    stream = iter(items)
    workers: list[_Worker] = []
    try:
        first = list(zip(starts, stream, strict=False))
        workers.extend(_Worker(start) for start, _ in first)
        for worker, (_, item) in zip(workers, first, strict=True):  # all start by now: a large item waits for its place
            worker.give(item)
        busy = {worker.place.pending: worker for worker in workers}
        while busy:
            for pending in wait(list(busy)):
                worker = busy.pop(pending)
                answer = worker.receive()
                if answer is None or worker.draw(stream):  # before the yield, so that it works while the caller does
                    busy[worker.place.pending] = worker
                else:
                    worker.place.end()
                if answer is not None:
                    yield _result(answer)
    finally:
        for worker in workers:
            worker.place.end()


@final
class _Process:
    """A process of this machine."""

    def __init__(self, *args: Any):
        self.pending, theirs = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=_serve, args=(theirs, *args), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def send(self, item: Any) -> None:
        with suppress(OSError):  # a process that has ended is noticed by `receive`
            self.pending.send_bytes(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> bytes:
        try:
            return self.pending.recv_bytes()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode or 0
            raise _DiedError(signal.Signals(-code).name if code < 0 else f"exit code {code}") from None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pending.close()


def _serve(pipe: Connection, device: str | None, pickled: bytes, threads: int) -> None:
    """What a process of this machine does until it is ended."""
    Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    server = _Server(pickled, threads)
    with suppress(EOFError, BrokenPipeError):  # the parent has ended, and so will this process
        while True:
            pipe.send_bytes(server.answer(pipe.recv_bytes()))


@final
class _Actor:
    """A process somewhere on a Ray cluster."""

    def __init__(self, ray: Any, actor: Any):
        self.ray, self.actor, self.pending = ray, actor, None

    def send(self, item: Any) -> None:
        self.pending = self.actor.answer.remote(self.ray.cloudpickle.dumps(item))

    def receive(self) -> bytes:
        try:
            return self.ray.get(self.pending)
        except self.ray.exceptions.RayError as error:  # what the task raises comes as an answer
            # What matters is the first line, but the last where the worker could not even import its code.
            raise _DiedError(str(error).splitlines()[-getattr(error, "actor_init_failed", False)]) from None

    def end(self) -> None:
        self.ray.kill(self.actor)


def _shares(nodes: list[dict[str, float]], workers: int | None) -> tuple[int, int, int]:
    """How many workers a cluster of these nodes has, and the CPUs and GPUs of each.

    A worker has a GPU where there are any. Else it has as many CPUs as let all workers run at the same time; by default
    there is one for each node, a node with less than half the CPUs of the largest not counted.
    """
    sizes = [int(node.get("CPU", 0)) for node in nodes]
    if with_gpu := [(int(node.get("CPU", 0)), int(node["GPU"])) for node in nodes if node.get("GPU", 0) >= 1]:
        return workers or sum(gpus for _, gpus in with_gpu), min(cpus // gpus for cpus, gpus in with_gpu), 1
    if not any(sizes):
        raise UserError("the Ray cluster has no CPUs to work with; start a node with `ray start --address=...`.")
    workers = workers or sum(2 * size >= max(sizes) for size in sizes)
    fitting = (cpus for cpus in range(max(sizes), 0, -1) if sum(size // cpus for size in sizes) >= workers)
    return workers, next(fitting, 1), 0


def _ray() -> Any:
    """Ray, of the extra `dist`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ModuleNotFoundError:
        raise UserError("ray is not installed: --engine ray needs it; pip install 'shortlist[dist]'.") from None


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or of `ray start`, else start one here; leave as it is one already joined."""
    if ray.is_initialized():
        yield
        return
    private = ray._private
    # Ray prints what goes wrong on a node to stdout, at length, and has no setting for it.
    private.worker.print_to_stdstream = lambda data, **_: say(f"ray: {data['lines'][0].splitlines()[0]}")
    quiet = {"logging_level": "error", "log_to_driver": False}
    if address := private.services.canonicalize_bootstrap_address(None):
        _check_answers(address)
        ray.init(address=address, **quiet)
    else:
        private.ray_constants.ENABLE_RAY_CLUSTER = False  # of one machine: all that it listens on is the loopback
        ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        raise UserError(
            f"no Ray cluster answers at {address}, the address in RAY_ADDRESS or left by `ray start`: "
            "correct it or start the cluster; RAY_ADDRESS=local starts one for this run."
        ) from None


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even killed."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


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
