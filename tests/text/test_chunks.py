import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.errors import UserError
from shortlist.text.chunks import (
    CUTS,
    LONGEST_WORD,
    Section,
    check_sizes,
    make_chunks,
    token_begins,
    whole_text,
    word_begins,
)
from shortlist.text.tokenizer import train_bpe

PROSE = "Otters swim. They eat fish! Do they sleep? At night, e.g. in dens."


def chunked(*sections: Section, size: int, **settings):
    [begins] = word_begins([whole_text(sections)])
    return make_chunks(sections, begins, size=size, **settings)


def words(text: str) -> int:
    return len(word_begins([text])[0])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n ", 0),
        ("one", 1),
        ("one two\nthree ", 3),
        ("水獭 lives here", 4),
        ("x" * (2 * LONGEST_WORD + 1), 3),
        ("a " + "x" * LONGEST_WORD + " b", 3),
        ("é" * (LONGEST_WORD + 1) + " b", 3),
    ],
)
def test_words_are_counted_in_every_script_and_long_runs_are_several(text: str, count: int):
    assert words(text) == count


def test_sections_under_one_heading_are_packed_and_others_are_not():
    sections = [
        Section("# A\none two", ("A",)),
        Section("## B\nthree four", ("A", "B")),
        Section("## C\nfive six", ("A", "C")),
        Section("## D\n" + "seven " * 6, ("A", "D")),
    ]
    found = chunked(*sections, size=12)
    assert [chunk.text.split("\n")[0] for chunk in found] == ["# A", "## D"]
    assert [chunk.titles for chunk in found] == [("A",), ("A", "D")]
    assert [chunk.titles for chunk in chunked(*sections[1:3], size=12)] == [("A",)]
    apart = [Section("x", ("A", "B")), Section("y", ("C",))]
    assert [chunk.titles for chunk in chunked(*apart, size=12)] == [("A", "B"), ("C",)]


def test_a_heading_alone_goes_with_the_long_section_below_it():
    found = chunked(Section("# A", ("A",)), Section("## B\n" + PROSE * 3, ("A", "B")), size=20)
    assert found[0].text.startswith("# A\n\n## B\n")
    assert found[0].titles == ("A",)
    assert found[1].titles == ("A", "B")


def test_long_sections_are_cut_between_paragraphs_then_sentences_then_words():
    text = "one two three.\n\nfour five. Six seven eight.\n\n" + "nine " * 7
    found = [chunk.text for chunk in chunked(Section(text), size=4)]
    assert found == ["one two three.", "four five.", "Six seven eight.", "nine nine nine nine", "nine nine nine"]


def test_abbreviations_do_not_end_sentences():
    assert [chunk.text for chunk in chunked(Section(PROSE), by="sentences", size=6)] == [
        "Otters swim. They eat fish!",
        "Do they sleep?",
        "At night, e.g. in dens.",
    ]


def test_a_chunk_repeats_the_end_of_the_one_before():
    text = " ".join(map(str, range(20)))
    found = [chunk.text.split() for chunk in chunked(Section(text), by="tokens", size=8, overlap=3)]
    places = [(int(row[0]), int(row[-1])) for row in found]
    assert places == [(0, 4), (2, 9), (7, 14), (12, 19)]
    sentences = [chunk.text for chunk in chunked(Section(PROSE), by="sentences", size=8, overlap=3)]
    assert sentences[1].startswith(("They eat fish!", "Do they sleep?"))


def test_the_page_is_where_a_chunk_begins_and_none_divides_nothing():
    sections = [Section("one", page=1), Section("two", page=2)]
    assert [(chunk.page, chunk.text) for chunk in chunked(*sections, size=9)] == [(1, "one\n\ntwo")]
    assert [(chunk.page, chunk.text) for chunk in chunked(*sections, size=1)] == [(1, "one"), (2, "two")]
    assert len(chunked(*sections, size=1, by="none")) == 1


def test_no_text_has_no_chunks():
    assert chunked(size=5) == []
    assert chunked(Section(" \n"), size=5, by="sentences") == []


TEXT = st.lists(st.sampled_from([*"ab .!\n#\t水é", "\u2028", "e.g. ", "\n\n", "word "]), max_size=80).map("".join)
SECTIONS = st.lists(
    st.builds(Section, TEXT, st.lists(st.sampled_from("ABC"), max_size=3).map(tuple), st.sampled_from([None, 1, 2])),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(SECTIONS, st.sampled_from([*CUTS]), st.integers(1, 12), st.integers(0, 6))
def test_chunks_cover_all_text_in_order_and_are_small_enough(sections, by, size, overlap):
    found = chunked(*sections, by=by, size=size, overlap=min(overlap, size // 2))
    text = whole_text(sections)
    covered = np.zeros(len(text), dtype=bool)
    for chunk in found:
        assert text[chunk.begin : chunk.end] == chunk.text != ""
        assert words(chunk.text) <= size
        covered[chunk.begin : chunk.end] = True
    assert all(covered[i] or char.isspace() for i, char in enumerate(text))
    assert [chunk.begin for chunk in found] == sorted({chunk.begin for chunk in found})


def test_tokens_of_a_tokenizer_are_counted_exactly():
    tokenizer = train_bpe([PROSE], vocab_size=300).backend_tokenizer
    sections = [Section(PROSE * 4 + " 水獭 🦦"), Section("short", ("A",))]
    [begins] = token_begins(tokenizer)([whole_text(sections)])
    for by in CUTS:
        found = make_chunks(sections, begins, by=by, size=11, overlap=3)
        assert max(len(tokenizer.encode(chunk.text).ids) for chunk in found) <= 11
        assert "".join("".join(chunk.text.split()) for chunk in make_chunks(sections, begins, by=by, size=11)) == (
            "".join(whole_text(sections).split())
        )


def test_a_character_of_more_tokens_than_fit_is_a_chunk_by_itself():
    found = make_chunks([Section("🦦🦦a")], np.array([0, 0, 0, 1, 1, 1, 2]), by="tokens", size=2)
    assert [chunk.text for chunk in found] == ["🦦", "🦦", "a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 0), "--chunk-size is 0; expected at least 1."),
        ((9, 5), "--overlap is 5; expected 0 to 4, half of --chunk-size."),
        ((9, -1), "--overlap is -1; expected 0 to 4, half of --chunk-size."),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(settings: tuple, message: str):
    with pytest.raises(UserError) as error:
        check_sizes(*settings)
    assert str(error.value) == message
