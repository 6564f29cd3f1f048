"""Stage `inspect`: describe a model, and show how it reads a query and a document."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import tyro
from safetensors import safe_open

from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import KINDS, for_kind, load_model
from shortlist.records import Document, Query
from shortlist.text.contract import PER_TOKEN, TEMPLATES, Form, InputContract, Reading, is_token
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR, UNREAD, unmarked
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer

SAMPLE_QUERY = "what is a shortlist"
SAMPLE_DOCUMENT = "A list of the few candidates that are looked at closely, chosen from a long list."


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """Retriever or reranker: folder or hub name."""
    query: str = SAMPLE_QUERY
    """Text of the example's query."""
    document: tuple[str, ...] = (SAMPLE_DOCUMENT,)
    """Text of the example's document; several for a prompt that shows several."""
    title: str = ""
    """Title of the example's document, or of the first one."""
    prompt: str | None = None
    """Prompt by name, such as `rank-zephyr`: show the text and the ids that a language model reads."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    json: bool = False
    """Print JSON."""


class Shown(NamedTuple):
    """Functions that describe a kind of model."""

    head: Callable[[Any], str | None]
    """Describes the head on top of its backbone."""
    meaning: Callable[[Any], str]
    """Describes the meaning of its score."""


def _dense_head(model: Any) -> str | None:
    from shortlist.models.dense import DenseLayer

    count = sum(isinstance(layer, DenseLayer) for layer in model.dense)
    return f"{count} dense layers" if count else None


def _similarity(model: Any) -> str:
    return "cosine" if model.reading.normalize else "dot product"


def _pointwise_head(model: Any) -> str | None:
    return f"a vector of {model.head.shape[1]}, length {float(model.head.detach().norm()):.4g}"


def _pointwise_meaning(model: Any) -> str:
    answer = model.reading.answer
    if answer:
        return f"logit of {answer[0]!r}" + (f" less that of {answer[1]!r}" if len(answer) > 1 else "")
    return "the head's product with the pooled state"


def _classifier_head(model: Any) -> str | None:
    return f"{type(model.backbone).__name__}'s own, labels: {model.backbone.config.num_labels}"


def _late_head(model: Any) -> str | None:
    layers = "a layer" if len(model.layers) == 1 else f"{len(model.layers)} layers"
    return f"{layers} for each token, to vectors of {model.row_shape[0]}"


def _sparse_head(model: Any) -> str | None:
    weighs = {"vocabulary": "the language model's, for each term", "tokens": "a layer that weighs each token"}
    queries = {"": "", "lookup": "; queries are looked up", "tokens": "; a layer that weighs each token of queries"}
    return weighs[model.reading.weighing] + queries[model.reading.queries]


SHOWN = {
    "sparse": Shown(_sparse_head, lambda model: "the products of the weights of shared terms, added up"),
    "late": Shown(_late_head, lambda model: "the best similarity to a document's token, added up over the query's"),
    "retriever": Shown(_dense_head, _similarity),
    "reranker": Shown(_pointwise_head, _pointwise_meaning),
    "classifier": Shown(_classifier_head, lambda model: "the classifier's logit"),
}
"""Descriptions by kind of model."""

UNKNOWN = Shown(lambda model: None, lambda model: f"the score of a {model.kind}")
"""Description of any other kind of model."""


def _alone(model: Any, query: Query, document: Document) -> tuple[dict[str, list[int]], float]:
    """Compute the token ids of a query and a document, read separately, and their score."""
    ids = {"query": model.inputs.query_ids([query])[0], "document": model.inputs.document_ids([document])[0]}
    return ids, for_kind(SIMILARITY, model.kind)(model, query, document)


def _dot_product(model: Any, query: Query, document: Document) -> float:
    from shortlist.models.run import embed_documents, embed_queries

    return float(embed_queries(model, [query])[0] @ embed_documents(model, [document])[0])


def _best_matches(model: Any, query: Query, document: Document) -> float:
    from shortlist.models.late_retriever import LateRetriever

    return float(LateRetriever(model).score(query, document))


def _shared_terms(model: Any, query: Query, document: Document) -> float:
    from shortlist.models.sparse_retriever import SparseRetriever

    return float(SparseRetriever(model).score(query, document))


TERMS_SHOWN = 30
"""Most terms of a text whose weights are shown on the page; --json has all."""

SIMILARITY = {"retriever": _dot_product, "late": _best_matches, "sparse": _shared_terms}
"""Functions that score a document for a query, by kind of model or role."""


def term_weights(model: Any, query: Query, document: Document) -> dict[str, dict[str, float]]:
    """Compute the weights of a query's and a document's terms, the greatest first."""
    from shortlist.models.sparse_retriever import SparseRetriever

    retriever, found = SparseRetriever(model), {}
    encoded = {"query": retriever.encode_queries(query), "document": retriever.encode_documents(document)}
    for kind, weights in encoded.items():
        order = (-weights.weights).argsort(kind="stable")
        numbers, values = weights.terms[order].tolist(), weights.weights[order].tolist()
        found[kind] = {
            retriever.terms[number] or str(number): value for number, value in zip(numbers, values, strict=True)
        }
    return found


def _together(model: Any, query: Query, document: Document) -> tuple[dict[str, list[int]], float]:
    """Compute the token ids of a pair, and its score."""
    from shortlist.models.run import score_pairs

    return {"pair": model.inputs.pair_ids([(query, document)])[0]}, float(score_pairs(model, [(query, document)])[0])


READ = {"document": _alone, "pair": _together}
"""Functions to read an example, by the kind of input that a model reads."""


def inspect(model: Any, query: Query, document: Document) -> dict[str, Any]:
    """Run the model on a query and a document; returns tokens, pooled position and score."""
    inputs, pooling = model.inputs, model.reading.pooling
    examples, score = READ[KINDS[model.kind].reads](model, query, document)
    pooled = {"last": lambda ids: len(ids) - 1, "cls": lambda ids: 0}.get(pooling, lambda ids: None)
    return {
        "examples": {
            kind: {
                "ids": unmarked(ids),
                "pieces": inputs.tokenizer.convert_ids_to_tokens(unmarked(ids)),
                "pooled": pooled(ids),
                **({"gives": [_gives(token) for token in ids]} if pooling == PER_TOKEN else {}),
            }
            for kind, ids in examples.items()
        },
        **({"terms": term_weights(model, query, document)} if model.kind == "sparse" else {}),
        "score": score,
        "score_is": SHOWN.get(model.kind, UNKNOWN).meaning(model),
    }


def _gives(token: int) -> str:
    """Say what a token of late interaction does, which the marks of its id tell."""
    return "" if token & NO_VECTOR else "vector, read by no other token" if token & UNREAD else "vector"


def describe(folder: ModelFolder, model: Any) -> dict[str, Any]:
    """Describe the model: architecture, weights, head, tokenizer, contract and origin."""
    config, tokenizer = model.backbone.config, model.inputs.tokenizer
    manifest = read_manifest(folder.path) or {}
    origin = {key: manifest[key] for key in ("stage", "version", "commit", "finished", "results") if key in manifest}
    return {
        "model": folder.name,
        "kind": KINDS[model.kind].role,
        "architecture": type(model.backbone).__name__,
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": config.hidden_size,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtypes": _dtypes(folder),
        "head": SHOWN.get(model.kind, UNKNOWN).head(model),
        "tokenizer": {"size": len(tokenizer), **_special_tokens(model.inputs)},  # type: ignore[arg-type]
        "contract": model.contract.to_dict(),
        "manifest": origin or None,
    }


def _dtypes(folder: ModelFolder) -> dict[str, int]:
    """Count the numbers in a model's files by their type."""
    counts: Counter[str] = Counter()
    for path in folder.weight_files:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                part = weights.get_slice(key)
                counts[part.get_dtype()] += prod(part.get_shape())
    return dict(counts)


