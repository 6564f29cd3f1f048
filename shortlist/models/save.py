"""Saving of a model: weights under their usual names, tokenizer and contract."""

from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from shortlist.data.files import write_json
from shortlist.models.adapters import ADAPTER, PREFIX, PROMPT, QUANTIZATION, saved_key
from shortlist.models.answering import AnsweringModel
from shortlist.models.backbone import is_decoder
from shortlist.models.dense import DenseModel
from shortlist.models.files import write_base
from shortlist.models.folder import CONTRACT
from shortlist.models.kinds import KINDS
from shortlist.models.language import LanguageModel
from shortlist.models.late import LateModel
from shortlist.models.pointwise import PointwiseModel
from shortlist.models.run import Model
from shortlist.models.sparse import SparseModel

if TYPE_CHECKING:
    Trainable = DenseModel | LateModel | SparseModel | PointwiseModel | LanguageModel | AnsweringModel
else:
    Trainable = Model
"""A model that can be trained and saved; kinds defined outside the package have the same attributes."""


FIXED = ("query_head.weight",)
"""Names of what belongs to an adapter though it is not trained: a list of weights."""


def saved_names(model: Trainable, *, adapter: bool) -> dict[str, str]:
    """Map the names of saved parameters to their keys in the folder's safetensors.

    Args:
        model: the model to save.
        adapter: save only the trainable parameters, under PEFT's keys, instead of all weights under the keys of
            transformers' model.
    """
    kind = KINDS[model.kind]
    once = {
        name for name, _ in (*model.named_parameters(), *model.named_buffers())
    }  # without tied weights' other names
    names = [name for name, p in model.named_parameters() if p.requires_grad] if adapter else list(model.state_dict())
    names += [name for name in FIXED if adapter and name in once]
    names = [name for name in names if name in once]
    with_head = getattr(model, "has_language_head", False)
    names = [name for name in names if not (with_head and name.startswith("backbone.pooler."))]  # such models have none
    inside = {name: name.removeprefix("backbone.") for name in names if name.startswith("backbone.")}
    below = kind.as_classifier or (kind.as_causal and (adapter or getattr(model, "output", None) is not None))
    below = below or (with_head and not adapter)
    prefix = f"{model.backbone.base_model_prefix}." if below else ""  # the backbone is a part of transformers' model
    if adapter:
        keys = {name: saved_key(key) for name, key in inside.items()}
        # PEFT has a layer between itself and the model, except for prompts and prefixes
        before = PREFIX.removesuffix("model.") if PROMPT in keys.values() else PREFIX
        keys = {name: key.replace(PREFIX, PREFIX + prefix, 1) for name, key in keys.items()}
    else:
        before, keys = "", {name: prefix + key for name, key in inside.items()}
    keys |= {name: before + key for name, key in {**kind.saved, **getattr(model, "saved", {})}.items()}
    return {name: keys[name] for name in names if name in keys}  # the rest (a dense layer's) is saved elsewhere


def save_model(
    model: Any,
    folder: Path,
    *,
    adapter: Any = None,
    base: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model into a folder: weights, tokenizer, contract.

    Args:
        model: the model to save.
        folder: the folder to write.
        adapter: what `add_adapter` returned; if given, only its weights (and a reranker's head) are written.
        base: the name of the model that the adapter updates.
        weights: values to write instead of the model's, under the model's names; a sharded model needs them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = KINDS[model.kind]
    if kind.saves_itself:
        model.backbone.save_pretrained(folder)
    else:
        names = saved_names(model, adapter=adapter is not None)
        values = weights or model.state_dict()
        state = {key: values[name].detach().contiguous() for name, key in names.items()}
        if adapter is not None:
            _save_adapter(adapter, folder, state, base, model.kind)
        else:
            _save_weights(model, folder, state)
    model.inputs.tokenizer.save_pretrained(folder)
    write_json(folder / CONTRACT, model.contract.to_dict())


def has_more_layers(model: Any) -> bool:
    """Whether a model has layers that a folder of ours has no place for."""
    layers = getattr(model, "layers", ())
    return bool(len(getattr(model, "dense", ()))) or len(layers) > 1 or any(not layer.is_plain for layer in layers)


def saved_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the key and tensor of each weight in a folder written by `save_model`."""
    paths = [folder / ADAPTER] if (folder / ADAPTER).exists() else sorted(folder.glob("model*.safetensors"))
    for path in paths:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                yield key, weights.get_tensor(key)


def _save_weights(model: Trainable, folder: Path, state: dict[str, Tensor]) -> None:
    """Write a folder that transformers can load, as a sequence classifier for a reranker."""
    backbone, pad_id = model.backbone, model.inputs.pad_id
    save_torch_state_dict(state, folder)
    config = backbone.config.to_dict()
    if KINDS[model.kind].as_classifier and is_decoder(backbone):
        name = type(backbone).__name__.removesuffix("Model") + "ForSequenceClassification"
        config |= {"architectures": [name], "num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
        # transformers scores the last token that differs from this one, so a pad of `</s>` would shift it by one token
        config["pad_token_id"] = None if pad_id == model.inputs.tokenizer.eos_token_id else pad_id
    if KINDS[model.kind].as_causal and (name := MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(backbone.config.model_type)):
        config["architectures"] = [name]
    if getattr(model, "has_language_head", False):
        names: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if is_decoder(backbone) else MODEL_FOR_MASKED_LM_MAPPING_NAMES
        config["architectures"] = [names[backbone.config.model_type]]
    write_json(folder / "config.json", config)


def _save_adapter(adapter: Any, folder: Path, state: dict[str, Tensor], base: str | None, kind: str) -> None:
    settings = copy(adapter.peft_config["default"])
    if KINDS[kind].as_classifier:  # then PEFT puts the head where sequence classifiers of transformers have it
        settings.task_type, settings.modules_to_save = "SEQ_CLS", ["score"]
    elif KINDS[kind].as_causal:
        settings.task_type = "CAUSAL_LM"
    settings.base_model_name_or_path = write_base(folder, base)
    settings.inference_mode = True
    if getattr(settings, "rank_pattern", None) and settings.peft_type == "ADALORA":
        settings.rank_pattern = None  # what was taken away is 0 in weights of the full rank
    save_file(state, folder / ADAPTER)
    settings.save_pretrained(folder)
    if quantization := getattr(adapter.config, "quantization_config", None):
        write_json(folder / QUANTIZATION, quantization.to_dict())
