import fcntl
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from shortlist.data import claims
from shortlist.data.claims import check_free, claim_output, lock_file, tidy
from shortlist.errors import UserError

HOLD = """
import sys
from pathlib import Path
from shortlist.data.claims import claim_output
held = claim_output(Path(sys.argv[1]), folder=True, stage="train")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["file", "folder"])
def folder(request: pytest.FixtureRequest) -> bool:
    return request.param == "folder"


def in_a_thread(work) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_the_lock_of_a_command_killed_at_its_very_end_is_deleted_and_no_other(tmp_path: Path, folder: bool):
    out = tmp_path / "out"
    out.mkdir() if folder else out.touch()
    path = lock_file(out, folder)
    path.touch()
    tidy(out, folder=folder)
    assert not path.exists()
    with claim_output(out, folder=folder, stage="fuse"):
        tidy(out, folder=folder)
        assert json.loads(path.read_text())["stage"] == "fuse"
        assert in_a_thread(lambda: check_free(out, folder=folder))


@pytest.mark.slow
def test_an_output_is_free_again_once_nobody_refers_to_the_claim(tmp_path: Path, folder: bool):
    held = claim_output(tmp_path / "out", folder=folder, stage="fuse")
    path = lock_file(tmp_path / "out", folder)
    who = json.loads(path.read_text())
    assert (who["stage"], who["pid"], who["host"]) == ("fuse", os.getpid(), socket.gethostname())
    assert claim_output(tmp_path / "out", folder=folder, stage="fuse") is held
    (error,) = in_a_thread(lambda: claim_output(tmp_path / "out", folder=folder, stage="fuse"))
    assert f"out: `shortlist fuse` is at work there (process {os.getpid()} on " in str(error)
    assert in_a_thread(lambda: check_free(tmp_path / "out", folder=folder))
    check_free(tmp_path / "out", folder=folder)
    del held
    gc.collect()
    assert not path.exists()
    assert not in_a_thread(lambda: claim_output(tmp_path / "out", folder=folder, stage="fuse"))


@pytest.mark.slow
def test_another_process_is_named_and_one_that_was_killed_is_no_obstacle(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for attempt in (partial(claim_output, stage="fuse"), check_free):
        with pytest.raises(UserError, match=f"`shortlist train` is at work there .process {process.pid} on "):
            attempt(tmp_path, folder=True)
    process.kill()
    process.communicate()
    assert lock_file(tmp_path, True).exists()
    check_free(tmp_path, folder=True)
    claim_output(tmp_path, folder=True, stage="fuse")
    gc.collect()
    assert not lock_file(tmp_path, True).exists()


def test_where_files_cannot_be_locked_the_process_in_the_lock_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(descriptor: int, kind: int) -> None:
        raise OSError(claims.NOT_LOCKABLE[0], "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    ours = {"pid": os.getpid(), "host": socket.gethostname(), "start": claims._start(os.getpid())}
    path = lock_file(tmp_path, True)
    for holder, free in [
        ({}, True),
        (ours, False),
        (ours | {"start": "1"}, True),  # an older process of the same number
        (ours | {"pid": 2**22 + 1}, True),
        (ours | {"host": "elsewhere"}, False),
    ]:
        path.write_text(json.dumps(holder))
        if free:
            check_free(tmp_path, folder=True)
        else:
            with pytest.raises(UserError, match="is at work there"):
                check_free(tmp_path, folder=True)


@pytest.mark.slow
def test_what_a_killed_command_left_is_deleted_and_nothing_else(tmp_path: Path):
    out, name = tmp_path / "out", f".a.{'0' * 16}.partial"
    for place in (out, out / "checkpoints", out / "another output", out / ".git"):
        (place / name.replace("a", "folder")).mkdir(parents=True)
        (place / name).write_text("half")
        (place / ".a.partial").write_text("mine")
    (out / "another output" / "manifest.json").write_text("{}")
    (out / name.replace("a", "link")).symlink_to(out / ".git")
    claim_output(out, folder=True, stage="fuse")
    gc.collect()
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    theirs = {f"{place}/{n}" for place in ("another output", ".git") for n in (name, ".a.partial")}
    assert left == {".a.partial", "checkpoints/.a.partial", "another output/manifest.json", *theirs}
    for path in ("run", "run.trec"):
        (tmp_path / f".{path}.{'0' * 16}.partial").write_text("half")
    claim_output(tmp_path / "run", folder=False, stage="fuse")
    gc.collect()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".run.trec.{'0' * 16}.partial", "out"]


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path):
    (tmp_path / "thesis").write_text("years of work")
    lock_file(tmp_path, True).symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError, match="symbolic links"):
        claim_output(tmp_path, folder=True, stage="fuse")
    assert (tmp_path / "thesis").read_text() == "years of work"
