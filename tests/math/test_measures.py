import math
import shutil

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from shortlist.data.runs import run_columns
from shortlist.evaluation.measure import judged_hits, per_query
from shortlist.math.measures import COUNTS, MEASURES, WITHOUT_CUTOFF, JudgedHits, condensed
from shortlist.records import Hit, Qrels, Run

HITS = JudgedHits(  # query 0: grades 0 2 - 1, one relevant document not found; query 1: nothing judged found
    queries=np.array([0, 0, 0]),
    ranks=np.array([1, 2, 4]),
    grades=np.array([0, 2, 1]),
    lengths=np.array([4, 3]),
    judged_queries=np.array([0, 0, 0, 0, 1]),
    judged_grades=np.array([2, 1, 1, 0, 1]),
)
IDEAL = 2 + 1 / math.log2(3) + 1 / 2
BY_HAND = {
    "nDCG": (None, (2 / math.log2(3) + 1 / math.log2(5)) / IDEAL),
    "RR": (None, 1 / 2),
    "P": (5, 2 / 5),
    "R": (2, 1 / 3),
    "ERR": (None, 3 / 16 / 2 + 13 / 16 / 16 / 4),
    "AP": (None, (1 / 2 + 2 / 4) / 3),
    "Success": (1, 0.0),
    "Judged": (3, 2 / 3),
}
TREC_EVAL = {"nDCG": "ndcg_cut", "P": "P", "R": "recall", "AP": "map_cut", "Success": "success"}
"""By what names trec_eval knows those that take a cutoff."""


def example(seed: int, num_queries: int = 12) -> tuple[Run, Qrels]:
    """A run without ties, and graded judgements (negative ones too) of some of its documents and some others."""
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in range(num_queries):
        found = rng.choice(120, rng.integers(0, 60), replace=False)
        run[f"q{query}"] = [Hit(f"d{doc}", -float(rank)) for rank, doc in enumerate(found)]
        some = rng.choice(150, rng.integers(1, 50), replace=False)
        qrels[f"q{query}"] = {f"d{doc}": int(rng.integers(-1, 4)) for doc in some}
    qrels["q0"] = dict.fromkeys(qrels["q0"], 0)  # nothing is relevant
    return run, qrels


def values(name: str, run: Run, qrels: Qrels, **settings) -> dict[str, float]:
    return dict(zip(qrels, MEASURES[name](judged_hits(run_columns(run), qrels), **settings).tolist(), strict=True))


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_the_value_worked_out_by_hand(name: str):
    cutoff, expected = BY_HAND[name]
    assert MEASURES[name](HITS, cutoff=cutoff).tolist() == pytest.approx([expected, 0.0], abs=1e-15)


def test_counts_are_those_worked_out_by_hand():
    assert {name: count(HITS).tolist() for name, count in COUNTS.items()} == {
        "NumRet": [4.0, 3.0],
        "NumRel": [3.0, 1.0],
        "NumQ": [1.0, 1.0],
    }
    assert COUNTS["NumRet"](HITS, rel=2).tolist() == [1.0, 0.0]
    assert COUNTS["NumRel"](HITS, rel=2).tolist() == [1.0, 0.0]


def test_measures_for_holes_have_the_values_worked_out_by_hand():
    # grade 2 has one document above it, of one that is not relevant; so has grade 1; one was not found
    assert WITHOUT_CUTOFF["Bpref"](HITS).tolist() == [0.0, 0.0]
    assert WITHOUT_CUTOFF["Bpref"](HITS, rel=2).tolist() == [0.0, 0.0]
    pool = HITS._replace(grades=np.array([-1, 2, 1]), judged_grades=np.array([2, 1, 1, -1, 1]))
    assert WITHOUT_CUTOFF["Bpref"](pool).tolist() == pytest.approx([2 / 3, 0.0])
    # at rank 2 one of the pool is above, of which nothing is known: half; at rank 4 one relevant, one unknown, one not
    first, second = (1 + 1 * 0.5) / 2, (1 + 3 * (2 / 3) * 1) / 4
    assert WITHOUT_CUTOFF["infAP"](pool).tolist() == pytest.approx([(first + second) / 3, 0.0], abs=1e-5)


