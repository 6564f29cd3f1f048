"""Folders of learned sparse models for sentence-transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shortlist.data.files import write_json
from shortlist.errors import UserError
from shortlist.export.tokenizer import for_single_texts
from shortlist.export.tools import save_tokenizer, write_old_names
from shortlist.models.backbone import is_decoder
from shortlist.models.folder import CONTRACT, ModelFolder
from shortlist.models.published_sparse import ENCODER_SETTINGS, LOGS, POOLING, POOLINGS, SPARSE_ENCODER, STATIC
from shortlist.models.save import save_model
from shortlist.text.contract import is_token
from shortlist.text.inputs import Inputs
from shortlist.text.templates import literal, prompt

TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Router": "sentence_transformers.base.modules.router.Router",
    POOLING: "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
    STATIC: "sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding",
}
NEVER = -1e4
"""The bias of terms that are left out: no logit rises above 0 with it."""


def write_sparse_encoder(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a folder that SparseEncoder of sentence-transformers 6 opens.

    Terms that are left out get a bias that keeps them at 0. Queries are cut at the length of documents, unless they are
    looked up.

    Raises:
        UserError: the contract cannot be expressed in these files.
    """
    _check(model, source.name)
    if len(left_out := model.left_out):
        with torch.no_grad():
            model.head.bias[left_out] = NEVER
    inputs, looked_up = model.inputs, model.reading.queries == "lookup"
    form = replace(inputs.form, queries_marked=False)
    pieces = (piece if is_token(piece) else literal(prompt(piece)) + "{query}" for piece in form.document)
    alike = replace(form, query=tuple(pieces)) if looked_up else form
    tokenizer, prompts = for_single_texts(Inputs(alike, inputs.tokenizer))
    tokenizer.model_max_length = form.document_length
    if looked_up:
        prompts["query"] = next(prompt(piece) for piece in form.query if not is_token(piece))
    document, query = "document_0_Transformer" if looked_up else "", "query_0_" + STATIC
    pooling = f"document_1_{POOLING}" if looked_up else f"1_{POOLING}"
    _write_document_modules(model, folder, tokenizer, document, pooling)
    if looked_up:
        _write_lookup(model, folder / query)
        (folder / document / CONTRACT).rename(folder / CONTRACT)
        routes = {query: TYPES[STATIC], document: TYPES["Transformer"], pooling: TYPES[POOLING]}
        router: dict[str, Any] = {"types": routes, "structure": {"query": [query], "document": [document, pooling]}}
        known = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
        write_json(folder / "router_config.json", router | {"parameters": known})
    kinds = {"": "Router"} if looked_up else {"": "Transformer", pooling: POOLING}
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": TYPES[kind]}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", listed)
    settings = {"model_type": SPARSE_ENCODER, "similarity_fn_name": "dot", "default_prompt_name": None}
    write_json(folder / ENCODER_SETTINGS, settings | {"prompts": prompts})


def _write_document_modules(model: Any, folder: Path, tokenizer: Any, place: str, pooling: str) -> None:
    """Write the language model, and the module that pools its logits."""
    save_model(model, folder / place)
    save_tokenizer(tokenizer, folder / place)
    write_old_names(folder / place)
    logits = {"text": {"method": "forward", "method_output_name": "logits"}}
    task = {"transformer_task": "fill-mask", "modality_config": logits, "module_output_name": "token_embeddings"}
    write_json(folder / place / "sentence_bert_config.json", task)
    (folder / pooling).mkdir()
    strategy = next(name for name, ours in POOLINGS.items() if ours == model.reading.pooling)
    activation = next(name for name, logs in LOGS.items() if logs == model.reading.logs)
    known = {"pooling_strategy": strategy, "activation_function": activation, "embedding_dimension": model.num_terms}
    write_json(folder / pooling / "config.json", known)


def _write_lookup(model: Any, folder: Path) -> None:
    """Write the weights of queries' terms, and the tokenizer that reads queries."""
    folder.mkdir(parents=True)
    tokenizer = model.inputs.tokenizer
    save_tokenizer(tokenizer, folder)
    weights = model.looked_up[: len(tokenizer)].detach().float().contiguous()
    save_file({"weight": weights}, folder / "model.safetensors")
    write_json(folder / "config.json", {"frozen": True})


def _check(model: Any, name: str) -> None:
    """Refuse what SparseEncoder has no module for.

    Raises:
        UserError: the model needs such a thing.
    """
    reading, form = model.reading, model.inputs.form
    for what, found in (
        ("weighs the tokens of a text by a linear layer", "tokens" in (reading.weighing, reading.queries)),
        ("is a decoder", is_decoder(model.backbone)),
        ("reads texts twice", form.echo),
        ("multiplies its logits", reading.logit_scale != 1),
        ("applies the logarithm more than twice", reading.logs not in LOGS.values()),
        ("keeps some of the terms", reading.keep_terms or reading.keep_query_terms),
        ("skips tokens", bool(form.skipped)),
        (
            "leaves terms out, and its head has no bias",
            len(model.left_out) and getattr(model.head, "bias", None) is None,
        ),
    ):
        if found:
            raise UserError(f"{name}: {what}, for which sentence-transformers has no module; export it as merged.")
