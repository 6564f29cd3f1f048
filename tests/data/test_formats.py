import gzip
from pathlib import Path

import pytest

from shortlist.data.formats import (
    read_corpus,
    read_qrels,
    read_queries,
    write_corpus,
    write_qrels,
    write_queries,
)
from shortlist.data.runs import read_run
from shortlist.data.texts import CorpusTexts
from shortlist.errors import UserError
from shortlist.records import Document, Hit, Query


def put(path: Path, text: str) -> Path:
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())
    return path


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
    texts = CorpusTexts("c", path).documents(["c", "a", "b"])
    assert [document.text for document in texts.values()] == ["z", "é\u2028", "y"]


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
        ("c.jsonl", '{"_id": "1", "text": null}\n', "c.jsonl:1: the 'text' of the document is null; expected"),
        ("c.jsonl", '{"_id": null, "text": "x"}\n', "c.jsonl:1: the '_id' of the document is null; expected"),
        ("c.jsonl", '{"_id": "1", "text": ["x"]}\n', "c.jsonl:1: document text is .'x'.; expected a string"),
        ("c.jsonl", '{"_id": "1 2", "text": "x"}\n', "c.jsonl:1: document id '1 2' is empty or holds white space"),
        ("c.jsonl", '{"_id": "1\u00a02", "text": "x"}\n', r"c.jsonl:1: document id '1\\xa02' is empty or holds white"),
        ("c.tsv", "1\tx\n\ufeff2\ty\n", r"c.tsv:2: document id '\\ufeff2' is empty or holds white space"),
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


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_byte_order_mark_is_no_part_of_any_file(tmp_path, gz):
    corpus = put(tmp_path / f"c.tsv{gz}", "\ufeff1\tx\n2\ty\n")
    assert list(read_corpus(corpus)) == [Document("1", "x"), Document("2", "y")]
    assert CorpusTexts("c", corpus).documents(["2", "1"]) == {"2": Document("2", "y"), "1": Document("1", "x")}
    objects = put(tmp_path / f"c.jsonl{gz}", '\ufeff{"_id": "1", "text": "x"}\n')
    assert list(read_corpus(objects)) == [Document("1", "x")]
    assert read_queries(put(tmp_path / f"q.tsv{gz}", "\ufeff1\tx\n")) == [Query("1", "x")]
    assert read_qrels(put(tmp_path / f"trec{gz}", "\ufeffq 0 d 1\n")) == {"q": {"d": 1}}
    assert read_qrels(put(tmp_path / f"beir{gz}", "\ufeffq\td\tr\nq\td\t1\n")) == {"q": {"d": 1}}
    for text in ("\ufeffq Q0 d 1 2.0 t\n", "\ufeffq d 2.0\n", "\ufeffquery doc score\nq d 2.0\n", "\ufeffq  d\t2.0\n"):
        assert read_run(put(tmp_path / f"run{gz}", text)) == {"q": [Hit("d", 2.0)]}


def test_grades_may_be_written_as_floats_and_are_whole(tmp_path):
    path = put(tmp_path / "q", "query-id\tcorpus-id\tscore\nq\ta\t2.0\nq\tb\t0.0\n")
    assert read_qrels(path) == {"q": {"a": 2, "b": 0}}
    for grade in ("1.5", "inf", "nan", "x"):
        with pytest.raises(UserError, match=f"q:2: relevance is '{grade}'; expected a whole number"):
            read_qrels(put(tmp_path / "q", f"q 0 a 1.0\nq 0 b {grade}\n"))


def test_an_id_with_a_space_is_not_taken_for_two_columns(tmp_path):
    with pytest.raises(UserError, match="q:1: document id 'doc 7' is empty or holds white space"):
        read_qrels(put(tmp_path / "q", "q\tdoc 7\t1\n"))


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


def test_metadata_are_kept_as_they_are(tmp_path):
    documents = [Document("d1", "a", metadata={"year": 2024, "tags": ["x"]}), Document("d2", "b")]
    write_corpus(tmp_path / "corpus.jsonl", documents)
    assert list(read_corpus(tmp_path / "corpus.jsonl")) == documents
    assert (tmp_path / "corpus.jsonl").read_text().count("metadata") == 1


def test_metadata_that_are_no_object_are_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "a", "metadata": [1]}')
    with pytest.raises(UserError, match="the metadata of the document is a list; expected an object"):
        list(read_corpus(tmp_path / "corpus.jsonl"))
