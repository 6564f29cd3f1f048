import math
import random
from pathlib import Path

import ir_measures
import pytest
import pytrec_eval

from shortlist.data.formats import read_qrels
from shortlist.data.runs import read_run, read_run_columns, run_columns
from shortlist.errors import UserError
from shortlist.evaluation.measure import is_sum, judged_hits, of_run, parse_measures, per_query, with_condensed
from shortlist.records import Hit, Qrels, Run

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}, "q3": {"b": 1}}
RUN = {"q1": [Hit("c", 3.0), Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("a", 9.0)], "q9": [Hit("a", 1.0)]}


def random_example(num_queries: int = 20) -> tuple[Run, Qrels]:
    rng = random.Random(0)
    doc_ids = [f"d{i}" for i in range(200)]
    run, qrels = {}, {}
    for i in range(num_queries):
        qrels[f"q{i}"] = {doc_id: rng.randint(0, 3) for doc_id in rng.sample(doc_ids, 30)}
        scores = sorted((round(rng.random(), 1) for _ in range(100)), reverse=True)  # many ties
        run[f"q{i}"] = [Hit(*pair) for pair in zip(rng.sample(doc_ids, 100), scores, strict=True)]
    return run, qrels


def test_values_equal_those_worked_out_by_hand():
    values = per_query(RUN, QRELS, ["nDCG@10", "RR@10", "P@2"])
    ideal = 2 + 1 / math.log2(3)
    assert values["nDCG@10"] == pytest.approx({"q1": (2 / math.log2(3) + 1 / 2) / ideal, "q2": 1.0})
    assert values["RR@10"] == {"q1": 0.5, "q2": 1.0}
    assert values["P@2"] == {"q1": 0.5, "q2": 0.5}


def test_values_equal_pytrec_evals_ties_included(tmp_path: Path):
    run, qrels = random_example()
    lines = [
        f"{query_id} Q0 {hit.doc_id} {rank} {hit.score} tag\n"
        for query_id, hits in run.items()
        for rank, hit in enumerate(hits, 1)
    ]
    (tmp_path / "run.trec").write_text("".join(lines))
    ours = per_query(read_run(tmp_path / "run.trec"), qrels, ["nDCG@10", "RR", "R@20", "AP"], relevance_level=2)
    names = {"RR": "recip_rank", "R@20": "recall_20", "AP": "map"}
    as_dicts = {query_id: {hit.doc_id: hit.score for hit in hits} for query_id, hits in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "recall.20", "map"}, relevance_level=2)
    for query_id, expected in theirs.evaluate(as_dicts).items():
        for name, theirs_name in names.items():
            assert ours[name][query_id] == pytest.approx(expected[theirs_name], abs=1e-6)
    for query_id, expected in pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(as_dicts).items():
        assert ours["nDCG@10"][query_id] == pytest.approx(expected["ndcg_cut_10"], abs=1e-6)


@pytest.mark.parametrize("measure", ["nDCG@10", "MRR@10", "R@20", "AP", "Success@1", "Judged@10"])
def test_the_order_of_the_run_counts_and_not_its_scores(measure: str):
    run, qrels = random_example()
    without = {query_id: [Hit(hit.doc_id, 0.0) for hit in hits] for query_id, hits in run.items()}
    assert per_query(without, qrels, [measure]) == per_query(run, qrels, [measure])


def test_values_keep_the_names_they_were_asked_by():
    assert set(per_query(RUN, QRELS, ["MRR@10", "RR@10", "R(rel=2)@5"])) == {"MRR@10", "RR@10", "R(rel=2)@5"}


def test_the_relevance_level_holds_for_measures_that_take_one_and_do_not_name_their_own():
    parsed = parse_measures(["RR@10", "R(rel=3)@5", "nDCG@10"], relevance_level=2)
    assert [str(measure) for measure in parsed.values()] == ["RR(rel=2)@10", "R(rel=3)@5", "nDCG@10"]


def test_missing_queries_are_left_out_or_counted_as_zero():
    assert per_query(RUN, QRELS, ["RR"])["RR"] == {"q1": 0.5, "q2": 1.0}
    assert per_query(RUN, QRELS, ["RR"], complete=True)["RR"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0}


def test_with_no_query_in_common_there_is_nothing_to_measure():
    assert per_query({"q9": RUN["q9"]}, QRELS, ["RR", "nDCG@10"]) == {"RR": {}, "nDCG@10": {}}
    assert per_query({}, QRELS, ["RR"], complete=True) == {"RR": {"q1": 0.0, "q2": 0.0, "q3": 0.0}}


