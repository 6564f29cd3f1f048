from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from named import load_reranker, load_retriever
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.data.collections import Collection, open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.index.bm25 import BM25Index
from shortlist.models.outputs import Rows
from shortlist.models.run import run_model
from shortlist.records import Document, Hit, Run
from shortlist.train.heldout import Heldout, draw_heldout, reranker_evaluation, retriever_evaluation


@pytest.fixture
def collection(tiny: Tiny) -> Collection:
    return open_collection(str(tiny.collection))


def drawn(collection: Collection, *, num_queries: int = 4, num_docs: int = 7, seed: int = 0) -> Heldout:
    return draw_heldout(collection, "test", num_queries=num_queries, num_docs=num_docs, seed=seed)


def doc_ids(heldout: Heldout) -> list[str]:
    return [document.doc_id for document in heldout.documents]


def test_a_sample_holds_what_is_relevant_to_its_queries_and_others_up_to_the_number(collection: Collection):
    heldout = drawn(collection)
    assert len(heldout.queries) == len(heldout.relevant) == 4
    assert heldout.relevant == [frozenset({"d" + query.query_id[1:]}) for query in heldout.queries]
    assert len(set(doc_ids(heldout))) == 7
    assert frozenset().union(*heldout.relevant) < set(doc_ids(heldout))


def test_queries_and_documents_keep_their_order(collection: Collection):
    heldout = drawn(collection)
    assert heldout.queries == [query for query in QUERIES if query in heldout.queries]
    assert heldout.documents == [document for document in DOCUMENTS if document in heldout.documents]


def test_the_seed_alone_decides_the_sample(collection: Collection):
    assert drawn(collection, seed=3) == drawn(collection, seed=3)
    samples = [drawn(collection, num_queries=1, num_docs=3, seed=seed) for seed in range(40)]
    assert {sample.queries[0] for sample in samples} == set(QUERIES)
    assert {doc_id for sample in samples for doc_id in doc_ids(sample)} == {d.doc_id for d in DOCUMENTS}


@pytest.mark.slow
def test_every_document_that_nobody_needs_is_drawn_as_often(collection: Collection):
    draws = [drawn(collection, num_queries=1, num_docs=4, seed=seed) for seed in range(400)]
    counts = [sum(f"d{i}" in doc_ids(draw) for draw in draws) for i in range(12)]
    assert min(counts) > 0.7 * 400 * 4 / 12
    assert max(counts) < 1.3 * 400 * 4 / 12


def test_a_sample_larger_than_the_collection_is_all_of_it(collection: Collection):
    assert drawn(collection, num_queries=99, num_docs=99)[:2] == (QUERIES, DOCUMENTS)


def test_relevant_documents_are_there_though_they_are_more_than_asked_for(collection: Collection):
    assert set(doc_ids(drawn(collection, num_docs=1))) == {"d" + q.query_id[1:] for q in drawn(collection).queries}


def test_the_corpus_streams_by_once_and_is_never_held(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    collection, alive, most = open_collection(str(tiny.collection)), 0, 0

    class Counted(Document):
        def __new__(cls, document: Document) -> "Counted":
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *document)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    streams = 0

    def corpus() -> Iterator[Document]:
        nonlocal streams
        streams += 1
        return (Counted(Document(f"d{i}", "text")) for i in range(3000))

    monkeypatch.setattr(collection, "corpus", corpus)
    assert len(drawn(collection, num_docs=20).documents) == 20
    assert (streams, most) == (1, pytest.approx(22, abs=2))


