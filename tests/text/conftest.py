from pathlib import Path
from typing import Any

import pytest
from chats import small_tokenizer

from shortlist.text.tokenizer import from_sentencepiece


@pytest.fixture(scope="session")
def llama(shared_data: Path) -> Any:
    """The tokenizer of LLaMA 1 and 2, whose words begin with `▁`."""
    return from_sentencepiece(shared_data / "llama-tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def small() -> Any:
    """A small tokenizer with a chat template."""
    return small_tokenizer()
