from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortlist import Pipeline, Query, Reranker, Retriever
from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.math.fusion import FUSIONS, reorder, rrf
from shortlist.pipeline.steps import STEPS, Found, Step, StepKind
from shortlist.records import Hit

QUESTION = "which colour has the apple"


@pytest.fixture(scope="module")
def names(tiny, built: Path) -> dict[str, Any]:
    """What `Pipeline.load` is given."""
    return {
        "collection": str(tiny.collection),
        "retriever": str(tiny.retriever),
        "vectors": built / "vectors",
        "bm25": built / "words",
    }


@pytest.fixture(scope="module")
def pipeline(tiny, names: dict[str, Any]) -> Pipeline:
    return Pipeline.load(**names, reranker=str(tiny.reranker))


def stage(pipeline: Pipeline, name: str) -> Any:
    """What a step works with."""
    [found] = [step.stage for step in pipeline.steps if step.name == name]
    return found


def ids(results) -> list[str]:
    return [result.document.doc_id for result in results]


def test_the_results_are_those_of_the_stages_one_after_the_other(tiny, pipeline: Pipeline):
    query, collection = Query("q", QUESTION), open_collection(str(tiny.collection))
    hits = rrf([stage(pipeline, name).search([query], 100) for name in ("bm25", "dense")])["q"]
    documents = collection.documents([hit.doc_id for hit in hits])
    scores = Reranker.load(str(tiny.reranker)).score(query, [documents[hit.doc_id] for hit in hits[:5]])
    expected = reorder(hits, [*scores.tolist(), *[float("nan")] * (len(hits) - 5)])
    results = pipeline.search(QUESTION, k=12, depth=5)
    assert ids(results) == [hit.doc_id for hit in expected]
    assert [result.score for result in results] == [hit.score for hit in expected]
    assert results[0].document == documents[expected[0].doc_id]


def test_every_stage_says_where_it_put_a_document(pipeline: Pipeline):
    [answer] = pipeline.answer([QUESTION], k=12, depth=5)
    assert list(answer.milliseconds) == ["bm25", "dense", "hybrid", "documents", "reranker"]
    before = {result.document.doc_id: result.places["hybrid"].rank for result in answer.results}
    for rank, result in enumerate(answer.results, start=1):
        assert ("reranker" in result.places) == (rank <= 5)
        if rank <= 5:
            assert result.places["reranker"] == (rank, result.score, before[result.document.doc_id] - rank)
    for stage in ("dense", "hybrid"):
        assert sorted(result.places[stage].rank for result in answer.results) == list(range(1, 13))


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_one_first_stage_can_be_asked_alone(name, pipeline: Pipeline):
    results = pipeline.search(QUESTION, k=2, first_stage=name, rerank=False)
    expected = stage(pipeline, name).search([Query("q", QUESTION)], 2)["q"]
    assert [(result.document.doc_id, result.score) for result in results] == expected
    assert [set(result.places) for result in results] == [{name}] * 2


def test_more_results_than_are_reranked_follow_in_their_old_order(pipeline: Pipeline):
    plain = ids(pipeline.search(QUESTION, k=12, first_stage="dense", rerank=False))
    reranked = ids(pipeline.search(QUESTION, k=12, first_stage="dense", depth=3))
    assert set(reranked[:3]) == set(plain[:3])
    assert reranked[3:] == plain[3:]


def with_share(pipeline: Pipeline, share: float) -> Pipeline:
    *first, reranker = pipeline.steps
    return Pipeline(pipeline.collection, [*first, reranker._replace(share=share)])


def test_the_first_stage_may_have_its_share_of_the_score(pipeline: Pipeline):
    options = {"k": 12, "first_stage": "dense", "depth": 6}
    alone = with_share(pipeline, 0.0)
    assert ids(alone.search(QUESTION, **options)) == ids(pipeline.search(QUESTION, rerank=False, **options))
    mixed = with_share(pipeline, 0.4)
    [first] = pipeline.answer([QUESTION], k=12, first_stage="dense", rerank=False)
    hits = [Hit(result.document.doc_id, result.score) for result in first.results]
    scores = stage(pipeline, "reranker").score(Query("q", QUESTION), [result.document for result in first.results[:6]])
    read = [Hit(hit.doc_id, score) for hit, score in zip(hits, scores.tolist(), strict=False)]
    expected = FUSIONS["zscore"]([{"q": hits[:6]}, {"q": read}], weights=[0.6, 0.4])["q"]
    found = mixed.search(QUESTION, **options)
    assert ids(found) == [hit.doc_id for hit in [*expected, *hits[6:]]]
    assert [result.score for result in found[:6]] == pytest.approx([hit.score for hit in expected])


