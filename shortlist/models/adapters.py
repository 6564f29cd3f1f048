"""LoRA on a backbone, and adapter folders in PEFT's format.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`, or `.bin` in older ones.

The names of layers in an adapter are those of the model that it was made for: the bare backbone, a language model or a
classifier. So it is put on the backbone inside modules of the same names. No key may be left over or missing, since
PEFT would use random updates in its place.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.errors import UserError, unknown
from shortlist.models.backbone import hushed
from shortlist.models.files import CONFIG, HEAD, PICKLED, first_line
from shortlist.models.lora import Lora

ADAPTER = "adapter_model.safetensors"
QUANTIZATION = "quantization_config.json"
"""A file beside an adapter that says how its base was quantised in training."""

PREFIX = "base_model.model."
"""The prefix that PEFT puts before every key."""


def add_lora(model: PreTrainedModel, lora: Lora) -> Any:
    """Freeze the model and add trainable low-rank updates to it, in place.

    Returns:
        The PEFT wrapper, which can save the updates.

    Raises:
        UserError: the model has no layer with one of the target names.
    """
    with hushed():
        from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for target in set(lora.targets) - names:
        raise unknown("layer for LoRA", target, names)
    targets = list(lora.targets)
    settings = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    with hushed():
        return get_peft_model(model, settings)


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    """Load all tensors of an adapter, under PEFT's keys.

    Raises:
        UserError: there are none, they are damaged, or a pickle holds anything except tensors.
    """
    path = next((folder / name for name in (ADAPTER, PICKLED) if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder}: the adapter has no weights; expected {ADAPTER} or {PICKLED} beside {CONFIG}.")
    try:
        if path.name == ADAPTER:
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: the adapter cannot be read ({first_line(error)}); expected tensors alone.") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path}: the adapter cannot be read; expected tensors by name.")
    return weights


def adapter_head(folder: Path) -> Tensor | None:
    """Load the reranker's head from an adapter; None if it has no head."""
    return next((value for key, value in adapter_weights(folder).items() if key.endswith(f".{HEAD}")), None)


def merge_adapter(model: PreTrainedModel, folder: Path, *, beside: Sequence[str] = (HEAD,)) -> PreTrainedModel:
    """Add a saved adapter's updates to the model's weights.

    Args:
        model: the backbone.
        folder: the folder of the adapter.
        beside: ends of the keys that belong to a head on the backbone instead of to the backbone.

    Raises:
        UserError: the adapter does not fit the model.
    """
    with hushed():
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    weights = {
        key: value
        for key, value in adapter_weights(folder).items()
        if not key.endswith(tuple(f".{end}" for end in beside))
    }
    names = place_of_backbone(weights, model)
    try:
        with hushed():
            settings: Any = PeftConfig.from_pretrained(str(folder))
            settings.task_type, settings.modules_to_save = None, None  # these need parts that a backbone lacks
            settings.base_model_name_or_path = None  # otherwise PEFT would warn that the base has another name here
            adapted: Any = get_peft_model(inside(model, names), settings)
            found = set_peft_model_state_dict(adapted, weights)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise _does_not_fit(folder, model, first_line(error)) from None
    lacking = [key for key in found.missing_keys if "lora_" in key]
    for kind, keys in (("the model has no place for", found.unexpected_keys), ("it lacks", lacking)):
        if keys:
            raise _does_not_fit(folder, model, f"{kind} {len(keys)} of its weights, {min(keys)} among them")
    return cast(PreTrainedModel, adapted.merge_and_unload().get_submodule(names))


def place_of_backbone(keys: Iterable[str], model: nn.Module) -> str:
    """Find the name of the backbone inside the model that an adapter was made for.

    It is empty if that model is the backbone itself.

    Args:
        keys: the adapter's keys.
        model: the backbone.
    """
    layers = {name for name, _ in model.named_modules() if name}
    for key in keys:
        parts = key.removeprefix(PREFIX).split(".")
        for end in range(len(parts) - 1, 0, -1):
            for start in range(end):
                if ".".join(parts[start:end]) in layers:
                    return ".".join(parts[:start])
    return ""


def inside(model: nn.Module, names: str) -> nn.Module:
    """Put a model inside plain modules, so that its name there is `names`."""
    for name in reversed(names.split(".") if names else []):
        outer: Any = nn.Module()
        outer.add_module(name, model)
        outer.is_gradient_checkpointing = False  # PEFT would prepare it for training otherwise
        model = outer
    return model


def _does_not_fit(folder: Path, model: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f"{folder}: the adapter does not fit its base model {model.config.name_or_path} ({reason}); expected the "
        "model that it was trained on."
    )
