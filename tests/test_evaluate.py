import json
import math
import random
from pathlib import Path
from statistics import fmean

import pytest
import pytrec_eval
from scipy import stats

from shortlist import evaluate
from shortlist.data.formats import write_qrels
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.evaluate import p_value, parse_measures, per_query
from shortlist.records import Hit, Qrels, Run

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}, "q3": {"b": 1}}
RUN = {"q1": [Hit("c", 3.0), Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("a", 9.0)], "q9": [Hit("a", 1.0)]}
WORSE = {"q1": [Hit("c", 3.0), Hit("x", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 9.0), Hit("a", 1.0)]}


@pytest.fixture
def files(tmp_path: Path) -> dict:
    write_run(tmp_path / "run.trec", RUN)
    write_run(tmp_path / "worse.trec", WORSE)
    write_qrels(tmp_path / "qrels.tsv", QRELS)
    return {"runs": (tmp_path / "run.trec", tmp_path / "worse.trec"), "qrels": tmp_path / "qrels.tsv"}


def printed(capsys: pytest.CaptureFixture[str], **settings) -> list[dict]:
    evaluate.run(evaluate.Config(**settings, json=True))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


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
        ("ndcg_cut.10", "measure 'ndcg_cut.10'"),
        ("nDCG@ten", "such as nDCG@10"),
        ("nDCG@0", "cannot be computed"),
        ("nDCG(rel=2)@10", "rel"),
        ("ERR@10", "cannot be computed"),
        ("", "such as nDCG@10"),
    ],
)
def test_a_measure_that_does_not_exist_is_refused(name: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_measures([name])


def test_the_p_value_is_that_of_a_paired_t_test():
    rng = random.Random(1)
    first = {f"q{i}": rng.random() for i in range(30)}
    second = {query_id: value + rng.gauss(0.05, 0.1) for query_id, value in reversed(first.items())}
    differences = [second[query_id] - first[query_id] for query_id in first]
    t = fmean(differences) / (stats.tstd(differences) / math.sqrt(30))
    assert p_value(second, first) == pytest.approx(2 * stats.t.sf(abs(t), df=29))


def test_the_p_value_of_equal_runs_is_one_and_of_one_query_unknown():
    assert p_value({"a": 0.5, "b": 0.1}, {"a": 0.5, "b": 0.1}) == 1.0
    assert p_value({"a": 0.5, "b": 0.1}, {"a": 0.5, "c": 0.1}) is None


def test_json_has_one_object_per_run(files: dict, capsys: pytest.CaptureFixture[str]):
    first, second = printed(capsys, **files, measures=("MRR@10",))
    assert (first["run"], first["MRR@10"], first["queries"]) == (str(files["runs"][0]), 0.75, 2)
    assert second["MRR@10"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert "p" not in first
    assert 0 < second["p"]["MRR@10"] < 1


def test_every_run_is_compared_with_the_first(files: dict, capsys: pytest.CaptureFixture[str]):
    first, worse = files["runs"]
    rows = printed(capsys, runs=(first, worse, worse, first), qrels=files["qrels"], measures=("MRR@10",))
    assert rows[1]["p"] == rows[2]["p"] != {"MRR@10": 1.0}
    assert rows[3]["p"] == {"MRR@10": 1.0}


def test_flags_change_what_counts(files: dict, capsys: pytest.CaptureFixture[str]):
    settings = files | {"runs": files["runs"][:1], "measures": ("RR",)}
    assert printed(capsys, **settings, complete=True)[0]["RR"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert printed(capsys, **settings, relevance_level=2)[0]["RR"] == pytest.approx((0.5 + 0) / 2)


def test_a_collection_gives_judgements_too(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_qrels(tmp_path / "collection" / "qrels" / "test.tsv", QRELS)
    (tmp_path / "collection" / "corpus.jsonl").write_text('{"_id": "a", "text": "a"}\n')
    (tmp_path / "collection" / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n')
    settings = {"runs": files["runs"], "measures": ("MRR@10",)}
    assert printed(capsys, **settings, collection=str(tmp_path / "collection")) == printed(
        capsys, **settings, qrels=files["qrels"]
    )


def test_ties_follow_trec_eval_or_the_rank_column(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ties.trec").write_text("q2 Q0 a 1 5 x\nq2 Q0 b 2 5 x\n")
    settings = {"runs": (tmp_path / "ties.trec",), "qrels": files["qrels"], "measures": ("RR",)}
    assert printed(capsys, **settings, ties="rank")[0]["RR"] == 1.0
    assert printed(capsys, **settings, ties="trec")[0]["RR"] == 0.5


def test_queries_that_do_not_count_are_reported(files: dict, capsys: pytest.CaptureFixture[str]):
    evaluate.run(evaluate.Config(**files))
    err = capsys.readouterr().err
    assert "1 of 3 judged queries are not in the run: left out" in err
    assert "1 of 3 queries are not judged" in err


def test_a_run_that_meets_no_judgement_is_refused(files: dict, tmp_path: Path):
    write_run(tmp_path / "other.trec", {"Q-1": RUN["q1"]})
    with pytest.raises(UserError, match=r"'Q-1'.*'q1'"):
        evaluate.run(evaluate.Config(runs=(tmp_path / "other.trec",), qrels=files["qrels"]))


def test_documents_that_nobody_judged_are_reported(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "other.trec", {"q1": [Hit("D-1", 1.0)]})
    evaluate.run(evaluate.Config(runs=(tmp_path / "other.trec",), qrels=files["qrels"]))
    assert "'D-1' in the run, 'a' judged" in capsys.readouterr().err


def test_the_table_shows_names_values_significance_and_time(files: dict, capsys: pytest.CaptureFixture[str]):
    manifest = {"job": "x", "complete": True, "stage": "search", "results": {"ms_per_query": 12.34}}
    path = files["runs"][1]
    path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest))
    evaluate.run(evaluate.Config(**files, names=("BM25", "dense"), measures=("RR@10",)))
    out = capsys.readouterr().out
    assert all(words in out for words in ("BM25", "dense", "RR@10", "0.7500", "0.4167 (p=", "ms/query", "12.3"))


def test_results_are_written_once_and_printed_again(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = files | {"names": ("BM25", "dense"), "measures": ("MRR@10",), "out": tmp_path / "results.json"}
    rows = printed(capsys, **settings)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["measures"] == ["MRR@10"]
    assert results["queries"] == 3
    assert [(row["name"], row["MRR@10"]) for row in results["rows"]] == [(row["name"], row["MRR@10"]) for row in rows]
    assert printed(capsys, **settings) == rows
    with pytest.raises(UserError, match="another job"):
        evaluate.run(evaluate.Config(**(settings | {"complete": True})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "--runs"),
        ({"measures": ()}, "--measures"),
        ({"names": ("one",)}, "1 names for 2 runs"),
        ({"qrels": None}, "either --qrels"),
        ({"collection": "c"}, "not both"),
        ({"qrels": Path("absent.tsv")}, "absent.tsv"),
        ({"runs": (Path("absent.trec"),)}, "absent.trec"),
    ],
)
def test_settings_that_make_no_sense_are_refused(files: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        evaluate.run(evaluate.Config(**(files | change)))


@pytest.mark.parametrize(
    ("name", "ties", "expected"),
    [("repllama-1000", "rank", 0.7439), ("repllama-1000", "trec", 0.7384), ("bm25-100", "trec", 0.5058)],
)
def test_published_runs_have_their_published_values(
    shared_data: Path, capsys: pytest.CaptureFixture[str], name: str, ties: str, expected: float
):
    folder = shared_data / "msmarco-dl19"
    settings = {"runs": (folder / "runs" / f"{name}.trec",), "qrels": folder / "qrels" / "dl19.tsv"}
    (row,) = printed(capsys, **settings, measures=("nDCG@10",), ties=ties)
    assert row["nDCG@10"] == pytest.approx(expected, abs=5e-5)
    assert row["queries"] == 43