def test_several_questions_are_answered_each_by_itself(pipeline: Pipeline):
    questions = [QUESTION, Query("mine", "which price has the boat")]
    together = [ids(answer.results) for answer in pipeline.answer(questions, k=3)]
    assert together == [ids(pipeline.answer([question], k=3)[0].results) for question in questions]


def test_words_alone_are_a_pipeline(tiny, built: Path):
    step = Step("bm25", STEPS["find"], BM25Index.load(built / "words"))
    words = Pipeline(open_collection(str(tiny.collection)), [step])
    assert words.first_stages == ["bm25"]
    assert ids(words.search(QUESTION, k=1)) == ["d0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_stage": "dense"}, "unknown first stage 'dense'.*bm25"),
        ({"rerank": True}, "there is no reranker"),
    ],
)
def test_a_stage_that_is_not_there_is_refused(options, message, tiny, built: Path):
    words = Pipeline.load(str(tiny.collection), bm25=built / "words")
    with pytest.raises(UserError, match=message):
        words.search(QUESTION, **options)


def test_nothing_to_search_with_is_refused(tiny):
    with pytest.raises(UserError, match="nothing to search with"):
        Pipeline(open_collection(str(tiny.collection)), [])
    with pytest.raises(UserError, match="nothing to search with"):
        Pipeline.load()


def test_a_model_encodes_and_scores_plain_texts(tiny):
    retriever, reranker = Retriever.load(str(tiny.retriever)), Reranker.load(str(tiny.reranker))
    assert retriever.encode_queries([QUESTION, "boat"]).shape == (2, retriever.dim)
    near, far = retriever.encode_documents(["the apple has a colour", "lamp lamp lamp"])
    assert near.shape == far.shape == (retriever.dim,)
    one, two = reranker.score(QUESTION, ["the apple has a colour", "lamp lamp lamp"])
    assert reranker.score(QUESTION, ["lamp lamp lamp"]) == pytest.approx([two], abs=1e-6)
    assert one != two


@pytest.mark.parametrize(
    ("options", "fuse"),
    [({"fusion": "zscore", "weights": (9, 1)}, "zscore"), ({"fusion": "weighted"}, "weighted"), ({}, "rrf")],
)
def test_the_fusion_that_is_asked_for_is_the_one_that_is_done(options, fuse: str, names, pipeline: Pipeline):
    fused = Pipeline.load(**names, **options)
    parts = [stage(pipeline, name).search([Query("q", QUESTION)], 100) for name in ("bm25", "dense")]
    weights = [float(weight) for weight in options["weights"]] if "weights" in options else None
    expected = FUSIONS[fuse](parts, weights=weights)["q"]
    found = fused.search(QUESTION, 12)
    assert [(result.document.doc_id, result.score) for result in found] == expected
    assert options == {} or ids(found) != ids(pipeline.search(QUESTION, 12, rerank=False))


def test_several_indexes_over_vectors_are_several_steps(tiny, built: Path):
    indexes = (built / "narrow", built / "hnsw")
    two = Pipeline.load(str(tiny.collection), retriever=str(tiny.retriever), index=indexes, bm25=built / "words")
    assert two.first_stages == ["bm25", "dense-narrow", "dense-hnsw", "hybrid"]
    [answer] = two.answer([QUESTION], 3)
    assert set(answer.results[0].places) >= {"dense-narrow", "dense-hnsw", "hybrid"}
    assert stage(two, "dense-narrow").retriever is stage(two, "dense-hnsw").retriever  # loaded once


