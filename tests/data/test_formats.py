import gzip
import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import nDCG

from shortlist.data.formats import (
    corpus_offsets,
    documents_at,
    read_corpus,
    read_qrels,
    read_queries,
    read_run,
    write_corpus,
    write_qrels,
    write_queries,
    write_run,
)
from shortlist.errors import UserError
from shortlist.math.ordering import strictly_decreasing
from shortlist.records import Document, Hit, Query, Run


def put(path: Path, text: str) -> Path:
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())
    return path


def doc_ids(run: Run, query_id: str = "q") -> list[str]:
    return [hit.doc_id for hit in run[query_id]]


def ndcg_by_position(run: Run, qrels) -> float:
    scores = {q: {hit.doc_id: float(-place) for place, hit in enumerate(hits)} for q, hits in run.items()}
    return ir_measures.calc_aggregate([nDCG @ 10], qrels, scores)[nDCG @ 10]


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("beir.jsonl", '{"_id": "1", "title": "T", "text": "x"}', Document("1", "x", "T")),
        ("tevatron.jsonl", '{"docid": "1", "title": null, "text": "x"}', Document("1", "x")),
        ("numbers.jsonl", '{"_id": 1, "text": "x", "url": "u"}', Document("1", "x", "", "u")),
        ("empty.jsonl", '{"_id": "1", "text": ""}', Document("1", "")),
        ("passages.tsv", "1\tx y", Document("1", "x y")),
        ("documents.tsv.gz", "D1\thttp://u\tT\tx", Document("D1", "x", "T", "http://u")),
    ],
)
def test_every_corpus_layout_gives_the_same_documents(tmp_path, name, line, expected):
    assert list(read_corpus(put(tmp_path / name, line + "\n\n"))) == [expected]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_documents_survive_writing_and_reading_with_separators_inside_their_text(tmp_path, name):
    documents = [Document("é1", "a\u2028b\u0085c\r\nd\te", "T\x0b"), Document("2", "", url="http://u")]
    write_corpus(tmp_path / name, documents)
    assert list(read_corpus(tmp_path / name)) == documents


