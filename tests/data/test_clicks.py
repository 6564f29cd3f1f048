"""Click logs: their columns, their rows, what is added up and chosen, and the shares of splits."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from shortlist.data.clicks import (
    ClickRow,
    Counts,
    RowParser,
    add_up,
    check_bias,
    check_thresholds,
    choose,
    find_columns,
    may_be_clicks,
    parse_columns,
    read_clicks,
    with_ids,
)
from shortlist.data.lines import MalformedError
from shortlist.data.shares import divide, parse_shares, split_by_text
from shortlist.data.sources import CLICKS, common_layout
from shortlist.data.triplets import text_id
from shortlist.errors import UserError
from shortlist.records import Group, Query


def parser(used_by: Mapping[str, str] | None = None, **given: str) -> RowParser:
    return RowParser(given, used_by or {})


def test_columns_are_found_by_their_usual_names_in_any_case():
    names = ["Search_Term", "clicked_doc_id", "rank", "clicks", "views", "session"]
    expected = dict(zip(("query", "document", "position", "clicks", "impressions"), names, strict=False))
    assert find_columns(names, {}) == expected
    assert find_columns(["a", "b", "query"], {"query": "a", "document": "b"}) == {"query": "a", "document": "b"}


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (
            ["q", "query", "doc"],
            {},
            r"'q' and 'query' may both be the column 'query'; say which with --columns query=q",
        ),
        (
            ["q", "item"],
            {},
            r"no column is the document \(found: item, q\). Expected one of document, doc, .*--columns",
        ),
        (["q", "doc"], {"document": "item"}, r"no column is the document \(found: doc, q\). Expected 'item'"),
        (["q", "doc"], {"clicks": "n"}, r"no column is the clicks \(found: doc, q\). Expected 'n'"),
    ],
)
def test_columns_that_are_not_clear_are_refused(names: list[str], given: dict[str, str], message: str):
    with pytest.raises(MalformedError, match=message):
        find_columns(names, given)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("query", "expected KIND=NAME"),
        ("qurey=q", "unknown column 'qurey': perhaps 'query'"),
        ("query=x", "query or x occurs before"),
        ("document=a", "document or a occurs before"),
    ],
)
def test_words_that_name_no_column_are_refused(word: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_columns(["query=a", word])


def test_a_log_is_told_by_its_query_its_document_and_something_about_clicks():
    assert may_be_clicks(["q", "doc_id", "clicks"], {})
    assert may_be_clicks(["q", "clicked_doc_id"], {})
    assert may_be_clicks(["a", "b", "rank"], {"query": "a", "document": "b"})
    assert not may_be_clicks(["q", "doc_id", "label"], {})
    assert not may_be_clicks(["query", "positive", "clicks"], {})


def test_numbers_are_read_however_a_database_writes_them():
    read = parser({"position": "--position-bias"})
    for number in (3, 3.0, "3", " 3.0", Decimal(3)):
        row = read({"q": " two  words ", "doc": 7, "clicks": number, "shown": number, "pos": number})
        assert row == ClickRow("two words", "7", 3, 3, 3)
    assert [read({"q": "a", "doc": "d", "clicks": word, "shown": 1, "pos": 1}).clicks for word in (True, "False")] == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["a", "b"], "found a list; expected a JSON object"),
        ({"q": " ", "doc": "d"}, "query is empty"),
        ({"q": "a", "doc": None}, "document is None; expected a string"),
        ({"q": "a", "doc": "d", "clicks": -1}, "clicks is -1; expected a whole number from 0"),
        ({"q": "a", "doc": "d", "clicks": "1.5"}, "clicks is '1.5'; expected a whole number"),
        ({"q": "a", "doc": "d", "clicks": float("nan")}, "clicks is nan"),
        ({"q": "a", "doc": "d", "clicks": ""}, "clicks is ''"),
        ({"q": "a", "doc": "d", "views": None}, "impressions is None"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(record: object, message: str):
    with pytest.raises(MalformedError, match=message):
        parser()(record)


def test_positions_are_read_only_where_they_are_used_and_something_was_clicked():
    assert parser()({"q": "a", "doc": "d", "pos": "top"}).position == 1
    read = parser({"position": "--position-bias"})
    assert read({"q": "a", "doc": "d", "pos": "", "clicks": 0}).clicks == 0
    with pytest.raises(MalformedError, match="position is 0; expected a whole number from 1"):
        read({"q": "a", "doc": "d", "pos": 0, "clicks": 1})
    with pytest.raises(
        MalformedError, match=r"no column is the position, which --position-bias needs \(found: doc, q\)"
    ):
        parser({"position": "--position-bias"})({"q": "a", "doc": "d"})


def test_a_column_that_some_records_lack_is_refused():
    read = parser()
    read({"q": "a", "doc": "d", "clicks": 0})
    assert read({"query": "a", "docid": "d", "clicked": 1, "rank": 3}).clicks == 1
    with pytest.raises(MalformedError, match="its columns are query, document; expected query, document, clicks"):
        read({"q": "a", "doc": "d"})


ROWS = [ClickRow("a", "x", 0), ClickRow("a", "y", 1), ClickRow("b", "a, b", 2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", 'term,doc,n\na,x,0\na,y,1\nb,"a, b",2\n'),
        ("log.tsv", "term\tdoc\tn\r\na\tx\t0\r\na\ty\t1\r\nb\ta, b\t2\r\n"),
        ("log.jsonl", '{"term":"a","doc":"x","n":0}\n{"term":"a","doc":"y","n":1}\n{"term":"b","doc":"a, b","n":2}\n'),
    ],
)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_bytes(text.encode())
    given = {"query": "term", "clicks": "n"}
    assert list(read_clicks(str(tmp_path / name), parser(**given))) == ROWS
    assert common_layout([str(tmp_path / name)], None, given) == CLICKS
    parquet.write_table(pa.Table.from_pylist([row._asdict() for row in ROWS]), tmp_path / "log")
    assert list(read_clicks(str(tmp_path / "log"), parser())) == ROWS


def test_a_fault_says_where_it_is(tmp_path: Path):
    (tmp_path / "log.csv").write_text("q,doc,clicks\na,x,1\na,y,no\n")
    with pytest.raises(UserError, match=r"log.csv:3: clicks is 'no'"):
        list(read_clicks(str(tmp_path / "log.csv"), parser()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"query": "a", "pos": ["x"], "doc_id": "d"}',
            r"by its columns \(query, pos, doc_id\) .* --as training or --as cl",
        ),
        (
            '{"query": "a", "doc_id": "d"}',
            r"no known layout \(found: doc_id, query\).* or a click log, with --as clicks",
        ),
    ],
)
def test_what_may_be_either_is_asked(tmp_path: Path, line: str, message: str):
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        common_layout([str(tmp_path / "log.jsonl")], None, {})
    assert common_layout([str(tmp_path / "log.jsonl")], "clicks", {}) == CLICKS


def test_sources_of_another_kind_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds a collection; expected files or an `hf:` name, as --as is clicks"):
        common_layout([str(tmp_path)], "clicks", {})
    with pytest.raises(UserError, match="--as: unknown kind of source 'click': perhaps 'clicks'"):
        common_layout([str(tmp_path)], "click", {})


def test_clicks_are_added_up_and_divided_by_the_chance_of_being_looked_at():
    rows = [
        ClickRow("a", "x", 1, 10, 1),
        ClickRow("a", "x", 2, 20, 2),
        ClickRow("a", "x", 1, 5, 9),
        ClickRow("a", "y", 0),
    ]
    assert add_up(rows) == {"a": {"x": Counts(4, 35, 4.0), "y": Counts()}}
    assert add_up(rows, [1.0, 0.5, 0.25])["a"]["x"] == Counts(4, 35, 9.0)


def test_names_of_one_document_are_added_up_and_unknown_ones_left_out():
    log = add_up([ClickRow("a", "x", 1, 2), ClickRow("a", "its text", 3, 4), ClickRow("b", "gone", 1)])
    assert with_ids(log, {"x": "x", "its text": "x"}) == {"a": {"x": Counts(4, 6, 4.0)}}


def test_positives_come_by_falling_clicks_and_negatives_were_never_clicked():
    rows = [ClickRow("a", "few", 1), ClickRow("a", "none", 0), ClickRow("a", "many", 5), ClickRow("a", "some", 3)]
    chosen = choose(add_up([*rows, ClickRow("b", "x", 1)]), min_clicks=3.0)
    assert chosen.groups == [Group(text_id("a"), ("many", "some"), ("none",))]
    assert chosen.queries == {text_id("a"): Query(text_id("a"), "a")}
    assert chosen[2:] == (5, 4, 2, 0, 0)


def test_rates_are_compared_exactly_and_rare_clicks_are_counted():
    rows = [ClickRow("a", "tenth", 3, 30), ClickRow("a", "less", 3, 31), ClickRow("a", "rare", 1, 101)]
    rows += [ClickRow("a", "hundredth", 1, 100), ClickRow("a", "never shown", 1, 0)]
    chosen = choose(add_up(rows), min_rate=0.1)
    assert chosen.groups[0].positives == ("tenth", "never shown")
    assert (chosen.low_rate, chosen.doubtful) == (3, 1)


def test_weighted_clicks_that_sum_to_the_threshold_are_enough():
    rows = [ClickRow("a", "x", 1, 0, 2)] * 6
    assert choose(add_up(rows, [1.0, 0.6]), min_clicks=10.0).groups
    assert not choose(add_up(rows, [1.0, 0.6]), min_clicks=10.01).groups


def test_settings_that_make_no_sense_are_refused():
    for bias in ([1.0, 0.0], [1.5], [float("nan")]):
        with pytest.raises(UserError, match=r"--position-bias .* expected probabilities"):
            check_bias(bias)
    with pytest.raises(UserError, match="--min-clicks is 0; expected more than 0"):
        check_thresholds(0.0, 0.0)
    with pytest.raises(UserError, match="--min-rate is 2; expected clicks per impression, from 0 to 1"):
        check_thresholds(1.0, 2.0)


def test_shares_are_read_and_a_name_alone_is_everything():
    assert parse_shares("dev") == parse_shares(("dev",)) == {"dev": 1.0}
    assert parse_shares(("train=.7", "dev=.15", "test=.15")) == {"train": 0.7, "dev": 0.15, "test": 0.15}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "dev"), "--split train: expected one name, or several as NAME=SHARE"),
        (("train=.5", "train=.5"), "--split train=.5: expected"),
        (("train=1", "dev=0"), "--split dev=0: expected"),
        (("train=nan",), "--split train=nan: expected"),
        (("a/b=1",), "--split a/b=1: expected"),
        (("train=.7", "dev=.2"), "the shares add up to 0.9; expected 1"),
    ],
)
def test_shares_that_do_not_add_up_are_refused(words: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        parse_shares(words)


def test_queries_go_to_splits_by_their_shares_and_stay_there():
    shares = {"train": 0.7, "dev": 0.15, "test": 0.15}
    texts = [f"query number {number}" for number in range(4000)]
    places = [split_by_text(text, shares) for text in texts]
    for split, share in shares.items():
        assert abs(places.count(split) / len(texts) - share) < 0.03
    assert split_by_text("QUERY number 7", shares) == split_by_text("query number 7", shares)
    more = [split_by_text(text, {"train": 0.8, "test": 0.2}) for text in texts]
    assert all(new == "train" for old, new in zip(places, more, strict=True) if old == "train")


def test_each_query_is_in_one_split_and_groups_are_those_of_the_first():
    shares = {"train": 0.5, "test": 0.5}
    queries = {text_id(text): Query(text_id(text), text) for text in "abcdefghij"}
    groups, judged = divide(
        [Group(query_id, ("d",)) for query_id in queries], queries, {key: {} for key in queries}, shares
    )
    assert sorted([*judged["train"], *judged["test"]]) == sorted(queries)
    assert [group.query_id for group in groups] == list(judged["train"])
    with pytest.raises(UserError, match="--split: none of 1 queries falls to"):
        divide([], queries, {text_id("a"): {}}, shares)
