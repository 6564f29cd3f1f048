import os
import time
from pathlib import Path

import pytest

from shortlist.data import contents
from shortlist.data.contents import NO_VERIFY, check_files, digest, file_names, find_damage, list_files
from shortlist.data.files import sha256
from shortlist.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of its own, one in a folder below, and things that are not its files."""
    out = tmp_path / "out"
    for name, text in {
        "manifest.json": "{}",
        "a.txt": "first",
        "below/b.txt": "second",
        ".git/head": "hidden",
        "other/manifest.json": "{}",
        "other/model.bin": "of another output",
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (tmp_path / "outside").write_text("outside")
    (out / "link").symlink_to(tmp_path / "outside")
    return out


def test_files_are_listed_with_size_and_digest_but_not_the_manifest_links_hidden_files_or_other_outputs(folder: Path):
    assert file_names(folder) == ["a.txt", "below/b.txt"]
    assert list_files(folder)["a.txt"] == {"size": 5, "sha256": sha256(folder / "a.txt")}
    assert list_files(folder, without=["below"]).keys() == {"a.txt"}
    assert list_files(folder, known={"a.txt": "known"})["a.txt"]["sha256"] == "known"


def test_what_is_not_as_it_was_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    files = list_files(folder)
    check_files(folder, files, remedy="")
    (folder / "a.txt").write_text("frist")
    (folder / "below" / "b.txt").write_text("second.")
    assert list(find_damage(folder, files)) == [
        f"{folder}/a.txt: its contents are not those that were written",
        f"{folder}/below/b.txt: holds 7 bytes, 6 were written",
    ]
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: is missing; make it again\.$"):
        check_files(folder, files, remedy="make it again.")
    monkeypatch.setenv(NO_VERIFY, "1")
    check_files(folder, files, remedy="")


def test_a_file_is_read_again_only_once_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(contents, "REMEMBERED_BYTES", 4)
    reads: list[Path] = []
    monkeypatch.setattr(contents, "sha256", lambda path: (reads.append(path), sha256(path))[1])
    path = tmp_path / "weights"
    path.write_text("old weights")
    first = digest(path)
    monkeypatch.setattr(contents, "_known", {})  # as in another process
    assert (digest(path), digest(path), reads) == (first, first, [path])
    time.sleep(0.02)
    path.write_text("new weights")
    assert digest(path) == sha256(path) != first
    assert len(reads) == 2
    (memory,) = (tmp_path / "cache" / "shortlist" / "digests").iterdir()
    memory.write_text("[]")
    monkeypatch.setattr(contents, "_known", {})
    assert digest(path) == sha256(path)


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("one")
    first = digest(path)
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(path) != first