def test_a_hybrid_looks_deeper_than_it_shows(pipeline: Pipeline):
    class Listed:
        def __init__(self, *doc_ids: str) -> None:
            self.hits = [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate(doc_ids)]

        def search(self, queries, k: int):
            return {query.query_id: self.hits[:k] for query in queries[:1]} if self.hits else {}

    def steps(*lists: Listed) -> list[Step]:
        first = [Step(str(place), STEPS["find"], each) for place, each in enumerate(lists)]
        return [*first, Step("both", STEPS["fuse"], rrf, tuple(step.name for step in first))]

    both = Pipeline(pipeline.collection, steps(Listed("a", "b", "second"), Listed("c", "d", "second")))
    queries = [Query("q0", "x"), Query("q1", "y")]
    assert [hit.doc_id for hit in both.trace(queries, 1).last.run["q0"]] == ["second"]
    assert both.trace(queries, 1).last.run["q1"] == []
    nothing = Pipeline(pipeline.collection, steps(Listed(), Listed()))
    assert nothing.trace(queries, 1).last.run == {"q0": [], "q1": []}


def test_a_cascade_reads_fewer_and_fewer(cascade: dict[str, Any]):
    pipeline = Pipeline.load(pipeline=cascade)
    assert pipeline.first_stages == ["words", "vectors", "both"]
    assert pipeline.rerankers == ["first", "second"]
    [answer] = pipeline.answer([QUESTION], 10)
    assert list(answer.milliseconds) == ["words", "vectors", "both", "documents", "first", "second"]
    for rank, result in enumerate(answer.results, start=1):
        first, second = (result.places.get(name) for name in ("first", "second"))
        assert (first is not None, second is not None) == (rank <= 7, rank <= 3)
        if first and second:
            assert (second.rank, second.score, second.moved) == (rank, result.score, first.rank - rank)
    [few] = pipeline.answer([QUESTION], 10, depth=2)
    assert ["second" in result.places for result in few.results] == [True] * 2 + [False] * 8
    [plain] = pipeline.answer([QUESTION], 10, first_stage="words", rerank=False)
    assert set(plain.milliseconds) == {"words", "documents"}
    [other] = pipeline.answer([QUESTION], 5, first_stage="vectors")
    assert list(other.milliseconds) == ["vectors", "documents", "first", "second"]


def test_a_step_may_change_the_texts_that_later_ones_read(pipeline: Pipeline, tiny):
    read: list[str] = []

    class Reads:
        def score(self, query, documents):
            read.extend(document.text for document in documents)
            return np.zeros(len(documents))

    def shorten(step, queries, runs, documents, most) -> Found:
        [run] = runs.values()
        texts = documents([hit.doc_id for hits in run.values() for hit in hits])
        return Found(run, documents={name: each._replace(text=each.text[:5]) for name, each in texts.items()})

    kind = StepKind(shorten, dict, lambda method, opener, settings: None)
    steps = [pipeline.steps[0], Step("short", kind, of=("bm25",)), Step("reads", STEPS["rank"], Reads(), ("short",), 3)]
    [answer] = Pipeline(pipeline.collection, steps).answer([QUESTION], 3)
    assert [len(text) for text in read] == [5] * len(answer.results)
    assert all(len(result.document.text) > 5 for result in answer.results)


def test_one_question_is_one_and_several_are_refused(pipeline: Pipeline):
    assert pipeline.search(Query("q", QUESTION), 3) == pipeline.search(QUESTION, 3)
    assert len(pipeline.answer(QUESTION, 3)) == 1
    assert list(pipeline.trace(QUESTION, 3).last.run) == ["0"]
    with pytest.raises(UserError, match="query is a list; expected one text: `answer` takes several"):
        unwrap(Pipeline.search)(pipeline, [QUESTION, QUESTION])  # as users call it, without checks of types


@pytest.mark.parametrize(("options", "message"), [({"k": 0}, "k is 0"), ({"depth": 0}, "depth is 0")])
def test_a_search_for_nothing_is_refused(pipeline: Pipeline, options: dict[str, int], message: str):
    for search in (pipeline.search, pipeline.answer):
        with pytest.raises(UserError, match=f"{message}; expected at least 1"):
            search(QUESTION, **options)


def test_what_is_missing_when_loading_is_named_as_the_parameter():
    with pytest.raises(UserError, match="nothing to search with: give collection, or bm25 or index, or retriever and"):
        Pipeline.load()
