import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late import write_stanford
from tiny import Tiny

from shortlist import LateRetriever, Pipeline, ask, encode, index, rerank, search
from shortlist.data.collections import open_collection
from shortlist.data.contents import find_damage
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.errors import UserError
from shortlist.index.late import LateIndex, LateSearch
from shortlist.index.opening import open_tokens
from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.records import Document
from shortlist.rerankers.kinds import load_reranker
from shortlist.rerankers.late_reranker import LateReranker
from shortlist.settings.encode import Config as EncodeConfig


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A late model, its token vectors, and two indexes over them."""
    folder = tmp_path_factory.mktemp("late")
    write_stanford(folder / "model")
    encode.run(EncodeConfig(model=str(folder / "model"), collection=str(tiny.collection), out=folder / "tokens"))
    for kind in ("late", "narrow"):
        index.run(index.Config(kind=kind, vectors=folder / "tokens", out=folder / kind))
    return folder


@pytest.fixture(scope="module")
def best(tiny: Tiny, made: Path) -> dict[str, list[str]]:
    """Every query's documents, best first, by the definition."""
    model, collection = LateRetriever.load(str(made / "model")), open_collection(str(tiny.collection))
    queries, documents = collection.queries("test"), list(collection.corpus())
    scores = maxsim(model.encode_queries(queries), model.encode_documents(documents))
    order = np.argsort(-scores.round(4), axis=1, kind="stable")
    return {
        query.query_id: [documents[place].doc_id for place in row] for query, row in zip(queries, order, strict=True)
    }


def ids(run: Any, query_id: str) -> list[str]:
    return [hit.doc_id for hit in run[query_id]]


@pytest.mark.parametrize("where", ["tokens", "late", "narrow"])
def test_search_finds_the_best_by_flags(tiny, made, best, tmp_path, where):
    found: dict[str, Any] = {"vectors": made / where} if where == "tokens" else {"index": (made / where,)}
    how = {"model": str(made / "model"), "collection": str(tiny.collection)}
    search.run(search.Config(out=tmp_path / "run", k=3, **how, **found))
    run = read_run(tmp_path / "run")
    assert {query_id: ids(run, query_id) for query_id in best} == {name: found[:3] for name, found in best.items()}


def late_step(made: Path, **more: Any) -> dict[str, Any]:
    return {"find": "late", "model": str(made / "model"), "vectors": str(made / "tokens"), **more}


def test_a_cascade_reranks_by_late_interaction(tiny, made, best):
    steps = {
        "tokens": late_step(made, depth=20),
        "words": {"find": "bm25", "depth": 20},
        "both": {"fuse": "rrf", "of": ["tokens", "words"]},
        "again": {"rank": "late", "model": str(made / "model"), "vectors": str(made / "tokens"), "depth": 20},
    }
    pipeline = Pipeline.load(str(tiny.collection), pipeline={"steps": steps})
    for query in open_collection(str(tiny.collection)).queries("test")[:3]:
        trace = pipeline.trace([query], 3)
        assert ids(trace.last.run, query.query_id)[:3] == best[query.query_id][:3]
        scores = {hit.doc_id: hit.score for hit in trace.found["tokens"].run[query.query_id]}
        again = {hit.doc_id: hit.score for hit in trace.last.run[query.query_id]}
        assert all(again[doc_id] == score for doc_id, score in scores.items() if doc_id in again)


def test_texts_in_memory_are_searched(made):
    model = LateRetriever.load(str(made / "model"))
    texts = ["the apple has a colour", "which boat", "zebra the fern"]
    pipeline = Pipeline.from_texts(texts, retriever=model, bm25=False)
    assert pipeline.first_stages == ["late"]
    expected = maxsim(model.encode_queries(["boat"]), model.encode_documents(texts))[0]
    found = pipeline.search("boat", 3)
    assert [int(result.document.doc_id) for result in found] == np.argsort(-expected, kind="stable").tolist()
    assert Pipeline.from_texts(texts, retriever=str(made / "model")).first_stages == ["bm25", "late", "hybrid"]


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_is_reranked(tiny, made, best, tmp_path, stored):
    search.run(search.Config(collection=str(tiny.collection), out=tmp_path / "words", k=5))
    vectors = {"vectors": made / "tokens"} if stored else {}
    how = {"model": str(made / "model"), "method": "late", "collection": str(tiny.collection)}
    rerank.run(rerank.Config(run=tmp_path / "words", out=tmp_path / "late", **how, **vectors))
    before, after = read_run(tmp_path / "words"), read_run(tmp_path / "late")
    for query_id, hits in before.items():
        ranks = {doc_id: rank for rank, doc_id in enumerate(best[query_id])}
        assert ids(after, query_id) == sorted([hit.doc_id for hit in hits], key=ranks.__getitem__)


def test_a_reranker_encodes_what_is_not_stored(made, tiny):
    ranker: Any = load_reranker("late", model=str(made / "model"), vectors=made / "tokens")
    stored = TokenReader(made / "tokens")
    document = next(open_collection(str(tiny.collection)).corpus())
    one = document._replace(doc_id="another")
    scores = ranker.score("which boat", [document, one])
    assert stored.doc_ids[0] == document.doc_id
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert ranker.score("which boat", []).shape == (0,)


