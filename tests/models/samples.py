"""A few queries and documents of very different lengths, and a small model of every family."""

from copy import deepcopy

import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from shortlist.records import Document, Query

QUERIES = [Query("q1", "what is a searcher"), Query("q2", "who ranks"), Query("q3", "why")]
DOCUMENTS = [
    Document("d1", "A retriever finds a long list, a reranker turns it into a short one.", title="Two stages"),
    Document("d2", "short"),
    Document("d3", "What every reader of lists has known for long: who ranks first is read first. " * 2),
    Document("d4", "", title="only a title"),
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
TEXTS = [q.text for q in QUERIES] + [f"{d.title} {d.text}" for d in DOCUMENTS]

_SHAPE = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
_SHAPE |= {"num_attention_heads": 4, "initializer_range": 0.2, "pad_token_id": 0}
_GROUPED = _SHAPE | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 32}
_WINDOW = {"sliding_window": 4}
_HYBRID = {"layer_types": ["sliding_attention", "full_attention"]}

DECODERS = {
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, **_WINDOW),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen2-windows": Qwen2Config(**_GROUPED, **_WINDOW, **_HYBRID, use_sliding_window=True),
    "qwen3": Qwen3Config(**_WIDE),
    "gemma": GemmaConfig(**_WIDE),
    "gemma2": Gemma2Config(**_WIDE, **_WINDOW, **_HYBRID),
    "gemma3": Gemma3TextConfig(**_WIDE, **_WINDOW, **_HYBRID),
}
ENCODERS = {
    "bert": BertConfig(**_SHAPE),
    "roberta": RobertaConfig(**_SHAPE),
    "modernbert": ModernBertConfig(**_SHAPE, local_attention=4),
    "distilbert": DistilBertConfig(
        vocab_size=100, dim=64, hidden_dim=128, n_layers=2, n_heads=4, initializer_range=0.2, pad_token_id=0
    ),
    "embedding-gemma": Gemma3TextConfig(**_WIDE, **_WINDOW, **_HYBRID, use_bidirectional_attention=True),
}
"""Of the last one the code is a decoder's; made to see both ways by its own configuration."""

FAMILIES = DECODERS | ENCODERS


def small(family: str, **options: str | None) -> PreTrainedModel:
    """A model of two layers, random weights; windows shorter than its texts where the family has windows."""
    torch.manual_seed(0)
    return AutoModel.from_config(deepcopy(FAMILIES[family]), **options).eval()
