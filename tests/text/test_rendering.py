from dataclasses import replace
from typing import Any

import pytest
from chats import CHATML, NO_SYSTEM, QUERY, TRIMMED, ZEPHYR, small_tokenizer, with_chat
from hypothesis import given
from hypothesis import strategies as st

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text import rendering
from shortlist.text.prompts import Limit, Prompt, Turn, named_prompt, prompts
from shortlist.text.rendering import Rendered, Renderer

SOME = [Document("1", "some text"), Document("2", "other words here"), Document("3", "the third")]
PASSAGES = 'Passage A: "some text"\n\nPassage B: "other words here"'


@pytest.fixture(scope="module")
def small() -> Any:
    return small_tokenizer()


def plain(**settings: Any) -> Prompt:
    """A prompt without a chat, of which a test says what matters."""
    shown = (Turn("user", settings.pop("text", "{query}:\n{documents}Answer:")),)
    defaults: dict[str, Any] = {"asks": "order", "document": "[{label}] {document}\n", "parse": "numbers"}
    return Prompt(**defaults | {"name": "plain", "turns": shown, "chat": "none", "answer": "[{label}]"} | settings)


def render(prompt: Prompt, tokenizer: Any, query: Query, documents: list[Document], **settings: Any) -> Rendered:
    return Renderer(prompt, tokenizer, **settings).render(query, documents)


def decoded(tokenizer: Any, rendered: Any) -> list[str]:
    return [tokenizer.decode(rendered.ids[span]) for span in rendered.spans]


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


def test_a_chat_that_writes_the_first_token_has_it_once(llama: Any):
    tokenizer = with_chat(llama, NO_SYSTEM)
    rendered = render(named_prompt("rank-zephyr"), tokenizer, QUERY, SOME)
    assert rendered.text.startswith("<s>[INST] You are RankLLM")
    assert rendered.ids.count(tokenizer.bos_token_id) == 1


def test_a_bare_prompt_begins_with_the_first_token_once(llama: Any, small: Any):
    assert render(plain(), llama, QUERY, SOME).ids.count(1) == 1
    without = small_tokenizer()
    without.bos_token = None
    assert render(plain(), without, QUERY, SOME).text.startswith("what is x")


def test_a_system_text_that_a_chat_refuses_goes_before_the_users(llama: Any):
    rendered = render(named_prompt("first"), with_chat(llama, NO_SYSTEM), QUERY, SOME)
    assert "[INST] You are RankLLM, an intelligent assistant that can rank passages" in rendered.text
    assert "relevancy to the query\n I will provide you with 3 passages" in rendered.text


def test_a_chat_that_strips_texts_is_followed(small: Any):
    tokenizer = with_chat(small, TRIMMED)
    prompt = plain(chat="tokenizer", text="{documents}", document="{document}\n")
    rendered = render(prompt, tokenizer, QUERY, SOME)
    messages = [{"role": "user", "content": "some text\nother words here\nthe third\n"}]
    assert rendered.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert decoded(tokenizer, rendered) == ["some text", "other words here", "the third"]


@pytest.mark.parametrize("template", [ZEPHYR, CHATML, TRIMMED, NO_SYSTEM])
def test_every_prompt_with_a_chat_is_what_the_chat_template_makes_of_its_messages(template: str, small: Any):
    tokenizer = with_chat(small, template)
    for name in prompts():
        prompt = named_prompt(name)
        if prompt.chat != "tokenizer":
            continue
        renderer = Renderer(replace(prompt, marks=()), tokenizer)
        documents = SOME[: prompt.most_documents() or 3]
        messages = renderer.messages(QUERY, documents)
        if template == NO_SYSTEM and messages[0]["role"] == "system":
            first = {"role": "user", "content": messages[0]["content"] + "\n " + messages[1]["content"]}
            messages = [first, *messages[2:]]
        options = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        assert renderer.render(QUERY, documents).text == whole + prompt.begins


