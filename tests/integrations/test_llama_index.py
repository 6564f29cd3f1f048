import asyncio

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from tiny import DOCUMENTS

from shortlist import Document, Pipeline, Reranker, Retriever, UserError, index, write_corpus
from shortlist.integrations.llama_index import PipelineRetriever, RerankerPostprocessor, RetrieverEmbedding

QUESTION = "which colour has the apple"


def test_a_pipeline_is_a_retriever(pipeline: Pipeline):
    results = pipeline.search(QUESTION, k=3, depth=5)
    found = PipelineRetriever(pipeline, k=3, depth=5).retrieve(QUESTION)
    assert [each.score for each in found] == [result.score for result in results]
    assert [each.node.node_id for each in found] == [result.document.doc_id for result in results]
    assert [each.node.get_content() for each in found] == [result.document.text for result in results]
    places = {stage: at._asdict() for stage, at in results[0].places.items()}
    expected = {"doc_id": results[0].document.doc_id, "title": "", "url": "", "places": places}
    assert found[0].node.metadata == expected


def test_a_language_model_is_shown_the_title_and_no_numbers(tmp_path):
    documents = [Document("d1", "It lives in rivers.", "Otters", "rivers.txt"), Document("d2", "Goats climb.")]
    write_corpus(tmp_path / "corpus.jsonl", documents)
    index.run(index.Config(collection=str(tmp_path), out=tmp_path / "words"))
    pipeline = Pipeline.load(str(tmp_path), bm25=tmp_path / "words")
    [titled], [plain] = (PipelineRetriever(pipeline, k=1).retrieve(word) for word in ("rivers", "climb"))
    assert titled.node.get_content(MetadataMode.LLM) == "title: Otters\n\nIt lives in rivers."
    assert plain.node.get_content(MetadataMode.LLM) == "Goats climb."


def test_a_retriever_embeds(tiny):
    retriever = Retriever.load(str(tiny.retriever))
    embedding, texts = RetrieverEmbedding(retriever=retriever), [document.text for document in DOCUMENTS]
    query = retriever.encode_queries([QUESTION])[0].tolist()
    assert embedding.get_query_embedding(QUESTION) == query
    assert asyncio.run(embedding.aget_query_embedding(QUESTION)) == query
    vectors = embedding.get_text_embedding_batch(texts)
    assert vectors == [pytest.approx(row, abs=1e-6) for row in retriever.encode_documents(texts).tolist()]
    assert embedding.get_text_embedding(texts[3]) == pytest.approx(vectors[3], abs=1e-6)


def test_a_reranker_postprocesses_nodes(tiny):
    reranker = Reranker.load(str(tiny.reranker))
    given = [
        NodeWithScore(node=TextNode(id_=d.doc_id, text=d.text, metadata={"title": "goat"}), score=0.5)
        for d in DOCUMENTS
    ]
    scores = reranker.score(QUESTION, [Document("", document.text, "goat") for document in DOCUMENTS])
    best = scores.argsort()[::-1][:3]
    kept = RerankerPostprocessor(reranker=reranker, top_n=3).postprocess_nodes(given, query_str=QUESTION)
    assert [each.node.node_id for each in kept] == [f"d{place}" for place in best]
    assert [each.score for each in kept] == pytest.approx(scores[best].tolist(), abs=1e-6)
    assert {each.score for each in given} == {0.5}


def test_reranking_nodes_needs_a_query(tiny):
    postprocessor = RerankerPostprocessor(reranker=Reranker.load(str(tiny.reranker)))
    with pytest.raises(UserError, match="there is no query to rerank by"):
        postprocessor.postprocess_nodes([])


def test_a_retriever_finds_what_fits_a_filter(pipeline: Pipeline):
    found = PipelineRetriever(pipeline, 5, where="doc_id in ('d2', 'd3')").retrieve(QUESTION)
    assert {each.node.node_id for each in found} == {"d2", "d3"}
