"""Texts, and an adapter, that the tests of exporting share."""

from pathlib import Path

import pytest
from named import reranker_to_train, retriever_to_train
from tiny import shaken

from shortlist.models.adapters import Lora, add_lora
from shortlist.models.save import save_model
from shortlist.records import Document, Query

with_every_tokenizer = pytest.mark.parametrize("base", ["sentencepiece", "cl100k"], indirect=True)
QUERIES = [Query("1", "what is a shortlist"), Query("2", "Who ranks first in 1999?"), Query("3", "naïve café")]
DOCUMENTS = [
    Document("1", "A retriever finds a long list; a reranker turns it into a short one.", title="Two stages"),
    Document("2", "(short)"),
    Document("3", "東京 is the capital of Japan 🦙 and 3.14159 is about pi. " * 8),
]


def adapter_of(kind: str, base: Path, folder: Path) -> Path:
    """A LoRA adapter that has moved every weight that it may move."""
    model = retriever_to_train(str(base)) if kind == "retriever" else reranker_to_train(str(base), seed=0)
    adapter = add_lora(model.backbone, Lora(r=4, alpha=8))
    save_model(shaken(model), folder, adapter=adapter, base=str(base))
    return folder
