"""ONNX export: a graph from token ids to vectors or scores, with its tokenizer."""

import warnings
from collections.abc import Callable
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortlist.data.files import write_json
from shortlist.errors import UserError
from shortlist.export.tokenizer import for_pairs, for_single_texts
from shortlist.export.tools import save_tokenizer
from shortlist.math.pooling import POOLINGS
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import KINDS

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT_NAMES = {"retriever": "sentence_embedding", "reranker": "logits"}
"""Names of the graph's output by the model's role, as other tools expect them."""


def vectors(model: Any, **inputs: Tensor) -> Float[Tensor, "batch dim"]:
    """Compute a dense model's vectors."""
    return model.behind_pooling(_pooled(model, **inputs))


def scores(model: Any, **inputs: Tensor) -> Float[Tensor, "batch 1"]:
    """Compute a pointwise model's scores."""
    return _pooled(model, **inputs).float() @ model.head.T


def logits(model: Any, **inputs: Tensor) -> Float[Tensor, "batch labels"]:
    """Compute a classifier's logits."""
    return model.backbone(**inputs).logits


GRAPHS: dict[str, Callable[..., Tensor]] = {"retriever": vectors, "reranker": scores, "classifier": logits}
"""Function that the graph computes, by the kind of model."""


def _pooled(model: Any, **inputs: Tensor) -> Float[Tensor, "batch hidden"]:
    states = model.backbone(**inputs, use_cache=False).last_hidden_state
    pool = getattr(model, "pool", None) or POOLINGS[model.reading.pooling]
    return pool(states, inputs["attention_mask"].sum(1))


class Graph(nn.Module):
    """A model as one function of ids and mask, which works for all sizes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.outcome = GRAPHS[model.kind]

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch out"]:
        """Compute vectors, or one score per row."""
        return self.outcome(self.model, input_ids=input_ids, attention_mask=attention_mask)


def write_onnx(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write model.onnx and the tokenizer.

    Large weights lie in a file beside model.onnx, and a retriever's prompts go into prompts.json. The inputs are
    input_ids and attention_mask, padded on the right, with any number of rows and tokens.

    Raises:
        UserError: the model cannot be written as ONNX.
    """
    role = KINDS[model.kind].role
    if model.kind not in GRAPHS:
        raise UserError(f"{source.name}: a {model.kind} is not written as ONNX; choose another layout.")
    if model.reading.token_types or model.backbone.config.is_encoder_decoder:
        raise UserError(
            f"{source.name}: token types and encoder-decoders are not written as ONNX; choose another layout."
        )
    tokenizer, prompts = for_single_texts(model.inputs) if role == "retriever" else (for_pairs(model.inputs), None)
    folder.mkdir(parents=True, exist_ok=True)
    _trace(Graph(model.float()), folder / FILE, OUTPUT_NAMES[role])
    save_tokenizer(tokenizer, folder)
    if prompts is not None:
        write_json(folder / "prompts.json", prompts)


def _trace(graph: Graph, path: Path, output: str) -> None:
    ids = torch.ones(2, 5, dtype=torch.int64)
    sizes: Any = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    getLogger("torch.onnx").setLevel(ERROR)
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        torch.onnx.export(
            graph.eval(),
            (ids, torch.ones_like(ids)),
            path,
            input_names=list(INPUTS),
            output_names=[output],
            dynamic_shapes=dict.fromkeys(INPUTS, sizes),
            dynamo=True,
            verbose=False,
        )