def _special_tokens(inputs: Inputs) -> dict[str, Any]:
    names = ("bos_token", "eos_token", "cls_token", "sep_token")
    tokens = {name: getattr(inputs.tokenizer, name) for name in names}
    return {name: token for name, token in tokens.items() if token is not None} | {"pad_id": inputs.pad_id}


def run(config: Config) -> None:
    """Load the model, and print its description and the example, or print a prompt."""
    if config.prompt is not None:
        _print_prompt(config)
        return
    if len(config.document) != 1:
        raise UserError(f"--document has {len(config.document)} texts; expected one, or say --prompt to show several.")
    [document] = config.document
    if not config.query.strip() or not (document.strip() or config.title.strip()):
        raise UserError("--query and --document need text; leave them out for an example.")
    folder = open_folder(config.model)
    contract = folder.any_contract(config.contract)
    from shortlist.models.run import for_inference

    model = load_model(folder, "pair" if contract.form.pair else "document", contract)
    found = describe(folder, model)
    for_inference(model)
    found |= inspect(model, Query("query", config.query), Document("document", document, title=config.title))
    print(json.dumps(found, ensure_ascii=False, indent=2) if config.json else _page(found))


def _print_prompt(config: Config) -> None:
    """Print the prompt about the example's documents; only the model's tokenizer is loaded."""
    renderer = Renderer(named_prompt(str(config.prompt)), open_folder(config.model, weights=False).tokenizer)
    documents = [Document(str(place), text) for place, text in enumerate(config.document, 1)]
    documents[0] = documents[0]._replace(title=config.title)
    found = show_prompt(renderer, Query("query", config.query), documents)
    print(json.dumps(found, ensure_ascii=False, indent=2) if config.json else _prompt_page(found))


