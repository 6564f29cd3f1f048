import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from shortlist import engine
from shortlist.engine import spread
from shortlist.errors import UserError

WORKERS = [1, 2]


@dataclass(frozen=True)
class Square:
    """Squares numbers, and leaves a file in a folder for every time that it is loaded."""

    folder: Path

    @cached_property
    def power(self) -> int:
        (self.folder / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        return 2

    def __call__(self, number: int) -> tuple[int, int]:
        return number, number**self.power


@dataclass(frozen=True)
class Refuse:
    """Raises an error at the item 2."""

    error: Exception

    def __call__(self, number: int) -> int:
        if number == 2:
            raise self.error
        return number


@dataclass(frozen=True)
class Die:
    """Ends its process by SIGKILL at every item from 2 on, the first times that it comes."""

    folder: Path
    times: int

    def __call__(self, number: int) -> int:
        if number >= 2 and len(list(self.folder.glob(f"{number}-*"))) < self.times:
            (self.folder / f"{number}-{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@dataclass(frozen=True)
class Sleep:
    """Leaves its process id in a folder and is busy for as many seconds as the item says."""

    folder: Path

    def __call__(self, seconds: float) -> float:
        (self.folder / str(os.getpid())).touch()
        time.sleep(seconds)
        return seconds


def threads(_: int) -> tuple[str, str, str]:
    import torch

    return os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ["OMP_NUM_THREADS"], str(torch.get_num_threads())


@dataclass(frozen=True)
class Where:
    """Says on which node of a cluster an item was done, and in which process."""

    seconds: float

    def __call__(self, number: int) -> tuple[int, str, int, str]:
        import ray

        time.sleep(self.seconds)
        return number, ray.get_runtime_context().get_node_id(), os.getpid(), os.environ["OMP_NUM_THREADS"]


def device(_: int) -> tuple[int, str]:
    time.sleep(0.05)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def not_picklable(_: int) -> object:
    return lambda: None


@dataclass
class Drawn:
    """Numbers from 0, and how many of them have been drawn."""

    count: int = 0

    def numbers(self, total: int) -> Iterator[int]:
        for number in range(total):
            self.count += 1
            yield number


def processes(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def end(pids: Iterable[int], *, within: float = 60.0) -> bool:
    deadline = time.monotonic() + within
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            return False
        pids = alive
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("workers", WORKERS)
def test_every_item_is_done_once(tmp_path: Path, workers: int):
    assert sorted(spread(Square(tmp_path), range(20), workers=workers)) == [(n, n * n) for n in range(20)]


@pytest.mark.parametrize("workers", WORKERS)
def test_no_items_give_no_results(tmp_path: Path, workers: int):
    assert list(spread(Square(tmp_path), [], workers=workers)) == []


def test_a_process_loads_its_task_once(tmp_path: Path):
    list(spread(Square(tmp_path), range(20), workers=2))
    loaded = Counter(path.name.split("-")[1] for path in tmp_path.iterdir())
    assert set(loaded.values()) == {1}
    assert len(loaded) == 2
    assert str(os.getpid()) not in loaded


def test_one_worker_is_this_process(tmp_path: Path):
    list(spread(Square(tmp_path), range(3)))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_items_are_drawn_as_they_are_needed(tmp_path: Path, workers: int):
    drawn = Drawn()
    results = spread(Square(tmp_path), drawn.numbers(30), workers=workers)
    assert drawn.count == 0
    for number, _ in enumerate(results, 1):
        assert drawn.count <= min(30, number + workers)
    assert drawn.count == 30


def test_results_come_as_they_finish(tmp_path: Path):
    with closing(spread(Sleep(tmp_path), [30, 0, 0.1], workers=2)) as results:
        assert [next(results), next(results)] == [0, 0.1]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("error", [UserError("corpus.jsonl:7: no text."), KeyError("x")], ids=["user", "other"])
def test_an_error_of_the_task_is_raised_as_it_is(workers: int, error: Exception):
    with pytest.raises(type(error)) as raised:
        list(spread(Refuse(error), range(20), workers=workers))
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args
    assert ("test_engine.py" in "".join(getattr(raised.value, "__notes__", []))) == (
        workers > 1 and not isinstance(error, UserError)
    )


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises((AttributeError, RuntimeError), match="pickle"):
        list(spread(not_picklable, range(3), workers=2))


def test_an_error_of_the_items_ends_the_processes(tmp_path: Path):
    def items() -> Iterator[float]:
        yield from [0.0, 30.0]
        raise UserError("corpus.jsonl:3: no text.")

    with pytest.raises(UserError, match="no text"):
        list(spread(Sleep(tmp_path), items(), workers=2))
    assert end(processes(tmp_path))


@pytest.mark.slow
def test_an_item_whose_process_is_killed_is_done_by_another(tmp_path: Path):
    # Three items by two workers: one of them loses four processes, and no item more than two.
    assert sorted(spread(Die(tmp_path, times=2), range(5), workers=2)) == list(range(5))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.slow
def test_an_item_that_ends_every_process_is_given_up_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"ended 3 processes \(SIGKILL\)\. .*fewer workers"):
        list(spread(Die(tmp_path, times=9), range(3), workers=2))
    assert len(list(tmp_path.iterdir())) == 3


def test_closing_early_ends_the_processes(tmp_path: Path):
    results = spread(Sleep(tmp_path), [0, 30, 30, 30], workers=2)
    next(results)
    results.close()
    assert len(processes(tmp_path)) >= 1
    assert end(processes(tmp_path))


@pytest.mark.slow
def test_workers_share_the_threads_and_the_gpus(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engine, "may_have_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set(spread(threads, range(8))) == {("3", "1", "1"), ("5", "1", "1")}


def test_threads_are_limited_where_torch_was_there_first(monkeypatch: pytest.MonkeyPatch):
    import torch

    limits: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", limits.append)
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "5")
    assert engine._Server(pickle.dumps(abs), 3).task(-1) == 1
    assert limits == [3]
    assert os.environ["OMP_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "3"


def test_fewer_workers_than_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="0 workers; expected at least 1"):
        spread(Square(tmp_path), range(3), workers=0)


PROGRAM = """
import sys
from pathlib import Path

from shortlist import engine
from shortlist.engine import spread
from test_engine import Sleep

if __name__ == "__main__":
    try:
        list(spread(Sleep(Path(sys.argv[1])), [30] * 4, engine=sys.argv[2], workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def end_a_program(folder: Path, kill: signal.Signals, engine: str, address: str = "") -> None:
    """Check that no process outlives a program that is interrupted or killed."""
    (folder / "program.py").write_text(PROGRAM)
    pids = folder / "processes"
    pids.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    program = subprocess.Popen(
        [sys.executable, folder / "program.py", pids, engine],
        env=os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while len(processes(pids)) < 2:
        assert program.poll() is None
        time.sleep(0.02)
    if engine == "local":  # that an interrupt does not reach its processes shows where the program is not quicker
        for pid in processes(pids):
            os.kill(pid, signal.SIGINT)
        assert not end(processes(pids)[:1], within=0.3)
    # A terminal sends Ctrl-C to the whole group; a kill meets one process.
    os.killpg(program.pid, kill) if kill == signal.SIGINT else program.kill()
    said, _ = program.communicate(timeout=60)
    assert end(processes(pids))
    # On a busy machine a node misses heartbeats, and Ray says so.
    assert said == b"" or (engine == "ray" and said.startswith(b"ray: The node with node id"))


KILLS = pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])


@pytest.mark.slow
@KILLS
def test_no_process_outlives_a_program_that_was(tmp_path: Path, kill: signal.Signals):
    end_a_program(tmp_path, kill, "local")


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([(8, 0), (8, 0)], None, (2, 8, 0)),
        ([(1, 0), (64, 0), (64, 0)], None, (2, 64, 0)),
        ([(8, 0), (16, 0)], None, (2, 8, 0)),
        ([(8, 0), (8, 0)], 3, (3, 4, 0)),
        ([(2, 0)], 5, (5, 1, 0)),
        ([(8, 0), (32, 4), (16, 1)], None, (5, 8, 1)),
        ([(32, 4)], 2, (2, 8, 1)),
    ],
)
def test_every_worker_of_a_cluster_has_its_share(
    nodes: list[tuple[int, int]], workers: int | None, expected: tuple[int, int, int]
):
    resources = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    assert engine._shares(resources, workers) == expected


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(UserError, match="no CPUs to work with"):
        engine._shares([{"memory": 1.0}], None)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'shortlist\[dist\]'"):
        spread(threads, range(3), engine="ray")


def test_a_cluster_that_does_not_answer_is_named():
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1,"):
        engine._check_answers("127.0.0.1:1")
