"""Adapters on a backbone, and adapter folders in PEFT's format.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`, or `.bin` in older ones.

The names of layers in an adapter are those of the model that it was made for: the bare backbone, a language model or a
classifier. So it is put on the backbone inside modules of the same names. No key may be left over or missing, since
PEFT would use random updates in its place.

Most kinds are PEFT's. Prompts and prefixes have PEFT's files, and run here (`virtual.py`); connected adapters are ours
(`connected.py`). These three cannot be merged: a loaded model keeps them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from shortlist.models import connected, virtual
from shortlist.models.adapter_settings import ADAPTER_FLAG, PAPER, Adapter
from shortlist.models.backbone import hushed, is_causal, transformer_layers
from shortlist.models.files import CONFIG, HEAD, PICKLED, first_line

ADAPTER = "adapter_model.safetensors"
QUANTIZATION = "quantization_config.json"
"""A file beside an adapter that says how its base was quantised in training."""

PREFIX = "base_model.model."
"""The prefix that PEFT puts before the keys of layers."""

PROMPT = "prompt_embeddings"
"""PEFT's key of a prompt or a prefix."""

POOLER = "pooler.dense"
"""A layer of some encoders that is never used here."""


def add_adapter(model: PreTrainedModel, adapter: Adapter, *, steps: int = 1) -> Any:
    """Freeze the model and add a trainable adapter to it, in place.

    Args:
        model: the backbone.
        adapter: the settings.
        steps: steps of the whole training, which AdaLoRA plans by.

    Returns:
        PEFT's wrapper, or a `Kept`; both say in `peft_config` what to save.

    Raises:
        UserError: the model has no place for it.
    """
    return ADDERS[adapter.kind](model, adapter, steps)


@dataclass(frozen=True)
class Kept:
    """An adapter that runs beside the weights, saved as PEFT's wrapper is."""

    peft_config: Mapping[str, Any]
    config: Any
    """The backbone's configuration."""


