import json
from pathlib import Path

import pytest

from shortlist import pool
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.records import Document, Hit, Query


def run_of(**doc_ids: str) -> dict:
    return {query: [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate(ids)] for query, ids in doc_ids.items()}


RUNS = (run_of(q1="abc", q2="x"), run_of(q1="bd", q3="y"))


def test_the_first_documents_of_all_runs_are_pooled_what_most_have_first():
    pooled = pool.pool(RUNS, depth=2)
    assert {query: list(documents) for query, documents in pooled.items()} == {
        "q1": ["b", "a", "d"],
        "q2": ["x"],
        "q3": ["y"],
    }
    assert pooled["q1"]["b"] == (2, 1, 0)
    assert pool.count_pool(pooled, ["one", "two"])["unique"] == [{"run": "one", "pairs": 2}, {"run": "two", "pairs": 2}]


def test_what_is_judged_is_left_out_and_the_file_has_the_rest(tmp_path: Path, capsys):
    for name, run in zip(("one", "two"), RUNS, strict=True):
        write_run(tmp_path / f"{name}.trec", run)
    write_qrels(tmp_path / "qrels.tsv", {"q1": {"b": 0}, "q2": {"x": 1}})
    settings = {"runs": (tmp_path / "one.trec", tmp_path / "two.trec"), "out": tmp_path / "pool.tsv", "depth": 2}
    pool.run(pool.Config(**settings, qrels=tmp_path / "qrels.tsv", json=True))
    told = json.loads(capsys.readouterr().out)
    assert (told["pairs"], told["queries"]) == (3, 2)
    lines = settings["out"].read_text().splitlines()
    assert lines == ["query-id\tcorpus-id\truns\trank", "q1\ta\t1\t1", "q1\td\t1\t2", "q3\ty\t1\t1"]
    pool.run(pool.Config(**settings, qrels=tmp_path / "qrels.tsv"))
    assert "3 pairs of 2 queries without a judgement" in capsys.readouterr().out


def test_what_a_collection_excludes_is_not_pooled_and_takes_no_place(tmp_path: Path, capsys):
    write_run(tmp_path / "run.trec", run_of(q1="abcd"))
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", [Document(doc_id, "text") for doc_id in "abcd"])
    write_queries(folder / "queries.jsonl", [Query("q1", "text")])
    write_qrels(folder / "qrels" / "test.tsv", {"q1": {"c": 1}})
    (folder / "exclude").mkdir()
    (folder / "exclude" / "test.tsv").write_text("q1 a\n")
    out = tmp_path / "pool.tsv"
    pool.run(pool.Config(runs=(tmp_path / "run.trec",), collection=str(folder), depth=3, out=out))
    assert out.read_text().splitlines()[1:] == ["q1\tb\t1\t1", "q1\td\t1\t3"]
    assert "1 hits do not count" in capsys.readouterr().err


def test_no_runs_or_no_depth_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--runs names 0 files and --depth is 10"):
        pool.run(pool.Config(runs=(), out=tmp_path / "pool.tsv"))
