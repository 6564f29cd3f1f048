"""Models over real tokenizers: SentencePiece (LLaMA's) and byte-level BPE."""

from pathlib import Path
from typing import Any

import pytest
import torch
from named import reranker_to_train, retriever_to_train
from transformers import LlamaConfig, LlamaForCausalLM

from shortlist.models.save import save_model
from shortlist.text.tokenizer import from_sentencepiece


@pytest.fixture(scope="session")
def sentencepiece(shared_data: Path) -> Any:
    return from_sentencepiece(shared_data / "llama-tokenizer/tokenizer.model")


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA over a real tokenizer: SentencePiece, or what the test asks for with `with_every_tokenizer`."""
    name = getattr(request, "param", "sentencepiece")
    tokenizer = request.getfixturevalue(name)
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def retriever(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever")
    save_model(retriever_to_train(str(base)), folder)
    return folder


@pytest.fixture(scope="session")
def reranker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    model = reranker_to_train(str(base), seed=0)
    model.head.data *= 20
    save_model(model, folder)
    return folder
