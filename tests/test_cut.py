import json
from pathlib import Path

import pytest

from shortlist import cut
from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels, write_corpus, write_qrels, write_queries
from shortlist.data.manifest import write_manifest
from shortlist.data.runs import read_run, run_columns, write_run
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.math.risk import control, mean_loss
from shortlist.records import Document, Hit, Query

NUM_QUERIES = 30


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    """Queries whose only relevant document stands at rank 1, 2, 3, 1, 2, 3 ..., of 4 with the scores 8, 4, 2 and 1."""
    run, qrels = {}, {}
    for number in range(NUM_QUERIES):
        run[f"q{number}"] = [Hit(f"d{rank}", 8.0 / 2**rank) for rank in range(4)]
        qrels[f"q{number}"] = {f"d{number % 3}": 1}
    write_run(tmp_path / "train.trec", run)
    write_qrels(tmp_path / "qrels.tsv", qrels | {"without": {"d1": 0}})
    return {"run": tmp_path / "train.trec", "qrels": tmp_path / "qrels.tsv", "out": tmp_path / "rule.json"}


def made_by(run: Path, *stages: dict) -> None:
    write_manifest(run, {"job": "x", "complete": True, "stage": "search", "results": {"stages": list(stages)}})


def calibrated(capsys: pytest.CaptureFixture[str], **settings) -> dict:
    cut.run(cut.Config(action="calibrate", json=True, **settings))
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("by", "at"), [("rank", 3), ("ratio", 0.25), ("score", 2.0)])
def test_a_rule_is_calibrated_and_applied(settings: dict, tmp_path: Path, capsys, by: str, at: float):
    rule = calibrated(capsys, **settings, recall=0.9, by=by)
    assert (rule["by"], rule["at"], rule["queries"], rule["found"]) == (by, at, NUM_QUERIES, 1.0)
    assert rule["reachable"] == pytest.approx(1 - 1 / 31)
    assert rule["spread"] == {"at": [at, at], "found": [1.0, 1.0], "infeasible": 0, "calibrations": 200}
    cut.run(cut.Config(run=settings["run"], rule=settings["out"], out=tmp_path / "short.trec", json=True))
    told = json.loads(capsys.readouterr().out)
    assert (told["mean_kept"], told["empty"], told["num_queries"]) == (3.0, 0, NUM_QUERIES)
    assert {len(hits) for hits in read_run(tmp_path / "short.trec").values()} == {3}


def test_a_lower_promise_keeps_less(settings: dict, capsys):
    assert calibrated(capsys, **settings, recall=0.6)["at"] == 2  # 30 of 31 times a loss of 1/3, and 1/31
    assert calibrated(capsys, **settings, recall=0.64, overwrite=True)["at"] == 2
    assert calibrated(capsys, **settings, recall=0.65, overwrite=True)["at"] == 3
    assert calibrated(capsys, **settings, at_least_one=0.3, overwrite=True)["at"] == 1


def test_the_sentences_say_how_many_queries_and_how_far_it_varies(settings: dict, capsys):
    cut.run(cut.Config(action="calibrate", **settings, recall=0.6))
    printed = capsys.readouterr().out
    assert "the first 2 documents of each query" in printed
    assert "like the 30 calibrated on" in printed
    assert "cut at 2 to 3" in printed
    assert "nobody judged" in printed


def test_what_cannot_be_promised_is_refused_with_what_can(settings: dict):
    with pytest.raises(UserError, match=r"--recall 0.97: cannot be promised from 30 queries; the most is 0.967"):
        cut.run(cut.Config(action="calibrate", **settings, recall=0.97))
    deep = {f"q{number}": {"d1": 1, "absent": 1} for number in range(NUM_QUERIES)}
    write_qrels(settings["qrels"], deep)
    with pytest.raises(UserError, match=r"from what the run finds for its 30 queries; the most is 0.48"):
        cut.run(cut.Config(action="calibrate", **settings, recall=0.5))
    cut.run(cut.Config(action="calibrate", **settings, recall=0.483))


