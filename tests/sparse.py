"""Tiny learned sparse models with random weights, in the layouts of other tools."""

import json
from pathlib import Path
from typing import Any

import torch
from late import TEXTS as LATE_TEXTS
from late import bert_tokenizer
from tiny import SHAPE
from transformers import BertConfig, BertForMaskedLM

TEXTS = [text for text in LATE_TEXTS if text]


def masked_bert(seed: int = 0, **settings: Any) -> BertForMaskedLM:
    """A BERT of one layer with its masked-language-model head, and a bias that leaves some terms out."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"vocab_size": len(bert_tokenizer()), "pad_token_id": 0, **SHAPE, **settings}
    model = BertForMaskedLM(BertConfig(**options | {"initializer_range": 0.5})).eval()
    torch.nn.init.normal_(model.cls.predictions.bias, -0.5)
    return model


def write_masked(folder: Path, **settings: Any) -> Path:
    """A plain masked language model."""
    masked_bert(**settings).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def write_encoder(folder: Path, backbone: Path, *, lookup: bool = False, old: bool = False, **pooling: Any) -> Path:
    """A SparseEncoder, saved by sentence-transformers itself; with `old` under the older name of its first module."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    transformer = Transformer(str(backbone), transformer_task="fill-mask", max_seq_length=12)
    modules: list[Any] = [transformer, SpladePooling(**pooling)]
    if lookup:
        torch.manual_seed(4)
        tokenizer: Any = transformer.tokenizer
        static = SparseStaticEmbedding(tokenizer, weight=torch.rand(len(tokenizer)), frozen=True)
        modules = [Router.for_query_document(query_modules=[static], document_modules=modules)]
    prompts = {} if lookup else {"query": "which ", "document": "the "}
    SparseEncoder(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    if old:
        path = folder / "modules.json"
        old_name = "sentence_transformers.sparse_encoder.models.MLMTransformer"
        path.write_text(
            path.read_text().replace("sentence_transformers.base.modules.transformer.Transformer", old_name)
        )
    return folder


def write_opensearch(folder: Path, **changes: float) -> Path:
    """An inference-free model of OpenSearch's older layout: weights of queries' terms in a JSON file."""
    write_masked(folder)
    names = sorted(bert_tokenizer().get_vocab())
    weights = {name: 0.5 + number / 10 for number, name in enumerate(names)} | changes
    (folder / "idf.json").write_text(json.dumps(weights))
    return folder