def test_a_collections_own_token_vectors_are_kept_up_to_date(made, tmp_path, capsys):
    lines = [{"_id": str(number), "text": text} for number, text in enumerate(["which boat", "the apple", "zebra"])]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask.run(ask.Config(question="zebra", collection=str(tmp_path / "c"), model=str(made / "model"), json=True))
    [first, *_] = json.loads(capsys.readouterr().out)["results"]
    assert set(first["stages"]) == {"bm25", "late", "hybrid"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {"find": "dense", "model": "model", "vectors": "tokens"},
            "holds token vectors, .* search it with `find: late`",
        ),
        (
            {"find": "late", "model": "tiny", "vectors": "tokens"},
            "gives one vector for each text, and .* token vectors",
        ),
        ({"find": "late", "model": "model", "vectors": "one"}, "holds one vector for each document, not token vectors"),
        ({"find": "index", "index": "late"}, "needs a model; search it with `find: late`"),
    ],
)
def test_models_and_vectors_that_do_not_go_together_are_refused(tiny, made, built, steps, message):
    places = {"model": made / "model", "tokens": made / "tokens", "tiny": tiny.retriever, "one": built / "vectors"}
    given = {name: str(places.get(value, made / value)) if name != "find" else value for name, value in steps.items()}
    with pytest.raises(UserError, match=message):
        Pipeline.load(str(tiny.collection), pipeline={"steps": {"only": given}})


@pytest.mark.parametrize("queries", ["documents", "encoded"])
def test_an_index_is_compared_with_exact_search(tiny, made, capsys, queries):
    encoded: dict[str, Any] = {"model": str(made / "model"), "collection": str(tiny.collection)}
    how = encoded if queries == "encoded" else {}
    index.run(index.Config(kind="late", vectors=made / "tokens", out=made / "late", check=True, **how))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("late over")
    assert lines[1] == "recall@10    1.0000"  # there are few documents, which are all scored


def test_an_index_is_forecast(made, capsys):
    index.run(index.Config(kind="late", vectors=made / "tokens", out=made / "none", dry_run=True, set=("width=8",)))
    out = capsys.readouterr().out
    assert "repetitions=4, bits=2, width=8" in out
    assert not (made / "none").exists()


def test_documents_and_queries_without_words_are_found_by_their_markers(made, tmp_path):
    """The documented rule: markers have vectors."""
    lines = [{"_id": str(number), "text": text} for number, text in enumerate(["which boat", ".", "zebra"])]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pipeline = Pipeline.load(str(tmp_path / "c"), retriever=str(made / "model"))
    found = pipeline.search(".", 3, first_stage="late")
    assert {result.document.doc_id for result in found} == {"0", "1", "2"}
    assert all(np.isfinite(result.score) for result in found)


class Encoder:
    """Gives every query the same two vectors."""

    def encode_queries(self, queries, *, token_budget=None):
        return TokenVectors(np.tile(np.eye(2, 4, dtype=np.float32), (len(queries), 1)), np.full(len(queries), 2))

    def encode_documents(self, documents, *, token_budget=None):
        raise AssertionError("all documents are stored")


def test_a_document_without_vectors_is_ranked_last_and_never_found(tmp_path):
    TokenWriter(tmp_path, 4).write_shard(
        0, ["near", "none", "far"], TokenVectors(np.eye(2, 4, dtype=np.float32) * [[1], [-1]], np.array([1, 0, 1]))
    )
    stored = TokenReader(tmp_path)
    reranker = LateReranker(Encoder(), stored=stored)
    documents = [Document(doc_id, "") for doc_id in stored.doc_ids]
    assert reranker.score("q", documents).tolist() == [1.0, -2.0, -1.0]
    found = LateSearch(Encoder(), LateIndex(stored)).search("q", 3)["0"]
    assert [(hit.doc_id, hit.score) for hit in found] == [("near", 1.0), ("far", -1.0)]


def test_a_query_of_another_dimension_than_the_index_is_refused(made):
    four = TokenVectors(np.eye(2, 4, dtype=np.float32), np.array([2]))
    for opened in (open_tokens(made / "late"), open_tokens(made / "narrow")):
        with pytest.raises(UserError, match="the queries' tokens have 4 dimensions, those of the documents"):
            opened.find(four, 3)


def test_one_vector_models_do_not_rerank_late(tiny):
    with pytest.raises(UserError, match="gives one vector for each text, and method late takes"):
        load_reranker("late", model=str(tiny.retriever))


def test_dims_are_of_one_vector(tiny, made, tmp_path):
    how = {"model": str(made / "model"), "collection": str(tiny.collection), "vectors": made / "tokens"}
    with pytest.raises(UserError, match="--dims is for one vector of each document"):
        search.run(search.Config(out=tmp_path / "run", dims=4, **how))


@pytest.mark.parametrize("kind", ["late", "late-centroids"])
def test_the_same_command_brings_an_index_up_to_date(made, tmp_path, kind):
    def write(texts: list[str]) -> None:
        lines = [{"_id": str(number), "text": text} for number, text in enumerate(texts)]
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c/corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    how: Any = {"model": str(made / "model"), "collection": str(tmp_path / "c"), "out": tmp_path / "tokens"}
    config = index.Config(kind=kind, vectors=tmp_path / "tokens", out=tmp_path / "index")
    write(["which boat", "the apple", "zebra"])
    encode.run(EncodeConfig(**how))
    index.run(config)
    write(["which boat", "the apple has a colour", "zebra", "the fern"])
    encode.run(EncodeConfig(**how, update=True))
    older: Any = open_tokens(tmp_path / "index")
    assert older.missing == 2
    index.run(config)
    manifest: Any = read_manifest(tmp_path / "index")
    assert (manifest["results"]["read"], manifest["results"]["num_docs"]) == (2, 4)
    assert not list(find_damage(tmp_path / "index", manifest["files"], again=True))  # it lists what is there
    found = LateSearch(LateRetriever.load(str(made / "model")), open_tokens(tmp_path / "index")).search(["the fern"], 4)
    assert {hit.doc_id for hit in found["0"]} == {"0", "1", "2", "3"}
    assert index.is_current(config)
