import errno
import gzip
import hashlib
import os
import resource
import secrets
import stat
import time
from pathlib import Path

import pytest

from shortlist.data.files import FULL, TEMPORARY, atomic_folder, atomic_write, open_bytes, open_text, sha256
from shortlist.errors import UserError


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str):
    with atomic_write(tmp_path / "new" / name) as file:
        file.write("naïve\nsecond\u2028still second\r\n")
    with open_text(tmp_path / "new" / name) as file:
        assert list(file) == ["naïve\n", "second\u2028still second\r\n"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert (tmp_path / "new" / name).read_bytes().startswith(b"\x1f\x8b" if name.endswith("gz") else b"na")


def test_bytes_are_written_as_they_are(tmp_path: Path):
    with atomic_write(tmp_path / "a", "wb") as file:
        file.write(b"\r\n\x00")
    assert (tmp_path / "a").read_bytes() == b"\r\n\x00"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]):
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_old_file_stays_until_the_new_one_is_whole_and_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_text("old")
    seen: list[str] = []

    def full(fd: int) -> None:
        seen.append((tmp_path / "a").read_text())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "a") as file:
        file.write("new")
    assert seen == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_leaves_the_old_file_and_says_which_file_it_was(tmp_path: Path, name: str, number: int):
    (tmp_path / name).write_text("old")

    def fail() -> None:
        with atomic_write(tmp_path / name) as file:
            file.write("new")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=f"{os.strerror(number)}: '{tmp_path / name}'"):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_file_larger_than_the_system_allows_is_said_by_its_name(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'a'}'"), atomic_write(tmp_path / "a") as file:
            file.write("x" * (1 << 18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_name_cannot_be_foreseen_and_no_link_is_followed(tmp_path: Path):
    names = set()
    for path in (tmp_path / "a", tmp_path / ("a" * 250)):
        for _ in range(2):
            with atomic_write(path) as file:
                names.add(Path(file.name).name)
                file.write("new")
    assert len(names) == 4
    assert all(TEMPORARY.fullmatch(name) for name in names)
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    with atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert [(tmp_path / name).read_text() for name in ("thesis", "link")] == ["years of work", "new"]


def test_a_link_in_the_place_of_a_temporary_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "thesis").write_text("years of work")
    for name in ("a", "a.gz"):
        (tmp_path / f".{name}.{'0' * 16}.partial").symlink_to(tmp_path / "thesis")
        with pytest.raises(FileExistsError), atomic_write(tmp_path / name) as file:
            file.write("new")
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_compressed_files_of_the_same_contents_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, now in (("x", 1e9), ("y", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with atomic_write(tmp_path / name / "a.gz") as file:
            file.write("text")
    assert (tmp_path / "x/a.gz").read_bytes() == (tmp_path / "y/a.gz").read_bytes()


def test_a_full_disk_leaves_no_folder_and_says_which_folder_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'a'}'"),
        atomic_folder(tmp_path / "a") as folder,
    ):
        (folder / "inside").write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_new_name_is_on_the_disk_too_once_the_writing_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[tuple[str, bool]] = []

    def sync(fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        synced.append((name, (tmp_path / "new").exists()))

    monkeypatch.setattr(os, "fsync", sync)
    with atomic_write(tmp_path / "new") as file:
        file.write("x")
    assert synced == [("file", False), (tmp_path.name, True)]
    (tmp_path / "new").unlink()
    synced.clear()
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/inside").write_text("x")
    *inside, work, last = synced
    assert sorted(inside) == [("file", False), ("sub", False)]
    assert (TEMPORARY.fullmatch(work[0]) is not None, work[1], last) == (True, False, (tmp_path.name, True))


def test_a_system_that_cannot_sync_folders_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_write(tmp_path / "a") as file:
        file.write("x")
    assert (tmp_path / "a").read_text() == "x"


def test_bytes_are_read_line_by_line_from_plain_and_packed_files(tmp_path: Path):
    for name, content in (("a", b"one\r\xff\ntwo"), ("a.gz", gzip.compress(b"one\r\xff\ntwo", mtime=0))):
        (tmp_path / name).write_bytes(content)
        with open_bytes(tmp_path / name) as file:
            assert list(file) == [b"one\r\xff\n", b"two"]


def test_a_file_that_is_not_there_or_a_folder_is_the_users_to_mend(tmp_path: Path):
    for path, message in ((tmp_path / "a", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=message), open_text(path):
            pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\n", "not UTF-8 text .* at byte 5"),
        ("a.txt.gz", b"plain text", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-10], "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 30, "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"\xff\n", mtime=0), "not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_the_users_to_mend(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message), open_text(tmp_path / name) as file:
        file.read()


def test_the_hash_is_that_of_the_contents_in_order(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two" * 1_000_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
    assert sha256(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"one" + b"two" * 1_000_000).hexdigest()
    assert sha256(tmp_path / "a", tmp_path / "b") != sha256(tmp_path / "b", tmp_path / "a")
