"""Texts, and an adapter, that the tests of exporting share."""

from pathlib import Path
from typing import Any

import torch
from named import reranker_to_train, retriever_to_train
from tiny import shaken
from transformers import LlamaConfig, LlamaForCausalLM

from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.save import save_model
from shortlist.records import Document, Query

QUERIES = [Query("1", "what is a shortlist"), Query("2", "Who ranks first in 1999?"), Query("3", "naïve café")]
DOCUMENTS = [
    Document("1", "A retriever finds a long list; a reranker turns it into a short one.", title="Two stages"),
    Document("2", "(short)"),
    Document("3", "東京 is the capital of Japan 🦙 and 3.14159 is about pi. " * 8),
]


def write_base(tokenizer: Any, folder: Path) -> Path:
    """A small LLaMA over a tokenizer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_retriever(base: Path, folder: Path) -> Path:
    save_model(retriever_to_train(str(base)), folder)
    return folder


def write_reranker(base: Path, folder: Path, head: float = 20) -> Path:
    model = reranker_to_train(str(base), seed=0)
    model.head.data *= head
    save_model(model, folder)
    return folder


def adapter_of(kind: str, base: Path, folder: Path) -> Path:
    """A LoRA adapter that has moved every weight that it may move."""
    model = retriever_to_train(str(base)) if kind == "retriever" else reranker_to_train(str(base), seed=0)
    adapter = add_adapter(model.backbone, make_adapter("lora", r=4, alpha=8))
    save_model(shaken(model), folder, adapter=adapter, base=str(base))
    return folder
