"""A folder, hub name or `shortlist-mini` -> a model with its input contract; and back to a folder.

A model folder of ours is a Hugging Face folder (config.json, safetensors, tokenizer) plus `contract.json`. A
reranker's weights carry the key `score.weight` beside the backbone's, as in transformers' sequence classifiers. A LoRA
folder holds `adapter_config.json` and `adapter_model.safetensors` instead, head included, and names its base.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from shortlist.data.files import read_json, write_json
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.models.adapters import ADAPTER, PICKLED, PREFIX, adapter_head, base_name, is_adapter, merge_adapter
from shortlist.models.backbone import (
    dequantize,
    empty_backbone,
    is_causal,
    is_decoder,
    load_backbone,
    load_classifier,
    not_a_model,
)
from shortlist.models.heads import HEAD, answer_head, check_tied, find_head, is_classifier, one_label
from shortlist.models.language import LanguageModel
from shortlist.models.published import backbone_folder, check_layout, dense_layers, published_contract
from shortlist.models.reranker import AnyReranker, CrossEncoder, Reranker, new_head
from shortlist.models.retriever import Retriever
from shortlist.models.shipped import shipped_folder, shipped_name
from shortlist.text.contract import Adjust, Form, InputContract, Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.proof import proved_inputs
from shortlist.text.tokenizer import has_tokenizer, load_tokenizer

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", PICKLED]
"""What is fetched from the hub: no code, and weights in safetensors only, but for older adapters."""

WEIGHTS = ("*.safetensors", PICKLED)
Trainable = Retriever | Reranker | LanguageModel

QUANTIZATION = "quantization_config.json"
"""Beside an adapter: how its base was quantised while it was trained."""


def retriever_contract(name: str, given: str | None = None) -> InputContract:
    """The input contract of a retriever, without its weights: the named one, else the folder's own.

    Raises:
        UserError: no model is there, or nothing says what its input looks like.
    """
    return _contract(name, given, "document")


def load_retriever(
    name: str, *, contract: str | None = None, adjust: Adjust | None = None, dtype: torch.dtype = torch.float32
) -> Retriever:
    """Load a retriever: a folder of ours, a sentence-transformers folder, or a plain backbone with a named contract.

    Args:
        adjust: makes the contract that is used of that one, such as with other lengths.

    Raises:
        UserError: no model is there, or nothing says what its input looks like.
    """
    form, reading = _parts(retriever_contract(name, contract), adjust)
    inputs = proved_inputs(form, tokenizer_of(name))
    return Retriever(_backbone(name, dtype=dtype), inputs, reading, dense_layers(local_folder(name)))


def reranker_contract(name: str, given: str | None = None) -> InputContract:
    """The input contract of a reranker, without its weights: the named one, else the folder's own.

    Raises:
        UserError: no model is there, or nothing says what its input looks like.
    """
    return _contract(shipped_name(name, "reranker"), given, "pair")


def load_reranker(
    name: str, *, contract: str | None = None, adjust: Adjust | None = None, dtype: torch.dtype = torch.float32
) -> AnyReranker:
    """Load a reranker with its trained head, of whichever kind the checkpoint has.

    That is `score.weight` (transformers' decoder classifiers, and what is trained here), an encoder's own classifier,
    or the answer of a language model, where the contract names its tokens.

    Args:
        adjust: as for `load_retriever`.

    Raises:
        UserError: no model is there, it has no head, or nothing says what its input looks like.
    """
    name = shipped_name(name, "reranker")
    form, reading = _parts(reranker_contract(name, contract), adjust)
    folder = local_folder(name)
    inputs = proved_inputs(form, tokenizer_of(name))
    if reading.answer:
        backbone = _backbone(name, dtype=dtype)
        head = answer_head(backbone, inputs.tokenizer, reading.answer, _base_folder(folder))
        return Reranker(backbone, inputs, reading, head)
    head = _head(folder)
    if head is not None:
        return Reranker(_backbone(name, dtype=dtype), inputs, reading, one_label(head, name))
    if is_classifier(folder):
        return CrossEncoder(load_classifier(str(folder), dtype=dtype), inputs, reading)
    raise UserError(
        f"{name}: has no head for scores (no {HEAD!r}, no classifier in its config.json), so this is not a trained "
        "reranker; train one from it."
    )


def retriever_to_train(
    name: str,
    contract: InputContract | None = None,
    *,
    adjust: Adjust | None = None,
    **loading: Any,
) -> Retriever:
    """A retriever to start training from.

    Args:
        contract: how its input looks (None: the folder's own, else the paper's for its architecture).
        adjust: makes the contract that is used of that one, such as with other lengths.
        loading: dtype, attention and four_bit as for `load_backbone`; or `empty=True` for shapes without weights.
    """
    folder = local_folder(name, weights=not loading.get("empty"))
    backbone = _backbone(name, **loading)
    if dense_layers(folder):
        raise UserError(f"{name}: has layers behind its pooling, which are not trained here; start from another model.")
    contract = contract or _own_contract(name, "document")
    contract = contract or named_contract("repllama" if is_decoder(backbone) else "bert")
    form, reading = _parts(contract, adjust)
    return Retriever(backbone, _inputs(name, form), reading)


def reranker_to_train(
    name: str,
    contract: InputContract | None = None,
    *,
    seed: int,
    adjust: Adjust | None = None,
    **loading: Any,
) -> Reranker:
    """A reranker to start training from: with the head of a trained one, with a new head on any other backbone.

    Args:
        seed: of the new head.
        contract: as for `retriever_to_train`, and so are the others.
    """
    folder = local_folder(name, weights=not loading.get("empty"))
    if is_classifier(folder):
        raise UserError(
            f"{name}: is a cross-encoder, whose own head training here would replace by a new one; start from the "
            "encoder that it was made from."
        )
    backbone = _backbone(name, **loading)
    contract = contract or _own_contract(name, "pair")
    contract = contract or named_contract("rankllama" if is_decoder(backbone) else "bert-pair")
    if contract.reading.answer or backbone.config.is_encoder_decoder:
        raise UserError(f"{name}: models that answer with a token are not trained here; choose another --contract.")
    head = _head(folder)
    head = new_head(backbone, seed=seed) if head is None else one_label(head, name)
    form, reading = _parts(contract, adjust)
    return Reranker(backbone, _inputs(name, form), reading, head)


def language_model_to_train(
    name: str,
    contract: InputContract | None = None,
    *,
    adjust: Adjust | None = None,
    **loading: Any,
) -> LanguageModel:
    """A language model to start training from, whose texts are the pairs of a reranker.

    Args:
        contract: as for `retriever_to_train`, and so are the others.

    Raises:
        UserError: the backbone is no causal decoder, or computes its logits in another way.
    """
    backbone = _backbone(name, **loading)
    check_tied(backbone, _base_folder(local_folder(name, weights=not loading.get("empty"))))
    contract = contract or _own_contract(name, "pair") or named_contract("rankllama")
    form, reading = _parts(contract, adjust)
    model = LanguageModel(backbone, _inputs(name, form), reading)
    if not is_causal(backbone) or reading.bidirectional:
        raise UserError(f"{name}: its tokens see what comes after them, so there is nothing to predict.")
    return model


def _parts(contract: InputContract, adjust: Adjust | None) -> tuple[Form, Reading]:
    """The parts of the contract that is used, adjusted before it is proved."""
    contract = adjust(contract) if adjust else contract
    return contract.form, contract.reading


def _inputs(name: str, form: Form) -> Inputs:
    """Inputs for training: a contract's `<bos>` is left out for a tokenizer that has none."""
    tokenizer = tokenizer_of(name)
    return proved_inputs(form.fitted(tokenizer), tokenizer)


def _head(folder: Path) -> Tensor | None:
    return adapter_head(folder) if is_adapter(folder) else find_head(folder)


def saved_names(model: Trainable, *, adapter: bool) -> dict[str, str]:
    """What of a model is saved: name in the model -> key in the folder's safetensors.

    Args:
        adapter: only what trains, as PEFT names it; else all weights, as transformers' own model would name them.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad] if adapter else list(model.state_dict())
    names = [name for name in names if not name.startswith("dense.")]  # sentence-transformers keeps those by themselves
    before = PREFIX if adapter else ""
    prefix = before + (f"{model.backbone.base_model_prefix}." if isinstance(model, Reranker) else "")
    others = {"head": before + HEAD}
    return {
        name: others.get(name) or prefix + name.removeprefix("backbone.").replace(".default.", ".") for name in names
    }


def save_model(
    model: Trainable | CrossEncoder,
    folder: Path,
    *,
    adapter: Any = None,
    base: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model into a folder: weights, tokenizer, contract.

    Args:
        adapter: PEFT's wrapper of the backbone; only its updates (and a reranker's head) are then written.
        base: name of the model that the adapter updates.
        weights: what to write instead of the model's own values, under its names: those of a sharded model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, CrossEncoder):
        model.backbone.save_pretrained(folder)
    else:
        names = saved_names(model, adapter=adapter is not None)
        weights = weights or model.state_dict()
        state = {key: weights[name].detach().contiguous() for name, key in names.items()}
        if adapter is not None:
            _save_adapter(adapter, folder, state, base, classifier=isinstance(model, Reranker))
        else:
            _save_weights(model, folder, state)
    model.inputs.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    write_json(folder / "contract.json", model.contract.to_dict())


def saved_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder that `save_model` wrote, with its key, one after the other."""
    paths = [folder / ADAPTER] if (folder / ADAPTER).exists() else sorted(folder.glob("model*.safetensors"))
    for path in paths:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                yield key, weights.get_tensor(key)


def model_identity(name: str) -> str:
    """What a model is, for manifests: the contents of a folder, or the name of a hub model with its revision."""
    if folder := Path(name) if Path(name).exists() else shipped_folder(name):
        return identity(folder)
    return f"hub:{name}@{local_folder(name).name}"


def local_folder(name: str, *, weights: bool = True) -> Path:
    """The folder that holds a model: `name` itself, or where the hub's client keeps it (fetched if need be).

    Args:
        weights: without them, fetch the small files only.

    Raises:
        UserError: neither.
    """
    path = shipped_folder(name) or Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/")):
        raise not_a_model(name, "no such folder")
    try:
        return Path(
            snapshot_download(name, allow_patterns=FILES if weights else [f for f in FILES if f not in WEIGHTS])
        )
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise not_a_model(name, error) from None


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a model: in its folder; an adapter without one has its base's.

    Raises:
        UserError: there is none that can be used.
    """
    check_layout(name, local_folder(name, weights=False))
    folder = backbone_folder(local_folder(name, weights=False))
    if is_adapter(folder) and not has_tokenizer(folder):
        return tokenizer_of(base_name(folder))
    return load_tokenizer(folder)


def _backbone(name: str, *, empty: bool = False, **loading: Any) -> PreTrainedModel:
    """The backbone of a folder or hub name, adapters merged; `loading` as for `load_backbone`."""
    folder = backbone_folder(local_folder(name, weights=not empty))
    if not is_adapter(folder):
        return (empty_backbone if empty else load_backbone)(str(folder), **loading)
    base = base_name(folder)
    if empty:
        return _backbone(base, empty=True, **loading)
    if loading.get("four_bit"):
        raise UserError(f"{name}: is an adapter, which --four-bit cannot start from; name a whole model.")
    if (folder / QUANTIZATION).exists():  # the updates were learnt on top of weights that were rounded from this dtype
        dtype = getattr(torch, read_json(folder / QUANTIZATION)["bnb_4bit_compute_dtype"])
        rounded = dequantize(_backbone(base, dtype=dtype, four_bit=True))
        return merge_adapter(rounded, folder).to(loading.get("dtype", torch.float32))
    return merge_adapter(_backbone(base, **loading), folder)


def _contract(name: str, given: str | None, kind: str) -> InputContract:
    if given is not None:
        contract = named_contract(given)
        if not getattr(contract.form, kind):
            raise UserError(f"--contract: {given!r} has no {kind!r} input, so it is for another kind of model.")
        return contract
    contract = _own_contract(name, kind)
    if contract is None and (local_folder(name) / "contract.json").exists():
        raise UserError(f"{name}: its contract.json has no {kind!r} input, so it is another kind of model.")
    if contract is None:
        raise UserError(f"{name}: has no contract.json that says how its input looks; name one with --contract.")
    return contract


def any_contract(name: str, given: str | None = None) -> InputContract:
    """The input contract of a retriever or a reranker, whichever it is, without its weights.

    Raises:
        UserError: no model is there, or nothing says what its input looks like.
    """
    if given is not None:
        return named_contract(given)
    return _own_contract(name, "pair", weights=False) or _contract(name, None, "document")


def _own_contract(name: str, kind: str, *, weights: bool = True) -> InputContract | None:
    """The contract of a model, if it is for this kind of input: in its folder, else as it was published."""
    folder = local_folder(name, weights=weights)
    path = folder / "contract.json"
    if path.exists():
        contract = InputContract.from_dict(read_json(path), where=str(path))
        return contract if getattr(contract.form, kind) else None
    check_layout(name, folder)
    return published_contract(name, folder, kind)


def _base_folder(folder: Path) -> Path:
    """Where the whole weights of a folder are: in its base's, if it holds an adapter."""
    return _base_folder(local_folder(base_name(folder))) if is_adapter(folder) else folder


def weight_files(name: str) -> list[Path]:
    """The files that hold a model's own weights; those of an adapter are merged into its base's."""
    return sorted(backbone_folder(_base_folder(local_folder(name))).glob("*.safetensors"))


def num_parameters(name: str) -> int:
    """How many numbers a model is made of, by its files."""
    total = 0
    for path in weight_files(name):
        with safe_open(path, framework="pt") as weights:
            total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return total


def _save_weights(model: Trainable, folder: Path, state: dict[str, Tensor]) -> None:
    """A folder that transformers' own model, or its sequence classifier for a reranker, can load."""
    backbone, pad_id = model.backbone, model.inputs.pad_id
    save_torch_state_dict(state, folder)
    config = backbone.config.to_dict()
    if isinstance(model, Reranker) and is_decoder(backbone):
        name = type(backbone).__name__.removesuffix("Model") + "ForSequenceClassification"
        config |= {"architectures": [name], "num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
        # transformers scores the last token that is not this one: were it `</s>`, that would be the token before it
        config["pad_token_id"] = None if pad_id == model.inputs.tokenizer.eos_token_id else pad_id
    write_json(folder / "config.json", config)


def _save_adapter(adapter: Any, folder: Path, state: dict[str, Tensor], base: str | None, *, classifier: bool) -> None:
    settings = copy(adapter.peft_config["default"])
    if classifier:  # so that PEFT puts the head where transformers' sequence classifiers have theirs
        settings.task_type, settings.modules_to_save = "SEQ_CLS", ["score"]
    settings.base_model_name_or_path = str(Path(base).resolve()) if base and Path(base).exists() else base
    settings.inference_mode = True
    save_file(state, folder / ADAPTER)
    settings.save_pretrained(folder)
    if quantization := getattr(adapter.config, "quantization_config", None):
        write_json(folder / QUANTIZATION, quantization.to_dict())
