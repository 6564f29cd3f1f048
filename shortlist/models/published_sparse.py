"""Input contracts of learned sparse models from other tools, read from their files.

These are folders of sentence-transformers' SparseEncoder, and OpenSearch's, whose queries need no model.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortlist.data.files import optional_json
from shortlist.errors import UserError
from shortlist.models.modules import MODULES, backbone_folder, list_modules, list_routes, longest_text
from shortlist.text.contract import TERMS_MAX, TERMS_SUM, Form, InputContract, Reading, named_contract
from shortlist.text.special_tokens import around_one
from shortlist.text.templates import literal
from shortlist.text.tokenizer import load_tokenizer

ENCODER_SETTINGS = "config_sentence_transformers.json"
SPARSE_ENCODER = "SparseEncoder"
"""The type of model in ENCODER_SETTINGS."""
POOLING, STATIC = "SpladePooling", "SparseStaticEmbedding"
"""Modules of a SparseEncoder: weights of terms from logits, and a list of weights."""
TRANSFORMERS = ("Transformer", "MLMTransformer")
"""Names of the module with the backbone; the second is the older one."""
POOLINGS = {"max": TERMS_MAX, "sum": TERMS_SUM}
LOGS = {"relu": 1, "log1p_relu": 2}
"""What SpladePooling calls its activations -> how often the logarithm is applied."""
LOOKUP_FILE = "idf.json"
TWO_LOGS = r".*opensearch-neural-sparse-encoding-doc-v3-.*"
"""Names of OpenSearch's models that apply the logarithm twice."""


def sparse_contract(name: str, folder: Path) -> InputContract | None:
    """Read the contract of a sparse model of another tool.

    The result is None if the folder holds no such model.

    Args:
        name: the model's name, as on the command line.

    Raises:
        UserError: the files ask for something that is not supported.
    """
    if (folder / MODULES).exists():
        kinds = [kind for kind, _ in (*list_modules(folder), *list_routes(folder, "document"))]
        typed = optional_json(folder / ENCODER_SETTINGS).get("model_type") == SPARSE_ENCODER
        return _of_sparse_encoder(folder) if typed or {POOLING, "MLMTransformer"} & set(kinds) else None
    if not (folder / LOOKUP_FILE).exists():
        return None
    found = named_contract("splade-doc")
    return replace(found, reading=replace(found.reading, logs=2 if re.fullmatch(TWO_LOGS, name) else 1))


def _of_sparse_encoder(folder: Path) -> InputContract:
    """Read the settings of a SparseEncoder, whose queries may take a way of their own."""
    documents, queries = list_routes(folder, "document"), list_routes(folder, "query")
    routed = bool(documents or queries)
    modules = _expected(folder, documents if routed else list_modules(folder), (TRANSFORMERS, (POOLING,)), "documents")
    if routed:
        _expected(folder, queries, ((STATIC,),), "queries")
    settings = optional_json(modules[1] / "config.json")
    strategy, activation = settings.get("pooling_strategy", "max"), settings.get("activation_function", "relu")
    if strategy not in POOLINGS or activation not in LOGS:
        raise UserError(
            f"{modules[1]}: pools by {strategy!r} of {activation!r}; expected {' or '.join(POOLINGS)} of "
            f"{' or '.join(LOGS)}."
        )
    backbone = backbone_folder(folder)
    tokenizer = load_tokenizer(backbone)
    prompts = optional_json(folder / ENCODER_SETTINGS).get("prompts") or {}
    known = optional_json(backbone / "sentence_bert_config.json")
    longest = known.get("max_seq_length") or longest_text(backbone, tokenizer)
    start, end = around_one(tokenizer)
    document = (prompts.get("document") or prompts.get("passage") or "", "{title} {text}")
    query = literal(prompts.get("query") or "") + "{query}"
    form = Form(
        query=(query,) if routed else (*start, query, *end),
        document=(*start, literal(document[0]) + document[1], *end),
        query_length=longest,
        document_length=longest,
        queries_marked=routed,
    )
    reading = Reading(pooling=POOLINGS[strategy], normalize=False, logs=LOGS[activation])
    return InputContract(form, replace(reading, queries="lookup") if routed else reading)


def _expected(folder: Path, found: Sequence[tuple[str, Path]], kinds: Sequence[Sequence[str]], what: str) -> list[Path]:
    """Return the folders of modules that are of these kinds, in order.

    Raises:
        UserError: they are others.
    """
    fits = len(found) == len(kinds) and all(kind in known for (kind, _), known in zip(found, kinds, strict=True))
    if not fits:
        names: Any = ", ".join(kind for kind, _ in found) or "none"
        raise UserError(
            f"{folder / MODULES}: encodes {what} by the modules {names}; expected "
            f"{', then '.join(' or '.join(known) for known in kinds)}."
        )
    return [path for _, path in found]
