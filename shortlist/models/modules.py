"""The files of a sentence-transformers folder: modules.json and the modules it names."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from shortlist.data.files import optional_json, read_json
from shortlist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from shortlist.models.dense import Activation, DenseLayer, UnitLength

MODULES = "modules.json"

ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "torch.tanh",
    "torch.nn.modules.activation.ReLU": "torch.relu",
    "torch.nn.modules.activation.GELU": "torch.nn.functional.gelu",
    "torch.nn.modules.activation.Sigmoid": "torch.sigmoid",
}
"""Supported activations of a dense layer: class named in its settings -> name of the function (None: no function)."""

UNLIMITED = 10**9
"""Tokenizers without a longest input report a length above this."""


def backbone_folder(folder: Path) -> Path:
    """Find the folder of the backbone inside a model folder.

    sentence-transformers may keep it one folder deeper.
    """
    if not (folder / MODULES).exists():
        return folder
    modules = (*list_routes(folder, "document"), *list_modules(folder))
    return next((path for kind, path in modules if kind in ("Transformer", "MLMTransformer")), folder)


def dense_layers(folder: Path) -> "list[DenseLayer | UnitLength]":
    """Load the dense layers after the pooling, and scalings between them, in order.

    Raises:
        UserError: weights are missing, or an activation is not supported.
    """
    if not (folder / MODULES).exists():
        return []
    from shortlist.models.dense import UnitLength

    layers = [(kind, path) for kind, path in list_modules(folder) if kind in ("Dense", "Normalize")]
    while layers and layers[-1][0] == "Normalize":  # this one is part of the reading
        layers.pop()
    return [_dense(path) if kind == "Dense" else UnitLength() for kind, path in layers]


def list_modules(folder: Path) -> list[tuple[str, Path]]:
    """List the kind and folder of each module, in order."""
    return [
        (module["type"].rsplit(".", 1)[-1], folder / module["path"]) for module in read_json(folder / MODULES, list)
    ]


def list_routes(folder: Path, route: str) -> list[tuple[str, Path]]:
    """List the kind and folder of each module that a Router runs for queries or for documents, in order.

    Args:
        route: `query` or `document`.
    """
    if not (folder / MODULES).exists():
        return []
    router = next((path for kind, path in list_modules(folder) if kind == "Router"), None)
    if router is None:
        return []
    known = read_json(router / "router_config.json")
    kinds, routes = known.get("types") or {}, known.get("structure") or {}
    names = {"query": ("query",), "document": ("document", "passage")}[route]
    chosen = next((routes[name] for name in names if name in routes), [])
    return [(kinds[place].rsplit(".", 1)[-1], router / place) for place in chosen]


def _dense(folder: Path) -> "DenseLayer":
    from safetensors.torch import load_file

    from shortlist.models.dense import DenseLayer

    settings, path = read_json(folder / "config.json"), folder / "model.safetensors"
    try:
        weights = load_file(path)
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: cannot read the layer ({error}); expected linear.weight in safetensors.") from None
    name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in ACTIVATIONS:
        raise UserError(f"{folder}: activation {name!r} is not supported; expected one of {', '.join(ACTIVATIONS)}.")
    residual = _residual(settings, weights, path)
    return DenseLayer(weight, bias, find_activation(name), residual=residual)


def _residual(settings: Mapping[str, Any], weights: Mapping[str, "Tensor"], path: Path) -> "Tensor | None":
    """Find the weight that a residual connection multiplies its input by, if any."""
    if not settings.get("use_residual"):
        return None
    import torch

    weight = weights["linear.weight"]
    if weight.shape[0] == weight.shape[1]:
        return torch.eye(len(weight))
    if "residual.weight" not in weights:
        raise UserError(f"{path}: cannot read the layer; expected residual.weight, which use_residual needs.")
    return weights["residual.weight"]


def find_activation(name: str) -> "Activation | None":
    """Return the function of an activation in ACTIVATIONS; None if it does nothing."""
    path = ACTIVATIONS[name]
    if path is None:
        return None
    module, _, function = path.rpartition(".")
    return getattr(import_module(module), function)


def longest_text(folder: Path, tokenizer: Any) -> int:
    """Find the longest input that a tokenizer and the positions of its model allow."""
    positions = optional_json(folder / "config.json").get("max_position_embeddings") or UNLIMITED
    length = min(tokenizer.model_max_length, positions)
    return length if length < UNLIMITED else 512
