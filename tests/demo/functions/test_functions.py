import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from wheel import module, pin, write_wheel

from shortlist.cli import main
from shortlist.data.formats import read_corpus, read_qrels, read_queries
from shortlist.demo import functions
from shortlist.demo.functions.fingerprints import fingerprint, read_fingerprints
from shortlist.demo.functions.overlap import body_words, normalized
from shortlist.demo.functions.sources import Function, find_sources, hold_out

pytestmark = pytest.mark.slow

SPLITS = ("train", "dev", "mined")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of three packages: 12 functions, 6, and 3 of which one resembles one of the 6."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    copied = module("wrap", 1).replace("Wrap all", "Copy all").replace("return", "return not")
    wheels = [
        write_wheel(tmp_path / "index", "folds", folds__core=module("fold", 12), folds__tests__t=module("test", 1)),
        write_wheel(tmp_path / "index", "wraps", wraps__core=module("wrap", 6), wraps___vendor__v=module("copy", 1)),
        write_wheel(tmp_path / "index", "picks", picks=module("pick", 2) + copied, broken="def f(:"),
    ]
    for wheel in wheels:
        keep(wheel, tmp_path)
    (tmp_path / "packages.txt").write_text("".join(map(pin, wheels)))
    return tmp_path / "packages.txt"


def keep(wheel: Path, folder: Path) -> None:
    """Put a wheel where one that pip has downloaded lies: pip takes seconds to start."""
    name, version, _ = wheel.name.split("-", 2)
    there = folder / "cache" / f"{name}-{version}"
    there.mkdir(parents=True)
    shutil.copy(wheel, there)


def make(tmp_path: Path, *flags: str, out: str = "out", sources: str = "packages.txt") -> Path:
    cache = [] if "--cache" in flags else ["--cache", str(tmp_path / "cache")]
    command = ["functions", "--sources", str(tmp_path / sources), "--out", str(tmp_path / out), *cache, *flags]
    assert main(command) == 0
    return tmp_path / out


def results(out: Path) -> dict[str, int]:
    return json.loads((out / "manifest.json").read_text())["results"]


def split(out: Path, name: str) -> set[str]:
    return {doc_id for judged in read_qrels(out / "qrels" / f"{name}.tsv").values() for doc_id in judged}


def test_the_functions_of_pinned_packages_are_a_collection(tmp_path: Path, packages: Path):
    out = make(tmp_path, "--dev", "0", "--mined", "4")
    documents = {document.doc_id: document.text for document in read_corpus(out / "corpus.jsonl")}
    assert len(documents) == 12 + 6 + 3
    assert documents["folds.core.fold_one"].startswith("def fold_one(one):\n    fold_one_a = fold_a(one)")
    assert read_queries(out / "queries.jsonl")[0].text == "Fold all one of the things"
    assert split(out, "train") == documents.keys()
    assert len(split(out, "mined")) == 4
    assert not (out / "qrels" / "dev.tsv").exists()
    assert results(out) | {"files": 4, "files_skipped": 1, "functions": 21, "pairs": 21} == results(out)


def test_whole_packages_are_held_out_and_nothing_like_them_is_trained_on(tmp_path: Path, packages: Path):
    out = make(tmp_path, "--dev", "15")
    assert split(out, "dev") == {"picks.pick_one", "picks.pick_two", "picks.wrap_one"}
    train = split(out, "train")
    assert {name.split(".")[0] for name in train} == {"folds", "wraps"}
    assert "wraps.core.wrap_one" not in train
    assert split(out, "mined") == train
    counted = {"dev": 3, "train": 17, "dev_bodies": 1, "pairs": 20}
    assert results(out) | counted == results(out)


def test_what_is_held_out_is_of_several_packages_and_never_more_than_asked_for():
    sizes = {"a": 30, "b": 20, "c": 19, "d": 20, "e": 5, "f": 20, "g": 18, "h": 20}
    pairs = [Function("", "", "", "", package) for package, size in sizes.items() for _ in range(size)]
    for seed in range(20):
        chosen = hold_out(pairs, 100, seed)
        assert "a" not in chosen
        assert len(chosen) >= 5
        assert sum(sizes[package] for package in chosen) <= 100
    assert hold_out(pairs, 100, 0) == hold_out(pairs, 100, 0)
    assert len({frozenset(hold_out(pairs, 100, seed)) for seed in range(20)}) > 1