def test_a_run_of_another_stage_or_model_is_refused(settings: dict, tmp_path: Path, capsys):
    made_by(settings["run"], {"stage": "search", "ms": 1.0}, {"stage": "rerank", "ms": 9.0, "model": "one"})
    calibrated(capsys, **settings, recall=0.6)
    other, out = tmp_path / "test.trec", tmp_path / "short.trec"
    write_run(other, {"new": [Hit("d1", 2.0), Hit("d2", 1.0), Hit("d3", 0.5)]})
    for stages in ([{"stage": "search"}], [{"stage": "search"}, {"stage": "rerank", "model": "two"}]):
        made_by(other, *stages)
        with pytest.raises(UserError, match=r"test.trec: was made by search.*calibrated on a run of search, rerank"):
            cut.run(cut.Config(run=other, rule=settings["out"], out=out))
    assert not out.exists()
    made_by(other, {"stage": "search", "ms": 5.0}, {"stage": "rerank", "model": "one"})
    cut.run(cut.Config(run=other, rule=settings["out"], out=out))
    assert [hit.doc_id for hit in read_run(out)["new"]] == ["d1", "d2"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recall": 0.9, "at_least_one": 0.9}, "expected either --recall or --at-least-one"),
        ({}, "expected either --recall or --at-least-one"),
        ({"recall": 1.0}, "--recall is 1; expected a number between 0 and 1"),
        ({"recall": 0.9, "rule": Path("rule.json")}, "--rule is to apply"),
        ({"recall": 0.9, "resamples": 5}, "--resamples is 5"),
        ({"recall": 0.9, "relevance_level": 2}, "has a relevant document, of grade 2"),
        ({"action": "apply", "qrels": None}, "--rule is missing"),
        ({"action": "apply", "recall": 0.9, "qrels": None}, "--recall is for `shortlist cut calibrate`"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, given: dict, words: str):
    with pytest.raises(UserError, match=words):
        cut.run(cut.Config(**{"action": "calibrate"} | settings | given))


def test_queries_that_the_run_lacks_count_as_found_nothing(settings: dict):
    run = {query_id: hits for query_id, hits in read_run(settings["run"]).items() if query_id not in ("q0", "q3")}
    options = {"level": 1, "where": "run"}
    needs = cut.needs_of(run_columns(run), read_qrels(settings["qrels"]), "rank", **options)
    assert (needs.num_queries, mean_loss(needs, 3.0)) == (NUM_QUERIES, pytest.approx(2 / NUM_QUERIES))


def test_what_a_collection_excludes_counts_neither_as_kept_nor_as_relevant(settings: dict, tmp_path: Path, capsys):
    folder = tmp_path / "collection"
    write_qrels(folder / "qrels" / "train.tsv", read_qrels(settings["qrels"]))
    (folder / "exclude").mkdir()
    lines = (f"q{number} {doc_id}\n" for number in range(NUM_QUERIES) for doc_id in ("d0", "d3"))
    (folder / "exclude" / "train.tsv").write_text("".join(lines))
    write_corpus(folder / "corpus.jsonl", [Document(f"d{number}", "text") for number in range(4)])
    write_queries(folder / "queries.jsonl", [Query(f"q{number}", "text") for number in range(NUM_QUERIES)])
    own = settings | {"qrels": None, "collection": str(folder)}
    rule = calibrated(capsys, **own, recall=0.9)
    assert (rule["at"], rule["queries"]) == (2, 20)  # d1 and d2 are left, and the queries of d0 have nothing relevant


@pytest.mark.slow
def test_scifact_is_cut_where_it_was_measured_before(shared_data: Path):
    collection = open_collection(str(shared_data / "scifact"))
    index = BM25Index.build(collection.corpus(), k1=0.9, b=0.4)
    needs = {}
    for split in ("train", "test"):
        run = run_columns(index.search(list(collection.queries(split)), 1000))
        for by in ("rank", "ratio"):
            needs[split, by] = cut.needs_of(run, collection.qrels(split), by, level=1, where=split)
    assert needs["train", "rank"].num_queries == 809
    for level, by, at, loss in GOLDEN:
        found = control(needs["train", by], level).cut
        assert found == (at if by == "rank" else pytest.approx(at, abs=0.001)), (level, by)
        assert mean_loss(needs["test", by], found) == pytest.approx(loss, abs=0.005), (level, by)


GOLDEN = [
    (0.2, "rank", 9, 0.200),
    (0.1, "rank", 56, 0.098),
    (0.075, "rank", 96, 0.075),
    (0.05, "rank", 281, 0.053),
    (0.03, "rank", 718, 0.030),
    (0.2, "ratio", -0.6365, 0.190),
    (0.1, "ratio", -0.4385, 0.114),
    (0.05, "ratio", -0.286, 0.051),
]
"""Level of loss, kind of cut, the cut on 809 queries, the loss on 300 others."""
