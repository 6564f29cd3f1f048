from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tokenizer

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text import inputs as inputs_module
from shortlist.text import segments as segments_module
from shortlist.text.contract import named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import (
    cut,
    document_of,
    document_segments,
    named_segments,
    pair_segments,
    segment_contract,
    unused_settings,
    whole_id,
)

WORDS = ["the", "has", "a", "and", "of", "really"]
LONG = Document("d", " ".join(WORDS[i % 6] for i in range(50)), title="apple boat")
SHORT = Document("s", "the apple has a price")
QUERY = Query("q", "which apple")


def inputs(name: str, length: int) -> Inputs:
    return Inputs(named_contract(name).form.with_lengths(document=length), tokenizer())


def spans_of(text: str) -> list[tuple[int, int]]:
    """One token for each letter or mark."""
    return [(i, i + 1) for i, letter in enumerate(text) if not letter.isspace()]


def test_segments_begin_and_end_between_words():
    text = "aa bbb cc dddd e ff"
    assert cut(text, spans_of(text), room=6, stride=4) == ["aa bbb", "bbb cc", "cc dddd", "dddd e", "e ff"]
    assert cut(text, spans_of(text), room=99, stride=4) == [text]


def test_a_word_longer_than_a_segment_is_cut():
    assert cut("abcdefgh", spans_of("abcdefgh"), room=3, stride=2) == ["abc", "cde", "efg", "gh"]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=30), st.integers(1, 12), st.integers(1, 12))
def test_segments_leave_out_nothing_and_fit(lengths: list[int], room: int, stride: int):
    letters = map(chr, range(0x4E00, 0x9FFF))  # each of them once, so that a part has one place
    text = " ".join("".join(next(letters) for _ in range(length)) for length in lengths)
    parts = cut(text, spans_of(text), room=room, stride=min(stride, room))
    assert all(0 < len(spans_of(part)) <= room for part in parts)
    end = 0
    for part in parts:
        assert not text[end : text.index(part)].strip()  # it begins no later than where the one before has ended
        end = text.index(part) + len(part)
    assert end == len(text)


def test_a_document_that_fits_is_its_only_segment():
    made = inputs("repllama", 12)
    assert document_segments(made, [SHORT], stride=4) == [[SHORT]]
    [[pair]] = pair_segments(inputs("rankllama", 15), [(QUERY, SHORT)], stride=4)
    assert pair == (QUERY, SHORT)


def test_no_segment_is_cut_and_each_has_the_title_and_the_prompt():
    made = inputs("repllama", 20)
    [segments] = document_segments(made, [LONG], stride=7)
    assert {(segment.doc_id, segment.title) for segment in segments} == {("d", "apple boat")}
    lengths = [len(ids) for ids in made.document_ids(segments, cut=False)]
    assert max(lengths) <= 20
    assert min(lengths[:-1]) >= 18  # and none is much shorter than it might be
    words = LONG.text.split()
    starts = [7 * i for i in range(len(segments))]
    assert [segment.text.split() for segment in segments] == [words[i : i + 13] for i in starts]
    assert starts[-1] + 13 >= 50 > starts[-2] + 13


def test_a_pairs_segments_leave_room_for_the_query():
    made = inputs("rankllama", 24)
    long_query = Query("q", "which apple has the price")
    [few], [many] = (pair_segments(made, [(query, LONG)], stride=5) for query in (QUERY, long_query))
    assert len(many) >= len(few) > 1
    for pairs, query in ((few, QUERY), (many, long_query)):
        assert {pair[0] for pair in pairs} == {query}
        assert max(len(ids) for ids in made.pair_ids(pairs, cut=False)) <= 24


def test_a_title_that_leaves_no_room_is_read_alone_as_far_as_it_goes():
    titled = LONG._replace(title="apple " * 40)
    assert document_segments(inputs("repllama", 20), [titled], stride=5) == [[titled]]


def test_a_corpus_of_segments_has_ids_that_lead_back():
    found = list(named_segments(inputs("repllama", 20), [SHORT, LONG, SHORT._replace(doc_id="a#1")], stride=13))
    assert [segment.doc_id for segment in found] == ["s#0", "d#0", "d#1", "d#2", "d#3", "a#1#0"]
    assert [whole_id(segment.doc_id) for segment in found] == ["s", "d", "d", "d", "d", "a#1"]
    assert " ".join(segment.text for segment in found[1:5]) == LONG.text  # the stride is what there is room for


def test_the_length_of_an_input_is_that_of_a_segment():
    contract = named_contract("rankllama")
    lengths: dict[str, Any] = {"window": 100, "stride": 50, "max_length": None}
    assert segment_contract(contract, "whole", **lengths | {"max_length": 77}).form.pair_length == 77
    assert segment_contract(contract, "whole", **lengths) == contract
    for segments in ("firstp", "maxp", "avgp"):
        form = replace(contract.form, pair_length=100, document_length=100)
        assert segment_contract(contract, segments, **lengths) == replace(contract, form=form)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 9}, "--max-length is of whole documents; with --segments maxp say --window"),
        ({"stride": 0}, "--window is 100 and --stride 0; expected 1 <= stride <= window"),
        ({"stride": 101}, "--stride 101"),
        ({"window": 0}, "--window is 0"),
    ],
)
def test_lengths_that_make_no_segments_are_refused(change: dict, message: str):
    lengths: dict[str, Any] = {"window": 100, "stride": 50, "max_length": None} | change
    with pytest.raises(UserError, match=message):
        segment_contract(named_contract("rankllama"), "maxp", **lengths)


def test_settings_that_change_nothing_are_known():
    assert unused_settings("whole") == ("segments", "window", "stride")
    assert unused_settings("firstp") == ("stride",)
    assert unused_settings("maxp") == unused_settings("avgp") == ()


def test_long_texts_are_tokenized_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    made, pairs = (
        inputs("repllama", 16),
        Inputs(named_contract("rankllama").form.with_lengths(document=30), tokenizer()),
    )
    documents = [SHORT, LONG, SHORT, LONG, LONG, SHORT]

    def results() -> list[Any]:
        both = [(QUERY, document) for document in documents]
        return [
            made.document_ids(documents),
            pairs.pair_ids(both),
            document_segments(made, documents, stride=4),
            pair_segments(pairs, both, stride=4),
        ]

    whole, most = results(), 0
    call = type(made.tokenizer).__call__

    def counted(self: Any, text: list[str], **options: Any) -> Any:
        nonlocal most
        most = max(most, len(text) if sum(map(len, text)) > 250 else 1)
        return call(self, text, **options)

    monkeypatch.setattr(type(made.tokenizer), "__call__", counted)
    monkeypatch.setattr(inputs_module, "CHARACTERS_A_CALL", 250)
    monkeypatch.setattr(segments_module, "CHARACTERS_A_CALL", 250)
    assert results() == whole
    assert most == 1


def test_ids_of_documents_and_of_chunks_are_told_apart():
    assert [document_of(name) for name in ("d#3", "d#3#12", "d", "C#", "#3", "d#x")] == [
        "d",
        "d#3",
        "d",
        "C#",
        "#3",
        "d#x",
    ]
