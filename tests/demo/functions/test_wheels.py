import shutil
from email.message import Message
from pathlib import Path

import pytest
from wheel import module, pin, write_wheel

from shortlist.demo.functions import wheels
from shortlist.demo.functions.wheels import Pin, download, licence_of, read_pins, wheel_metadata
from shortlist.errors import UserError

ROOT = Path(__file__).parents[3]
HASH = "0" * 64


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for all there is to download."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "index"


def listed(path: Path, *lines: str) -> list[Pin]:
    path.write_text("# packages\n\n" + "".join(lines))
    return read_pins(path)


def metadata(*fields: tuple[str, str]) -> Message:
    message = Message()
    for name, value in fields:
        message[name] = value
    return message


def test_a_list_says_package_version_hashes_and_licence(tmp_path: Path):
    line = f"a-b.c==1.0.post1 --hash=sha256:{HASH} --hash=sha256:{'1' * 64}  # MIT AND Apache-2.0\n"
    (found,) = listed(tmp_path / "list.txt", line)
    assert found == Pin("a-b.c", "1.0.post1", (HASH, "1" * 64), "MIT AND Apache-2.0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"a>=1 --hash=sha256:{HASH} # MIT\n", r"list.txt:3: 'a>=1 .*expected `name==version"),
        ("a==1 # MIT\n", "list.txt:3: 'a==1 # MIT'; expected"),
        (f"a==1 --hash=sha256:{HASH}\n", "list.txt:3: .*expected .*# licence"),
        (
            f"a==1 --hash=sha256:{HASH} # MIT OR GPL-3.0-only\n",
            "list.txt:3: a is under MIT OR GPL-3.0-only; expected 0BSD",
        ),
        (f"a==1 --hash=sha256:{HASH} # CC0-1.0\n", "list.txt:3: a is under CC0-1.0"),
        ("", "list.txt: names no package"),
    ],
)
def test_a_list_that_says_something_else_is_refused_in_one_line(tmp_path: Path, line: str, words: str):
    with pytest.raises(UserError, match=words):
        listed(tmp_path / "list.txt", line)


def test_a_list_that_is_not_there_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"list.txt: No such file or directory; expected a list"):
        read_pins(tmp_path / "list.txt")


@pytest.mark.slow
def test_a_wheel_is_downloaded_once_and_again_where_it_was_changed(tmp_path: Path, index: Path):
    pins = listed(tmp_path / "list.txt", pin(write_wheel(index, "folds", folds=module("fold", 2))))
    (there,) = download(pins, tmp_path / "cache")
    assert there.read_bytes() == (index / there.name).read_bytes()
    content, time = there.read_bytes(), there.stat().st_mtime_ns
    assert download(pins, tmp_path / "cache") == [there]
    assert there.stat().st_mtime_ns == time
    there.write_bytes(content[:-1])
    assert download(pins, tmp_path / "cache") == [there]
    assert there.read_bytes() == content
    shutil.rmtree(index)
    assert download(pins, tmp_path / "cache") == [there]


@pytest.mark.slow
def test_what_has_another_hash_is_not_taken(tmp_path: Path, index: Path):
    write_wheel(index, "folds", folds=module("fold", 2))
    pins = listed(tmp_path / "list.txt", f"folds==1.0 --hash=sha256:{HASH} # MIT\n")
    with pytest.raises(UserError, match=r"folds==1.0: pip did not download it: .*HASH"):
        download(pins, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*"))


@pytest.mark.slow
def test_a_package_that_nobody_has_is_named(tmp_path: Path, index: Path):
    pins = listed(tmp_path / "list.txt", f"folds==2.0 --hash=sha256:{HASH} # MIT\n")
    with pytest.raises(UserError, match=r"folds==2.0: pip did not download it: .*folds==2.0"):
        download(pins, tmp_path / "cache")


@pytest.mark.slow
def test_a_licence_other_than_the_list_says_is_refused(tmp_path: Path, index: Path):
    wheel = write_wheel(index, "folds", "License-Expression: GPL-3.0-only", folds=module("fold", 2))
    with pytest.raises(UserError, match=r"folds==1.0: its licence is GPL-3.0-only, and the list says MIT"):
        download(listed(tmp_path / "list.txt", pin(wheel)), tmp_path / "cache")
    wheel = write_wheel(index, "wraps", "Summary: none", folds=module("wrap", 2))
    with pytest.raises(UserError, match=r"wraps==1.0: its licence is not said"):
        download(listed(tmp_path / "list.txt", pin(wheel)), tmp_path / "cache")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("License", "x")], "MIT OR Apache-2.0"),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "GPL")], "BSD"),
        ([("Classifier", "License :: OSI Approved"), ("License", "Apache License, Version 2.0")], "Apache-2.0"),
        (
            [
                ("Classifier", f"License :: OSI Approved :: {name}")
                for name in ("MIT License", "GNU GPL", "MIT License")
            ],
            "GNU GPL AND MIT",
        ),
        ([("Classifier", "License :: OSI Approved :: Python Software Foundation License")], "PSF-2.0"),
        ([("Classifier", "License :: OSI Approved :: ISC License (ISCL)")], "ISC"),
        ([("License", "The MIT License (MIT)\n\nCopyright somebody")], "MIT"),
        ([("License", "BSD 3-Clause License")], "BSD"),
        ([("License", "Apache 2.0")], "Apache-2.0"),
        ([("License", "MIT or GPL")], "MIT or GPL"),
        ([("Classifier", "Programming Language :: Python")], ""),
    ],
)
def test_a_licence_is_an_expression_however_the_metadata_says_it(fields: list[tuple[str, str]], licence: str):
    assert licence_of(metadata(*fields)) == licence


def test_what_is_no_wheel_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "a-1.0-py3-none-any.whl").write_text("nothing")
    with pytest.raises(UserError, match="not a wheel"):
        wheel_metadata(tmp_path / "a-1.0-py3-none-any.whl")


def test_the_list_of_the_project_is_sorted_and_of_packages_that_may_be_used():
    pins = read_pins(ROOT / "recipes" / "shortlist-mini" / "packages.txt")
    names = [found.name for found in pins]
    assert names == sorted({*names})
    assert len(names) >= 200
    assert {"numpy", "networkx", "django"} <= {*names}
    assert not {"gensim", "ansible", "pylint"} & {*names}
    assert all(len(found.hashes) == 1 for found in pins)


@pytest.mark.slow
def test_wheels_are_taken_for_one_python_whatever_python_reads_them(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    for tag, verb in (("cp311-cp311-manylinux_2_28_x86_64", "fold"), ("cp399-cp399-manylinux_2_28_x86_64", "wrap")):
        wheel = write_wheel(index, "folds", folds=module(verb, 2)).rename(index / f"folds-1.0-{tag}.whl")
        pins = listed(tmp_path / "list.txt", pin(wheel))
        python = ["--python-version", f"3.{tag[3:5]}", "--implementation", "cp", "--abi", tag[:5]]
        monkeypatch.setattr(wheels, "ONE_PYTHON", python)
        (there,) = download(pins, tmp_path / tag)
        assert there.name == wheel.name
