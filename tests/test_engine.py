import os
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
    """Ends its process by SIGKILL at the item 2, the first times that it comes."""

    folder: Path
    times: int

    def __call__(self, number: int) -> int:
        if number == 2 and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(time.monotonic_ns())).touch()
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


def end(pids: Iterable[int], *, within: float = 5.0) -> bool:
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


def test_an_item_whose_process_is_killed_is_done_by_another(tmp_path: Path):
    assert sorted(spread(Die(tmp_path, times=2), range(8), workers=2)) == list(range(8))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_item_that_ends_every_process_is_named_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"ended 3 processes; the last one was killed by SIGKILL\. .*fewer workers"):
        list(spread(Die(tmp_path, times=9), range(8), workers=2))
    assert len(list(tmp_path.iterdir())) == 3


def test_closing_early_ends_the_processes(tmp_path: Path):
    results = spread(Sleep(tmp_path), [0, 30, 30, 30], workers=2)
    next(results)
    results.close()
    assert len(processes(tmp_path)) >= 1
    assert end(processes(tmp_path))


PROGRAM = """
import sys
from pathlib import Path

from shortlist.engine import spread
from test_engine import Sleep

if __name__ == "__main__":
    try:
        list(spread(Sleep(Path(sys.argv[1])), [30] * 4, workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_no_process_outlives_a_program_that_was(tmp_path: Path, kill: signal.Signals):
    (tmp_path / "program.py").write_text(PROGRAM)
    folder = tmp_path / "processes"
    folder.mkdir()
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while len(processes(folder)) < 2:
        assert program.poll() is None
        time.sleep(0.02)
    # A terminal sends Ctrl-C to the whole group; a kill meets one process.
    os.killpg(program.pid, kill) if kill == signal.SIGINT else program.kill()
    _, stderr = program.communicate(timeout=10)
    assert end(processes(folder))
    assert stderr == b""


def test_workers_share_the_threads_and_the_gpus(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set(spread(threads, range(8))) == {("3", "1", "1"), ("5", "1", "1")}


def test_fewer_workers_than_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="0 workers; expected at least 1"):
        spread(Square(tmp_path), range(3), workers=0)
