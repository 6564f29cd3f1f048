from pathlib import Path

import pytest

from shortlist import Pipeline, Query, Reranker, Retriever, encode, index
from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.math.fusion import FUSIONS, reorder
from shortlist.records import Hit
from shortlist.search import Hybrid

QUESTION = "which colour has the apple"


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors and an index of words."""
    folder = tmp_path_factory.mktemp("built")
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny, built: Path) -> Pipeline:
    names = {"retriever": str(tiny.retriever), "vectors": built / "vectors", "bm25": built / "words"}
    return Pipeline.load(str(tiny.collection), **names, reranker=str(tiny.reranker))


def ids(results) -> list[str]:
    return [result.document.doc_id for result in results]


def test_the_results_are_those_of_the_stages_one_after_the_other(tiny, pipeline: Pipeline):
    query, collection = Query("q", QUESTION), open_collection(str(tiny.collection))
    hits = Hybrid(list(pipeline.parts.values())).search([query], 12)["q"]
    documents = collection.documents([hit.doc_id for hit in hits])
    scores = Reranker.load(str(tiny.reranker)).score(query, [documents[hit.doc_id] for hit in hits[:5]])
    expected = reorder(hits, [*scores.tolist(), *[float("nan")] * (len(hits) - 5)])
    results = pipeline.search(QUESTION, k=12, depth=5)
    assert ids(results) == [hit.doc_id for hit in expected]
    assert [result.score for result in results] == [hit.score for hit in expected]
    assert results[0].document == documents[expected[0].doc_id]


def test_every_stage_says_where_it_put_a_document(pipeline: Pipeline):
    [answer] = pipeline.answer([QUESTION], k=12, depth=5)
    assert set(answer.milliseconds) == {"bm25", "dense", "hybrid", "documents", "reranker"} - {"hybrid"}
    for rank, result in enumerate(answer.results, start=1):
        assert ("reranker" in result.places) == (rank <= 5)
        if rank <= 5:
            assert result.places["reranker"] == (rank, result.score)
    for stage in ("dense", "hybrid"):
        assert sorted(result.places[stage].rank for result in answer.results) == list(range(1, 13))


@pytest.mark.parametrize("stage", ["bm25", "dense"])
def test_one_first_stage_can_be_asked_alone(stage, pipeline: Pipeline):
    results = pipeline.search(QUESTION, k=2, first_stage=stage, rerank=False)
    expected = pipeline.parts[stage].search([Query("q", QUESTION)], 2)["q"]
    assert [(result.document.doc_id, result.score) for result in results] == expected
    assert [set(result.places) for result in results] == [{stage}] * 2


def test_more_results_than_are_reranked_follow_in_their_old_order(pipeline: Pipeline):
    plain = ids(pipeline.search(QUESTION, k=12, first_stage="dense", rerank=False))
    reranked = ids(pipeline.search(QUESTION, k=12, first_stage="dense", depth=3))
    assert set(reranked[:3]) == set(plain[:3])
    assert reranked[3:] == plain[3:]


def test_the_first_stage_may_have_its_share_of_the_score(tiny, built: Path, pipeline: Pipeline):
    options = {"k": 12, "first_stage": "dense", "depth": 6}
    alone = Pipeline(pipeline.collection, **pipeline.parts, reranker=pipeline.reranker, reranker_share=0.0)
    assert ids(alone.search(QUESTION, **options)) == ids(pipeline.search(QUESTION, rerank=False, **options))
    mixed = Pipeline(pipeline.collection, **pipeline.parts, reranker=pipeline.reranker, reranker_share=0.4)
    [first] = pipeline.answer([QUESTION], k=12, first_stage="dense", rerank=False)
    hits = [Hit(result.document.doc_id, result.score) for result in first.results]
    scores = pipeline.reranker.score(Query("q", QUESTION), [result.document for result in first.results[:6]])
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
    words = Pipeline(open_collection(str(tiny.collection)), bm25=BM25Index.load(built / "words"))
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
        Pipeline(open_collection(str(tiny.collection)))
    with pytest.raises(UserError, match="nothing to search with"):
        Pipeline.load(str(tiny.collection))


def test_a_model_encodes_and_scores_plain_texts(tiny):
    retriever, reranker = Retriever.load(str(tiny.retriever)), Reranker.load(str(tiny.reranker))
    assert retriever.encode_queries([QUESTION, "boat"]).shape == (2, retriever.dim)
    near, far = retriever.encode_documents(["the apple has a colour", "lamp lamp lamp"])
    assert near.shape == far.shape == (retriever.dim,)
    one, two = reranker.score(QUESTION, ["the apple has a colour", "lamp lamp lamp"])
    assert reranker.score(QUESTION, ["lamp lamp lamp"]) == pytest.approx([two], abs=1e-6)
    assert one != two
