"""One task over many items, in this process, in several, or on a Ray cluster."""

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

from shortlist.cores import keep_few_shapes, may_have_gpu, num_cores, wait_briefly
from shortlist.errors import UserError, check_installed
from shortlist.progress import say

T = TypeVar("T")
R = TypeVar("R")

Engine = Literal["local", "ray"]
Wait = Callable[[list[Any]], list[Any]]

TRIES = 3
"""Number of processes that one item may end before it is given up."""


def spread(
    task: Callable[[T], R], items: Iterable[T], *, engine: Engine = "local", workers: int | None = None
) -> Generator[R, None, None]:
    """Yield `task(item)` for every item, in the order in which the items finish.

    Items are drawn as they are needed: at any time, at most `workers` + 1 are drawn and not yet yielded. Closing the
    iterator ends the processes at once, and their unfinished work is lost.

    Args:
        task: picklable function. Every process receives it once and keeps it, so anything costly to load belongs in
            attributes that are filled at the first call.
        engine: `local` for this machine. `ray` for the cluster of RAY_ADDRESS or `ray start`, or for a new cluster of
            this machine if there is neither; shortlist and the files that the task names must be on every node.
        workers: number of items to work on at the same time. On this machine, workers are processes that share its
            GPUs and this process's threads; with 1, the task runs in this process; None is one per GPU, or this
            process. On Ray, each worker has a GPU or a share of a node's CPUs; None is one per GPU, or per node.

    Raises:
        UserError: an item has ended three processes, there are no workers, or Ray is missing or does not answer.
        Exception: an error that the task raised in any process.
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
    """Connect to the Ray cluster that `spread` would use, and yield Ray.

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
        # An actor and not a Ray task: an actor keeps its process and GPU. Ray may give the processes of tasks another
        # GPU with every item, but a loaded model cannot move there.
        actor = ray.remote(_Server).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        starts = [lambda: _Actor(ray, actor.remote(pickled, max(1, cpus)))] * workers
        yield from _drive(starts, items, lambda pending: ray.wait(pending)[0])


@final
class _Server:
    """Worker's side on both engines: holds the task and answers item by item."""

    def __init__(self, pickled: bytes, threads: int):
        self.pickled, self.threads = pickled, threads

    @cached_property
    def task(self) -> Callable[[Any], Any]:
        os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        wait_briefly()
        keep_few_shapes()
        task = pickle.loads(self.pickled)
        if torch := sys.modules.get("torch"):  # it may have been imported before the environment was set
            torch.set_num_threads(self.threads)
        return task

    def answer(self, item: bytes) -> bytes:
        """Run the task on an item; returns the pickled result or error."""
        try:
            return pickle.dumps((True, self.task(pickle.loads(item))), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return pickle.dumps((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """Prepare an error to be raised in another process.

    Any error but a UserError gets its traceback as a note.
    """
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
    """A worker's process ended before it answered; the message says how."""


class _Place(Protocol):
    """A worker's process, which holds the task and answers one item at a time."""

    pending: Any
    """Object to wait for until it has answered."""

    def send(self, item: Any) -> None: ...

    def receive(self) -> bytes: ...

    def end(self) -> None: ...


@final
class _Worker:
    """Works at one item at a time, in a new process if one dies."""

    def __init__(self, start: Callable[[], _Place]):
        self.start, self.place = start, start()

    def give(self, item: Any) -> None:
        self.item, self.deaths = item, 0
        self.place.send(item)

    def draw(self, stream: Iterator[Any]) -> bool:
        """Start work at the next item; False if there is none."""
        for item in stream:
            self.give(item)
            return True
        return False

    def receive(self) -> bytes | None:
        """Receive the answer; None if the process died and a new one got the item.

        Raises:
            UserError: processes have died too often at this item.
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
    """Start workers and keep them busy until no items are left.

    A worker that has nothing more to do is ended, to leave its resources to the others.
    """
    stream = iter(items)
    workers: list[_Worker] = []
    try:
        first = list(zip(starts, stream, strict=False))
        workers.extend(_Worker(start) for start, _ in first)
        for worker, (_, item) in zip(workers, first, strict=True):  # all are starting, so large items do not delay them
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
        theirs.close()  # so that the pipe ends when the process ends

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
    """Answer items in a process of this machine, until it is ended."""
    Thread(target=end_with_parent, daemon=True).start()
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
            # The first line has the reason, but the last one if the worker could not even import its code.
            raise _DiedError(str(error).splitlines()[-getattr(error, "actor_init_failed", False)]) from None

    def end(self) -> None:
        self.ray.kill(self.actor)


def _shares(nodes: list[dict[str, float]], workers: int | None) -> tuple[int, int, int]:
    """Compute the number of workers of a cluster, and the CPUs and GPUs per worker.

    If the nodes have GPUs, each worker gets one. Otherwise it gets as many CPUs as possible while all workers run at
    the same time. By default there is then one worker per node, without the nodes that have less than half the CPUs of
    the largest.
    """
    sizes = [int(node.get("CPU", 0)) for node in nodes]
    if with_gpu := [(int(node.get("CPU", 0)), int(node["GPU"])) for node in nodes if node.get("GPU", 0) >= 1]:
        return workers or sum(gpus for _, gpus in with_gpu), min(cpus // gpus for cpus, gpus in with_gpu), 1
    if not any(sizes):
        raise UserError("the Ray cluster has no CPUs to work with; start a node with `ray start --address=...`.")
    workers = workers or sum(2 * size >= max(sizes) for size in sizes)
    fitting = (cpus for cpus in range(max(sizes), 0, -1) if sum(size // cpus for size in sizes) >= workers)
    return workers, next(fitting, 1), 0


def check_engine(engine: Engine) -> None:
    """Refuse an engine whose package is missing, before anything is written."""
    if engine == "ray":
        check_installed("--engine ray", {"ray": "'shortlist[dist]'"})


def _ray() -> Any:
    """Import Ray, from the extra `dist`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ModuleNotFoundError:
        raise UserError("ray is not installed: --engine ray needs it; pip install 'shortlist[dist]'.") from None


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or `ray start`, or start one here.

    If Ray is connected already, nothing is changed.
    """
    if ray.is_initialized():
        yield
        return
    private = ray._private
    # Ray prints long errors from nodes to stdout, and has no setting for it.
    private.worker.print_to_stdstream = lambda data, **_: say(f"ray: {data['lines'][0].splitlines()[0]}")
    quiet = {"logging_level": "error", "log_to_driver": False}
    if address := private.services.canonicalize_bootstrap_address(None):
        _check_answers(address)
        ray.init(address=address, **quiet)
    else:
        private.ray_constants.ENABLE_RAY_CLUSTER = False  # one machine only: it listens on the loopback alone
        ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where no cluster answers, as Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        raise UserError(
            f"no Ray cluster answers at {address}, the address in RAY_ADDRESS or left by `ray start`: "
            "correct it or start the cluster; RAY_ADDRESS=local starts one for this run."
        ) from None


def end_with_parent() -> None:
    """End this process when its parent is gone, even if the parent was killed."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started within; this process ends them instead."""
    resource_tracker.ensure_running()  # starting it unblocks signals, so it must be running before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _threads(workers: int) -> int:
    """Compute a worker's share of the threads that this process would use."""
    torch = sys.modules.get("torch")  # not loaded for work that does without
    return max(1, (torch.get_num_threads() if torch else num_cores()) // workers)


def _devices() -> list[str]:
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not may_have_gpu():
        return []
    import torch

    count = torch.cuda.device_count()  # does not initialise CUDA
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