def test_only_queries_with_something_relevant_are_drawn(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    write_queries(tmp_path / "queries.jsonl", QUERIES)
    write_qrels(tmp_path / "qrels" / "test.tsv", {"q1": {"d1": 0, "d2": 2, "d3": 1}, "q2": {"d2": 0}})
    write_qrels(tmp_path / "qrels" / "none.tsv", {"q1": {"d1": 0}})
    write_qrels(tmp_path / "qrels" / "gone.tsv", {"q1": {"d1": 1, "x": 1}})
    heldout = drawn(open_collection(str(tmp_path)), num_docs=1)
    assert (heldout.queries, heldout.relevant) == ([QUERIES[1]], [frozenset({"d2", "d3"})])

    def draw(split: str) -> None:
        draw_heldout(open_collection(str(tmp_path)), split, num_queries=1, num_docs=1, seed=0)

    with pytest.raises(UserError, match="split 'none' has no query with a relevant document"):
        draw("none")
    with pytest.raises(UserError, match="has no document 'x'"):
        draw("gone")
    with pytest.raises(UserError, match=r"unknown split of .* 'tset': perhaps 'test'"):
        draw("tset")


def mrr(run: Run, heldout: Heldout) -> float:
    """As the stage `evaluate` measures it."""
    qrels = {q.query_id: dict.fromkeys(ids, 1) for q, ids in zip(heldout.queries, heldout.relevant, strict=True)}
    values = per_query(run, qrels, ["RR@10"])["RR@10"]
    return sum(values.values()) / len(values)


def test_the_mrr_of_a_retriever_is_that_of_its_search(tiny: Tiny, collection: Collection):
    model, heldout = load_retriever(str(tiny.retriever)), drawn(collection, num_queries=9, num_docs=11)
    evaluation = retriever_evaluation(model.inputs, heldout)
    outputs = run_model(model, evaluation.token_ids)
    scores = outputs.values[:9] @ outputs.values[9:].T
    run = {
        query.query_id: sorted(map(Hit, doc_ids(heldout), row), key=lambda hit: -hit.score)
        for query, row in zip(heldout.queries, scores.tolist(), strict=True)
    }
    assert 0 < mrr(run, heldout) < 1
    assert evaluation.mrr(outputs) == pytest.approx(mrr(run, heldout))


def test_the_mrr_of_a_reranker_is_that_of_its_order_of_bm25s_candidates(tiny: Tiny, collection: Collection):
    model, heldout = load_reranker(str(tiny.reranker)), drawn(collection, num_queries=9, num_docs=11)
    evaluation = reranker_evaluation(model.inputs, heldout, candidates=3)
    outputs = run_model(model, evaluation.token_ids)
    candidates = BM25Index.build(heldout.documents).search(heldout.queries, 3)
    run, rest = {}, outputs.values.tolist()
    for query, relevant in zip(heldout.queries, heldout.relevant, strict=True):
        wanted = relevant | {hit.doc_id for hit in candidates[query.query_id]}
        found = [doc_id for doc_id in doc_ids(heldout) if doc_id in wanted]
        run[query.query_id] = sorted(map(Hit, found, rest), key=lambda hit: -hit.score)
        rest = rest[len(found) :]
    assert not rest
    assert 0 < mrr(run, heldout) < 1
    assert evaluation.mrr(outputs) == pytest.approx(mrr(run, heldout))


def test_a_reranker_reads_what_is_relevant_though_bm25_misses_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    documents = [Document(f"d{i}", "lamp " * (5 - i)) for i in range(4)] + [Document("d4", "other words")]
    model, read = load_reranker(str(tiny.reranker)), []
    monkeypatch.setattr(model.inputs, "pair_ids", lambda pairs: [read.append(d.doc_id) or [1] for _, d in pairs])
    heldout = Heldout([QUERIES[11]], documents, [frozenset({"d4"})])
    evaluation = reranker_evaluation(model.inputs, heldout, candidates=2)
    assert read == ["d0", "d1", "d4"]
    assert evaluation.mrr(Rows(torch.zeros(3))) == pytest.approx(1 / 3)  # equal scores: the corpus decides
    assert evaluation.mrr(Rows(torch.tensor([-3.0, -2.0, -1.0]))) == 1


def test_short_lists_of_candidates_are_filled_up_with_nothing(tiny: Tiny):
    documents = [Document("a", "lamp"), Document("b", "desk lamp"), Document("c", "fern")]
    heldout = Heldout([QUERIES[11], QUERIES[5]], documents, [frozenset({"b"}), frozenset({"c"})])
    evaluation = reranker_evaluation(load_reranker(str(tiny.reranker)).inputs, heldout, candidates=2)
    assert len(evaluation.token_ids) == 3
    assert evaluation.mrr(Rows(torch.tensor([2.0, 1.0, -5.0]))) == pytest.approx((1 / 2 + 1) / 2)


def test_held_out_judgements_that_the_collection_lacks_are_left_out_if_asked(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    write_queries(tmp_path / "queries.jsonl", QUERIES)
    write_qrels(tmp_path / "qrels" / "test.tsv", {"q0": {"d0": 1, "gone": 1}, "q1": {"lost": 1}, "none": {"d1": 1}})
    options = {"num_queries": 4, "num_docs": 3, "seed": 0}
    with pytest.raises(UserError, match=r"has no query 'none' .*leave such out with --skip-missing"):
        draw_heldout(open_collection(str(tmp_path)), "test", **options)
    heldout = draw_heldout(open_collection(str(tmp_path)), "test", **options, skip_missing=True)
    assert [query.query_id for query in heldout.queries] == ["q0"]
    assert heldout.relevant == [frozenset({"d0"})]
