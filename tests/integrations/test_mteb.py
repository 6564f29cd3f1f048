from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

from foreign import small_task  # noqa: E402
from mteb.models import CrossEncoderProtocol, EncoderProtocol  # noqa: E402
from mteb.types import PromptType  # noqa: E402
from tiny import DOCUMENTS, NAMES, PARTS, QUERIES  # noqa: E402

from shortlist import Document, Hit, Reranker, Retriever, per_query  # noqa: E402
from shortlist.integrations.mteb import RerankerCrossEncoder, RetrieverEncoder  # noqa: E402
from shortlist.text.inputs import Inputs  # noqa: E402

pytestmark = pytest.mark.slow

TITLED = [document._replace(title=f"{NAMES[i - 3]} {PARTS[i % 5]}") for i, document in enumerate(DOCUMENTS)]
QRELS = {f"q{i}": {f"d{i}": 2, f"d{(i + 5) % 12}": 1} for i in range(12)}
CANDIDATES = {query.query_id: [d.doc_id for d in TITLED[i % 5 : i % 5 + 7]] for i, query in enumerate(QUERIES)}


def ndcg(model, candidates=None) -> float:
    """What MTEB makes of a model."""
    task = small_task(TITLED, QUERIES, QRELS, candidates)
    [result] = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results
    return result.scores["test"][0]["ndcg_at_10"]


def our_ndcg(scores: dict[str, dict[str, float]]) -> float:
    run = {
        query_id: sorted((Hit(*pair) for pair in each.items()), key=lambda hit: -hit.score)
        for query_id, each in scores.items()
    }
    return fmean(per_query(run, QRELS, ["nDCG@10"])["nDCG@10"].values())


def batches(texts: list[dict[str, str]], size: int = 5) -> list[dict[str, list[str]]]:
    """Columns, as MTEB gives them."""
    parts = (texts[start : start + size] for start in range(0, len(texts), size))
    return [{name: [row[name] for row in rows] for name in rows[0]} for rows in parts]


def test_a_retrieval_task_gives_the_ndcg_of_our_own_ranking(tiny):
    retriever = Retriever.load(str(tiny.retriever))
    products = retriever.encode_queries(QUERIES) @ retriever.encode_documents(TITLED).T
    scores = {
        query.query_id: {document.doc_id: float(value) for document, value in zip(TITLED, row, strict=True)}
        for query, row in zip(QUERIES, products, strict=True)
    }
    assert 0 < our_ndcg(scores) < 1
    assert ndcg(RetrieverEncoder(str(tiny.retriever))) == pytest.approx(our_ndcg(scores), abs=1e-5)


def test_a_reranking_task_gives_the_ndcg_of_our_own_ranking(tiny):
    reranker, documents = Reranker.load(str(tiny.reranker)), {document.doc_id: document for document in TITLED}
    scores = {
        query.query_id: dict(
            zip(ids, reranker.score(query, [documents[doc_id] for doc_id in ids]).tolist(), strict=True)
        )
        for query in QUERIES
        for ids in [CANDIDATES[query.query_id]]
    }
    assert 0 < our_ndcg(scores) < 1
    assert ndcg(RerankerCrossEncoder(str(tiny.reranker)), CANDIDATES) == pytest.approx(our_ndcg(scores), abs=1e-5)


def test_a_retriever_takes_part_in_a_reranking_task_too(tiny):
    assert 0 < ndcg(RetrieverEncoder(str(tiny.retriever)), CANDIDATES) < 1


def test_queries_and_documents_get_their_own_form_with_title_and_body_apart(tiny):
    encoder, retriever = RetrieverEncoder(str(tiny.retriever)), Retriever.load(str(tiny.retriever))
    rows = [{"text": f"{d.title} {d.text}", "title": d.title, "body": d.text} for d in TITLED]
    # `{title} {text}` reads the same where both are given as text: only another form tells them apart
    form = replace(retriever.inputs.form, document=("<bos>", "{text} of {title}", "<eos>"))
    encoder.retriever.inputs = retriever.inputs = Inputs(form, retriever.inputs.tokenizer)
    found = encoder.encode(batches(rows), prompt_type=PromptType.document)
    np.testing.assert_allclose(found, retriever.encode_documents(TITLED), atol=1e-6)
    texts = [query.text for query in QUERIES]
    asked = batches([{"text": text} for text in texts])
    found = encoder.encode(asked, prompt_type=PromptType.query)
    np.testing.assert_allclose(found, retriever.encode_queries(texts), atol=1e-6)
    plain = retriever.encode_documents([Document("0", text) for text in texts])
    np.testing.assert_allclose(encoder.encode(asked), plain, atol=1e-6)


def test_similarities_are_dot_products(tiny):
    encoder = RetrieverEncoder(str(tiny.retriever))
    some, others = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])
    assert encoder.similarity(some, others).tolist() == [[2, 3], [0, 3]]
    assert encoder.similarity(some[0], others[1]).tolist() == [[3]]
    assert encoder.similarity_pairwise(some, others).tolist() == [2, 3]


def test_what_is_known_of_a_model_is_told(tiny):
    encoder, cross = RetrieverEncoder(str(tiny.retriever)), RerankerCrossEncoder(str(tiny.reranker))
    assert isinstance(encoder, EncoderProtocol)
    assert isinstance(cross, CrossEncoderProtocol)
    meta, other = encoder.mteb_model_meta, cross.mteb_model_meta
    assert meta.name == "local/retriever"
    plain = Retriever.load(str(tiny.llama), contract="bert", packed=False)  # packed weights are no parameters
    assert meta.n_parameters == sum(p.numel() for p in plain.model.parameters())
    assert (meta.embed_dim, meta.max_tokens, other.max_tokens) == (32, 196, 196)
    assert meta.similarity_fn_name == "cosine"
    assert meta.use_instructions  # `query: ` and `passage: `
    assert meta.revision != other.revision
    assert (meta.model_type, other.model_type) == (["dense"], ["cross-encoder"])
    assert meta.training_datasets is None


def test_results_with_other_options_are_kept_apart(tiny):
    encoder = RetrieverEncoder(str(tiny.retriever), precision="bf16")
    assert encoder.mteb_model_meta.experiment_kwargs == {"precision": "bf16"}