def test_a_query_without_hits_counts_as_zero():
    assert per_query({"q1": [], "q2": RUN["q2"]}, QRELS, ["nDCG@10", "RR@10"])["RR@10"] == {"q1": 0.0, "q2": 1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", "unknown measure 'nDGC': perhaps .*'nDCG'"),
        ("ndcg_cut.10", "unknown measure 'ndcg_cut.10': perhaps 'nDCG@10'"),
        ("ndcg_cut_10", "unknown measure 'ndcg_cut_10': perhaps 'nDCG@10'"),
        ("ndcg", "unknown measure 'ndcg': perhaps 'nDCG'"),
        ("mrr", "unknown measure 'mrr': perhaps 'RR'"),
        ("mrr@10", "unknown measure 'mrr@10': perhaps 'RR@10'"),
        ("recall_100", "unknown measure 'recall_100': perhaps 'R@100'"),
        ("map", "unknown measure 'map': perhaps 'AP'"),
        ("hits@1", "unknown measure 'hits@1': perhaps 'Success@1'"),
        ("xyz", "unknown measure 'xyz': known: AP, ERR, Judged"),
        ("nDCG@ten", "such as nDCG@10"),
        ("nDCG@0", "cannot be computed"),
        ("nDCG(rel=2)@10", "rel"),
        ("P(rel=2)", "needs a cutoff"),
        ("RBP", "cannot be computed here; install (cwl_eval|trectools)"),
        ("", "such as nDCG@10"),
    ],
)
def test_a_measure_that_does_not_exist_is_refused(name: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_measures([name])


def test_judged_hits_stand_at_their_ranks_query_after_query():
    hits = judged_hits(run_columns({"q9": RUN["q9"], "q2": RUN["q2"], "q1": RUN["q1"]}), QRELS)
    assert hits.queries.tolist() == [0, 0, 0, 1]
    assert hits.ranks.tolist() == [1, 2, 3, 1]
    assert hits.grades.tolist() == [0, 2, 1, 1]
    assert hits.lengths.tolist() == [3, 1, 0]
    assert hits.judged_grades.tolist() == [2, 1, 0, 1, 1]


def test_measures_that_are_not_ours_come_from_ir_measures():
    run, qrels = random_example()
    values = per_query(run, qrels, ["Bpref", "Rprec", "nDCG(dcg='exp-log2')@10", "nDCG@10"])
    scored = {query_id: {hit.doc_id: -rank for rank, hit in enumerate(hits)} for query_id, hits in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"bpref"}).evaluate(scored)
    assert values["Bpref"] == pytest.approx({query_id: each["bpref"] for query_id, each in theirs.items()})
    assert values["nDCG(dcg='exp-log2')@10"] != values["nDCG@10"]
    assert len(values["Rprec"]) == len(run)


def test_what_ir_measures_stumbles_over_is_said_in_one_line():
    with pytest.raises(UserError, match=r"cannot compute Accuracy for this run \(.*division by zero\)"):
        per_query({"q1": [Hit("a", 1.0)]}, {"q1": {"a": 1, "b": 0}}, ["Bpref", "Accuracy", "Rprec"])


def test_a_measure_of_ir_measures_counts_unanswered_queries_as_zero_too():
    run = {"q1": [Hit("a", 2.0), Hit("c", 1.0)]}
    assert per_query(run, QRELS, ["Accuracy"], complete=True)["Accuracy"] == {"q2": 0.0, "q3": 0.0, "q1": 1.0}
    assert per_query(run, QRELS, ["Accuracy"])["Accuracy"] == {"q1": 1.0}


@pytest.mark.parametrize("name", ["NumRet", "NumRel", "NumQ", "NumRelRet", "NumRet(rel=2)"])
def test_what_ir_measures_adds_up_is_added_up(name: str):
    run, qrels = random_example()
    scored = {query_id: {hit.doc_id: -rank for rank, hit in enumerate(hits)} for query_id, hits in run.items()}
    [(_, expected)] = ir_measures.calc_aggregate([ir_measures.parse_measure(name)], qrels, scored).items()
    assert is_sum(name)
    assert not is_sum("nDCG@10")
    assert of_run(name, per_query(run, qrels, [name])[name]) == expected


def test_all_that_was_retrieved_is_counted_whatever_level_is_relevant():
    run, qrels = random_example(1)
    values = per_query(run, qrels, ["NumRet", "NumRelRet", "NumRet(rel=2)"], relevance_level=2)
    assert values["NumRet"] == {"q0": 100.0}
    assert values["NumRelRet"] == values["NumRet(rel=2)"] != values["NumRet"]


def test_measures_of_judged_documents_alone_are_those_of_ir_measures():
    run, qrels = random_example()
    names = ["nDCG(judged_only=True)@5", "P(judged_only=True, rel=2)@5", "AP(judged_only=True)", "RR(judged_only=True)"]
    ours = per_query(run, qrels, names)
    scored = {query_id: {hit.doc_id: -float(rank) for rank, hit in enumerate(hits)} for query_id, hits in run.items()}
    for name in names:
        for each in ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, scored):
            if each.query_id in ours[name]:
                assert ours[name][each.query_id] == pytest.approx(each.value, abs=1e-12), name
    assert ours[names[0]] != per_query(run, qrels, "nDCG@5")["nDCG@5"]


def test_condensed_measures_stand_beside_the_plain_ones_that_have_one():
    names = ["nDCG@10", "R(rel=2)@100", "AP", "Judged@10", "AP(judged_only=True)"]
    expected = ["nDCG@10", "nDCG(judged_only=True)@10", "R(rel=2)@100", "R(rel=2, judged_only=True)@100"]
    assert with_condensed(names) == [*expected, "AP", "AP(judged_only=True)", *names[3:]]
    assert parse_measures(with_condensed(names))


@pytest.mark.parametrize(
    ("run", "expected"),
    [("idst_bert_p1", 0.7645), ("p_exp_rm3_bert", 0.7422), ("bm25base_p", 0.5058), ("UNH_exDL_bm25", 0.0817)],
)
def test_runs_of_dl19_have_their_published_values(shared_data: Path, run: str, expected: float):
    columns = read_run_columns(shared_data / f"dl19-judges/runs/{run}.gz")
    qrels = read_qrels(shared_data / "trec-dl/qrels/qrels.dl19-passage.txt")
    values = per_query(columns, qrels, "nDCG@10")["nDCG@10"]
    assert len(values) == 43
    assert sum(values.values()) / 43 == pytest.approx(expected, abs=5e-5)
