"""The scripts in examples/, run as a reader would run them."""

import runpy
import sys
from pathlib import Path

import pytest

from shortlist.cli import main
from shortlist.data.collections import open_collection

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "tiny_collection.py")
PRINTED = {
    "encode_and_search.py": "swift?0  ",
    "evaluate_run.py": "RR@10     1.0000  0.3409  p = ",
    "python_api.py": "  dense, hybrid, reranker\n",
    "rerank.py": "What does the seal eat?  ",
    "search_bm25.py": "swift-0  The swift lives in the air",
    "token_vectors.py": "swift?0  ",
    "train_retriever.py": '{"step": 20, "loss": ',
}
"""Something that each of them must print."""
NEEDS = {"token_vectors.py": "lancedb"}
"""Packages that only one of them imports."""


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_script_is_run_here():
    assert sorted(PRINTED) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_and_prints_what_it_is_about(name, monkeypatch, tmp_path, capsys):
    pytest.importorskip(NEEDS.get(name, "shortlist"))
    run_example(name, monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert PRINTED[name] in capsys.readouterr().out


@pytest.mark.slow
def test_an_example_takes_a_collection_and_a_trained_model(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    from tiny_collection import tiny_collection

    collection = tiny_collection()
    run_example("train_retriever.py", collection, str(tmp_path / "m"), monkeypatch=monkeypatch, tmp_path=tmp_path)
    model = str(tmp_path / "m" / "retriever")
    run_example("encode_and_search.py", collection, model, monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert "seal?2  " in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_fits_on_a_screen(name):
    assert 10 <= len((EXAMPLES / name).read_text("utf-8").splitlines()) <= 40


def test_the_collection_to_try_commands_with_is_whole_and_searchable(tmp_path, capsys):
    name, words, run = str(EXAMPLES / "animals"), str(tmp_path / "bm25"), str(tmp_path / "bm25.trec")
    collection = open_collection(name)
    judged = {split: collection.qrels(split) for split in collection.splits()}
    assert list(map(len, judged.values())) == [4, 6, 10]
    assert collection.missing({doc_id for qrels in judged.values() for docs in qrels.values() for doc_id in docs}) == []
    assert collection.num_docs() == 20
    assert main(["index", "--collection", name, "--out", words]) == 0
    assert main(["search", "--index", words, "--collection", name, "--out", run]) == 0
    assert main(["evaluate", "--runs", run, "--collection", name, "--measures", "RR@10"]) == 0
    assert main(["ask", "where do otters live", "--index", words, "--collection", name, "--k", "1"]) == 0
    assert "Otters live in rivers and along quiet coasts." in capsys.readouterr().out
