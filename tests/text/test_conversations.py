from dataclasses import replace
from typing import Any

import pytest
from chats import CHATML, NO_SYSTEM, QUERY, SOME, TRIMMED, ZEPHYR, decoded, plain, render, small_tokenizer, with_chat

from shortlist.errors import UserError
from shortlist.text.prompts import named_prompt, prompts
from shortlist.text.rendering import Renderer


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
