"""Stage `export`: write a model for other tools, which then give the same numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from shortlist.config import NotInJob
from shortlist.data.files import optional_json
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError, check_installed
from shortlist.export.card import write_card
from shortlist.late import late
from shortlist.models.files import CONFIG as ADAPTER_CONFIG
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import KINDS, kind_in, load_model
from shortlist.text.contract import InputContract

Target = Literal["sentence-transformers", "pylate", "cross-encoder", "peft", "merged", "onnx"]

WRITERS: dict[str, tuple[str | None, Callable[..., None]]] = {
    "sentence-transformers": ("retriever", late("export.tools", "write_sentence_transformer")),
    "pylate": ("late", late("export.late", "write_pylate")),
    "cross-encoder": ("reranker", late("export.tools", "write_cross_encoder")),
    "peft": (None, late("export.tools", "write_peft")),
    "merged": (None, late("export.tools", "write_merged")),
    "onnx": (None, late("export.onnx", "write_onnx")),
}
"""For each layout, the role or kind that a model must have (None: any), and the function that writes it."""

OF_KINDS: dict[tuple[str, str], Callable[..., None]] = {
    ("sentence-transformers", "late"): late("export.late", "write_multi_vector_encoder"),
    ("sentence-transformers", "sparse"): late("export.sparse", "write_sparse_encoder"),
}
"""The functions for a layout and a kind of model that has its own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """Retriever or reranker: folder or hub name."""
    to: Target
    """sentence-transformers: a retriever for SentenceTransformer, a late one for MultiVectorEncoder, a sparse one for
    SparseEncoder. pylate: a late one for PyLate. cross-encoder: a reranker for CrossEncoder and transformers. peft: an
    adapter by itself. merged: whole weights. onnx: for onnxruntime."""
    out: NotInJob[Path]
    """Folder to write."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    base: str | None = None
    """Base model of an adapter whose base has moved: folder or hub name (None: as the adapter says)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number type of the weights; bf16 has half the size, and its results differ in the third digit."""
    licence: str | None = None
    """Licence in the model card (None: the licence of the model that this one was trained from)."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Load the model and write it in another layout, with a card."""
    role, write = WRITERS[config.to]
    folder = open_folder(config.model, base=config.base)
    if config.base and folder.base is None:
        raise UserError(f"--base: {config.model} is a whole model, and no adapter; leave it out.")
    contract = folder.any_contract(config.contract)
    reads = "pair" if contract.form.pair else "document"
    kind = kind_in(folder, contract, reads)
    if role not in (None, kind.role) and KINDS.get(str(role)) is not kind:
        wanted = {"late": "late-interaction model"}.get(str(role), role)
        raise UserError(
            f"--to {config.to}: is for a {wanted}, and {config.model} is a {kind.role}; choose another layout."
        )
    if contract.form.feedback and config.to not in ("merged", "peft"):
        raise UserError(
            f"--to {config.to}: has no place for a query's documents, and {config.model} is a feedback encoder; "
            "expected merged or peft."
        )
    if config.to == "onnx":
        check_installed("--to onnx", dict.fromkeys(("onnx", "onnxscript"), "'shortlist[onnx]'"))
    inputs = {"model": folder.identity, "contract": repr(sorted(contract.to_dict().items()))}
    as_if = replace(config, licence=config.licence or None)
    aside = ["README.md"]  # `push` writes another card
    job = start_job(config, JobSpec("export", inputs, as_if=as_if, folder=True, aside=aside))
    if job.done:
        return
    import torch

    dtype = torch.float32 if config.dtype == "fp32" else torch.bfloat16
    _check_adapter(config, folder)
    whole = _language_model(config, folder, contract, dtype)
    model = whole if whole is not None else load_model(folder, reads, contract, dtype=dtype)
    write = OF_KINDS.get((config.to, model.kind), write)
    with job.result() as out:
        write(model, out, source=folder)
        write_card(folder, out, contract, licence=config.licence)
    job.finish()


def _language_model(config: Config, folder: ModelFolder, contract: InputContract, dtype: Any) -> Any:
    """Load a language model with its output embedding; None for any other model or layout."""
    if config.to != "merged" or not contract.form.pair:
        return None
    from shortlist.models.load import head_of, language_model_to_train, pointwise_to_train

    settings = optional_json(folder.whole.path / "config.json")
    if contract.reading.answer and not settings.get("is_encoder_decoder"):
        return pointwise_to_train(folder, contract, dtype=dtype)
    speaks = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in settings.get("architectures") or ())
    return language_model_to_train(folder, contract, dtype=dtype) if speaks and head_of(folder) is None else None


def _check_adapter(config: Config, folder: ModelFolder) -> None:
    """Refuse layouts that cannot hold an adapter which no weights can.

    Raises:
        UserError: the layout cannot hold it.
    """
    kind = optional_json(folder.backbone_path / ADAPTER_CONFIG).get("peft_type")
    layouts = {"PROMPT_TUNING": ["peft"], "PREFIX_TUNING": ["peft"], "CONNECTED": []}.get(str(kind), [config.to])
    if config.to not in layouts:
        advice = f"use --to {layouts[0]}" if layouts else f"its folder is what there is, beside {folder.whole.name}"
        raise UserError(f"--to {config.to}: {config.model} is an adapter that no weights can hold; {advice}.")
