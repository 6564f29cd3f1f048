import gzip
import math
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import nDCG

from shortlist.data import runs
from shortlist.data.formats import read_qrels
from shortlist.data.runs import _fingerprints, open_run, read_run, read_run_columns, run_columns, write_run
from shortlist.errors import UserError
from shortlist.math.ordering import strictly_decreasing
from shortlist.records import Hit, Run


def put(path: Path, text: str) -> Path:
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())
    return path


def doc_ids(run: Run, query_id: str = "q") -> list[str]:
    return [hit.doc_id for hit in run[query_id]]


def ndcg_by_position(run: Run, qrels) -> float:
    scores = {q: {hit.doc_id: float(-place) for place, hit in enumerate(hits)} for q, hits in run.items()}
    return ir_measures.calc_aggregate([nDCG @ 10], qrels, scores)[nDCG @ 10]


@pytest.mark.slow
def test_the_published_repllama_run_has_its_two_known_values(shared_data):
    qrels = read_qrels(shared_data / "msmarco-dl19/qrels/dl19.tsv")
    path = shared_data / "msmarco-dl19/runs/repllama-1000.trec"
    assert ndcg_by_position(read_run(path, ties="rank"), qrels) == pytest.approx(0.7439, abs=5e-5)
    assert ndcg_by_position(read_run(path, ties="trec"), qrels) == pytest.approx(0.7384, abs=5e-5)


@pytest.mark.slow
def test_the_order_by_rank_survives_writing_for_readers_that_ignore_ranks(shared_data, tmp_path):
    qrels = read_qrels(shared_data / "msmarco-dl19/qrels/dl19.tsv")
    run = read_run(shared_data / "msmarco-dl19/runs/repllama-1000.trec", ties="rank")
    write_run(tmp_path / "run.trec", run, "ours")
    with open(tmp_path / "run.trec") as file:
        parsed = pytrec_eval.parse_run(file)
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(parsed)
    assert np.mean([m["ndcg_cut_10"] for m in measured.values()]) == pytest.approx(0.7439, abs=5e-5)
    for ties in ("trec", "rank"):
        again = read_run(tmp_path / "run.trec", ties=ties)
        assert all(doc_ids(again, q) == doc_ids(run, q) for q in run)


def test_an_opened_run_is_the_one_that_is_read(tmp_path: Path):
    path = put(tmp_path / "run.trec", "b Q0 d1 1 0.5 x\nb Q0 d2 2 0.7 x\na Q0 d1 1 0.5 x\n")
    opened, whole = open_run(path), read_run(path)
    assert (list(opened), len(opened), dict(opened)) == (list(whole), 2, whole)
    assert doc_ids(opened, "b") == ["d2", "d1"]
    assert opened.get("c", []) == []


