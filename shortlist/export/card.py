"""Model card, made from the model's files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from shortlist.data.files import atomic_write
from shortlist.data.manifest import read_manifest
from shortlist.models.files import base_name, is_adapter
from shortlist.models.folder import ModelFolder
from shortlist.text.contract import PER_TOKEN, SPARSE, TEMPLATES, Form, InputContract, Reading, is_token

CARD = "README.md"
SETTINGS = (
    "prompt",
    "adapter",
    "lora",
    "optimizer",
    "layers_sampled",
    "pooling",
    "dim",
    "scoring",
    "dims",
    "dims_weights",
    "mix_negatives",
    "views",
    "views_weight",
    "epochs",
    "steps",
    "batch_size",
    "negatives",
    "learning_rate",
    "warmup_steps",
    "temperature",
    "loss",
    "distill",
    "teacher_temperature",
    "precision",
    "seed",
)
"""Settings of a training job that the card shows."""


def write_card(model: ModelFolder, folder: Path, contract: InputContract, **options: Any) -> None:
    """Write README.md into a model's folder, unless it has one; options as for `card`."""
    if not (folder / CARD).exists():
        with atomic_write(folder / CARD) as file:
            file.write(card(model, contract, **options))


def card(
    model: ModelFolder,
    contract: InputContract,
    *,
    results: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> str:
    """Write the text of the card of a retriever or reranker.

    Args:
        results: content of results.json from `shortlist evaluate`, to show scores.
        licence: licence of the model (None: the licence of the model it was trained from).
    """
    manifest = read_manifest(model.path) or {}
    config, kind = manifest.get("config", {}), "reranker" if contract.form.pair else "retriever"
    kind = "language model" if config.get("kind") == "language-model" else kind
    kind = "late-interaction retriever" if contract.reading.pooling == PER_TOKEN else kind
    kind = "sparse retriever" if contract.reading.pooling in SPARSE else kind
    base = config.get("backbone") or (base_name(model.path) if is_adapter(model.path) else None)
    front: dict[str, Any] = {"license": licence or _licence(base), "library_name": "shortlist"}
    front |= {
        "pipeline_tag": "text-generation"
        if kind == "language model"
        else "text-ranking"
        if contract.form.pair
        else "feature-extraction",
        "tags": ["shortlist", kind.replace(" ", "-")],
    }
    front |= {"base_model": base} if base and not Path(base).exists() else {}
    sections = [
        f"# {Path(model.name).name}",
        f"A {kind}" + (f", fine-tuned from {_shown(base)}" if base else "") + ", made with shortlist.",
        _training(manifest),
        _inputs(contract.form, contract.reading),
        _scores(results),
        _use(kind, config.get("prompt")),
    ]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _shown(name: str) -> str:
    """Format a hub name, or only the last part of a path.

    The rest of a path would reveal something about the machine.
    """
    return f"`{Path(name).name if Path(name).is_absolute() or Path(name).exists() else name}`"


def _licence(base: str | None) -> str:
    """Read the licence, which the model inherits, from its base's card; `other` if unknown."""
    if base is None or not (Path(base) / CARD).is_file():
        return "other"
    front = re.match(r"---\n(.*?\n)---\n", (Path(base) / CARD).read_text("utf-8"), re.DOTALL)
    try:
        values = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return "other"
    return str(values.get("license", "other")) if isinstance(values, dict) else "other"


def _training(manifest: Mapping[str, Any]) -> str:
    if manifest.get("stage") != "train":
        return ""
    config, results = manifest["config"], manifest.get("results", {})
    off = () if config.get("distill") else ("distill", "teacher_temperature")
    rows = {name: config[name] for name in SETTINGS if config.get(name) not in (None, [], ()) and name not in off}
    rows |= {name: " ".join(map(str, value)) for name, value in rows.items() if isinstance(value, list | tuple)}
    rows |= {name: results[name] for name in ("num_groups", "step", "processes", "seconds") if name in results}
    if config.get("collection"):
        data = f"the split `{config['split']}` of {_shown(config['collection'])}"
        data += f" with the groups {_shown(config['groups'])}" if config.get("groups") else ""
    else:
        data = f"the sources {', '.join(map('`{}`'.format, results.get('sources', {})))}"
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()]
    made = f"Version {manifest['version']}, commit {manifest['commit']}, finished {manifest.get('finished')}."
    return "\n".join(["## Training", "", f"Data: {data}.", "", "| setting | value |", "|---|---|", *lines, "", made])


def _inputs(form: Form, reading: Reading) -> str:
    rows = []
    for kind in TEMPLATES:
        if template := getattr(form, kind):
            pieces = " ".join(f"`{p}`" if is_token(p) else f"`{json.dumps(p, ensure_ascii=False)}`" for p in template)
            rows.append(f"| {kind} | {pieces} | {getattr(form, f'{kind}_length')} |")
    if form.feedback:
        pieces = " ".join(f"`{p}`" if is_token(p) else f"`{json.dumps(p, ensure_ascii=False)}`" for p in form.feedback)
        rows.append(f"| each of {form.feedback_docs} documents behind the query | {pieces} | as the query leaves |")
    pooled = f"Pooling: {reading.pooling}." + (" Vectors have length 1." if reading.normalize and not form.pair else "")
    pooled += _filled(form)
    pooled += f" They may be cut to {', '.join(map(str, reading.dims))} dimensions." if reading.dims else ""
    head = ["## Inputs", "", "Other prompts or a missing end token give other numbers.", ""]
    return "\n".join([*head, "| input | pieces | most tokens |", "|---|---|---|", *rows, "", pooled])


def _filled(form: Form) -> str:
    """Say what fills queries up, and that some tokens of documents have no vector."""
    filled = f" Queries are filled up with `{form.expansion}`." if form.expansion else ""
    return filled + (" Some tokens of documents, such as punctuation, have no vector." if form.skipped else "")


def _scores(results: Mapping[str, Any] | None) -> str:
    if not results:
        return ""
    measures = results["measures"]
    lines = [
        f"| {row['name']} | " + " | ".join(f"{row[measure]:.4f}" for measure in measures) + " |"
        for row in results["rows"]
    ]
    head = f"| run | {' | '.join(measures)} |\n|---|{'---|' * len(measures)}"
    return "\n".join(["## Scores", "", f"Means over {results['queries']} queries.", "", head, *lines])


def _use(kind: str, prompt: str | None = None) -> str:
    if kind == "language model":
        call = (
            f'load_reranker("listwise", model=FOLDER, prompt="{prompt or "first"}").score("query", ["document", "..."])'
        )
        return f"## Use\n\n```python\nfrom shortlist import load_reranker\n\n{call}\n```"
    call = 'encode_queries(["..."])' if kind == "retriever" else 'score("query", ["document", "..."])'
    names = {"late-interaction retriever": "LateRetriever", "sparse retriever": "SparseRetriever"}
    name = names.get(kind, kind.capitalize())
    kind = kind.split()[-1]
    code = f"```python\nfrom shortlist import {name}\n\n{kind} = {name}.load(FOLDER)\n{kind}.{call}\n```"
    return f"## Use\n\n{code}"
