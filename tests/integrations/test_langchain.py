import asyncio

import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import Document as Found
from langchain_core.vectorstores import InMemoryVectorStore
from sparse import write_masked
from tiny import DOCUMENTS, QUERIES

from shortlist import Document, Pipeline, Reranker, Retriever, SparseRetriever
from shortlist.errors import UserError
from shortlist.integrations.langchain import PipelineRetriever, RerankerCompressor, RetrieverEmbeddings

QUESTION = "which colour has the apple"


def test_a_pipeline_is_a_retriever(pipeline: Pipeline):
    results = pipeline.search(QUESTION, k=3, depth=5)
    found = PipelineRetriever(pipeline=pipeline, k=3, options={"depth": 5}).invoke(QUESTION)
    assert [each.page_content for each in found] == [result.document.text for result in results]
    assert [each.id for each in found] == [result.document.doc_id for result in results]
    assert [each.metadata["score"] for each in found] == [result.score for result in results]
    first, result = found[0].metadata, results[0]
    assert (first["doc_id"], first["title"], first["url"]) == (result.document.doc_id, "", "")
    assert first["places"] == {stage: at._asdict() for stage, at in result.places.items()}
    assert set(first["places"]) >= {"dense", "hybrid", "reranker"}


def test_a_retriever_embeds_for_a_vector_store(tiny):
    retriever = Retriever.load(str(tiny.retriever))
    embeddings = RetrieverEmbeddings(retriever)
    assert embeddings.embed_query(QUESTION) == retriever.encode_queries([QUESTION])[0].tolist()
    store = InMemoryVectorStore(embeddings)
    store.add_texts([document.text for document in DOCUMENTS], ids=[document.doc_id for document in DOCUMENTS])
    found = store.similarity_search_with_score(QUESTION, k=2)
    products = retriever.encode_documents(DOCUMENTS) @ retriever.encode_queries([QUESTION])[0]
    best = products.argsort()[::-1][:2]
    assert [each.id for each, _ in found] == [f"d{place}" for place in best]
    assert [score for _, score in found] == pytest.approx(products[best].tolist(), abs=1e-5)


def test_a_model_that_gives_no_vector_for_each_text_is_refused(tmp_path):
    sparse = SparseRetriever.load(str(write_masked(tmp_path / "model")), contract="splade")
    with pytest.raises(UserError, match="retriever is a SparseRetriever; embeddings take a Retriever"):
        RetrieverEmbeddings(sparse)


def test_a_reranker_compresses_documents(tiny):
    reranker = Reranker.load(str(tiny.reranker))
    given = [Found(page_content=d.text, metadata={"title": "goat", "source": d.doc_id}) for d in DOCUMENTS]
    scores = reranker.score(QUESTION, [Document("", document.text, "goat") for document in DOCUMENTS])
    best = scores.argsort()[::-1]
    kept = RerankerCompressor(reranker=reranker, top_n=3).compress_documents(given, QUESTION)
    assert [each.metadata["source"] for each in kept] == [f"d{place}" for place in best[:3]]
    assert [each.metadata["score"] for each in kept] == pytest.approx(scores[best[:3]].tolist(), abs=1e-6)
    assert "score" not in given[best[0]].metadata
    assert len(RerankerCompressor(reranker=reranker).compress_documents(given, QUESTION)) == len(given)
    assert RerankerCompressor(reranker=reranker).compress_documents([], QUESTION) == []


def test_a_pipeline_answers_asynchronously_too(pipeline: Pipeline):
    retriever = PipelineRetriever(pipeline=pipeline)
    assert asyncio.run(retriever.ainvoke(QUESTION)) == retriever.invoke(QUESTION)


@pytest.mark.slow
def test_questions_asked_together_get_what_each_gets_alone(pipeline: Pipeline):
    questions = [query.text for query in QUERIES] * 2
    retriever = PipelineRetriever(pipeline=pipeline)
    together = retriever.batch(questions, config={"max_concurrency": 8})
    for question, found in zip(questions, together, strict=True):
        alone = retriever.invoke(question)
        assert [each.id for each in found] == [each.id for each in alone]
        scores = [each.metadata["score"] for each in alone]
        assert [each.metadata["score"] for each in found] == pytest.approx(scores, abs=1e-5)


def test_a_retriever_finds_what_fits_a_filter(pipeline: Pipeline):
    found = PipelineRetriever(pipeline=pipeline, k=5, where="doc_id in ('d2', 'd3')").invoke(QUESTION)
    assert {each.id for each in found} == {"d2", "d3"}
