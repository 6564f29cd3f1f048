from inspect import unwrap
from typing import Any

import numpy as np
import pytest

from shortlist.errors import UserError
from shortlist.records import Document, Query, as_documents, as_queries, each_document


def test_a_string_is_one_text_and_so_is_one_record():
    assert as_queries("otters") == [Query("0", "otters")]
    assert as_queries(Query("q", "otters")) == [Query("q", "otters")]
    assert as_documents("otters") == [Document("0", "otters")]
    assert as_documents(Document("d", "otters")) == [Document("d", "otters")]


def test_texts_get_their_positions_as_ids_and_records_keep_theirs():
    given = ["a", Document("x", "b", title="B"), np.array(["c"])[0]]
    assert as_documents(given) == [Document("0", "a"), Document("x", "b", title="B"), Document("2", "c")]
    assert as_queries(text for text in ("a", "b")) == [Query("0", "a"), Query("1", "b")]
    assert as_queries([]) == []


def test_documents_are_yielded_as_they_come():
    def texts():
        yield "first"
        raise AssertionError("must not be asked for yet")

    assert next(each_document(texts())) == Document("0", "first")


class Table:
    """What iterates over the names of its columns, as tables of pandas do."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    "texts", [{"d1": "text"}, {"text"}, b"text", 3, None, pytest.param(Table(), id="table")], ids=str
)
def test_what_would_be_read_as_other_texts_is_refused(texts: Any):
    with pytest.raises(UserError, match="expected a text, or a list of texts or of Query records"):
        unwrap(as_queries)(texts)  # as users call it, without checks of types


@pytest.mark.parametrize("item", [Document("d", "text"), 3, float("nan"), {"text": "x"}, ["x"]], ids=str)
def test_an_item_that_is_no_query_is_named(item: Any):
    with pytest.raises(UserError, match=r"item 1 is a .*expected a text or a Query"):
        unwrap(as_queries)(["fine", item])


def test_a_query_is_no_document():
    with pytest.raises(UserError, match="item 0 is a Query; expected a text or a Document"):
        unwrap(as_documents)([Query("q", "text")])
