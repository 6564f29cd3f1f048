"""Folders of late-interaction models for sentence-transformers and PyLate."""

from pathlib import Path
from typing import Any

from shortlist.data.files import write_json
from shortlist.errors import UserError
from shortlist.export.tokenizer import for_marked_texts
from shortlist.export.tools import save_tokenizer, write_dense, write_old_names
from shortlist.models.dense import DenseLayer
from shortlist.models.folder import ModelFolder
from shortlist.models.published_late import ENCODER_SETTINGS, MULTI_VECTOR, PYLATE
from shortlist.models.save import save_model
from shortlist.text.contract import Form
from shortlist.text.inputs import find_id
from shortlist.text.templates import token_name

TOKENS_IN = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
"""What modules of sentence-transformers read and write that work on every token."""

TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "MultiVectorMask": "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
PYLATE_TYPES = {"Transformer": "sentence_transformers.models.Transformer", "Dense": "pylate.models.Dense.Dense"}


def write_multi_vector_encoder(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a folder that MultiVectorEncoder of sentence-transformers 6 opens.

    Raises:
        UserError: the contract cannot be expressed in these files.
    """
    _check_whole(model, source.name)
    form: Form = model.inputs.form
    tokenizer, markers, prompts = for_marked_texts(model.inputs)
    behind = ["Dense" if isinstance(layer, DenseLayer) else "Normalize" for layer in model.layers]
    kinds = ["Transformer", *behind, "MultiVectorMask", *(["Normalize"] if model.reading.normalize else [])]
    paths = _write_files(model, folder, tokenizer, [TYPES[kind] for kind in kinds], kinds)
    for layer, path in zip(model.layers, paths[1:], strict=False):
        write_dense(layer, path, **TOKENS_IN) if isinstance(layer, DenseLayer) else write_json(
            path / "config.json", TOKENS_IN
        )
    if model.reading.normalize:
        write_json(paths[-1] / "config.json", TOKENS_IN)
    tasks = ["document", "query"] if form.skipped_in_queries else ["document"]
    mask = {"skiplist_words": _known(model), "skiplist_tasks": tasks, "keep_only_token_ids": None}
    write_json(paths[1 + len(behind)] / "config.json", mask)
    expansion = _expansion(form)
    lengths = {"document_length": form.document_length, "query_length": form.query_length, "query_expansion": expansion}
    write_json(folder / "sentence_bert_config.json", lengths | {"module_output_name": "token_embeddings"})
    marked = {kind: markers[kind] + prompts[kind] for kind in markers}
    known = {"model_type": MULTI_VECTOR, "similarity_fn_name": "maxsim", "default_prompt_name": None}
    write_json(folder / ENCODER_SETTINGS, known | {"prompts": marked})


def write_pylate(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a folder that ColBERT of PyLate opens.

    Raises:
        UserError: the contract cannot be expressed in these files.
    """
    _check_whole(model, source.name)
    form: Form = model.inputs.form
    tokenizer, markers, prompts = for_marked_texts(model.inputs)
    for refused, found in (
        ("PyLate puts markers behind one special token", any(markers.values()) and len(form.query) != 4),
        ("PyLate adds prompts only where it is asked to", any(prompts.values())),
        ("PyLate has vectors of length 1", not model.reading.normalize),
        ("PyLate skips no tokens of queries", form.skipped_in_queries),
        ("PyLate fills queries up to their length, with the mask token", not _is_usual(model)),
        ("PyLate scales nothing between layers", not all(isinstance(layer, DenseLayer) for layer in model.layers)),
    ):
        if found:
            raise UserError(f"{source.name}: {refused}, which its contract does not; use --to sentence-transformers.")
    kinds = ["Transformer", *["Dense"] * len(model.layers)]
    paths = _write_files(model, folder, tokenizer, [PYLATE_TYPES[kind] for kind in kinds], kinds)
    for layer, path in zip(model.layers, paths[1:], strict=True):
        write_dense(layer, path, use_residual=layer.residual is not None)
    # a token less, as a marker is put in behind the tokenizer
    longest = {"max_seq_length": form.document_length - bool(markers["document"]), "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", longest)
    known = {"model_type": PYLATE, "similarity_fn_name": "MaxSim", "prompts": {}, "default_prompt_name": None}
    known |= {"query_prefix": markers["query"], "document_prefix": markers["document"]}
    known |= {"query_length": form.query_length, "document_length": form.document_length}
    known |= {"skiplist_words": _known(model), "do_query_expansion": bool(form.expansion)}
    write_json(folder / ENCODER_SETTINGS, known | {"attend_to_expansion_tokens": form.expansion_read})


def _check_whole(model: Any, name: str) -> None:
    """Refuse vectors that are cut.

    Raises:
        UserError: they are.
    """
    if model.reading.cut:
        raise UserError(
            f"{name}: cuts its vectors to {model.reading.cut} dimensions, which these files cannot say; take `cut` out "
            "of its contract.json."
        )


def _write_files(model: Any, folder: Path, tokenizer: Any, types: list[str], kinds: list[str]) -> list[Path]:
    """Write weights, tokenizer and modules.json; returns the folder of each module."""
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)
    write_old_names(folder)
    names = ["", *(f"{place}_{kind}" for place, kind in enumerate(kinds[1:], start=1))]
    listed = [
        {"idx": place, "name": str(place), "path": name, "type": kind}
        for place, (name, kind) in enumerate(zip(names, types, strict=True))
    ]
    write_json(folder / "modules.json", listed)
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    return [folder / name for name in names]


def _known(model: Any) -> list[str]:
    """List the skipped tokens that the vocabulary has.

    Other tools take the others for the unknown token.
    """
    form, tokenizer = model.inputs.form, model.inputs.tokenizer
    return [name for name in form.skipped if find_id(tokenizer, name) is not None]


def _expansion(form: Form) -> dict[str, Any] | None:
    """Describe what fills queries up, as sentence-transformers does."""
    if not form.expansion:
        return None
    fixed = form.expansion_length in (0, form.query_length)
    return {
        "strategy": "fixed" if fixed else "min",
        "length": form.query_length if fixed else form.expansion_length,
        "attend": form.expansion_read,
        "token": token_name(form.expansion),
    }


def _is_usual(model: Any) -> bool:
    """Whether queries are filled up as PyLate does, if at all."""
    form, tokenizer = model.inputs.form, model.inputs.tokenizer
    usual = "<mask>" if tokenizer.mask_token_id is not None else "<eos>"
    return not form.expansion or (form.expansion == usual and form.expansion_length in (0, form.query_length))