def test_any_document_is_found_at_its_offset(tmp_path):
    path = put(
        tmp_path / "c.jsonl",
        '{"_id": "a", "text": "é\u2028"}\n\n{"_id": "b", "text": "y"}\r\n{"_id": "c", "text": "z"}',
    )
    offsets = corpus_offsets(path)
    assert [d.text for d in documents_at(path, [offsets["c"], offsets["a"], offsets["b"]])] == ["z", "é\u2028", "y"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "c.jsonl",
            '{"_id": "1", "text": "x"}\n{"_id": "1", "text": "y"}\n',
            "c.jsonl:2: document id '1' occurs twice",
        ),
        (
            "c.jsonl",
            '{"_id": "1", "text": "x"}\n\n{"_id": "2", "txt": "y"}\n',
            "c.jsonl:3: document has no 'text' field",
        ),
        ("c.jsonl", '{"_id": "1", "text": null}\n', "c.jsonl:1: document has no 'text' field .found: _id, text"),
        ("c.jsonl", '{"_id": "1", "text": ["x"]}\n', "c.jsonl:1: document text is .'x'.; expected a string"),
        ("c.jsonl", '{"_id": "1 2", "text": "x"}\n', "c.jsonl:1: document id '1 2' is empty or holds white space"),
        ("c.jsonl", '{"_id": "1", "text": "x"\n', "c.jsonl:1: not JSON .* at column"),
        ("c.jsonl", "[1]\n", "c.jsonl:1: found a JSON list"),
        ("c.jsonl", '{"_id": "1", "text": "\\ud800"}\n', "c.jsonl:1: the text holds half of a surrogate pair"),
        ("c.jsonl", "\n", "c.jsonl: holds no documents"),
        ("c.tsv", "1\tx\n2\n", "c.tsv:2: found 1 tab-separated columns; expected 2"),
        ("c.tsv", "1\tx\n2\tu\tt\ty\n", "c.tsv:2: found 4 tab-separated columns"),
        ("c.csv", "1,x\n", "c.csv: cannot tell the format from the name"),
    ],
)
def test_a_bad_corpus_is_named_by_file_line_and_fault(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        list(read_corpus(put(tmp_path / name, text)))


JSON_FAULTS = [
    (b'{"_id": "bad", "text": "x"', "not JSON"),
    (b'{"_id": "bad", "title": "x"}', "document has no 'text' field"),
    (b'{"_id": "b d", "text": "x"}', "document id 'b d' is empty or holds white space"),
    (b'{"_id": "bad", "text": "\\ud800"}', "the text holds half of a surrogate pair"),
    (b'{"_id": "bad", "text": "\xff"}', "not UTF-8 text"),
    (b'{"_id": "good", "text": "again"}', "document id 'good' occurs twice"),
    (b'{"_id": "bad", "title": " ", "text": ""}', "document 'bad' has neither title nor text"),
]
TSV_FAULTS = [
    (b"bad", "found 1 tab-separated columns; expected 2"),
    (b"bad\tu\tx", "found 3 tab-separated columns"),
    (b"\tx", "document id '' is empty"),
    (b"bad\t\xff", "not UTF-8 text"),
    (b"good\tagain", "document id 'good' occurs twice"),
    (b"bad\t ", "document 'bad' has neither title nor text"),
]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "good", "faults"),
    [("c.jsonl", b'{"_id": "%s", "text": "x"}', JSON_FAULTS), ("c.tsv", b"%s\tx", TSV_FAULTS)],
)
def test_every_bad_line_of_a_corpus_is_told_and_left_out(tmp_path, name, good, faults, gz):
    path, told = tmp_path / (name + gz), []
    lines = [faults[1][0], good % b"good", *(line for line, _ in faults), good % b"last"]
    (gzip.open if gz else open)(path, "wb").write(b"\n".join(lines))
    documents = list(read_corpus(path, told.append, allow_empty=False))
    assert documents == [Document("good", "x"), Document("last", "x")]
    expected = [(1, faults[1][1]), *((number, fault) for number, (_, fault) in enumerate(faults, 3))]
    assert len(told) == len(expected)
    for message, (number, fault) in zip(told, expected, strict=True):
        assert message.startswith(f"{path}:{number}: {fault}")
        assert "\n" not in message


@pytest.mark.parametrize(("line", "fault"), JSON_FAULTS)
def test_without_anyone_to_tell_each_of_these_lines_is_an_error(tmp_path, line, fault):
    (tmp_path / "c.jsonl").write_bytes(b'{"_id": "good", "text": "x"}\n' + line)
    with pytest.raises(UserError, match=f"c.jsonl:2: {fault}"):
        list(read_corpus(tmp_path / "c.jsonl", allow_empty=False))


def test_a_document_without_title_and_text_is_read_unless_it_is_refused(tmp_path):
    path, told = put(tmp_path / "c.tsv", "1\t\n2\tx\n"), []
    assert list(read_corpus(path, told.append)) == list(read_corpus(path)) == [Document("1", ""), Document("2", "x")]
    assert told == []


def test_a_corpus_of_bad_lines_alone_is_an_error_whoever_is_told(tmp_path):
    with pytest.raises(UserError, match=r"c\.jsonl: holds no documents"):
        list(read_corpus(put(tmp_path / "c.jsonl", "x\ny\n"), lambda _: None))


def test_a_bad_first_line_does_not_decide_how_many_columns_the_others_have(tmp_path):
    told = []
    path = put(tmp_path / "c.tsv", "D1\tu\tT\nD2\tu\tT\tx\n")
    assert list(read_corpus(path, told.append)) == [Document("D2", "x", "T", "u")]
    assert len(told) == 1


