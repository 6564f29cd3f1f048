from typing import Any

import pytest
from chats import CHATML, QUERY, SOME, plain, with_chat

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer


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


def test_one_document_has_a_label_that_could_have_been_another(small: Any):
    renderer = Renderer(named_prompt("setwise"), small)
    one, two = renderer.render(QUERY, SOME[:1]), renderer.render(QUERY, SOME[:2])
    assert renderer.label_ids(one, 1) == renderer.label_ids(two, 2)[:1]
