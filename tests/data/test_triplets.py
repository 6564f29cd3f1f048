import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from shortlist.data.triplets import TrainingRecord, collect, layout_of, read_documents, read_examples, text_id
from shortlist.errors import UserError
from shortlist.records import Document, Group, Query

FIRST = TrainingRecord("which is one?", ["one"], ["two", "three"])
SECOND = TrainingRecord("which is “two”,\tor so?", ["two"], ["one"])
ROWS = [
    {"anchor": FIRST.query, "positive": "one", "negative_1": "two", "negative_2": "three"},
    {"anchor": SECOND.query, "positive": "two", "negative_1": "one", "negative_2": None},
]


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


JSONL = {
    "columns": lines(*ROWS),
    "one-list": lines(*({"query": q, "positive": p[0], "negatives": n} for q, p, n in (FIRST, SECOND))),
    "flagembedding": lines(
        {"query": FIRST.query, "pos": ["one"], "neg": ["two", "three"], "pos_scores": [1.5], "prompt": "Represent"},
        {"query": SECOND.query, "pos": ["two"], "neg": ["one", " "]},
    ),
    "arrays": lines([FIRST.query, "one", "two", "three"], [SECOND.query, "two", "one"]),
}


@pytest.mark.parametrize("name", ["train.jsonl", "train.json.gz"])
@pytest.mark.parametrize("layout", JSONL)
def test_every_layout_in_json_holds_the_same_examples(tmp_path: Path, layout: str, name: str):
    path = tmp_path / name
    content = JSONL[layout].encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert layout_of(str(path)) == "texts"
    assert list(read_examples(str(path))) == [FIRST, SECOND]


@pytest.mark.parametrize(("name", "delimiter"), [("train.csv", ","), ("train.tsv", "\t"), ("train.csv.gz", ",")])
def test_a_table_with_a_header_is_read_by_its_columns(tmp_path: Path, name: str, delimiter: str):
    path = tmp_path / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    assert list(read_examples(str(path))) == [FIRST, SECOND]


def test_a_text_in_a_table_may_be_long_and_hold_line_ends(tmp_path: Path):
    long = "long\n" * 50_000
    (tmp_path / "t.csv").write_text(f'query,positive\n"a ""b""","{long}"\n')
    assert list(read_examples(str(tmp_path / "t.csv"))) == [TrainingRecord('a "b"', [long], [])]


def test_a_parquet_file_is_read_by_its_columns(tmp_path: Path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train")
    assert layout_of(str(tmp_path / "train")) == "texts"
    assert list(read_examples(str(tmp_path / "train"))) == [FIRST, SECOND]


def test_a_data_set_on_the_hub_holds_what_its_file_holds(hub: Path):
    hub.mkdir()
    (hub / "train.jsonl").write_text(JSONL["flagembedding"])
    assert layout_of(f"hf:{hub}") == "texts"
    assert list(read_examples(f"hf:{hub}")) == [FIRST, SECOND]


def test_triples_of_msmarco_are_told_from_triples_of_ids(tmp_path: Path):
    (tmp_path / "triples.tsv").write_text('what is "it"?\tit\tnot it\n')
    (tmp_path / "ids.tsv").write_text("3\t17\t4\n3\t17\t5\n")
    assert [layout_of(str(tmp_path / name)) for name in ("triples.tsv", "ids.tsv")] == ["texts", "id triples"]
    assert list(read_examples(str(tmp_path / "triples.tsv"))) == [TrainingRecord('what is "it"?', ["it"], ["not it"])]
    assert list(read_examples(str(tmp_path / "ids.tsv"))) == [
        TrainingRecord("3", ["17"], ["4"]),
        TrainingRecord("3", ["17"], ["5"]),
    ]


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"query_id": "q", "positives": ["a"], "negatives": []}, "groups"),
        ({"query_id": "q", "query_text": "x", "positive_document_ids": ["a"], "negative_document_ids": []}, "groups"),
        ({"query_id": "q", "query": "x", "positive_passages": [{"docid": "a", "text": "x"}]}, "passages"),
        ({"query": "x", "positive_passages": None, "positive_document_ids": ["a"]}, "groups"),
    ],
    ids=["ours", "tevatron", "tevatron-old", "both-columns"],
)
def test_groups_with_ids_are_told_by_their_fields(tmp_path: Path, record: dict, layout: str):
    (tmp_path / "g.jsonl").write_text(lines(record))
    assert layout_of(str(tmp_path / "g.jsonl")) == layout


