"""Many texts -> vectors, many pairs -> scores: the one inference loop that every stage shares."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from shortlist.models.linear import pack_linears
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.progress import Advance
from shortlist.records import Document, Query
from shortlist.text.batching import pad, token_batches

CPU_TOKENS = 2048
GPU_TOKENS = 65536


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_token_budget(device: torch.device) -> int:
    """Tokens per forward pass that keep a device busy and its caches warm."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def for_inference(model: Retriever | Reranker, device: torch.device | None = None) -> None:
    """Make a loaded model ready to run and nothing else: on its device, no dropout, linears packed where that pays."""
    device = device or pick_device()
    model.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        pack_linears(model)


def run_model(
    model: Retriever | Reranker,
    token_ids: Sequence[list[int]],
    *,
    token_budget: int | None = None,
    advance: Advance | None = None,
) -> Float[np.ndarray, "texts *dim"]:
    """The model's output for every input, in the order given; batches are made of inputs of like length.

    Args:
        token_budget: most tokens in one forward pass, padding included.
        advance: told the number of texts done.
    """
    device = next(model.parameters()).device
    dim = (model.dim,) if isinstance(model, Retriever) else ()
    outputs = np.empty((len(token_ids), *dim), dtype=np.float32)
    for batch in token_batches([len(ids) for ids in token_ids], token_budget or default_token_budget(device)):
        ids, lengths = pad([token_ids[i] for i in batch], model.inputs.pad_id)
        with torch.inference_mode():
            outputs[batch] = model(ids.to(device), lengths.to(device)).cpu().numpy()
        if advance:
            advance(len(batch))
    return outputs


def embed_queries(retriever: Retriever, queries: Sequence[Query], **options) -> Float[np.ndarray, "queries dim"]:
    """Vectors of queries; options as in `run_model`."""
    return run_model(retriever, retriever.inputs.query_ids(queries), **options)


def embed_documents(retriever: Retriever, documents: Sequence[Document], **options) -> Float[np.ndarray, "docs dim"]:
    """Vectors of documents; options as in `run_model`."""
    return run_model(retriever, retriever.inputs.document_ids(documents), **options)


def score_pairs(reranker: Reranker, pairs: Sequence[tuple[Query, Document]], **options) -> Float[np.ndarray, " pairs"]:
    """Score of each document for its query; options as in `run_model`."""
    return run_model(reranker, reranker.inputs.pair_ids(pairs), **options)
