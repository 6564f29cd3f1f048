"""Stage `inspect`: what a model is, and what it makes of a query and a document, token by token."""

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import tyro
from safetensors import safe_open

from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.checkpoint import any_contract, load_reranker, load_retriever, local_folder, weight_files
from shortlist.models.reranker import AnyReranker, CrossEncoder
from shortlist.models.retriever import Retriever
from shortlist.models.run import for_inference
from shortlist.records import Document, Query
from shortlist.text.contract import SPECIAL, TEMPLATES, Form, InputContract
from shortlist.text.inputs import Inputs

QUERY = "what is a shortlist"
DOCUMENT = "A list of the few candidates that are looked at closely, chosen from a long list."


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """Retriever or reranker: folder or hub name."""
    query: str = QUERY
    """Text of the example's query."""
    document: str = DOCUMENT
    """Text of the example's document."""
    title: str = ""
    """Its title."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    json: bool = False
    """Print JSON."""


def inspect(model: Retriever | AnyReranker, query: Query, document: Document) -> dict[str, Any]:
    """What the model makes of a query and a document: tokens, which of them is pooled, and the score."""
    inputs, pooling = model.inputs, model.reading.pooling
    if isinstance(model, Retriever):
        examples = {"query": inputs.query_ids([query])[0], "document": inputs.document_ids([document])[0]}
        score = float(model.encode_queries([query])[0] @ model.encode_documents([document])[0])
    else:
        examples = {"pair": inputs.pair_ids([(query, document)])[0]}
        score = float(model.score(query, [document])[0])
    pooled = {"last": lambda ids: len(ids) - 1, "cls": lambda ids: 0}.get(pooling, lambda ids: None)
    return {
        "examples": {
            kind: {"ids": ids, "pieces": inputs.tokenizer.convert_ids_to_tokens(ids), "pooled": pooled(ids)}
            for kind, ids in examples.items()
        },
        "score": score,
        "score_is": _meaning(model),
    }


def _meaning(model: Retriever | AnyReranker) -> str:
    if isinstance(model, Retriever):
        return "cosine" if model.reading.normalize else "dot product"
    answer = model.reading.answer
    if answer:
        return f"logit of {answer[0]!r}" + (f" less that of {answer[1]!r}" if len(answer) > 1 else "")
    return "the classifier's logit" if isinstance(model, CrossEncoder) else "the head's product with the pooled state"


def describe(name: str, model: Retriever | AnyReranker) -> dict[str, Any]:
    """What the model is: architecture, weights, head, tokenizer, contract, where it came from."""
    config, tokenizer = model.backbone.config, model.inputs.tokenizer
    manifest = read_manifest(local_folder(name)) or {}
    origin = {key: manifest[key] for key in ("stage", "version", "commit", "finished", "results") if key in manifest}
    return {
        "model": name,
        "kind": "retriever" if isinstance(model, Retriever) else "reranker",
        "architecture": type(model.backbone).__name__,
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": config.hidden_size,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtypes": _dtypes(name),
        "head": _head(model),
        "tokenizer": {"size": len(tokenizer), **_special_tokens(model.inputs)},  # type: ignore[arg-type]
        "contract": model.contract.to_dict(),
        "manifest": origin or None,
    }


def _dtypes(name: str) -> dict[str, int]:
    """How many of the numbers in a model's files have which type."""
    counts: Counter[str] = Counter()
    for path in weight_files(name):
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                part = weights.get_slice(key)
                counts[part.get_dtype()] += prod(part.get_shape())
    return dict(counts)


def _head(model: Retriever | AnyReranker) -> str | None:
    if isinstance(model, Retriever):
        return f"{len(model.dense)} dense layers" if len(model.dense) else None
    if isinstance(model, CrossEncoder):
        return f"{type(model.backbone).__name__}'s own, labels: {model.backbone.config.num_labels}"
    return f"a vector of {model.head.shape[1]}, length {float(model.head.detach().norm()):.4g}"


def _special_tokens(inputs: Inputs) -> dict[str, Any]:
    names = ("bos_token", "eos_token", "cls_token", "sep_token")
    tokens = {name: getattr(inputs.tokenizer, name) for name in names}
    return {name: token for name, token in tokens.items() if token is not None} | {"pad_id": inputs.pad_id}


def run(config: Config) -> None:
    """Load the model and print everything."""
    if not config.query.strip() or not (config.document.strip() or config.title.strip()):
        raise UserError("--query and --document need text; leave them out for an example.")
    form = any_contract(config.model, config.contract).form
    load = load_reranker if form.pair else load_retriever
    model = load(config.model, contract=config.contract)
    found = describe(config.model, model)
    for_inference(model)
    found |= inspect(model, Query("query", config.query), Document("document", config.document, title=config.title))
    print(json.dumps(found, ensure_ascii=False, indent=2) if config.json else _page(found))


def _page(found: dict[str, Any]) -> str:
    contract = InputContract.from_dict(found["contract"], where=found["model"])
    form, reading = contract.form, contract.reading
    special = ", ".join(f"{name} {value}" for name, value in found["tokenizer"].items() if name != "size")
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in found["dtypes"].items())
    rows = {
        "model": f"{found['model']}, a {found['kind']}",
        "backbone": f"{found['architecture']}, {found['layers']} layers, hidden size {found['hidden_size']}",
        "parameters": f"{found['num_parameters']:,} (in its files: {dtypes or 'none'})",
        "head": found["head"] or "none",
        "tokenizer": f"{found['tokenizer']['size']:,} pieces; {special}",
        **{kind: _template(form, kind) for kind in TEMPLATES if getattr(form, kind)},
        "pooling": reading.pooling + (", of length 1" * reading.normalize) + (", both ways" * reading.bidirectional),
        "manifest": _origin(found["manifest"]),
    }
    lines = [f"{name:<11}{text}" for name, text in rows.items()]
    for kind, example in found["examples"].items():
        lines += ["", f"example {kind}: {len(example['ids'])} tokens"]
        for place, (token_id, piece) in enumerate(zip(example["ids"], example["pieces"], strict=True)):
            pooled = reading.pooling == "mean" or place == example["pooled"]
            lines.append(f"  {place:4}  {token_id:7}  {piece}" + ("  <- pooled" if pooled else ""))
    return "\n".join([*lines, "", f"score {found['score']:.6f} ({found['score_is']})"])


def _template(form: Form, kind: str) -> str:
    pieces = (piece if piece in SPECIAL else json.dumps(piece, ensure_ascii=False) for piece in getattr(form, kind))
    return f"{' '.join(pieces)}, at most {getattr(form, f'{kind}_length')} tokens"


def _origin(manifest: dict[str, Any] | None) -> str:
    if manifest is None:
        return "none: not made by a command of ours"
    results = ", ".join(f"{name} {value}" for name, value in manifest.get("results", {}).items())
    return f"made by `{manifest['stage']}`, version {manifest['version']}, commit {manifest['commit']}: {results}"