def test_the_lines_of_a_query_become_one_group():
    examples = [
        FIRST,
        TrainingRecord("else?", ["three"], []),
        TrainingRecord(FIRST.query, ["one", "four"], ["two", "five"]),
    ]
    first, other = text_id(FIRST.query), text_id("else?")
    groups, queries = collect(examples)
    assert groups == [
        Group(first, (text_id("one"), text_id("four")), (text_id("two"), text_id("three"), text_id("five"))),
        Group(other, (text_id("three"),)),
    ]
    assert queries == {first: Query(first, FIRST.query), other: Query(other, "else?")}
    assert collect(examples, by_id=True) == (
        [Group(FIRST.query, ("one", "four"), ("two", "three", "five")), Group("else?", ("three",))],
        {},
    )


def test_a_negative_that_is_a_positive_elsewhere_is_left_out_and_counted(capsys: pytest.CaptureFixture[str]):
    groups, _ = collect([FIRST, FIRST, TrainingRecord(FIRST.query, ["two"], [])], by_id=True)
    assert groups == [Group(FIRST.query, ("one", "two"), ("three",))]
    assert capsys.readouterr().err == "left out 1 negatives that are positives of the same query.\n"


def test_the_id_of_a_text_is_its_hash_and_in_memory_once():
    assert text_id("one") == "cceb220a8032cc39ae6a"
    assert text_id("one") is text_id("on" + "e")
    assert text_id("one") != text_id("One")


def test_documents_are_the_positives_and_negatives_with_their_ids(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(JSONL["arrays"])
    found = [Document(text_id(text), text) for text in ("one", "two", "three", "two", "one")]
    assert list(read_documents(str(tmp_path / "t.jsonl"))) == found


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (ROWS[0], {"anchor": "x", "positive": " "}, "positive has no text; expected at least one word"),
        (ROWS[0], {"anchor": "x", "text": "y"}, "positive is None; expected a string"),
        (ROWS[0], {"positive": "y"}, "query is None; expected a string"),
        (ROWS[0], {"query": "x", "pos": []}, "the query has no positive; expected at least one text"),
        (ROWS[0], {"query": "x", "pos": ["y"], "neg": [3]}, "negative is 3; expected a string"),
        (ROWS[0], {"query": "", "pos": ["y"]}, "query has no text"),
        (ROWS[0], ["x"], "found 1 texts; expected query, positive, and negatives if any"),
        (["x", "y"], ["x", 4], "positive is 4; expected a string"),
    ],
    ids=["blank-positive", "no-positive", "no-query", "empty-list", "number", "blank-query", "one-text", "array"],
)
def test_a_bad_example_is_named_by_file_line_and_fault(tmp_path: Path, good: object, bad: object, message: str):
    (tmp_path / "t.jsonl").write_text(lines(good, bad))
    with pytest.raises(UserError, match=f"t.jsonl:2: {message}"):
        list(read_examples(str(tmp_path / "t.jsonl")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["x", "y"]\n["x", "y"\n', r":2: not JSON \(.*; expected one array of texts per line"),
        ("3\t17\t4\n3\ta b\t4\n", ":2: expected 3 tab-separated ids"),
        ("3\t17\t4\n3\t17\n", ":2: expected 3 tab-separated ids"),
        ("what is it?\tit\tnot it\nwhat?\tit\n", ":2: found 2 tab-separated columns; expected query, positive"),
        ("query,positive\na,b\na\n", ":3: its columns are not the 2 of the header"),
        ("query,positive\na,b\na,b,c\n", ":3: its columns are not the 2 of the header"),
        ('query,positive\na,"b\n', ":2: unexpected end of data"),
        ("", ": holds no records; expected at least one"),
        ("just words\n", r":1: found 1 tab-separated columns without a header.*MS MARCO"),
        (
            '{"question": "x", "answer": "y"}\n',
            r":1: a record of no known layout \(found: answer, question\). Expected positives .*FlagEmbedding",
        ),
    ],
    ids=["json", "text", "two-ids", "two-texts", "short", "long", "open-quote", "empty", "words", "unknown"],
)
def test_a_bad_file_is_named_by_line_and_fault(tmp_path: Path, content: str, message: str):
    (tmp_path / "t").write_text(content)
    with pytest.raises(UserError, match=f"t{message}"):
        list(read_examples(str(tmp_path / "t")))


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"t\.parquet: not a whole parquet file \("):
        list(read_examples(str(tmp_path / "t.parquet")))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: no such file"):
        layout_of(str(tmp_path / "nowhere"))
