"""The transformer under every model: loading it, running it on right-padded ids, putting LoRA on it."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from shortlist.errors import UserError, unknown
from shortlist.math.pooling import POOLINGS
from shortlist.models.linear import last_mlp_only_at


def load_backbone(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a decoder or encoder without its language-model head, from a folder or the hub.

    Raises:
        UserError: nothing usable is there, or it would need code of its own to run.
    """
    logging.disable_progress_bar()  # ours says more
    logging.set_verbosity_error()  # what is missing is an error below; what is not needed is no news
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        options = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
        model, loaded = AutoModel.from_pretrained(name, config=config, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise not_a_model(name, error) from None
    # transformers would go on with random weights in their place; the pooler above an encoder is never used here
    if missing := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
        raise not_a_model(name, f"{len(missing)} weights are missing, {missing[0]} among them")
    return model.eval()


def not_a_model(name: str, error: Exception | str) -> UserError:
    """The error for a name under which no model can be loaded."""
    return UserError(
        f"{name}: cannot load a model ({_first_line(error)}); expected a model folder with config.json and safetensors "
        "weights, or the name of one on the hub."
    )


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token sees only those before it, so that padding on the right changes nothing and needs no mask."""
    return model.config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def pooled_states(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "batch tokens"],
    lengths: Int[Tensor, " batch"],
    *,
    pooling: str,
) -> Float[Tensor, "batch dim"]:
    """One hidden state for each row of right-padded ids: final layer, after the final norm, pooled.

    Args:
        pooling: a name in math.pooling.POOLINGS.
    """
    if not is_causal(model):
        mask = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        return POOLINGS[pooling](model(input_ids=token_ids, attention_mask=mask).last_hidden_state, lengths)
    with last_mlp_only_at(model, lengths - 1) if pooling == "last" else nullcontext():
        hidden = model(input_ids=token_ids, use_cache=False).last_hidden_state
    return POOLINGS[pooling](hidden, lengths)


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation of some linear layers (https://arxiv.org/abs/2106.09685)."""

    r: int = 32
    alpha: int = 64
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj")


LORAS = {"paper": Lora(), "paper+k": Lora(targets=(*Lora().targets, "k_proj"))}
"""Presets: the paper's public code adapts every projection but k; a later recipe of its authors adds k."""


def parse_lora(text: str) -> Lora:
    """`paper`, `paper+k`, or `r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj` (what is left out is the paper's).

    Raises:
        UserError: none of these.
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
    """Freeze the model and put trainable low-rank updates on it, in place; returns the PEFT wrapper that can save them.

    Raises:
        UserError: the model has no layer of one of those names.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for target in set(lora.targets) - names:
        raise unknown("layer for LoRA", target, names)
    targets = list(lora.targets)
    settings = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of libraries to one another
        return get_peft_model(model, settings)


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add a saved LoRA adapter's updates to the model's weights.

    Raises:
        UserError: the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (RuntimeError, ValueError, OSError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{folder}: the adapter does not fit its base model ({_first_line(error)}).") from None


def _first_line(error: Exception | str) -> str:
    lines: Sequence[str] = str(error).strip().split("\n")
    return lines[0][:200] or type(error).__name__
