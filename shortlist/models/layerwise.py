"""Rerankers with a head behind each upper layer, computed up to one of these."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.models.backbone import apply_reading, transformer_layers
from shortlist.models.files import LAYER_HEAD, MINICPM, layer_heads, not_a_model
from shortlist.models.folder import ModelFolder
from shortlist.models.heads import find_tensor
from shortlist.models.load import open_backbone, refuse_latent
from shortlist.models.pointwise import PointwiseModel
from shortlist.text.contract import InputContract
from shortlist.text.proof import proved_inputs

OF_LLAMA = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "attention_bias"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""What MiniCPM's config.json has in common with LLaMA's."""


def load_layerwise(
    folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32, layers: int | None = None
) -> PointwiseModel:
    """Load the first layers of a reranker, with the head behind the last of these.

    The score is the head's product with the state of an input's last token behind that layer, after the final norm.

    Args:
        layers: the layers to compute (None: all).

    Raises:
        UserError: there is no such head, its scores are more than one number, or the model cannot be computed here.

    https://arxiv.org/abs/2402.03216
    """
    inputs, reading = proved_inputs(contract.form, folder.tokenizer), contract.reading
    refuse_latent(reading, folder.name)
    path = folder.whole.backbone_path
    heads, config = layer_heads(path), read_json(path / "config.json")
    assert heads is not None  # it is of this kind; for the type checker
    last = heads.stop - 1 if layers is None else layers
    head = find_tensor(folder.path, LAYER_HEAD.format(number=last - heads.start))
    if head is None or len(head) != 1:
        found = "none" if head is None else f"one of {len(head)} rows"
        raise UserError(
            f"{folder.name}: has {found} of the heads {LAYER_HEAD!r} behind layer {last}; expected one row (head_type "
            "simple)."
        )
    if config.get("model_type") == MINICPM:
        backbone = _minicpm(folder, config, layers=last, dtype=dtype)
    else:
        backbone = first_layers(open_backbone(folder, dtype=dtype), last)
    apply_reading(backbone, reading)
    return PointwiseModel(backbone, inputs, reading, head)


def first_layers(backbone: PreTrainedModel, count: int) -> PreTrainedModel:
    """Take the layers above the first ones away, in place; the final norm stays."""
    stack = transformer_layers(backbone)
    del stack[count:]
    backbone.config.num_hidden_layers = count
    return backbone


def _minicpm(folder: ModelFolder, config: dict[str, Any], *, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    """Load MiniCPM's first layers as a LLaMA, into whose weights its constant factors are multiplied.

    MiniCPM multiplies embeddings by `scale_emb`, and what a layer adds by `scale_depth` over the root of the number of
    layers; in all else it is a LLaMA.
    """
    if config.get("rope_scaling") or config.get("pretraining_tp", 1) != 1:
        raise UserError(
            f"{folder.name}: has rope_scaling or pretraining_tp, which are not computed here for {MINICPM}; take the "
            "published weights."
        )
    chosen: dict[str, Any] = {name: config[name] for name in OF_LLAMA if config.get(name) is not None}
    chosen["num_hidden_layers"] = layers
    backbone = LlamaModel(LlamaConfig(**chosen))
    backbone.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    depth = config.get("scale_depth", 1.0) / sqrt(config["num_hidden_layers"])
    factors = {"embed_tokens.": config.get("scale_emb", 1.0), "o_proj.": depth, "down_proj.": depth}
    wanted, found = backbone.state_dict(), set[str]()
    for name, weight in _weights(folder):
        if name in wanted:
            factor = next((factor for part, factor in factors.items() if part in name), 1.0)
            wanted[name].copy_(weight.float() * factor)
            found.add(name)
    if missing := sorted(wanted.keys() - found):
        raise not_a_model(folder.name, f"{len(missing)} weights are missing, {missing[0]} among them")
    return backbone.eval()


def _weights(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    """Yield a backbone's tensors, by their names without the prefix."""
    for path in folder.weight_files:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                yield key.removeprefix("model."), weights.get_tensor(key)