@dataclass
class ConnectedSettings:
    """Settings of connected adapters, in the file where PEFT keeps its own."""

    r: int
    aside: int
    layers: list[int]
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    modules_to_save: list[str] | None = None
    inference_mode: bool = False
    peft_type: str = "CONNECTED"

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings into a folder."""
        write_json(folder / CONFIG, dict(vars(self)))


def _add_lora(model: PreTrainedModel, adapter: Adapter, steps: int, **variant: Any) -> Any:
    from peft import LoraConfig

    options = adapter.options
    settings = LoraConfig(
        r=options["r"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        bias=options["bias"],
        **_places(model, adapter),
        **variant,
    )
    return _by_peft(model, settings)


def _add_adalora(model: PreTrainedModel, adapter: Adapter, steps: int) -> Any:
    from peft import AdaLoraConfig

    options = dict(adapter.options)
    if options["tinit"] >= steps - options["tfinal"]:
        raise UserError(
            f"{ADAPTER_FLAG} adalora: tinit {options['tinit']} and tfinal {options['tfinal']} leave none of {steps} "
            "steps to share out ranks in; make them smaller, or train longer."
        )
    places = _places(model, adapter)
    for name in ("targets", "layers"):
        del options[name]
    alpha, dropout = options.pop("alpha"), options.pop("dropout")
    return _by_peft(model, AdaLoraConfig(total_step=steps, lora_alpha=alpha, lora_dropout=dropout, **options, **places))


def _add_ia3(model: PreTrainedModel, adapter: Adapter, steps: int) -> Any:
    from peft import IA3Config
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    targets, feedforward, kind = adapter.options["targets"], adapter.options["feedforward"], model.config.model_type
    if not targets:
        if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            raise UserError(
                f"{ADAPTER_FLAG} ia3: PEFT knows no layers for models of the kind {kind}; name them: "
                "ia3,targets=A+B+C,feedforward=C."
            )
        targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]
        feedforward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, [])
    _check_targets(model, targets, "ia3")
    return _by_peft(model, IA3Config(target_modules=list(targets), feedforward_modules=list(feedforward)))


def _add_prompt(model: PreTrainedModel, adapter: Adapter, steps: int) -> Kept:
    from peft import PromptTuningConfig

    tokens = adapter.options["tokens"]
    virtual.attach(model.requires_grad_(False), virtual.vocabulary_prompt(model, tokens))
    settings: Any = PromptTuningConfig(
        num_virtual_tokens=tokens,
        token_dim=model.config.hidden_size,
        num_transformer_submodules=1,
        num_attention_heads=model.config.num_attention_heads,
        num_layers=model.config.num_hidden_layers,
        prompt_tuning_init="SAMPLE_VOCAB",
        task_type="FEATURE_EXTRACTION",
    )
    return Kept({"default": settings}, model.config)


def _add_prefix(model: PreTrainedModel, adapter: Adapter, steps: int) -> Kept:
    from peft import PrefixTuningConfig

    if not is_causal(model):
        raise UserError(
            f"{ADAPTER_FLAG} prefix: {type(model).__name__} sees both ways, and has no keys and values from before a "
            "text; use --adapter prompt."
        )
    prefix = virtual.random_prefix(model, adapter.options["tokens"])
    virtual.attach(model.requires_grad_(False), prefix)
    settings: Any = PrefixTuningConfig(
        num_virtual_tokens=len(prefix.weight),
        token_dim=prefix.weight.shape[1] // (2 * prefix.layers),
        num_transformer_submodules=1,
        num_attention_heads=prefix.heads,
        num_layers=prefix.layers,
        task_type="FEATURE_EXTRACTION",
    )
    return Kept({"default": settings}, model.config)


def _add_connected(model: PreTrainedModel, adapter: Adapter, steps: int) -> Kept:
    options = adapter.options
    _check_layers(model, options["layers"], "connected")
    model.requires_grad_(False)
    added = connected.connect(model, options["layers"], rank=options["r"], aside=options["aside"])
    settings = ConnectedSettings(options["r"], options["aside"], [int(layer) for layer in added.inside])
    return Kept({"default": settings}, model.config)


ADDERS: dict[str, Callable[[PreTrainedModel, Adapter, int], Any]] = {
    "lora": _add_lora,
    "dora": lambda *args: _add_lora(*args, use_dora=True),
    "rslora": lambda *args: _add_lora(*args, use_rslora=True),
    "adalora": _add_adalora,
    "ia3": _add_ia3,
    "prompt": _add_prompt,
    "prefix": _add_prefix,
    "connected": _add_connected,
}
"""For each kind the function that adds it."""


def _by_peft(model: PreTrainedModel, settings: Any) -> Any:
    with hushed():
        from peft import get_peft_model

        adapted = get_peft_model(model, settings)
    for p in model.parameters():
        if p.requires_grad:  # biases of the model, which may be narrower than what trains
            p.data = p.data.float()
    return adapted


def _places(model: PreTrainedModel, adapter: Adapter) -> dict[str, Any]:
    """Choose the layers that a kind of LoRA updates, as PEFT names the choices.

    Without targets, they are the paper's where the model has them, and otherwise all linears of its layers.
    """
    _check_layers(model, adapter.options["layers"], adapter.kind)
    targets, linears = adapter.options["targets"], _linears(model)
    if not targets:
        ends = {name.rsplit(".", 1)[-1] for name in linears}
        within = {name.rsplit(".", 1)[-1] for name in _linears(transformer_layers(model))}
        targets = PAPER if ends.issuperset(PAPER) else sorted(within)
    _check_targets(model, targets, adapter.kind)
    places: dict[str, Any] = {"target_modules": list(targets)}
    if adapter.options["layers"]:
        places["layers_to_transform"] = list(adapter.options["layers"])
    if any(name == POOLER for name in linears):
        places["exclude_modules"] = [POOLER]
    return places


def _linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _check_targets(model: PreTrainedModel, targets: Iterable[str], kind: str) -> None:
    linears = _linears(model)
    ends = {name.rsplit(".", 1)[-1] for name in linears}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            raise UserError(f"{ADAPTER_FLAG} {kind}: {unknown('layer', target, ends)}")


def _check_layers(model: PreTrainedModel, layers: Iterable[int], kind: str) -> None:
    count = len(transformer_layers(model))
    for layer in layers:
        if layer >= count:
            raise UserError(f"{ADAPTER_FLAG} {kind}: layers has {layer}; the model has the layers 0-{count - 1}.")


def kept_adapter(model: nn.Module) -> nn.Module | None:
    """Return the adapter that a backbone keeps beside its weights, if any."""
    kept: Any = getattr(model, virtual.VIRTUAL, None) or getattr(model, connected.CONNECTED, None)
    return kept


def saved_key(name: str) -> str:
    """Return the key in the adapter's file for a parameter's name in the backbone."""
    if name == f"{virtual.VIRTUAL}.weight":
        return PROMPT
    key = name.replace(".default.", ".").removesuffix(".default")
    return PREFIX + (key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key)


def add_regulariser(adapter: Any) -> None:
    """Add the gradients of an adapter's own loss, if it has one.

    AdaLoRA keeps its directions orthogonal: the mean of |P P^T - 1| over its matrices, weighted.
    """
    settings = _adalora(adapter)
    if settings is None or not settings.orth_reg_weight:
        return
    distances = []
    for name, p in adapter.named_parameters():
        if p.requires_grad and ("lora_A" in name or "lora_B" in name):
            product = p @ p.T if "lora_A" in name else p.T @ p
            distances.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device)))
    (settings.orth_reg_weight * torch.stack(distances).mean()).backward()


def after_step(adapter: Any, step: int) -> None:
    """Let an adapter change after an optimizer's step, counted from 1, while gradients are there.

    AdaLoRA takes ranks away from the matrices that need them least.
    """
    if _adalora(adapter) is not None:
        adapter.base_model.update_and_allocate(step)


def adapter_state(adapter: Any) -> dict[str, Tensor]:
    """Return what an adapter needs besides its weights to go on training."""
    settings = _adalora(adapter)
    if settings is None:
        return {}
    allocator = adapter.base_model.rankallocator
    state = {f"{kind}/{name}": value for kind in _AVERAGES for name, value in getattr(allocator, kind).items()}
    return state | {f"{_KEPT}/{name}": torch.tensor(kept) for name, kept in (settings.rank_pattern or {}).items()}


def load_adapter_state(adapter: Any, state: Mapping[str, Tensor]) -> None:
    """Take over what `adapter_state` returned."""
    settings = _adalora(adapter)
    if settings is None:
        return
    device = next(adapter.parameters()).device
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind == _KEPT:
            settings.rank_pattern = (settings.rank_pattern or {}) | {name: value.tolist()}
        else:
            getattr(adapter.base_model.rankallocator, kind)[name] = value.to(device)


_AVERAGES, _KEPT = ("exp_avg_ipt", "exp_avg_unc", "ipt"), "rank_pattern"


def _adalora(adapter: Any) -> Any:
    """Return the settings of an adapter that is an AdaLoRA; None for any other."""
    settings = None if adapter is None else adapter.peft_config["default"]
    return settings if getattr(settings, "peft_type", None) == "ADALORA" else None


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

    An adapter that the weights cannot hold is put beside them.

    Args:
        model: the backbone.
        folder: the folder of the adapter.
        beside: ends of the keys that belong to a head on the backbone instead of to the backbone.

    Raises:
        UserError: the adapter does not fit the model.
    """
    weights = {
        key: value
        for key, value in adapter_weights(folder).items()
        if not key.endswith(tuple(f".{end}" for end in beside))
    }
    settings = read_json(folder / CONFIG)
    if put := PUT_BESIDE.get(settings.get("peft_type", "")):
        try:
            return put(model, settings, weights)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _does_not_fit(folder, model, first_line(error)) from None
    return _merged(model, folder, weights)


