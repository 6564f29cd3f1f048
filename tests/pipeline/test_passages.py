"""Passages that are shown, and the words that are marked in them."""

import pytest

from shortlist.pipeline.passages import LONGEST, Piece, find_passage, mark, query_stems

FILL = "nothing of interest here . " * 40


def found(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.found]


def whole(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_words_are_marked_by_their_stems_and_words_that_say_nothing_are_not():
    stems = query_stems("How do I get the refunds for my order?")
    text = "A refund: how I do it, and Refunded orders. I get the order."
    pieces = mark(text, stems)
    assert whole(pieces) == text
    assert found(pieces) == ["refund", "Refunded", "orders", "get", "order"]


def test_a_query_of_words_that_say_nothing_keeps_them():
    assert found(mark("to be or not to be", query_stems("to be"))) == ["to", "be", "to", "be"]


def test_signs_of_chinese_and_japanese_are_words():
    assert found(mark("東京都の天気", query_stems("天気"))) == ["天", "気"]


def test_a_short_text_is_shown_whole_without_its_blank_lines():
    assert whole(find_passage("\n\none\n\n \n two", query_stems("two"))) == "one\ntwo"


def test_the_passage_with_the_most_different_words_is_shown():
    text = f"otters otters otters {FILL} otters live in rivers {FILL} rivers"
    pieces = find_passage(text, query_stems("where do otters live in rivers"))
    assert found(pieces) == ["otters", "live", "rivers"]
    shown = whole(pieces)
    assert shown.startswith("... ")
    assert shown.endswith(" ...")
    assert len(shown) <= LONGEST + 8
    assert shown.removeprefix("... ").removesuffix(" ...") in text


@pytest.mark.parametrize("query", ["otters", "badgers"])
def test_the_beginning_is_shown_where_nothing_later_has_more(query: str):
    text = f"otters first {FILL} otters again"
    shown = whole(find_passage(text, query_stems(query)))
    assert shown.startswith("otters first nothing")
    assert shown.endswith(" ...")


def test_a_text_without_spaces_is_cut_anywhere():
    assert len(whole(find_passage("x" * 5000, {"y"}))) == LONGEST + 4
