import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shortlist import together
from shortlist.errors import UserError
from shortlist.together import Failure, run_together, shared_folder, tell


class Fake(subprocess.Popen):
    """A process that has ended with a code (None: it never ends)."""

    _child_created = False  # so that Popen does not miss it

    def __init__(self, code: int | None) -> None:
        self.code, self.killed, self.stdin = code, False, open(os.devnull, "rb")  # noqa: SIM115 (closed by whoever started it)

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.killed = True

    def wait(self, timeout: float | None = None) -> int:
        assert self.killed
        return 0


Fakes = list[Fake]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command whose processes end with these codes, telling these failures; returns the processes."""
    monkeypatch.setattr(together, "GRACE_SECONDS", 0.1)

    def run(codes: list[int | None], told: dict[int, Failure], stderr: str = "") -> Fakes:
        fakes: Fakes = []

        def start(command: Any, rank: int, processes: int, folder: Path, *, on_gpus: bool) -> Any:
            if rank in told:
                monkeypatch.setenv(together.FOLDER, str(folder))
                monkeypatch.setenv("RANK", str(rank))
                assert tell(told[rank])
                monkeypatch.delenv(together.FOLDER)
            (folder / f"stderr-{rank}").write_text(stderr)
            fakes.append(Fake(codes[rank]))
            return fakes[-1]

        monkeypatch.setattr(together, "_start", start)
        try:
            run_together(["train"], len(codes), on_gpus=False)
        finally:
            assert all(fake.killed for fake in fakes)
        return fakes

    return run


LOST = Failure("Traceback\nRuntimeError: Connection closed by peer\n", for_user=False)


def test_nothing_is_said_when_all_are_done(ending: Any):
    assert len(ending([0, 0], {})) == 2


def test_what_the_user_can_mend_comes_before_what_follows_from_it(ending: Any):
    for told in ({0: LOST, 1: Failure("no such split")}, {0: Failure("no such split"), 1: LOST}):
        with pytest.raises(UserError, match=r"^no such split$"):
            ending([1, 1], told)


def test_the_same_error_of_all_is_said_once(ending: Any):
    with pytest.raises(UserError, match=r"^no such split$"):
        ending([1, 1], {rank: Failure("no such split") for rank in range(2)})


def test_a_process_that_was_killed_is_named(ending: Any):
    with pytest.raises(UserError, match=r"^process 2 of 2 was ended by SIGKILL \(last words\)\. .*memory"):
        ending([1, -9], {0: LOST}, stderr="first\nlast words\n\n")


def test_processes_that_wait_for_one_that_failed_are_ended(ending: Any):
    with pytest.raises(UserError, match="ended with exit code 3"):
        ending([None, 3], {})


def test_a_bug_of_ours_keeps_its_traceback_and_not_that_of_who_lost_the_connection(
    ending: Any, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        ending([1, 1], {0: LOST, 1: Failure("Traceback\nKeyError: 'a'\n", for_user=False)})
    assert stop.value.code == 1
    assert capsys.readouterr().err == "Traceback\nKeyError: 'a'\n"


def test_all_are_ended_when_this_process_is_interrupted(ending: Any, monkeypatch: pytest.MonkeyPatch):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(together.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ending([None, None], {})


def test_a_process_that_nobody_started_tells_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(together.FOLDER, raising=False)
    assert shared_folder() is None
    assert not tell(Failure("why"))


def test_processes_know_each_other_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[dict[str, Any]] = []

    def start(words: list[str], **options: Any) -> Fake:
        started.append({"words": words, **options})
        return Fake(0)

    monkeypatch.setattr(together.subprocess, "Popen", start)
    monkeypatch.setattr("shortlist.cores.num_cores", lambda: 4)
    for rank in range(2):
        together._start(["train", "retriever"], rank, 2, tmp_path, on_gpus=False)
    first, second = (one["env"] for one in started)
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"], second["WORLD_SIZE"]) == ("0", "1", "1", "2")
    assert {first[name] for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")} == {"2"}
    assert first["CUDA_VISIBLE_DEVICES"] == ""
    assert started[0]["words"][1:] == ["-m", "shortlist", "train", "retriever"]
    assert "stderr" not in started[0]  # the first one prints
