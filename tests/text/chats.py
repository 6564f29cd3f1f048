"""Chat templates, and a small tokenizer, for tests of prompts."""

from typing import Any

from shortlist.records import Document, Query
from shortlist.text.prompts import Prompt, Turn
from shortlist.text.rendering import Rendered, Renderer
from shortlist.text.tokenizer import train_bpe

ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']\n' + message['content'] | trim + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

QUERY = Query("q", "what is x")
SOME = [Document("1", "some text"), Document("2", "other words here"), Document("3", "the third")]


def with_chat(tokenizer: Any, template: str) -> Any:
    """A copy of a tokenizer with a chat template."""
    from copy import deepcopy

    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def small_tokenizer(template: str | None = ZEPHYR) -> Any:
    """Byte-level BPE that has hardly any merges, and so a token for every letter."""
    tokenizer = train_bpe(["what is some text", "relevance of the passages", "passage query"] * 5, vocab_size=300)
    tokenizer.chat_template = template
    return tokenizer


def plain(**settings: Any) -> Prompt:
    """A prompt without a chat, of which a test says what matters."""
    shown = (Turn("user", settings.pop("text", "{query}:\n{documents}Answer:")),)
    defaults: dict[str, Any] = {"asks": "order", "document": "[{label}] {document}\n", "parse": "numbers"}
    return Prompt(**defaults | {"name": "plain", "turns": shown, "chat": "none", "answer": "[{label}]"} | settings)


def render(prompt: Prompt, tokenizer: Any, query: Query, documents: list[Document], **settings: Any) -> Rendered:
    return Renderer(prompt, tokenizer, **settings).render(query, documents)


def decoded(tokenizer: Any, rendered: Any) -> list[str]:
    return [tokenizer.decode(rendered.ids[span]) for span in rendered.spans]
