import json
from collections import Counter
from pathlib import Path

import pytest

import shortlist.convert
from shortlist.data.feedback import ShownList, read_feedback, to_groups, to_shown
from shortlist.data.formats import read_qrels, write_corpus
from shortlist.data.groups import read_groups
from shortlist.data.lines import MalformedError
from shortlist.data.triplets import text_id
from shortlist.errors import UserError
from shortlist.records import Document, Group

LISTS = [
    ShownList("otter", ("d1", "d2", "d3"), "copy", ("d2",)),
    ShownList("otter", ("d2", "d1"), "copy", ("d2", "d1")),
    ShownList("otter", ("d1", "d4"), "dislike"),
    ShownList("otter", ("d5",), "regenerate"),
    ShownList("beaver", ("d1",), "regenerate"),
]
DOC_IDS = {name: name for name in ("d1", "d2", "d3", "d4", "d5")}


def test_what_was_copied_is_positive_unless_a_list_with_it_was_disliked():
    made = to_groups(LISTS, DOC_IDS)
    assert made.groups == [Group(text_id("otter"), ("d2",), ("d3", "d4"))]
    assert (made.lists, made.withdrawn) == (Counter(copy=2, dislike=1, regenerate=2), 1)


def test_documents_without_an_id_are_left_out():
    assert to_groups(LISTS[:1], {"d2": "x", "d3": "y"}).groups == [Group(text_id("otter"), ("x",), ("y",))]


def test_a_copied_list_without_details_is_positive_as_a_whole():
    record = {"query": " a  b ", "shown": ["d1", 7], "signal": "copy"}
    assert to_shown(record) == ShownList("a b", ("d1", "7"), "copy", ("d1", "7"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signal": "like"}, "signal is 'like'; expected copy, regenerate, dislike"),
        ({"shown": "d1"}, "shown is a str; expected a list"),
        ({"shown": []}, "the list shown is empty"),
        ({"query": " "}, "the query is empty"),
        ({"copied": ["d9"]}, "document 'd9' is copied and not shown"),
        ({"signal": "dislike", "copied": ["d1"]}, "documents are copied, but the signal is 'dislike'"),
    ],
)
def test_records_that_are_no_feedback_are_refused(changed, message):
    with pytest.raises(MalformedError, match=message):
        to_shown({"query": "q", "shown": ["d1"], "signal": "copy"} | changed)


def write_log(path: Path, lists: list[ShownList]) -> Path:
    records = [
        {"query": query, "shown": documents, "signal": signal, "copied": copied or None}
        for query, documents, signal, copied in lists
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_feedback_becomes_a_collection_with_groups(tmp_path, capsys):
    log, collection = write_log(tmp_path / "log.jsonl", LISTS), tmp_path / "collection"
    assert list(read_feedback(str(log))) == LISTS
    write_corpus(collection / "corpus.jsonl", [Document(f"d{n}", f"text {n}") for n in range(1, 6)])
    config = shortlist.convert.Config(sources=(str(log),), collection=str(collection), out=tmp_path / "out")
    shortlist.convert.run(config)
    assert read_groups(tmp_path / "out" / "groups.jsonl") == [Group(text_id("otter"), ("d2",), ("d3", "d4"))]
    assert read_qrels(tmp_path / "out" / "qrels" / "train.tsv") == {text_id("otter"): {"d2": 1}}
    said = capsys.readouterr().err
    assert (
        "5 lists (2 copy, 1 dislike, 2 regenerate); 1 queries have a copied document; 1 copied documents were" in said
    )


def test_feedback_that_gives_nothing_is_refused(tmp_path):
    log, collection = write_log(tmp_path / "log.jsonl", LISTS[2:]), tmp_path / "collection"
    write_corpus(collection / "corpus.jsonl", [Document("d1", "text")])
    of = {"sources": (str(log),), "out": tmp_path / "out"}
    with pytest.raises(UserError, match="name the collection that was shown with --collection"):
        shortlist.convert.run(shortlist.convert.Config(**of))
    with pytest.raises(UserError, match="no document was copied"):
        shortlist.convert.run(shortlist.convert.Config(collection=str(collection), **of))
    write_log(log, LISTS)
    with pytest.raises(UserError, match="lacks 1 of 2 copied documents, the first 'd2'"):
        shortlist.convert.run(shortlist.convert.Config(collection=str(collection), **of))
    with pytest.raises(UserError, match="holds feedback on lists, and click logs alone take --min-clicks"):
        shortlist.convert.run(shortlist.convert.Config(collection=str(collection), min_clicks=2.0, **of))
