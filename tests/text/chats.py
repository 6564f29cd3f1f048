"""Chat templates, and a small tokenizer, for tests of prompts."""

from typing import Any

from shortlist.records import Document, Query
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
DOCUMENTS = [Document("1", "some text"), Document("2", "a number [3] in it", title="A title"), Document("3", "")]


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