def test_a_chat_that_changes_texts_is_refused(small: Any):
    shouting = with_chat(small, "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(UserError, match="chat template changes texts that are put into it"):
        render(plain(chat="tokenizer"), shouting, QUERY, SOME)


def test_a_model_without_a_chat_template_is_one_line(small: Any):
    with pytest.raises(
        UserError, match=r"no chat template, which the prompt 'prp' needs; put .* or take a prompt"
    ) as e:
        render(named_prompt("prp"), with_chat(small, ""), QUERY, SOME[:2])
    assert "\n" not in str(e.value)


def test_a_chat_template_that_leaves_texts_out_is_one_line(small: Any):
    with pytest.raises(UserError, match="the chat template cannot hold the prompt 'plain'") as e:
        render(plain(chat="tokenizer"), with_chat(small, "{{ messages[0]['role'] }}"), QUERY, SOME)
    assert "\n" not in str(e.value)


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


@pytest.mark.parametrize("length", [1, 7, 20])
def test_a_text_that_is_cut_has_as_many_tokens_as_said(length: int, llama: Any, small: Any):
    document = Document("1", "the naïve café serves 東京 🦙 to everyone who asks for it, and then some more")
    for tokenizer in (llama, small):
        prompt = plain(document="{document}", limit=Limit(length, "tokens"))
        cut = Renderer(prompt, tokenizer)
        cut.render(QUERY, [document])
        text = cut._cut(document.text, prompt.limit)
        assert document.text.startswith(text)
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= length
        assert "�" not in tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_document_is_cut_once_however_often_it_is_shown(small: Any, monkeypatch: pytest.MonkeyPatch):
    renderer, cut = Renderer(replace(named_prompt("prp"), limit=Limit(3, "tokens")), small), []
    monkeypatch.setattr(renderer, "_cut_tokens", lambda texts, count: cut.extend(texts) or list(texts))
    pairs = [(QUERY, [one, other]) for one in SOME for other in SOME]
    renderer.render_many(pairs)
    renderer.render_many(pairs)
    assert sorted(cut) == sorted([*(document.text for document in SOME), QUERY.text])


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


# Labels: ids of section 3's vocabularies; `[A` is one token for Qwen and cl100k (which Llama 3 has too).


@pytest.mark.slow
def test_letters_are_read_where_the_tokenizer_writes_them(llama: Any, qwen: Any):
    documents = [Document(str(i), "x") for i in range(3)]
    first = named_prompt("first")
    apart, fused = (Renderer(first, with_chat(tokenizer, CHATML)) for tokenizer in (llama, qwen))
    rendered = apart.render(QUERY, documents)
    assert (rendered.begins, rendered.ids[-1]) == ("[", 29961)
    assert apart.label_ids(rendered, 3) == llama.convert_tokens_to_ids(["A", "B", "C"])
    rendered = fused.render(QUERY, documents)
    assert (rendered.begins, qwen.decode(rendered.ids[-1:])) == ("", "\n")
    assert fused.label_ids(rendered, 3) == [22519, 32622, 43504]


@pytest.mark.slow
def test_the_letters_o_and_q_are_two_tokens_where_others_are_one(qwen: Any):
    renderer = Renderer(named_prompt("first"), with_chat(qwen, CHATML))

    def labels(count: int) -> tuple[Any, Any]:
        rendered = renderer.render(QUERY, [Document(str(i), "x") for i in range(count)])
        return rendered, rendered.labels

    rendered, paths = labels(20)
    assert [path for path in paths if len(path) > 1] == [(58, 46), (58, 48)]
    with pytest.raises(UserError, match=r"labels 'O', 'Q' begin with the same token .* at most 16 documents at once"):
        renderer.label_ids(rendered, 20)
    rendered, paths = labels(15)
    assert renderer.label_ids(rendered, 15)[14] == 58  # no other label begins with it


@pytest.mark.slow
def test_numbers_of_two_digits_are_no_single_tokens_for_qwen(qwen: Any, cl100k: Any):
    documents = [Document(str(i), "x") for i in range(10)]
    for tokenizer, several in ((qwen, True), (cl100k, False)):
        renderer = Renderer(named_prompt("rank-zephyr"), with_chat(tokenizer, CHATML), reads="logits")
        rendered = renderer.render(QUERY, documents)
        assert rendered.text.endswith("assistant\n")
        assert tokenizer.decode(rendered.ids[-1:]) == "["
        if several:
            with pytest.raises(UserError, match=r"labels '1', '10' begin with the same token .* at most 9 documents"):
                renderer.label_ids(rendered, 10)
        else:
            assert renderer.label_ids(rendered, 10) == [*range(16, 25), 605]


@pytest.mark.slow
def test_an_answer_that_begins_with_a_space_has_it_in_the_letters(llama: Any, qwen: Any, cl100k: Any):
    expected = {id(llama): [319, 350], id(qwen): [362, 425], id(cl100k): [362, 426]}
    for tokenizer in (llama, qwen, cl100k):
        renderer = Renderer(named_prompt("prp"), with_chat(tokenizer, CHATML))
        rendered = renderer.render(QUERY, SOME[:2])
        assert rendered.begins == " Passage:"
        assert renderer.label_ids(rendered, 2) == expected[id(tokenizer)]


def test_labels_are_found_by_comparing_whole_answers(small: Any):
    renderer = Renderer(named_prompt("setwise"), small)
    rendered = renderer.render(QUERY, SOME)
    for label, path in zip("ABC", rendered.labels, strict=True):
        whole = small(rendered.text + f" {label}", add_special_tokens=False)["input_ids"]
        assert whole[: len(rendered.ids) + len(path)] == [*rendered.ids, *path]
    assert renderer.label_ids(rendered, 3) == [path[0] for path in rendered.labels]


def test_the_ids_of_labels_are_the_same_in_every_prompt_of_a_kind(small: Any):
    renderer = Renderer(named_prompt("setwise"), small)
    first, second = renderer.render_many([(QUERY, SOME), (Query("r", "the other"), SOME[::-1])])
    fresh = Renderer(named_prompt("setwise"), small).render(Query("r", "the other"), SOME[::-1])
    assert first.labels == second.labels == fresh.labels
    assert second.ids == fresh.ids


def test_an_answer_that_is_generated_needs_no_labels(small: Any):
    assert Renderer(named_prompt("setwise"), small, reads="text").render(QUERY, SOME).labels == []


def test_a_tokenizer_that_joins_labels_with_what_follows_cannot_read_them(small: Any):
    renderer = Renderer(plain(answer="{label}", labels="some label {number}"), small, reads="logits")
    rendered = renderer.render(QUERY, [Document(str(i), "x") for i in range(11)])
    with pytest.raises(UserError, match=r"prompt 'plain' .*labels 'some label 1', 'some label 10', .* at most 9 doc"):
        renderer.label_ids(rendered, 11)


def test_an_answer_gets_at_most_half_of_a_short_context(small: Any):
    prompt = plain(most_tokens=8000)
    assert render(prompt, small, QUERY, SOME, most_tokens=600).answer_tokens == 300
    assert render(prompt, small, QUERY, SOME, most_tokens=20_000).answer_tokens == 8000
    assert render(prompt, small, QUERY, SOME).answer_tokens == 8000


def test_what_is_remembered_does_not_grow_with_the_queries(small: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "MOST_REMEMBERED", 2000)
    renderer = Renderer(plain(limit=Limit(3, "words")), small)
    sizes, texts = [], []
    for number in range(40):
        documents = [Document(f"{number}-{place}", f"document {number} {place} " + "word " * 9) for place in range(5)]
        texts.append(renderer.render(Query("q", f"query {number}"), documents).text)
        sizes.append(len(renderer._contents) + len(renderer._cuts) + len(renderer._endings))
    assert max(sizes[5:]) <= max(sizes[:5]) + 12
    assert (
        texts[7]
        == Renderer(renderer.prompt, small)
        .render(
            Query("q", "query 7"), [Document(f"7-{place}", f"document 7 {place} " + "word " * 9) for place in range(5)]
        )
        .text
    )
