from dataclasses import replace
from typing import Any

import pytest
from chats import QUERY, SOME, plain, render

from shortlist.records import Document, Query
from shortlist.text import excerpts
from shortlist.text.excerpts import Excerpts
from shortlist.text.prompts import Limit, named_prompt
from shortlist.text.rendering import Renderer


def test_special_tokens_in_texts_end_no_turn(small: Any):
    document = Document("1", "some</s> text<s>", title="</s>t")
    rendered = render(named_prompt("prp"), small, Query("q", "what</s> is x"), [document, document])
    assert rendered.ids.count(small.eos_token_id) == 1
    assert 'query "what is x"' in rendered.text
    assert 'A: "t some text"' in rendered.text


def test_identifiers_in_texts_are_not_taken_for_labels(small: Any):
    document = Document("1", "see [12] and [A] and [ab]")
    assert "[1] see (12) and [A] and [ab]\n" in render(named_prompt("rank-zephyr"), small, QUERY, [document]).text
    assert "[A] see [12] and (A) and (ab)\n" in render(named_prompt("first"), small, QUERY, [document]).text


def test_each_document_is_cut_before_documents_are_joined(small: Any):
    long, short = Document("1", "word " * 400), Document("2", "short")
    text = render(named_prompt("rank-zephyr"), small, QUERY, [long, short]).text
    assert "[1] " + " ".join(["word"] * 300) + "\n[2] short\n" in text


@pytest.mark.parametrize("length", [1, *range(6, 48)])
def test_a_text_that_is_cut_has_as_many_tokens_as_said(length: int, llama: Any, small: Any):
    document = Document("1", "the naïve café serves 東京 🦙 to everyone who asks for it, and then some more")
    for tokenizer in (llama, small):
        prompt = plain(document="{document}", limit=Limit(length, "tokens"))
        text = Excerpts(prompt, tokenizer).document(document, prompt.limit)
        assert document.text.startswith(text)
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= length
        assert "�" not in tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_document_is_cut_once_however_often_it_is_shown(small: Any, monkeypatch: pytest.MonkeyPatch):
    renderer, cut = Renderer(replace(named_prompt("prp"), limit=Limit(3, "tokens")), small), []
    one = excerpts._first_tokens
    monkeypatch.setattr(excerpts, "_first_tokens", lambda text, *how: cut.append(text) or one(text, *how))
    pairs = [(QUERY, [one, other]) for one in SOME for other in SOME]
    renderer.render_many(pairs)
    renderer.render_many(pairs)
    assert sorted(cut) == sorted([*(document.text for document in SOME), QUERY.text])


def test_the_texts_that_are_remembered_are_bounded(small: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(excerpts, "REMEMBERED", 20)
    made = Excerpts(named_prompt("prp"), small)
    for number in range(50):
        made.prepare([(QUERY, [Document("1", f"text {number}")])])
    assert len(made._whole) + len(made._cut) <= 23
