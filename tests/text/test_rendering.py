from typing import Any

import pytest
from chats import QUERY, SOME, ZEPHYR, decoded, plain, render, small_tokenizer, with_chat
from hypothesis import given
from hypothesis import strategies as st

from shortlist.errors import UserError
from shortlist.records import Document
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer

PASSAGES = 'Passage A: "some text"\n\nPassage B: "other words here"'


def test_the_whole_text_is_tokenised_at_once(llama: Any):
    rendered = render(plain(), llama, QUERY, SOME)
    text = "<s>what is x:\n[1] some text\n[2] other words here\n[3] the third\nAnswer:"
    assert rendered.text == text
    assert rendered.ids == llama(text, add_special_tokens=False)["input_ids"]
    apart = [token for piece in text.removeprefix("<s>").split("\n") for token in llama(piece)["input_ids"]]
    assert rendered.ids[1:] != apart  # a piece that is tokenised by itself begins with a space here


def test_a_document_keeps_the_place_of_its_piece(llama: Any, small: Any):
    for tokenizer in (llama, small):
        rendered = render(plain(), tokenizer, QUERY, SOME)
        assert decoded(tokenizer, rendered) == ["[1] some text", "[2] other words here", "[3] the third"]
        assert [tokenizer.decode(rendered.ids[span]) for span in rendered.query_spans] == ["what is x"]


def test_equal_texts_have_places_of_their_own(small: Any):
    same = [Document("1", "some text"), Document("2", "some text"), Document("3", "what is x")]
    rendered = render(plain(document="{document}\n"), small, QUERY, same)
    assert decoded(small, rendered) == ["some text", "some text", "what is x"]
    assert rendered.spans[0].stop <= rendered.spans[1].start < rendered.spans[2].start
    assert rendered.query_spans[0].stop <= rendered.spans[0].start


@pytest.mark.parametrize("piece", ["[{label}] {document}\n", "{document}"])
def test_documents_of_one_token_or_none_have_a_place(piece: str, small: Any, llama: Any):
    documents = [Document("1", ""), Document("2", "x"), Document("3", "")]
    for tokenizer in (small, llama):
        spans = render(plain(document=piece), tokenizer, QUERY, documents).spans
        assert len(spans) == 3
        assert all(span.start < span.stop for span in spans)


@given(texts=st.lists(st.text(st.sampled_from(' \n\tab[]1,.–é東🦙"▁'), max_size=12), min_size=1, max_size=4))
def test_any_texts_have_places_that_hold_them(texts: list[str]):
    tokenizer = SMALL
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    rendered = render(plain(), tokenizer, QUERY, documents)
    for i, (text, shown) in enumerate(zip(texts, decoded(tokenizer, rendered), strict=True)):
        assert f"[{i + 1}] {text.strip()}".strip() in shown.strip()
    assert rendered.ids == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]


SMALL = small_tokenizer()


def test_many_prompts_are_what_each_is_alone(small: Any):
    renderer = Renderer(named_prompt("setwise"), small)
    questions = [(QUERY, SOME[start:end]) for start in range(3) for end in range(start + 1, 4)]
    assert renderer.render_many(questions) == [Renderer(named_prompt("setwise"), small).render(*q) for q in questions]


def test_the_room_for_the_answer_is_the_length_of_a_full_one(llama: Any):
    tokenizer = with_chat(llama, ZEPHYR)
    documents = [Document(str(i), "x") for i in range(20)]
    rendered = render(named_prompt("rank-zephyr"), tokenizer, QUERY, documents)
    answer = " > ".join(f"[{i}]" for i in range(1, 21))
    assert rendered.answer_tokens == len(tokenizer(answer, add_special_tokens=False)["input_ids"])


def by_rank_zephyr(tokenizer: Any, documents: list[Document], context: int) -> str:
    """The text as RankZephyr's authors shorten it, written down once more."""
    words = 300
    while True:
        cut = [Document(d.doc_id, " ".join(d.text.split()[:words])) for d in documents]
        rendered = render(named_prompt("rank-zephyr"), tokenizer, QUERY, cut)
        excess = len(rendered.ids) - context + rendered.answer_tokens
        if excess <= 0:
            return rendered.text
        words -= max(1, excess // (len(documents) * 4))


@pytest.mark.parametrize("room", [100, 400, 900])
def test_a_window_that_is_too_long_is_shortened_as_rank_zephyr_does(room: int, small: Any):
    documents = [Document(str(i), f"number {i} " * length) for i, length in enumerate((60, 10, 90))]
    least = len(render(named_prompt("rank-zephyr"), small, QUERY, [Document("1", "")] * 3).ids)
    context = least + room + 40
    rendered = render(named_prompt("rank-zephyr"), small, QUERY, documents, most_tokens=context)
    assert len(rendered.ids) + rendered.answer_tokens <= context
    assert rendered.text == by_rank_zephyr(small, documents, context)


def test_a_window_that_cannot_fit_is_one_line(small: Any):
    documents = [Document(str(i), "word " * 50) for i in range(3)]
    with pytest.raises(UserError, match=r"query 'q': 3 documents, cut to 8 words each, .* the model reads 300") as e:
        render(named_prompt("rank-zephyr"), small, QUERY, documents, most_tokens=300)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="show fewer at once"):
        render(named_prompt("prp"), small, QUERY, documents[:2], most_tokens=50)


@pytest.mark.parametrize(
    ("name", "count", "expected"), [("first", 27, "1 to 26"), ("setwise", 24, "1 to 23"), ("prp", 3, "2")]
)
def test_more_documents_than_labels_are_refused(name: str, count: int, expected: str, small: Any):
    with pytest.raises(UserError, match=f"{count} documents are to be shown at once; expected {expected}"):
        render(named_prompt(name), small, QUERY, [Document(str(i), "x") for i in range(count)])


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast, name_or_path = False, "here"

    with pytest.raises(UserError, match="here: is a slow tokenizer"):
        Renderer(plain(), Slow())


def test_messages_need_no_tokenizer():
    renderer = Renderer(named_prompt("prp"), None)
    [message] = renderer.messages(QUERY, SOME[:2])
    assert message["role"] == "user"
    assert PASSAGES in message["content"]
    [message] = renderer.messages(QUERY, [Document("1", "a\n" + "word " * 200), SOME[1]])
    assert message["content"].count("word ") + message["content"].count('word"') == 95  # words for 128 tokens, with `a`


def test_an_answer_gets_at_most_half_of_a_short_context(small: Any):
    prompt = plain(most_tokens=8000)
    assert render(prompt, small, QUERY, SOME, most_tokens=600).answer_tokens == 300
    assert render(prompt, small, QUERY, SOME, most_tokens=20_000).answer_tokens == 8000
    assert render(prompt, small, QUERY, SOME).answer_tokens == 8000