@pytest.mark.parametrize("rel", [1, 2, 3])
@pytest.mark.parametrize(("name", "known"), [("Bpref", "bpref"), ("infAP", "infAP")])
def test_measures_for_holes_are_those_of_trec_eval(name: str, known: str, rel: int):
    for seed in range(5):
        run, qrels = example(seed)
        scored = {query_id: {hit.doc_id: hit.score for hit in hits} for query_id, hits in run.items()}
        expected = pytrec_eval.RelevanceEvaluator(qrels, {known}, relevance_level=rel).evaluate(scored)
        ours = dict(
            zip(qrels, WITHOUT_CUTOFF[name](judged_hits(run_columns(run), qrels), rel=rel).tolist(), strict=True)
        )
        for query_id, found in expected.items():
            assert ours[query_id] == pytest.approx(found[known], abs=1e-12), (seed, query_id)


def test_condensed_lists_are_runs_without_what_nobody_judged():
    for seed in range(3):
        run, qrels = example(seed)
        shown = {query_id: [hit for hit in hits if hit.doc_id in qrels[query_id]] for query_id, hits in run.items()}
        ours, expected = (
            condensed(judged_hits(run_columns(run), qrels)),
            judged_hits(run_columns(shown), qrels),
        )
        for one, other in zip(ours, expected, strict=True):
            assert one.tolist() == other.tolist()


@pytest.mark.parametrize("rel", [1, 2, 3])
@pytest.mark.parametrize("cutoff", [1, 5, 10, 1000])
@pytest.mark.parametrize("name", TREC_EVAL)
def test_values_are_those_of_trec_eval(name: str, cutoff: int, rel: int):
    for seed in range(5):
        run, qrels = example(seed)
        scored = {query_id: {hit.doc_id: hit.score for hit in hits} for query_id, hits in run.items()}
        evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"{TREC_EVAL[name]}.{cutoff}"}, relevance_level=rel)
        expected = {query_id: v[f"{TREC_EVAL[name]}_{cutoff}"] for query_id, v in evaluator.evaluate(scored).items()}
        ours = values(name, run, qrels, cutoff=cutoff, **({} if name == "nDCG" else {"rel": rel}))
        assert len(expected) > 10
        assert {query_id: ours[query_id] for query_id in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("nDCG", "ndcg"), ("RR", "recip_rank"), ("AP", "map")])
def test_values_without_a_cutoff_are_those_of_trec_eval(name: str, theirs: str):
    run, qrels = example(7)
    scored = {query_id: {hit.doc_id: hit.score for hit in hits} for query_id, hits in run.items()}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {theirs}).evaluate(scored)
    ours = values(name, run, qrels)
    assert {query_id: ours[query_id] for query_id in expected} == pytest.approx(
        {query_id: v[theirs] for query_id, v in expected.items()}, abs=1e-12
    )


@pytest.mark.parametrize("name", ["ERR@10", "nDCG(dcg='exp-log2')@10"])
def test_values_are_those_of_gdeval(name: str):
    if shutil.which("perl") is None:
        pytest.skip("gdeval is a perl program, and perl is not installed")
    run, qrels = example(5)
    run = {query_id[1:]: hits for query_id, hits in run.items() if hits}  # it wants numbers
    qrels = {query_id[1:]: {d: max(0, grade) for d, grade in each.items()} for query_id, each in qrels.items()}
    qrels = {query_id: each for query_id, each in qrels.items() if query_id in run}
    scored = {query_id: {hit.doc_id: hit.score for hit in hits} for query_id, hits in run.items()}
    measure = ir_measures.parse_measure(name)
    theirs = {m.query_id: m.value for m in ir_measures.gdeval.iter_calc([measure], qrels, scored)}
    ours = per_query(run, qrels, [name])[name]
    assert len(theirs) > 8
    assert {query_id: ours[query_id] for query_id in theirs} == pytest.approx(theirs, abs=6e-6)  # it prints 5 decimals


@pytest.mark.parametrize("name", MEASURES)
def test_the_order_of_queries_and_documents_nobody_judged_change_nothing(name: str):
    run, qrels = example(3)
    turned = dict(reversed(run.items())) | {"q99": [Hit("d1", 1.0)]}
    assert values(name, turned, qrels, cutoff=10) == values(name, run, qrels, cutoff=10)
    if name != "Judged":
        longer = {query_id: [*hits, Hit("unknown", -1e6)] for query_id, hits in run.items()}
        assert values(name, longer, qrels, cutoff=10) == values(name, run, qrels, cutoff=10)