def _merged(model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    with hushed():
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    names = place_of_backbone(weights, model)
    try:
        with hushed():
            settings: Any = PeftConfig.from_pretrained(str(folder))
            settings.task_type, settings.modules_to_save = None, None  # these need parts that a backbone lacks
            settings.base_model_name_or_path = None  # otherwise PEFT would warn that the base has another name here
            adapted: Any = get_peft_model(inside(model, names), settings)
            found = set_peft_model_state_dict(adapted, dict(weights))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise _does_not_fit(folder, model, first_line(error)) from None
    lacking = [key for key in found.missing_keys if "lora_" in key or "ia3_" in key]
    for kind, keys in (("the model has no place for", found.unexpected_keys), ("it lacks", lacking)):
        if keys:
            raise _does_not_fit(folder, model, f"{kind} {len(keys)} of its weights, {min(keys)} among them")
    return cast(PreTrainedModel, adapted.merge_and_unload().get_submodule(names))


def _put_prompt(model: PreTrainedModel, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PreTrainedModel:
    prompt, dim = weights[PROMPT], cast(Tensor, model.get_input_embeddings().weight).shape[1]
    if prompt.shape != (settings["num_virtual_tokens"], dim):
        raise ValueError(f"its vectors are {_shape(prompt)}; expected {settings['num_virtual_tokens']} x {dim}")
    virtual.attach(model, virtual.SoftPrompt(prompt.float()))
    return model


def _put_prefix(model: PreTrainedModel, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PreTrainedModel:
    expected = virtual.random_prefix(model, settings["num_virtual_tokens"])
    if weights[PROMPT].shape != expected.weight.shape or not is_causal(model):
        raise ValueError(f"its keys and values are {_shape(weights[PROMPT])}; expected {_shape(expected.weight)}")
    virtual.attach(model, virtual.Prefix(weights[PROMPT].float(), expected.heads, expected.layers))
    return model


def _put_connected(
    model: PreTrainedModel, settings: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> PreTrainedModel:
    if max(settings["layers"]) >= len(transformer_layers(model)):
        raise ValueError(f"it has an adapter behind layer {max(settings['layers'])}, which the model lacks")
    added = connected.connect(model, settings["layers"], rank=settings["r"], aside=settings["aside"])
    added.load_state_dict({key.partition(f"{connected.CONNECTED}.")[2]: value for key, value in weights.items()})
    return model


PUT_BESIDE: dict[str, Callable[[PreTrainedModel, Mapping[str, Any], Mapping[str, Tensor]], PreTrainedModel]] = {
    "PROMPT_TUNING": _put_prompt,
    "PREFIX_TUNING": _put_prefix,
    "CONNECTED": _put_connected,
}
"""For the kinds that stay beside the weights, by their names in files, the function that puts a saved one there."""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


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
