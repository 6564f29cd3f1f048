"""Filters over metadata, and answers by whole documents, in pipelines and the commands that run them."""

import json
from dataclasses import replace
from inspect import unwrap
from pathlib import Path

import pytest
from tiny import DOCUMENTS, QUERIES, Tiny, write_collection

from shortlist import Pipeline, ask, index, search
from shortlist.cli import main
from shortlist.data.formats import write_corpus, write_qrels
from shortlist.data.memory import MemoryCollection
from shortlist.data.runs import read_run
from shortlist.data.where import WhereError
from shortlist.errors import UserError
from shortlist.pipeline import BY_DOCUMENT
from shortlist.pipeline.steps import STEPS, Step
from shortlist.pipeline.wholes import best_chunks
from shortlist.records import Document, Hit, Query
from shortlist.text.segments import document_of

QUESTION = "which colour has the apple"
DATED = [d._replace(metadata={"year": 2010 + i, "lang": "de" if i % 2 else "en"}) for i, d in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def pipeline(tiny: Tiny) -> Pipeline:
    """Words, vectors, a fusion and a reranker."""
    return Pipeline.from_texts(DATED, retriever=str(tiny.retriever), reranker=str(tiny.reranker), depth=4)


def ids(results) -> list[str]:
    return [result.document.doc_id for result in results]


@pytest.mark.parametrize(
    "options", [{}, {"rerank": False}, {"first_stage": "dense"}, {"first_stage": "bm25", "rerank": False}]
)
def test_every_kind_of_search_gives_as_many_as_fit(pipeline: Pipeline, options: dict):
    found = pipeline.search(QUESTION, 5, where="year >= 2014 and lang = 'de'", **options)
    expected = {f"d{i}" for i in (5, 7, 9, 11)}
    assert set(ids(found)) == expected
    assert all(result.document.metadata["year"] >= 2014 for result in found)
    assert len(pipeline.search(QUESTION, 3, where="lang = 'de'", **options)) == 3
    assert pipeline.search(QUESTION, 3, where="year > 3000", **options) == []


def test_a_dense_pipeline_keeps_the_order_of_the_whole_list(pipeline: Pipeline):
    every = ids(pipeline.search(QUESTION, 12, first_stage="dense", rerank=False))
    some = ids(pipeline.search(QUESTION, 12, first_stage="dense", rerank=False, where="doc_id in ('d3', 'd8', 'd1')"))
    assert some == [doc_id for doc_id in every if doc_id in ("d3", "d8", "d1")]


def test_a_trace_and_answers_are_filtered_alike(pipeline: Pipeline):
    trace = pipeline.trace([QUESTION], 5, where="year = 2015")
    assert all([hit.doc_id for hit in found.run["0"]] == ["d5"] for found in trace.found.values())
    [answer] = pipeline.answer([QUESTION], 5, where="year = 2015")
    assert ids(answer.results) == ["d5"]


def test_a_filter_that_does_not_fit_is_refused(pipeline: Pipeline):
    with pytest.raises(WhereError, match="unknown field 'jear': perhaps 'year'"):
        pipeline.search(QUESTION, where="jear = 1")


def test_a_first_stage_of_ones_own_takes_allowed_documents_or_is_refused():
    class Listed:
        def search(self, queries, k: int):
            return {query.query_id: [Hit("a", 1.0), Hit("b", 0.5)][:k] for query in queries}

    class Filtered(Listed):
        def search(self, queries, k: int, *, allowed=None):
            run = super().search(queries, 2)
            return {name: [hit for hit in hits if hit.doc_id in (allowed or "ab")][:k] for name, hits in run.items()}

    collection = MemoryCollection([Document("a", "x", metadata={"n": 1}), Document("b", "y", metadata={"n": 2})])
    plain, able = (Pipeline(collection, [Step("listed", STEPS["find"], stage)]) for stage in (Listed(), Filtered()))
    assert ids(plain.search("x", 1)) == ids(able.search("x", 1)) == ["a"]
    assert ids(able.search("x", 1, where="n = 2")) == ["b"]
    with pytest.raises(UserError, match="step 'listed' cannot filter: its search takes no `allowed`"):
        plain.search("x", where="n = 2")


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with metadata, and its index."""
    folder = write_collection(tmp_path_factory.mktemp("dated"))
    write_corpus(folder / "corpus.jsonl", DATED)
    index.run(index.Config(collection=str(folder), out=folder / "words"))
    return folder


def test_search_writes_a_run_of_what_fits_and_knows_the_job_by_the_filter(dated: Path, tmp_path: Path, capsys):
    config = search.Config(collection=str(dated), index=(dated / "words",), k=3, out=tmp_path / "run.trec")
    search.run(replace(config, where="lang = 'de'"))
    assert "search: 6 of 12 documents fit --where." in capsys.readouterr().err
    run = read_run(tmp_path / "run.trec")
    assert {hit.doc_id for hits in run.values() for hit in hits} == {f"d{i}" for i in range(1, 12, 2)}
    assert all(len(hits) == 3 for hits in run.values())
    with pytest.raises(UserError, match="where"):
        search.run(replace(config, where="lang = 'en'"))
    with pytest.raises(UserError, match="overwrite"):
        search.run(config)
    described = {"collection": str(dated), "steps": {"words": {"find": "bm25", "index": str(dated / "words")}}}
    (tmp_path / "p.yaml").write_text(json.dumps(described))
    by_file = search.Config(pipeline=tmp_path / "p.yaml", k=3, out=tmp_path / "b.trec", where="lang = 'de'")
    search.run(by_file)
    assert read_run(tmp_path / "b.trec") == run
    assert len(DATED) == 12


def test_ask_prints_what_fits(dated: Path, capsys):
    words = ["ask", QUESTION, "--collection", str(dated), "--index", str(dated / "words"), "--json"]
    assert main([*words, "--where", "year < 2012"]) == 0
    assert [result["doc_id"] for result in json.loads(capsys.readouterr().out)["results"]] == ["d0", "d1"]
    assert main([*words, "--where", "year <"]) == 1
    assert "where 'year <': at character 6: cannot be read near '<'" in capsys.readouterr().err


CHUNKS = [
    Document(f"{name}#{n}", f"the {word} " * (n + 1) + "and so on " * 3, title=name, metadata={"page": n})
    for name, words in (("a#b", ["apple"] * 7), ("c", ["apple", "boat"]), ("d", ["apple"]))
    for n, word in enumerate(words)
] + [Document("alone", "an apple and a boat", metadata={"page": 0})]
"""Chunks of three documents, one with many that are found; and a document of one piece."""


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_documents_are_found_by_their_best_chunk_however_deep(k: int):
    pipeline = Pipeline.from_texts(CHUNKS)
    every = pipeline.trace(["apple"], 99).last.run["0"]
    expected = {}
    for hit in every:
        expected.setdefault(document_of(hit.doc_id), hit)
    results = pipeline.search("apple", k, answer="documents")
    assert ids(results) == [*expected][:k]
    assert len(results) == min(k, 4)
    texts = {document.doc_id: document for document in CHUNKS}
    for result in results:
        best = expected[result.document.doc_id]
        assert result.score == best.score
        assert result.document == texts[best.doc_id]._replace(doc_id=result.document.doc_id)
        assert result.chunk == (best.doc_id if best.doc_id != "alone" else None)
        assert result.places["bm25"].score == best.score
    trace = pipeline.trace([Query("q", "apple"), Query("r", "boat")], k, answer="documents")
    assert trace.found[BY_DOCUMENT].run["q"] == [Hit(name, hit.score) for name, hit in [*expected.items()][:k]]
    assert {hit.doc_id for hit in trace.last.run["r"]} <= {"c", "alone"}


def test_a_deeper_search_asks_again_only_for_the_queries_that_need_it():
    asked = []

    class Deep:
        def search(self, queries, k: int):
            asked.append(([query.query_id for query in queries], k))
            hits = {"many": [f"a#{n}" for n in range(9)] + ["b#0"], "few": ["c#0", "d#0"]}
            return {
                query.query_id: [Hit(d, -float(i)) for i, d in enumerate(hits[query.query_id][:k])] for query in queries
            }

    pipeline = Pipeline(MemoryCollection([Document("a#0", "x")]), [Step("deep", STEPS["find"], Deep())])
    run = pipeline.trace([Query("many", "x"), Query("few", "y")], 2, answer="documents").last.run
    assert {name: [hit.doc_id for hit in hits] for name, hits in run.items()} == {"many": ["a", "b"], "few": ["c", "d"]}
    assert asked == [(["many", "few"], 6), (["many"], 24)]


def test_a_document_of_many_chunks_is_excluded_and_others_take_its_places():
    chunks = [Document(f"long#{i}", "an apple") for i in range(9)] + [Document(f"d{i}#0", "a red apple") for i in "ab"]
    pipeline = Pipeline.from_texts([*chunks, Document("last", "one apple of many apples")])
    trace = pipeline.trace([Query("q", "apple"), Query("r", "apple")], 3, exclude={"q": frozenset({"long"})})
    assert {hit.doc_id for hit in trace.last.run["q"]} == {"da#0", "db#0", "last"}
    assert [hit.doc_id for hit in trace.last.run["r"]] == ["last", "long#0", "long#1"]
    assert trace.num_excluded == 9


def test_the_first_chunk_of_a_document_is_its_best():
    assert best_chunks([Hit("a#1", 3.0), Hit("a#0", 2.0), Hit("b", 1.0)], 1) == {"a": Hit("a#1", 3.0)}
    with pytest.raises(UserError, match=r"unknown answer 'document'.*perhaps 'documents'"):
        unwrap(Pipeline.trace)(Pipeline.from_texts(CHUNKS), ["apple"], 2, answer="document")


def test_a_run_of_documents_is_evaluated_by_judgements_of_documents(tmp_path: Path, capsys):
    write_collection(tmp_path)
    write_corpus(tmp_path / "corpus.jsonl", CHUNKS)
    write_qrels(tmp_path / "qrels" / "test.tsv", {QUERIES[0].query_id: {"c": 1}})
    index.run(index.Config(collection=str(tmp_path), out=tmp_path / "words"))
    config = search.Config(collection=str(tmp_path), index=(tmp_path / "words",), k=4, out=tmp_path / "run.trec")
    search.run(replace(config, answer="documents"))
    run = read_run(tmp_path / "run.trec")
    assert {hit.doc_id for hit in run["q0"]} == {"a#b", "c", "d", "alone"}
    ask.run(ask.Config(question="apple", collection=str(tmp_path), index=(tmp_path / "words",), answer="documents"))
    capsys.readouterr()
    words = ["evaluate", "--runs", str(tmp_path / "run.trec"), "--qrels", str(tmp_path / "qrels" / "test.tsv")]
    assert main([*words, "--measures", "R@4", "--json"]) == 0
    assert "1.0" in capsys.readouterr().out