def test_an_endless_value_is_named_in_few_words(tmp_path):
    with pytest.raises(UserError) as caught:
        list(read_corpus(put(tmp_path / "c.jsonl", '{"_id": "1", "text": [' + "1, " * 10_000 + "1]}")))
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_a_missing_file_is_a_user_error(tmp_path):
    for read in (lambda path: list(read_corpus(path)), read_queries, read_qrels, read_run):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", '{"_id": "1", "text": "x", "metadata": {}}\n{"_id": "2", "text": "y"}\n'),
        ("q.jsonl.gz", '{"query_id": 1, "query": "x"}\n{"query_id": "2", "query": "y"}\n'),
        ("q.tsv", "1\tx\r\n2\ty\n"),
    ],
)
def test_every_query_layout_gives_the_same_queries_in_file_order(tmp_path, name, text):
    assert read_queries(put(tmp_path / name, text)) == [Query("1", "x"), Query("2", "y")]


def test_queries_survive_writing_and_reading(tmp_path):
    queries = [Query("2", 'who\u2028wrote "x"?'), Query("1", "é")]
    write_queries(tmp_path / "q.jsonl", queries)
    assert read_queries(tmp_path / "q.jsonl") == queries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tx\n1\ty\n", "q.tsv:2: query id '1' occurs twice"),
        ("1\t \n", "q.tsv:1: query '1' has no text"),
        ("1\tx\ty\n", "q.tsv:1: found 3 tab-separated columns; expected 2"),
        ("", "q.tsv: holds no queries"),
    ],
)
def test_bad_queries_are_named_by_file_line_and_fault(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_queries(put(tmp_path / "q.tsv", text))


@pytest.mark.parametrize(
    "text",
    [
        "q 0 a 2\nq Q0 b 0\nr 0 a -1\n",
        "q\t0\ta\t2\nq\t0\tb\t0\nr\t0\ta\t-1\n",
        "query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0\nr\ta\t-1\n",
        "q\ta\t2\nq\tb\t0\nr\ta\t-1\nr\ta\t-1\n",
    ],
)
def test_trec_and_beir_qrels_are_told_apart_by_content(tmp_path, text):
    assert read_qrels(put(tmp_path / "q.txt", text)) == {"q": {"a": 2, "b": 0}, "r": {"a": -1}}


def test_qrels_survive_writing_and_reading(tmp_path):
    qrels = {"q": {"a": 2, "b": 0}, "r": {"a": -1}}
    write_qrels(tmp_path / "test.tsv.gz", qrels)
    assert read_qrels(tmp_path / "test.tsv.gz") == qrels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 a 1\nq 0 a 2\n", "q.txt:2: query 'q', document 'a' is judged 2, but 1 further up"),
        ("q 0 a 1\nq 0 b high\n", "q.txt:2: relevance is 'high'; expected a whole number"),
        ("q\ta\t1\nq\tb\thigh\n", "q.txt:2: relevance is 'high'"),
        ("q 0 a 1 5\n", "q.txt:1: found 5 columns; expected 4"),
        ("query-id\tcorpus-id\tscore\n", "q.txt: holds no judgements"),
    ],
)
def test_bad_qrels_are_named_by_file_line_and_fault(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_qrels(put(tmp_path / "q.txt", text))


def test_the_published_repllama_run_has_its_two_known_values(shared_data):
    qrels = read_qrels(shared_data / "msmarco-dl19/qrels/dl19.tsv")
    path = shared_data / "msmarco-dl19/runs/repllama-1000.trec"
    assert ndcg_by_position(read_run(path, ties="rank"), qrels) == pytest.approx(0.7439, abs=5e-5)
    assert ndcg_by_position(read_run(path, ties="trec"), qrels) == pytest.approx(0.7384, abs=5e-5)


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


SCORES = st.sampled_from([1.0, 1.0 + 1e-12, 1.0 + 1e-6, 0.0, -0.0, 1e-45, -2.5, 3e8, 3e8 + 1])


@settings(max_examples=60, deadline=None)
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
        ("q a 2\n", "run:1: found 3 columns; expected 6"),
        ("q Q0 a 1 2 t\nq Q0 b 1 2\n", "run:2: found 5 columns"),
        ("", "run: holds no hits"),
    ],
)
def test_a_bad_run_is_named_by_file_line_and_fault(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_run(put(tmp_path / "run", text))


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