def show_prompt(renderer: Renderer, query: Query, documents: Sequence[Document]) -> dict[str, Any]:
    """Describe a prompt: text, ids, tokens of query and documents, ids of labels."""
    prompt, rendered = renderer.prompt, renderer.render(query, documents)
    labels = prompt.choices(len(documents)).labels
    return {
        "prompt": prompt.name,
        "asks": prompt.asks,
        "reads": renderer.reads,
        "text": rendered.text,
        "ids": rendered.ids,
        "pieces": renderer.tokenizer.convert_ids_to_tokens(rendered.ids),
        "documents": [[span.start, span.stop] for span in rendered.spans],
        "query": [[span.start, span.stop] for span in rendered.query_spans],
        "marks": rendered.marks,
        "labels": dict(zip(labels, map(list, rendered.labels), strict=False)),
        "begins": rendered.begins,
        "answer_tokens": rendered.answer_tokens,
    }


def _prompt_page(found: dict[str, Any]) -> str:
    parts = {place: f"document {number}" for number, span in enumerate(found["documents"], 1) for place in range(*span)}
    parts |= {place: "query" for span in found["query"] for place in range(*span) if place not in parts}
    parts |= dict.fromkeys(found["marks"], "mark")
    lines = [
        f"prompt {found['prompt']}, asks for: {found['asks']}",
        "",
        found["text"],
        "",
        f"{len(found['ids'])} tokens",
    ]
    for place, (token_id, piece) in enumerate(zip(found["ids"], found["pieces"], strict=True)):
        lines.append(f"  {place:4}  {token_id:7}  {piece}" + (f"  <- {parts[place]}" if place in parts else ""))
    if found["labels"]:
        ids = (f"{label} {' '.join(map(str, path))}" for label, path in found["labels"].items())
        return "\n".join([*lines, "", f"labels, read behind the last token: {', '.join(ids)}"])
    begins = f", behind {found['begins']!r}" if found["begins"] else ""
    return "\n".join([*lines, "", f"the answer has at most {found['answer_tokens']} tokens{begins}"])


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
        **({"feedback": _feedback(form)} if form.feedback else {}),
        "pooling": reading.pooling + (", of length 1" * reading.normalize) + (", both ways" * reading.bidirectional),
        **({"dimensions": dimensions} if (dimensions := _dimensions(reading)) else {}),
        **({"filled up": _filled(form)} if form.expansion else {}),
        **({"no vector": _skipped(form)} if form.skipped else {}),
        "manifest": _origin(found["manifest"]),
    }
    lines = [f"{name:<11}{text}" for name, text in rows.items()]
    for kind, example in found["examples"].items():
        lines += ["", f"example {kind}: {len(example['ids'])} tokens"]
        for place, (token_id, piece) in enumerate(zip(example["ids"], example["pieces"], strict=True)):
            pooled = reading.pooling not in ("last", "cls") or place == example["pooled"]
            said = example["gives"][place] if "gives" in example else "pooled" if pooled else ""
            lines.append(f"  {place:4}  {token_id:7}  {piece}" + (f"  <- {said}" if said else ""))
        weights = found.get("terms", {}).get(kind, {})
        if weights:
            shown = [f"{name} {weight:.3f}" for name, weight in list(weights.items())[:TERMS_SHOWN]]
            lines += [f"  weights of {len(weights)} terms, the greatest first:", *(f"    {one}" for one in shown)]
    return "\n".join([*lines, "", f"score {found['score']:.6f} ({found['score_is']})"])


def _dimensions(reading: Reading) -> str:
    """Say what vectors are cut to, and may be cut to."""
    cut = [f"cut to {reading.cut}"] if reading.cut else []
    return ", ".join([*cut, *([f"trained for {', '.join(map(str, reading.dims))}"] if reading.dims else [])])


def _filled(form: Form) -> str:
    """Say what queries are filled up with."""
    read = "which are read like others" if form.expansion_read else "which no other token reads"
    return f"queries, with {form.expansion} to {form.expansion_length or form.query_length} tokens, {read}"


def _skipped(form: Form) -> str:
    """List the tokens that give no vector."""
    where = "queries and documents" if form.skipped_in_queries else "documents"
    return f"{' '.join(form.skipped)} in {where}"


def _template(form: Form, kind: str) -> str:
    return f"{_pieces(getattr(form, kind))}, at most {getattr(form, f'{kind}_length')} tokens"


def _pieces(template: Sequence[str]) -> str:
    return " ".join(piece if is_token(piece) else json.dumps(piece, ensure_ascii=False) for piece in template)


def _feedback(form: Form) -> str:
    return f"{_pieces(form.feedback)}, behind the query, for each of at most {form.feedback_docs} documents"


def _origin(manifest: dict[str, Any] | None) -> str:
    if manifest is None:
        return "none: not made by a command of ours"
    results = ", ".join(f"{name} {value}" for name, value in manifest.get("results", {}).items())
    return f"made by `{manifest['stage']}`, version {manifest['version']}, commit {manifest['commit']}: {results}"
