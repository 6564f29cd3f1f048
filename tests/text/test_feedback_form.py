"""Queries that are read with documents: their tokens, and what is cut."""

from dataclasses import replace
from typing import Any

import pytest
from tiny import DOCUMENTS, QUERIES, tokenizer

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.contract import Form, InputContract
from shortlist.text.inputs import Inputs

ALONE = Form(
    query=("<cls>", "query: {query}", "<sep>"), document=("<cls>", "passage: {text}", "<sep>"), query_length=64
)
FORM = ALONE.with_feedback(3, separator=True)
QUERY = QUERIES[0]


def inputs(form: Form = FORM, **change: Any) -> Inputs:
    return Inputs(replace(form, **change), tokenizer())


def read(form: Inputs, ids: list[int]) -> str:
    return " ".join(form.tokenizer.convert_ids_to_tokens(ids))


def words(count: int, word: str = "really") -> Document:
    return Document(word, " ".join([word] * count))


def test_documents_follow_the_query_each_behind_a_separator():
    made = inputs()
    [ids, alone] = made.feedback_ids([(QUERY, DOCUMENTS[:2]), (QUERY, [])])
    expected = f"<s> query : {QUERY.text} </s> {DOCUMENTS[0].text} </s> {DOCUMENTS[1].text} </s>"
    assert read(made, ids) == " ".join(expected.split())
    assert [alone] == made.query_ids([QUERY]) == inputs(ALONE).query_ids([QUERY])
    titled = Document("d", "the lamp", "desk")
    assert read(made, made.feedback_ids([(QUERY, [titled])])[0]).endswith("</s> desk the lamp </s>")


def test_without_a_separator_token_a_line_says_document():
    form = ALONE.with_feedback(2, separator=False)
    [ids] = inputs(form).feedback_ids([(QUERY, DOCUMENTS[:1])])
    assert f"{QUERY.text} <pad> : {DOCUMENTS[0].text}".split() == read(inputs(), ids).split()[3:-1]  # not in WORDS
    assert form.feedback == ("\nDocument: {title} {text}",)


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ([4, 30, 30, 30], [4, 14, 15, 15]),
        ([4, 30, 2, 30], [4, 21, 2, 21]),  # what a short one leaves
        ([40, 30, 30, 30], [23, 8, 8, 9]),  # the query has half, its prompt included
        ([40, 3, 2, 1], [40, 3, 2, 1]),
        ([50, 3, 2, 1], [42, 3, 2, 1]),  # and what documents leave
    ],
)
def test_no_document_is_lost_and_cuts_are_counted(lengths: list[int], kept: list[int]):
    made, told = inputs(query_length=55), list[tuple[str, int, int]]()
    made.on_cut = lambda *cut: told.append(cut)
    query, *documents = [words(count, name) for count, name in zip(lengths, ("which", "a", "and", "of"), strict=True)]
    [ids] = made.feedback_ids([(Query("q", query.text), documents)])
    found = read(made, ids).split()
    assert [found.count(name) for name in ("which", "a", "and", "of")] == kept
    assert len(ids) <= 55
    cut = [have > keep for have, keep in zip(lengths, kept, strict=True)]
    assert told == [("queries", cut[0], 1), ("feedback documents", sum(cut[1:]), 3)]
    [whole] = made.feedback_ids([(Query("q", query.text), documents)], cut=False)
    assert len(whole) == sum(lengths) + 7


def test_a_limit_without_room_for_every_document_is_refused():
    assert inputs(query_length=13).feedback_ids([(QUERY, [words(9)] * 3)])
    with pytest.raises(UserError, match=r"query_length is 12.*take 7.*3 documents; expected at least 13"):
        inputs(query_length=12)


def test_documents_read_as_before_and_files_without_feedback_stay():
    plain, revised = InputContract(ALONE), InputContract(FORM)
    assert plain.of_documents() == revised.of_documents()
    assert "feedback" not in plain.to_dict()
    assert InputContract.from_dict(revised.to_dict(), where="here") == revised
    assert FORM.with_feedback(0, separator=True) == ALONE
