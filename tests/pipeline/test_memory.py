from typing import Any

import pandas
import pytest

from shortlist import Document, Pipeline, Reranker, Retriever, UserError

TEXTS = ["the goat has a colour", "the boat has a weight", "a lamp"]


def ids(results) -> list[str]:
    return [result.document.doc_id for result in results]


def test_texts_in_memory_are_searched_by_words():
    pipeline = Pipeline.from_texts(TEXTS)
    [found] = pipeline.search("goats", 3)
    assert (found.document, list(found.places)) == (Document("0", TEXTS[0]), ["bm25"])
    assert repr(pipeline) == "<Pipeline over 3 documents in memory: bm25>"


def test_texts_in_memory_are_searched_by_vectors_and_reranked(tiny):
    retriever, reranker = Retriever.load(str(tiny.retriever)), Reranker.load(str(tiny.reranker))
    pipeline = Pipeline.from_texts(TEXTS, retriever=retriever, reranker=str(tiny.reranker), depth=2)
    [answer] = pipeline.answer("which colour has the goat", 3)
    assert set(answer.milliseconds) == {"bm25", "dense", "hybrid", "documents", "reranker"}
    scores = reranker.score("which colour has the goat", [result.document for result in answer.results[:2]])
    assert [result.score for result in answer.results[:2]] == pytest.approx(scores.tolist())
    dense = Pipeline.from_texts(TEXTS, retriever=str(tiny.retriever), bm25=False).search("a lamp", 3)
    similarities = retriever.encode_documents(TEXTS) @ retriever.encode_queries("a lamp")
    assert [result.score for result in dense] == pytest.approx(sorted(similarities.tolist(), reverse=True), abs=1e-5)
    assert "DenseSearch" in repr(pipeline.steps[1].stage)
    assert repr(retriever).startswith("<Retriever LlamaModel with ")


def test_results_become_a_table():
    frame = Pipeline.from_texts([Document("a", "a goat", title="Goats"), "a boat"]).search("goat").to_frame()
    [row] = frame.to_dict("records")
    assert (row["rank"], row["doc_id"], row["title"], row["bm25_rank"]) == (1, "a", "Goats", 1)
    assert row["score"] == row["bm25_score"]


def test_rows_of_a_table_are_searched():
    frame = pandas.DataFrame({"body": TEXTS, "head": ["Goat", None, "Lamp"], "key": [7, 8, 9]}, index=[4, 5, 6])
    assert ids(Pipeline.from_dataframe(frame, text="body").search("boat")) == ["5"]
    found = Pipeline.from_dataframe(frame, text="body", title="head", doc_id="key").search("goat")
    assert found[0].document == Document("7", TEXTS[0], title="Goat")
    with pytest.raises(UserError, match="unknown column 'bdy': perhaps 'body'"):
        Pipeline.from_dataframe(frame, text="bdy")
    with pytest.raises(UserError, match=r"row 1: head is .*expected a text"):
        Pipeline.from_dataframe(frame, text="head")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "there are no documents"),
        ([Document("a", "x"), Document("a", "y")], {}, "document 'a' occurs twice"),
        (TEXTS, {"bm25": False}, "nothing to search with"),
        (pandas.DataFrame({"text": TEXTS}), {}, "found a DataFrame"),
    ],
    ids=["none", "twice", "nothing", "table"],
)
def test_what_cannot_be_searched_is_refused(texts: Any, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Pipeline.from_texts(texts, **options)
