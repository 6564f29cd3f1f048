"""Conversations as models read them: the fixed texts around the turns of a chat.

A chat template is run once for each number of turns, with a stand-in for each turn's text. What it writes around the
stand-ins is then put around any texts. So it is known where each text stands, and no template is run for each prompt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from shortlist.errors import UserError
from shortlist.text.prompts import Prompt

MARGIN = " \n "
"""White space around a stand-in, to see whether the chat template keeps it."""


class Frame(NamedTuple):
    """The fixed texts around the turns."""

    texts: tuple[str, ...]
    """Text before each turn, and behind the last one."""
    strips: tuple[tuple[bool, bool], ...]
    """For each turn, whether white space at its beginning and at its end is taken away."""
    merged: bool = False
    """Whether the system's text stands at the beginning of the user's first one."""


def frame_of(prompt: Prompt, tokenizer: Any, roles: Sequence[str]) -> Frame:
    """Find the fixed texts around turns of these roles.

    Raises:
        UserError: the prompt needs a chat template, and the tokenizer has none or one that cannot be used.
    """
    if prompt.chat == "tokenizer":
        return _frame_of_template(prompt, tokenizer, roles)
    bos = "" if prompt.encoder else tokenizer.bos_token or ""
    if isinstance(prompt.chat, str):
        return Frame((bos, *["\n"] * (len(roles) - 1), ""), ((False, False),) * len(roles))
    return _frame_of_forms(dict(prompt.chat), roles, bos, tokenizer.eos_token or "")


def _frame_of_forms(forms: dict[str, str], roles: Sequence[str], bos: str, eos: str) -> Frame:
    """Put the prompt's own texts around the turns."""
    texts = [forms.get("start", "")]
    for role in roles:
        before, after = forms[role].split("{text}")
        texts[-1] += before
        texts.append(after)
    texts[-1] += forms.get("end", "")
    filled = tuple(text.replace("{bos}", bos).replace("{eos}", eos) for text in texts)
    return Frame(filled, ((False, False),) * len(roles))


def _frame_of_template(prompt: Prompt, tokenizer: Any, roles: Sequence[str]) -> Frame:
    """Run the tokenizer's chat template on stand-ins.

    A system's text that the template refuses or leaves out moves to the beginning of the user's first text.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which the prompt {prompt.name!r} needs; "
            "put the model's own chat_template.jinja into the folder, or take a prompt that brings its own form, "
            "such as rank-vicuna."
        )
    said = ""
    for merged in (False, True) if roles[0] == "system" and len(roles) > 1 else (False,):
        asked = roles[1:] if merged else roles
        try:
            texts, strips = _around(prompt, tokenizer, asked)
            return Frame(texts, strips, merged)
        except (ValueError, TypeError, KeyError, _template_error()) as error:
            said = said or str(error).split("\n")[0]
    raise UserError(
        f"{tokenizer.name_or_path}: the chat template cannot hold the prompt {prompt.name!r} ({said}); take another "
        "prompt, or a model with another chat template."
    )


def _template_error() -> type[Exception]:
    from jinja2 import TemplateError

    return TemplateError


def _around(
    prompt: Prompt, tokenizer: Any, roles: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[bool, bool], ...]]:
    """Return the texts around stand-ins, and whether white space next to each was taken away."""
    stand_ins = [f"\ue000{place}\ue001" for place in range(len(roles))]
    messages = [{"role": role, "content": MARGIN + text + MARGIN} for role, text in zip(roles, stand_ins, strict=True)]
    rest, texts, strips = applied(prompt, tokenizer, messages), [], []
    for text in stand_ins:
        before, found, rest = rest.partition(text)
        if not found or text in rest:
            raise ValueError("it leaves a turn out or repeats it")
        left, right = before.endswith(MARGIN), rest.startswith(MARGIN)
        texts.append(before.removesuffix(MARGIN))
        rest = rest.removeprefix(MARGIN)
        strips.append((not left, not right))
    return (*texts, rest), tuple(strips)


def applied(prompt: Prompt, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Run the tokenizer's chat template, up to where the answer begins."""
    options = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


def end_of_answer(prompt: Prompt, tokenizer: Any) -> int | None:
    """Return the id that ends an answer.

    It is the token that the chat has behind an assistant's turn, or the end token.
    """
    if prompt.chat == "tokenizer" and tokenizer.chat_template:
        said = "\ue000"
        turns = [{"role": "user", "content": "\ue001"}, {"role": "assistant", "content": said}]
        try:
            _, _, rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(said)
        except (ValueError, TypeError, KeyError, _template_error()):
            return tokenizer.eos_token_id
        behind = tokenizer(rest, add_special_tokens=False)["input_ids"]
        if behind and behind[0] in tokenizer.added_tokens_decoder:  # text would be part of the answer
            return behind[0]
    return tokenizer.eos_token_id
