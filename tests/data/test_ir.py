from statistics import fmean
from typing import Any

import ir_measures
import pytest
from foreign import small_dataset
from ir_measures import RR, Qrel, ScoredDoc, nDCG

from shortlist import BM25Index, Document, Hit, Query, UserError, per_query, read_run
from shortlist.data.ir import scored_docs, to_documents, to_qrels, to_queries, to_run

DOCUMENTS = [Document("d1", "otters live in rivers"), Document("d2", "goats climb"), Document("d3", "a river runs")]
QUERIES = [Query("q1", "where do otters live"), Query("q2", "rivers")]
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1, "d3": 2}}
TIED = {"q1": [Hit("d2", 1.0), Hit("d1", 1.0)], "q2": [Hit("d1", 3.0), Hit("d2", 3.0), Hit("d3", 3.0)]}
"""Runs of equal scores, which trec_eval would order by document id, from last to first."""


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Any:
    return small_dataset(tmp_path, DOCUMENTS, QUERIES, QRELS, monkeypatch=monkeypatch)


def test_a_data_set_of_ir_datasets_gives_documents_queries_and_judgements(dataset):
    assert list(to_documents(dataset.docs_iter())) == DOCUMENTS
    assert list(to_queries(dataset.queries_iter())) == QUERIES
    assert to_qrels(dataset.qrels_iter()) == QRELS


def test_a_data_set_of_ir_datasets_can_be_searched_and_measured_by_ir_measures(dataset):
    run = BM25Index.build(to_documents(dataset.docs_iter())).search(list(to_queries(dataset.queries_iter())), k=3)
    theirs = ir_measures.calc_aggregate([nDCG @ 10], dataset.qrels_iter(), scored_docs(run))
    ours = per_query(run, to_qrels(dataset.qrels_iter()), ["nDCG@10"], complete=True)["nDCG@10"]
    assert theirs[nDCG @ 10] == pytest.approx(fmean(ours.values()), abs=1e-6)


def test_ir_measures_sees_a_run_in_its_own_order_in_spite_of_equal_scores():
    theirs = ir_measures.calc_aggregate([nDCG @ 10, RR], QRELS, scored_docs(TIED))
    ours = per_query(TIED, QRELS, ["nDCG@10", "RR"])
    for measure in (nDCG @ 10, RR):
        assert theirs[measure] == pytest.approx(fmean(ours[str(measure)].values()), abs=1e-6)
    assert ours["RR"] == {"q1": 0.5, "q2": 1.0}


def test_scored_documents_become_a_run_in_the_order_of_trec_eval(tmp_path):
    given = [ScoredDoc("q1", "d1", 1.0), ScoredDoc("q1", "d3", 1.0 + 1e-12), ScoredDoc("q1", "d2", 1.5)]
    given += [ScoredDoc("q0", "d9", -1.0), ScoredDoc("q0", "d10", -1.0)]
    (tmp_path / "run").write_text("".join(f"{q} Q0 {d} 1 {score!r} tag\n" for q, d, score in given))
    assert to_run(given) == read_run(tmp_path / "run")
    assert [hit.doc_id for hit in to_run(given)["q1"]] == ["d2", "d3", "d1"]
    assert [hit.doc_id for hit in to_run(given)["q0"]] == ["d9", "d10"]


def test_a_run_comes_back_in_the_order_in_which_it_went():
    back = to_run(scored_docs(TIED))
    assert {query_id: [hit.doc_id for hit in own] for query_id, own in back.items()} == {
        "q1": ["d2", "d1"],
        "q2": ["d1", "d2", "d3"],
    }


def test_judgements_of_ir_measures_are_taken():
    assert to_qrels([Qrel("q", "d", 1), Qrel("q", "e", 0), Qrel("q", "d", 1)]) == {"q": {"d": 1, "e": 0}}


def test_records_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    twice = small_dataset(tmp_path, [*DOCUMENTS, DOCUMENTS[0]], QUERIES, QRELS, monkeypatch=monkeypatch)
    with pytest.raises(UserError, match=r"^documents: record 4: document id 'd1' occurs twice"):
        list(to_documents(twice.docs_iter()))
    with pytest.raises(UserError, match=r"^judgements: record 2: query 'q', document 'd' is judged 2, but 1"):
        to_qrels([Qrel("q", "d", 1), Qrel("q", "d", 2)])
    with pytest.raises(UserError, match=r"^query 'q', document 'd': is scored twice"):
        to_run([ScoredDoc("q", "d", 1.0), ScoredDoc("q", "d", 2.0)])
    with pytest.raises(UserError, match=r"^query 'q', document 'd': the score is nan; expected a finite number"):
        to_run([ScoredDoc("q", "d", float("nan"))])
