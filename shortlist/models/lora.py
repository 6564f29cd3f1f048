"""Settings of LoRA, as `--lora` names them."""

from dataclasses import dataclass
from typing import Any

from shortlist.errors import UserError, unknown


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