def test_the_table_says_what_each_package_gave(tmp_path: Path, packages: Path):
    out = make(tmp_path, "--max-pairs", "20", "--dev", "0")
    with open(out / "sources.tsv") as file:
        rows = {row.pop("package"): row for row in csv.DictReader(file, delimiter="\t")}
    assert list(rows) == ["folds", "picks", "wraps"]
    assert {name: (row["version"], row["licence"], row["functions"]) for name, row in rows.items()} == {
        "folds": ("1.0", "MIT", "12"),
        "picks": ("1.0", "MIT", "3"),
        "wraps": ("1.0", "MIT", "6"),
    }
    assert sum(int(row["pairs"]) for row in rows.values()) == 20


def test_fingerprints_are_of_every_summary_and_body_that_is_there(tmp_path: Path, packages: Path):
    out = make(tmp_path)
    found = read_fingerprints(out / "fingerprints.npz")
    summaries = [normalized(query.text) for query in read_queries(out / "queries.jsonl")]
    bodies = [body_words(document.text) for document in read_corpus(out / "corpus.jsonl")]
    assert sorted(map(fingerprint, {*summaries, *bodies})) == found.tolist()
    assert not np.isin([fingerprint("rename a file")], found).any()


def test_nothing_of_the_collection_named_is_taken(tmp_path: Path, packages: Path):
    standard = make(tmp_path, "--dev", "0", out="all")
    fewer = packages.with_name("fewer.txt")
    wheel = write_wheel(tmp_path / "index", "mores", mores=module("wrap", 2) + module("sort", 3))
    fewer.write_text(pin(wheel))
    keep(wheel, tmp_path)
    out = make(tmp_path, "--apart-from", str(standard), "--dev", "0", sources="fewer.txt")
    assert split(out, "train") == {f"mores.sort_{number}" for number in ("one", "two", "three")}
    assert results(out)["test_summaries"] == 2


def test_the_installed_packages_are_told_apart_by_their_modules(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
):
    for verb in ("fold", "find"):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{verb}ing.py").write_text(module(verb, len(verb) + (verb == "fold") * 4))
    monkeypatch.setattr(functions, "installed_packages", lambda: find_sources(tmp_path / "site"))
    assert main(["functions", "--sources", "installed", "--out", str(tmp_path / "out"), "--dev", "25"]) == 0
    dev, train = ({name.split(".")[0] for name in split(tmp_path / "out", name)} for name in ("dev", "train"))
    assert (dev, train) == ({"finding"}, {"folding"})


def test_the_standard_library_is_a_collection_to_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build(out: Path, *, num_dev: int, seed: int) -> dict[str, int]:
        (out / "corpus.jsonl").write_text("")
        return {"functions": seed, "dev": num_dev}

    monkeypatch.setattr(functions, "build_test", build)
    command = [
        "functions",
        "--sources",
        "standard-library",
        "--out",
        str(tmp_path / "out"),
        "--seed",
        "7",
        "--dev",
        "3",
    ]
    assert main(command) == 0
    assert results(tmp_path / "out") | {"functions": 7, "dev": 3} == results(tmp_path / "out")


def test_a_finished_collection_is_not_made_again(tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str]):
    make(tmp_path)
    make(tmp_path, "--cache", str(tmp_path / "elsewhere"))
    assert "already done" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_after_an_interruption_what_was_downloaded_is_used(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = packages.read_text()
    packages.write_text(lines + f"none==1.0 --hash=sha256:{'0' * 64} # MIT\n")
    assert main(["functions", "--sources", str(packages), "--out", str(tmp_path / "out")]) == 1
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    packages.write_text(lines)
    flags = ["--overwrite", "--dev", "0", "--cache", str(tmp_path / "out.downloads")]
    assert results(make(tmp_path, *flags))["pairs"] == 21


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sources", "standrad"], "standrad: No such file or directory; expected a list of pinned packages"),
        (["--sources", "installed", "--dev", "-1"], "--dev is -1; expected 0 or more"),
        (["--sources", "installed", "--apart-from", "nowhere"], "nowhere: expected a folder with corpus.jsonl"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["functions", "--out", "out", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("out").exists()
