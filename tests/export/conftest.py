"""Models over LLaMA's own tokenizer."""

from pathlib import Path

import pytest
from exporting import write_base, write_reranker, write_retriever

from shortlist.text.tokenizer import from_sentencepiece


@pytest.fixture(scope="session")
def base(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = from_sentencepiece(shared_data / "llama-tokenizer/tokenizer.model")
    return write_base(tokenizer, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def retriever(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retriever(base, tmp_path_factory.mktemp("retriever"))


@pytest.fixture(scope="session")
def reranker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(base, tmp_path_factory.mktemp("reranker"))
