"""ONNX: a graph from token ids to vectors or scores, with the tokenizer that makes the ids."""

import warnings
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
from shortlist.models.reranker import AnyReranker, CrossEncoder, Reranker
from shortlist.models.retriever import Retriever

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = {"retriever": "sentence_embedding", "reranker": "logits"}
"""Names of the graph's output, those that others expect."""


class Graph(nn.Module):
    """A model as one function of ids and mask, with nothing that depends on their sizes."""

    def __init__(self, model: Retriever | AnyReranker) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch out"]:
        """Vectors, or one score per row."""
        model, options = self.model, {"input_ids": input_ids, "attention_mask": attention_mask}
        if isinstance(model, CrossEncoder):
            return model.backbone(**options).logits
        states = model.backbone(**options, use_cache=False).last_hidden_state
        pooled = POOLINGS[model.reading.pooling](states, attention_mask.sum(1))
        return pooled.float() @ model.head.T if isinstance(model, Reranker) else model.behind_pooling(pooled)


def write_onnx(model: Retriever | AnyReranker, folder: Path, *, name: str) -> None:
    """Write model.onnx (large weights beside it) and the tokenizer; a retriever's prompts go into prompts.json.

    Inputs are input_ids and attention_mask, padded on the right, of any number of rows and tokens.

    Raises:
        UserError: a package is missing, or the model cannot be written so.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--to onnx: needs onnx and onnxscript; pip install 'shortlist[onnx]'.") from None
    if model.reading.token_types or model.backbone.config.is_encoder_decoder:
        raise UserError(f"{name}: token types and encoder-decoders are not written as ONNX; choose another layout.")
    retriever = isinstance(model, Retriever)
    tokenizer, prompts = for_single_texts(model.inputs) if retriever else (for_pairs(model.inputs), None)
    folder.mkdir(parents=True, exist_ok=True)
    _trace(Graph(model.float()), folder / FILE, OUTPUTS["retriever" if retriever else "reranker"])
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
