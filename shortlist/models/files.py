"""Facts about a model from its files, without PyTorch, which loads slowly."""

from collections.abc import Sequence
from os.path import normpath, relpath
from pathlib import Path
from typing import Literal

from shortlist.data.files import final_place, optional_json, read_json, write_json
from shortlist.errors import UserError

Precision = Literal["fp32", "bf16", "int8"]
"""Number type that a model computes in."""

HEAD = "score.weight"
"""The key of a reranker's head."""

OUTPUT_EMBEDDING = "lm_head.weight"
"""The key of a language model's output embedding."""

PROJECTOR = ("projector.0.weight", "projector.2.weight")
"""Keys of a projector's weights, between which negative numbers become 0 (jina-reranker-v3)."""

PROJECTION = "linear.weight"
"""The key of a late-interaction model's projection, as in Stanford's ColBERT."""

LAYER_HEAD = "lm_head.{number}.linear_head.weight"
"""The keys of heads behind several layers (bge-reranker-v2-minicpm-layerwise)."""
MINICPM = "minicpm"
"""The kind of such a model that transformers has not, and that is computed here as a LLaMA."""

LATENT = "latent"
"""The name of the pooling that has weights."""
LATENT_KEYS = {f"pool.{name}": f"latent_pooling.{name}" for name in ("latents", "widen", "narrow")}
"""The keys of its weights: name in the model -> key in the folder."""

POSITIONS = ("position_embeddings", "embed_positions", "wpe")
"""Names of the table of learned positions in a model of transformers."""

CONFIG = "adapter_config.json"
PICKLED = "adapter_model.bin"
"""The older file of an adapter's weights. Only tensors are read from it; no code in the pickle is run."""
BASE = "base.json"
"""A file beside an adapter that says where the folder that it names as its base lies, as seen from its own."""


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
    known = optional_json(folder / BASE)
    if not Path(name).exists() and known.get("name") == name:
        beside = Path(normpath(folder / str(known.get("path"))))
        name = str(beside) if beside.is_dir() else name
    if Path(name).exists() and Path(name).resolve() == folder.resolve():
        raise UserError(f"{folder / CONFIG}: names its own folder as its base model; expected the model below it.")
    return name


def write_base(folder: Path, name: str | None) -> str | None:
    """Write down where an adapter's base lies, and return its name for PEFT."""
    if not name or not Path(name).exists():
        return name
    base = Path(name).resolve()
    write_json(folder / BASE, {"name": str(base), "path": relpath(base, final_place(folder.resolve()))})
    return str(base)


def layer_heads(folder: Path) -> range | None:
    """Return the layers behind which a reranker has heads.

    They are counted from 1. Any other model has None.
    """
    config = optional_json(folder / "config.json")
    if not config.get("head_multi") or not isinstance(config.get("start_layer"), int):
        return None
    return range(config["start_layer"], config["num_hidden_layers"] + 1)


def is_classifier(folder: Path) -> bool:
    """Whether the folder holds an encoder that is a sequence classifier of transformers."""
    config = optional_json(folder / "config.json")
    [architecture] = (config.get("architectures") or [""])[:1]
    if not architecture.endswith("ForSequenceClassification"):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def not_a_model(name: str, error: Exception | str) -> UserError:
    """Make the error for a name from which no model can be loaded."""
    names = sorted(path.name for path in Path(name).iterdir()) if Path(name).is_dir() else []
    found = f" Found: {', '.join(names[:6])}." if names else ""
    return UserError(
        f"{name}: cannot load a model ({first_line(error)}); expected a model folder with config.json and safetensors "
        f"weights, or the name of one on the hub.{found}"
    )


def first_line(error: Exception | str) -> str:
    """Return the first line of another library's error message, shortened."""
    lines: Sequence[str] = str(error).strip().split("\n")
    return lines[0][:200] or type(error).__name__
