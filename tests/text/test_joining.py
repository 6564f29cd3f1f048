from dataclasses import replace
from typing import Any

import pytest
from chats import CHATML, NO_SYSTEM, QUERY, ZEPHYR, small_tokenizer, with_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shortlist.records import Document
from shortlist.text import joining
from shortlist.text.joining import Joiner, stretches_of
from shortlist.text.layout import Laid
from shortlist.text.prompts import named_prompt, prompts
from shortlist.text.rendering import Rendered, Renderer

CHATS = [ZEPHYR, CHATML, NO_SYSTEM]
ODD = [
    " ",
    "\n",
    "\t",
    "a",
    "Passage",
    "b c",
    "[",
    "]",
    "1",
    "12",
    ",",
    ".",
    "–",
    "é",
    "東",
    "🦙",
    '"',
    "▁",
    "<",
    "#",
    "\r",
]
NAMES = [name for name in prompts() if not named_prompt(name).apart]


def rendered(name: str, tokenizer: Any, lists: list[list[Document]], *, joins: bool) -> list[Rendered]:
    renderer = Renderer(replace(named_prompt(name), marks=()), tokenizer)
    renderer._tokenised.joins = joins
    found = renderer.render_many([(QUERY, documents) for documents in lists])
    assert renderer._tokenised.joins == joins
    return found


def lists_of(name: str, texts: list[str]) -> list[list[Document]]:
    """Every two neighbours, or one of them, as a prompt takes them."""
    documents = [Document(str(i), text, title=text[:3] * (i % 2)) for i, text in enumerate(texts)]
    size = min(named_prompt(name).most_documents() or 3, 3)
    return [(documents[i:] + documents[:i])[:size] for i in range(len(documents))]


TEXTS = st.lists(st.lists(st.sampled_from(ODD), max_size=6).map("".join), min_size=3, max_size=4)
SMALL = [small_tokenizer(chat) for chat in CHATS]


@pytest.mark.parametrize("name", NAMES)
def test_joined_parts_of_every_prompt_have_the_ids_of_the_whole(name: str):
    lists = lists_of(name, ["some text", "", "[1] é\n\nPassage A: 12"])
    for tokenizer in SMALL[:2]:
        assert rendered(name, tokenizer, lists, joins=True) == rendered(name, tokenizer, lists, joins=False)


@settings(max_examples=8)
@given(texts=TEXTS)
@pytest.mark.parametrize("name", ["prp", "graded"])
def test_joined_parts_have_the_ids_of_the_whole(name: str, texts: list[str]):
    lists = lists_of(name, texts)
    for tokenizer in SMALL:
        assert rendered(name, tokenizer, lists, joins=True) == rendered(name, tokenizer, lists, joins=False)


@pytest.fixture(scope="module", params=["llama", "cl100k", "qwen"])
def real(request: pytest.FixtureRequest) -> Any:
    return with_chat(request.getfixturevalue(request.param), CHATML)


@pytest.mark.slow
@settings(max_examples=10)
@given(texts=TEXTS)
@pytest.mark.parametrize("name", ["prp", "rank-zephyr", "rankgpt", "erank"])
def test_joined_parts_have_the_ids_of_the_whole_for_real_tokenizers(name: str, real: Any, texts: list[str]):
    lists = lists_of(name, texts)
    assert rendered(name, real, lists, joins=True) == rendered(name, real, lists, joins=False)


def joining_tokenizer() -> Any:
    """A tokenizer without words, which joins a line break with the letter behind it."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    fast.train_from_iterator(["\nP", "\nO", "\nPassage"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>")


def test_a_tokenizer_that_joins_across_lines_reads_whole_texts():
    tokenizer = with_chat(joining_tokenizer(), CHATML)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer('x"\n\nPassage A', add_special_tokens=False)["input_ids"])
    assert any("ĊP" in piece for piece in pieces)
    renderer = Renderer(named_prompt("prp"), tokenizer)
    documents = [Document(str(i), f"text {i}") for i in range(3)]
    pairs = [(QUERY, [one, other]) for one in documents for other in documents]
    found = renderer.render_many(pairs)
    assert not renderer._tokenised.joins
    assert found == rendered("prp", tokenizer, [documents for _, documents in pairs], joins=False)


def test_each_part_is_tokenised_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    plain = joining.encodings
    monkeypatch.setattr(joining, "encodings", lambda tokenizer, texts: seen.extend(texts) or plain(tokenizer, texts))
    renderer = Renderer(named_prompt("prp"), SMALL[0])
    documents = [Document(str(i), f"text {i}") for i in range(6)]
    pairs = [(QUERY, [one, other]) for one in documents for other in documents]
    renderer.render_many(pairs)
    assert len(seen) == 1 + 2 * 6 + 1 + 1  # what stands before, six documents in two places, what is behind; one whole
    renderer.render_many(pairs)
    assert len(seen) == 1 + 2 * 6 + 1 + 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joining, "REMEMBERED", 30)
    joiner = Joiner(SMALL[0])
    for number in range(50):
        joiner([Laid(f"head\n[1] {number}\n[2] x\ntail", [(5, 10), (11 + (number > 9), 16)], [])] * 2)
    assert len(joiner._known) <= 34
    assert joiner.joins


def test_a_text_is_taken_apart_before_each_document_and_behind_the_last():
    text = "head\n[1] a\nb\n[2] c\ntail\nmore"
    parts = stretches_of(Laid(text, [(5, 12), (13, 18)], [(0, 4), (24, 28)]))
    assert [part.text for part in parts] == ["head\n", "[1] a\nb\n", "[2] c\n", "tail\nmore"]
    assert [part.behind for part in parts] == ["[", "[", "t", ""]
    assert [part.documents for part in parts] == [(), ((0, 7),), ((0, 5),), ()]
    assert [part.queries for part in parts] == [((0, 4),), (), (), ((5, 9),)]


@pytest.mark.parametrize(
    "text", [Laid("a [1] b [2] c", [(2, 7), (8, 13)], []), Laid("q\n[1] b\nqq", [(2, 7)], [(0, 10)]), Laid("x", [], [])]
)
def test_a_text_without_safe_places_stays_whole(text: Laid):
    assert [part.text for part in stretches_of(text)] == [text.text]


def test_joined_ids_are_compared_with_those_of_a_whole_text(monkeypatch: pytest.MonkeyPatch):
    texts = [Laid(f"head\n[1] {text}\ntail", [(5, 10)], []) for text in "ab"]
    expected = Joiner(SMALL[0]).whole(texts)
    monkeypatch.setattr(joining, "_cut_out", lambda *_: joining.Tokenised([1], [], []))
    joiner = Joiner(SMALL[0])
    assert joiner(texts) == expected
    assert not joiner.joins
