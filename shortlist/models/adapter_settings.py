"""Settings of adapters, as `--adapter` names them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shortlist.config import read_options
from shortlist.errors import UserError, unknown

ADAPTER_FLAG = "--adapter"

PAPER = ("q_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj")
"""The layers that the paper's public code adapts: every projection except k."""


@dataclass(frozen=True)
class Adapter:
    """A kind of adapter, with a value for each of its options."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


class AdapterKind(NamedTuple):
    """A kind of adapter."""

    words: str
    """What it trains, and where it was published."""
    defaults: Mapping[str, Any]
    """Its options with their defaults, whose types decide how values are read."""
    merges: bool = True
    """Whether a loaded model has it in its weights; otherwise it stays beside them."""


_LAYERS = {"targets": (), "layers": ()}
_LORA = {"r": 32, "alpha": 64, "dropout": 0.1, **_LAYERS, "bias": "none"}
_ADALORA = {"init_r": 12, "target_r": 8, "tinit": 0, "tfinal": 0, "deltaT": 1, "beta1": 0.85, "beta2": 0.85}
_ADALORA |= {"orth_reg_weight": 0.5, "alpha": 64, "dropout": 0.1, **_LAYERS}

ADAPTERS: dict[str, AdapterKind] = {
    "lora": AdapterKind("low-rank updates of linear layers (https://arxiv.org/abs/2106.09685)", _LORA),
    "dora": AdapterKind("LoRA beside a length of each output's weights (https://arxiv.org/abs/2402.09353)", _LORA),
    "rslora": AdapterKind("LoRA scaled by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)", _LORA),
    "adalora": AdapterKind("LoRA whose ranks are shared out in training (https://arxiv.org/abs/2303.10512)", _ADALORA),
    "ia3": AdapterKind(
        "a factor for each number inside some layers (https://arxiv.org/abs/2205.05638)",
        {"targets": (), "feedforward": ()},
    ),
    "prompt": AdapterKind("vectors before the text (https://arxiv.org/abs/2104.08691)", {"tokens": 20}, merges=False),
    "prefix": AdapterKind(
        "keys and values before the text, in every layer (https://arxiv.org/abs/2101.00190)",
        {"tokens": 20},
        merges=False,
    ),
    "connected": AdapterKind(
        "bottlenecks behind the layers, each joined to the next (https://arxiv.org/abs/2208.09847)",
        {"r": 32, "aside": 16, "layers": ()},
        merges=False,
    ),
}
"""The kinds by name. Options have the meaning that they have in PEFT."""

PRESETS = {"paper": "+".join(PAPER), "paper+k": "+".join((*PAPER, "k_proj"))}
"""Targets of LoRAs by name: the paper's public code leaves k out; a later recipe of its authors adds it."""

_LEAST = {"r": 1, "alpha": 1, "init_r": 1, "target_r": 1, "deltaT": 1, "tokens": 1, "tinit": 0, "tfinal": 0, "aside": 0}
_BIASES = ("none", "all", "lora_only")
_BETWEEN: dict[str, tuple[Callable[[float], bool], str]] = {
    "dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "beta1": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "beta2": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "orth_reg_weight": (lambda value: value >= 0, "at least 0"),
}


def make_adapter(kind: str, **options: Any) -> Adapter:
    """Make the settings of an adapter; options left out have their defaults.

    Raises:
        UserError: an option has a value that makes no sense.
    """
    adapter = Adapter(kind, {**ADAPTERS[kind].defaults, **options})
    _check(adapter)
    return adapter


def parse_adapter(text: str) -> Adapter:
    """Parse the settings of an adapter.

    Args:
        text: `paper`, `paper+k`, or a kind and options such as `lora,r=16,alpha=32,targets=q_proj+v_proj`; options
            alone are those of a LoRA.

    Raises:
        UserError: an unknown kind or option, or a value that makes no sense.
    """
    if text in PRESETS:
        return parse_adapter(f"lora,targets={PRESETS[text]}")
    kind, _, rest = text.partition(",")
    if "=" in kind:
        kind, rest = "lora", text
    if kind not in ADAPTERS:
        raise UserError(f"{ADAPTER_FLAG} {text}: {unknown('kind of adapter', kind, [*ADAPTERS, *PRESETS])}")
    options = read_options(f"{ADAPTER_FLAG} {text}", kind, rest, ADAPTERS[kind].defaults)
    if "layers" in options:
        options["layers"] = _numbers(options["layers"])
    return make_adapter(kind, **options)


def _check(adapter: Adapter) -> None:
    where, options = f"{ADAPTER_FLAG} {adapter.kind}", adapter.options
    for name, value in options.items():
        if name in _LEAST and value < _LEAST[name]:
            raise UserError(f"{where}: {name} is {value}; expected at least {_LEAST[name]}.")
        fits, expected = _BETWEEN.get(name, (None, ""))
        if fits and not fits(value):
            raise UserError(f"{where}: {name} is {value}; expected {expected}.")
    if "bias" in options and options["bias"] not in _BIASES:
        raise UserError(f"{where}: {unknown('bias', options['bias'], _BIASES)}")
    if adapter.kind == "adalora" and options["init_r"] <= options["target_r"]:
        raise UserError(
            f"{where}: init_r is {options['init_r']} and target_r {options['target_r']}; ranks are taken away in "
            "training, so init_r has to be the larger one."
        )
    if set(options.get("feedforward", ())) - set(options.get("targets", ())):
        raise UserError(f"{where}: feedforward names layers that targets does not; name them in both.")


def _numbers(words: tuple[str, ...]) -> tuple[int, ...]:
    """Read the numbers of layers: `0-3`, `2+5`, or both."""
    numbers: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise UserError(f"{ADAPTER_FLAG}: layers has {word!r}; expected numbers such as 0-3 or 2+5.")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))