SCORES = st.sampled_from([1.0, 1.0 + 1e-12, 1.0 + 1e-6, 0.0, -0.0, 1e-45, -2.5, 3e8, 3e8 + 1])


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["1", "10", "9", "a", "B", "é", "z", "Ω", "𝄞"]), SCORES, min_size=2))
def test_ties_are_broken_exactly_as_trec_eval_breaks_them(tmp_path_factory, scores):
    lines = [f"q Q0 {doc} 1 {score!r} t\n" for doc, score in scores.items()]
    ranked = doc_ids(read_run(put(tmp_path_factory.getbasetemp() / "ties.trec", "".join(lines))))
    for place, relevant in enumerate(ranked, 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {relevant: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / place)


def test_quotes_in_a_run_are_part_of_the_ids(tmp_path):
    path = put(tmp_path / "run", 'q Q0 "a" 1 2 t\n')
    assert doc_ids(read_run(path)) == ['"a"']


def test_equal_ranks_keep_the_order_of_the_file(tmp_path):
    path = put(tmp_path / "run", "q Q0 a 2 1 t\nr Q0 a 1 1 t\nq Q0 b 1 1 t\nq Q0 z 2 5 t\n")
    assert doc_ids(read_run(path, ties="rank")) == ["b", "a", "z"]
    assert doc_ids(read_run(path)) == ["z", "b", "a"]
    assert list(read_run(path)) == ["q", "r"]


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
@pytest.mark.parametrize(
    "text", ["q Q0 a 1 2.5 t\n", "q\tQ0\ta\t1\t2.5\tt\n", "q  Q0 a\t1 2.5 t \r\n", 'q Q0 a 1 25e-1 "t\n']
)
def test_any_white_space_separates_the_columns_of_a_run(tmp_path, name, text):
    assert read_run(put(tmp_path / name, "\n" + text)) == {"q": [Hit("a", 2.5)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", "run:2: document 'a' occurs twice for query 'q'"),
        ("q Q0 a 1 2 t\n\nq Q0 b 2 nan t\n", "run:3: score is 'nan'; expected a finite number in column 5"),
        ("q Q0 a 1 inf t\n", "run:1: score is 'inf'"),
        ("q Q0 a 1 high t\n", "run:1: score is 'high'"),
        ("q Q0 a first 2 t\n", "run:1: rank is 'first'; expected a whole number in column 4"),
        ("q Q0  1 2.5 t\n", "run:1: found 5 columns; expected 6"),
        ("q a\n", "run:1: found 2 columns; expected 6 .* or 3"),
        ("q a 2\nq b high\n", "run:2: score is 'high'; expected a finite number in column 3"),
        ("q a 2\nq Q0 b 1 2 t\n", "run:2: found 6 columns; expected 6 .* or 3 .*the same on every line"),
        ("query-id doc score\n", "run: holds no hits"),
        ("q Q0 a 1 2 t\nq Q0 b 1 2\n", "run:2: found 5 columns"),
        ("", "run: holds no hits"),
    ],
)
def test_a_bad_run_is_named_by_file_line_and_fault(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_run(put(tmp_path / "run", text))


@pytest.mark.parametrize("name", ["run.tsv", "run.tsv.gz"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q\ta\t2\nq\tb\t1\nr\tb\t1\n", {"q": [Hit("b", -1.0), Hit("a", -2.0)], "r": [Hit("b", -1.0)]}),  # ranks
        ("q\ta\t2\nq\tb\t3\n", {"q": [Hit("b", 3.0), Hit("a", 2.0)]}),  # not 1, 2: scores
        ("q a 0.5\nq  b  1\n", {"q": [Hit("b", 1.0), Hit("a", 0.5)]}),
        ("query-id\tcorpus-id\tscore\nq\ta\t1.5\n", {"q": [Hit("a", 1.5)]}),
        ("query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t1\n", {"q": [Hit("a", 2.0), Hit("b", 1.0)]}),
        ("qid pid bm25_score\nq a 2\nq  b 1\n", {"q": [Hit("a", 2.0), Hit("b", 1.0)]}),
        ("query-id\tcorpus-id\trank\nq\ta\t0\nq\tb\t1\n", {"q": [Hit("a", -0.0), Hit("b", -1.0)]}),
        ("query-id\tcorpus-id\tRank\nq\tb\t3\nq\ta\t1\n", {"q": [Hit("a", -1.0), Hit("b", -3.0)]}),
        ("query-id\tcorpus-id\tvotes\nq\ta\t2\nq\tb\t1\n", {"q": [Hit("b", -1.0), Hit("a", -2.0)]}),
    ],
)
def test_a_run_of_three_columns_has_ranks_or_scores(tmp_path, name, text, expected):
    assert read_run(put(tmp_path / name, text)) == expected


def test_scores_without_a_header_that_look_like_ranks_are_announced(tmp_path, capsys):
    read_run(put(tmp_path / "run", "q a 0\nq b 1\nr a 0\nr b 1\n"))
    assert "is taken for scores, the highest first; if it holds ranks, put a line" in capsys.readouterr().err
    read_run(put(tmp_path / "run", "q a 1\nq b 2\n"))
    read_run(put(tmp_path / "run", "q a 1.5\nq b 2\n"))
    read_run(put(tmp_path / "run", "query doc score\nq a 0\nq b 1\n"))
    assert capsys.readouterr().err == ""


def test_the_rank_in_a_run_without_ranks_is_the_order_of_the_file(tmp_path):
    assert doc_ids(read_run(put(tmp_path / "run", "q a 0.5\nq b 1\nq c 1\n"), ties="rank")) == ["a", "b", "c"]


LINES = st.lists(
    st.tuples(st.sampled_from("qrs"), st.integers(0, 30), st.integers(1, 5), st.sampled_from([1.0, 2.0, 2.0 + 1e-9])),
    min_size=1,
    unique_by=lambda line: line[:2],
)


@pytest.mark.slow
@settings(max_examples=60)
@given(LINES)
def test_runs_in_any_order_are_sorted_as_plain_python_sorts_them(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "shuffled.trec"
    put(path, "".join(f"{q} Q0 d{doc} {rank} {score!r} t\n" for q, doc, rank, score in lines))
    for ties in ("trec", "rank"):
        run = read_run(path, ties=ties)
        assert list(run) == list(dict.fromkeys(line[0] for line in lines))
        for query_id in run:
            own = [(f"d{doc}", rank, np.float32(score)) for q, doc, rank, score in lines if q == query_id]
            if ties == "trec":
                own = sorted(sorted(own, key=lambda hit: hit[0], reverse=True), key=lambda hit: -hit[2])
            else:
                own = sorted(own, key=lambda hit: hit[1])
            assert doc_ids(run, query_id) == [hit[0] for hit in own]


def test_ids_of_any_length_have_fingerprints_of_their_own():
    texts = ["", "a", "b", "ab", "ba", "a\0", "12345678", "123456789", "x" * 16, "x" * 17, "y" + "x" * 16, "é", "Ω" * 9]
    texts += [str(number) for number in range(100_000)]
    prints = _fingerprints(pa.array(texts))
    assert len(np.unique(prints)) == len(texts)
    assert _fingerprints(pa.array(texts)[3:9]).tolist() == _fingerprints(pa.array(texts[3:9])).tolist()


def test_ids_that_only_share_a_fingerprint_are_no_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_fingerprints", lambda texts: np.zeros(len(texts), dtype=np.uint64))
    assert doc_ids(read_run(put(tmp_path / "run", "q Q0 a 1 2 t\nq Q0 b 2 1 t\n"))) == ["a", "b"]


def test_a_written_score_is_read_back_to_the_last_bit(tmp_path):
    scores = np.sort(np.random.default_rng(0).normal(size=2000).astype(np.float32))[::-1]
    write_run(tmp_path / "run", {"q": [Hit(str(i), float(s)) for i, s in enumerate(scores)]})
    assert np.array_equal(
        np.array([hit.score for hit in read_run(tmp_path / "run")["q"]], dtype=np.float32), strictly_decreasing(scores)
    )


def test_a_query_without_hits_leaves_no_line(tmp_path):
    write_run(tmp_path / "run", {"q": [], "r": [Hit("a", 1.0)]})
    assert (tmp_path / "run").read_text() == "r Q0 a 1 1.0 shortlist\n"


def test_a_run_that_cannot_be_expressed_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="id 'a b' is empty or holds white space"):
        write_run(tmp_path / "run", {"q": [Hit("a b", 1.0)]})
    for scores in ([1.0, 2.0], [math.nan], [1e39]):
        with pytest.raises(ValueError, match="finite and best first"):
            write_run(tmp_path / "run", {"q": [Hit(str(i), s) for i, s in enumerate(scores)]})
    assert list(tmp_path.iterdir()) == []


def test_the_columns_of_a_run_hold_the_same_hits(tmp_path):
    run = {"b": [Hit("x", 2.0), Hit("y", 1.0)], "a": [Hit("y", 3.0)], "c": [Hit(str(i), -float(i)) for i in range(5)]}
    write_run(tmp_path / "run.trec", run)
    columns = read_run_columns(tmp_path / "run.trec")
    assert {name: columns.hits(number) for number, name in enumerate(columns.query_ids)} == run
    assert {name: run_columns(run).hits(number) for number, name in enumerate(run)} == run
    assert columns.queries_of(np.array([0, 1, 2, 3, 7])).tolist() == [0, 0, 1, 2, 2]
    assert columns.pairs(np.array([7, 2, 0])) == [("c", "4"), ("a", "y"), ("b", "x")]


def test_a_run_may_be_written_query_by_query(tmp_path):
    run = {"b": [Hit("x", 2.0)], "a": [Hit("y", 3.0)]}
    write_run(tmp_path / "whole.trec", run)
    write_run(tmp_path / "parts.trec", ((name, hits) for name, hits in run.items()))
    assert (tmp_path / "parts.trec").read_text() == (tmp_path / "whole.trec").read_text()
