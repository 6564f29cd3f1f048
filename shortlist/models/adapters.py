"""LoRA on a backbone, and adapter folders in PEFT's format.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`, or `.bin` in older ones.

The names of layers in an adapter are those of the model that it was made for: the bare backbone, a language model or a
classifier. So it is put on the backbone inside modules of the same names. No key may be left over or missing, since
PEFT would use random updates in its place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import normpath, relpath
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.data.files import read_json, write_json
from shortlist.errors import UserError, unknown
from shortlist.models.backbone import first_line, hushed
from shortlist.models.heads import HEAD

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
"""The older file of weights. Only tensors are read from it; no code in the pickle is run."""

BASE = "base.json"
"""A file beside an adapter that says where the folder of its base lies, as seen from the adapter's."""

QUANTIZATION = "quantization_config.json"
"""A file beside an adapter that says how its base was quantised in training."""

PREFIX = "base_model.model."
"""The prefix that PEFT puts before every key."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation of some linear layers (https://arxiv.org/abs/2106.09685)."""

    r: int = 32
    alpha: int = 64
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj")


LORAS = {"paper": Lora(), "paper+k": Lora(targets=(*Lora().targets, "k_proj"))}
"""Presets: the paper's public code adapts every projection except k; a later recipe of its authors adds k."""


def parse_lora(text: str) -> Lora:
    """Parse the settings of LoRA.

    Args:
        text: `paper`, `paper+k`, or settings such as `r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj`. Settings left
            out are the paper's.

    Raises:
        UserError: the text is neither a preset nor valid settings.
    """
    if text in LORAS:
        return LORAS[text]
    if "=" not in text:
        raise unknown("LoRA preset", text, LORAS)
    readers = {"r": int, "alpha": int, "dropout": float, "targets": lambda names: tuple(names.split("+"))}
    values: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name not in readers:
            raise unknown("LoRA setting", name, readers)
        try:
            values[name] = readers[name](value)
        except ValueError:
            raise UserError(f"--lora: {name} is {value!r}; expected a number.") from None
    lora = Lora(**values)
    if lora.r < 1 or lora.alpha < 1:
        raise UserError(f"--lora: r is {lora.r} and alpha is {lora.alpha}; expected at least 1.")
    if not 0 <= lora.dropout < 1:
        raise UserError(f"--lora: dropout is {lora.dropout}; expected at least 0 and below 1.")
    return lora


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


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a whole model."""
    return (folder / CONFIG).exists()


def base_name(folder: Path) -> str:
    """Read the folder or hub name of the model that an adapter was made for.

    A folder that is no longer where it was is looked for where it lay as seen from the adapter.

    Raises:
        UserError: the adapter does not name it, or names itself.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not name:
        raise UserError(f"{folder / CONFIG}: names no base model; expected base_model_name_or_path.")
    if not Path(name).exists() and (folder / BASE).exists():
        beside = Path(normpath(folder / str(read_json(folder / BASE).get("path"))))
        name = str(beside) if beside.is_dir() else name
    if Path(name).exists() and Path(name).resolve() == folder.resolve():
        raise UserError(f"{folder / CONFIG}: names its own folder as its base model; expected the model below it.")
    return name


def write_base(folder: Path, name: str | None) -> str | None:
    """Write down where an adapter's base lies, and return its name for PEFT."""
    if not name or not Path(name).exists():
        return name
    write_json(folder / BASE, {"path": relpath(Path(name).resolve(), folder.resolve())})
    return str(Path(name).resolve())


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
