"""One training step: token ids -> outputs -> loss -> gradients, in length-bucketed micro-batches.

The plain step keeps every activation until the backward pass. The cached step runs the model twice instead and keeps
the activations of one micro-batch at a time (https://arxiv.org/abs/2101.06983); its gradients are the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.math.losses import Loss, countable
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.text.batching import pad, token_batches
from shortlist.train.examples import Batch


class Outcome(NamedTuple):
    """What a batch's outputs are worth."""

    loss: Float[Tensor, ""]
    accuracy: float
    """Share of queries whose positive scores highest among the documents that count."""


class Example(NamedTuple):
    """A batch made ready: every input of the model, and what to do with every output."""

    token_ids: list[list[int]]
    query_ids: list[str]
    objective: Callable[[Tensor], Outcome]


def retriever_example(model: Retriever, batch: Batch, *, loss: Loss, temperature: float) -> Example:
    """Every query against every document of the batch (in-batch negatives), unlabelled positives left out."""
    documents = [document for group in batch.documents for document in group]
    sizes = torch.tensor([len(group) for group in batch.documents])
    own = torch.cumsum(sizes, 0) - sizes
    keep = countable([d.doc_id for d in documents], own.tolist(), batch.positives)

    def objective(vectors: Float[Tensor, "texts dim"]) -> Outcome:
        queries, docs = vectors[: len(batch.queries)], vectors[len(batch.queries) :]
        return _outcome(queries @ docs.T, own, keep, loss, temperature)

    token_ids = model.inputs.query_ids(batch.queries) + model.inputs.document_ids(documents)
    return Example(token_ids, [q.query_id for q in batch.queries], objective)


def reranker_example(model: Reranker, batch: Batch, *, loss: Loss, temperature: float) -> Example:
    """Every query against the documents of its own group only."""
    pairs = [(q, d) for q, group in zip(batch.queries, batch.documents, strict=True) for d in group]
    sizes = [len(group) for group in batch.documents]
    own = torch.zeros(len(sizes), dtype=torch.long)
    keep = pad_sequence([torch.ones(size, dtype=torch.bool) for size in sizes], batch_first=True)

    def objective(scores: Float[Tensor, " pairs"]) -> Outcome:
        rows = pad_sequence(list(scores.split(sizes)), batch_first=True)  # short groups stay whole, never regrouped
        return _outcome(rows, own, keep, loss, temperature)

    return Example(model.inputs.pair_ids(pairs), [q.query_id for q in batch.queries], objective)


def _outcome(scores: Tensor, own: Tensor, keep: Tensor, loss: Loss, temperature: float) -> Outcome:
    own, keep = own.to(scores.device), keep.to(scores.device)
    best = scores.detach().masked_fill(~keep, -torch.inf).argmax(1)
    value = loss(scores, own, temperature=temperature, keep=keep)
    return Outcome(value, (best == own).float().mean().item())


def backward(
    model: Retriever | Reranker, example: Example, *, token_budget: int, bf16: bool, seed: int, cached: bool = False
) -> Outcome:
    """Add the example's gradients to the model's parameters.

    Args:
        token_budget: most tokens in one micro-batch, padding included.
        bf16: matrix products in bfloat16; weights, loss and gradients stay float32.
        seed: of the dropout masks; one per micro-batch, so that both passes of the cached step draw the same.
        cached: the cached step instead of the plain one.
    """
    buckets = token_batches([len(ids) for ids in example.token_ids], token_budget)

    def forward(i: int) -> Tensor:
        return _forward(model, [example.token_ids[row] for row in buckets[i]], bf16=bf16, seed=seed + i)

    places = torch.cat([torch.as_tensor(bucket) for bucket in buckets])
    order = torch.argsort(places)
    if not cached:
        outcome = example.objective(torch.cat([forward(i) for i in range(len(buckets))])[order])
        outcome.loss.backward()
        return Outcome(outcome.loss.detach(), outcome.accuracy)
    with torch.no_grad():
        outputs = torch.cat([forward(i) for i in range(len(buckets))])[order]
    outputs.requires_grad_()
    outcome = example.objective(outputs)
    outcome.loss.backward()
    gradients = outputs.grad
    assert gradients is not None  # set by backward, for the type checker
    for i, bucket in enumerate(buckets):
        torch.autograd.backward(forward(i), gradients[torch.as_tensor(bucket)])
    return Outcome(outcome.loss.detach(), outcome.accuracy)


def _forward(model: Retriever | Reranker, token_ids: Sequence[list[int]], *, bf16: bool, seed: int) -> Tensor:
    device = next(model.parameters()).device
    ids, lengths = pad(list(token_ids), model.inputs.pad_id)
    torch.manual_seed(seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return model(ids.to(device), lengths.to(device)).float()
