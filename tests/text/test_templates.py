import pytest

from shortlist.text.inputs import filled
from shortlist.text.templates import field_names, literal, prompt, unescaped, with_text, without

PIECE = "{{text}} of {title} {text} }}"


def test_doubled_braces_are_no_fields():
    assert field_names(PIECE) == {"title", "text"}
    assert prompt(PIECE) == "{text} of "
    assert prompt("{query}?") == ""
    assert prompt("only {{text}}") == "only {text}"


def test_an_empty_field_goes_with_one_space_and_braces_stay():
    assert without(PIECE, ("title",)) == "{{text}} of {text} }}"
    assert without(PIECE, ("text",)) == "{{text}} of {title} }}"
    assert filled(PIECE, {"title": "", "text": ""}) == "{text} of }"
    assert filled(PIECE, {"title": "a {b}", "text": "{title}"}) == "{text} of a {b} {title} }"


def test_a_text_takes_the_place_of_its_field_alone():
    piece = with_text("{{instruction}} {instruction}: {query}", "instruction", "find {it}")
    assert piece == "{{instruction}} find {{it}}: {query}"
    assert field_names(piece) == {"query"}


@pytest.mark.parametrize("text", ["", "{", "a {b} c", "}{", "{{x}}"])
def test_a_literal_text_stands_for_itself(text: str):
    assert unescaped(literal(text)) == text
    assert not field_names(literal(text))
