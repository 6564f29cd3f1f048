"""Late interaction's scores of all documents of a batch for all its queries, with gradients.

The similarities of all pairs of tokens are never in memory together: the step back computes them again. The definition
is `math.maxsim.maxsim`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIMILARITIES_AT_ONCE = 1 << 24
"""Similarities of pairs of tokens that are in memory together, unless one document has more."""


def maxsim_scores(
    queries: Float[Tensor, "query_tokens dim"],
    query_counts: Int[Tensor, " queries"],
    documents: Float[Tensor, "doc_tokens dim"],
    doc_counts: Int[Tensor, " docs"],
) -> Float[Tensor, "queries docs"]:
    """Add up, over a query's vectors, the best similarity to one of the document's.

    A document without vectors scores as if each of its similarities were -1, so that losses stay finite.

    Args:
        queries: the vectors of all queries, one query after another.
        query_counts: the number of vectors of each query.
        documents: the vectors of all documents, like those of queries.
        doc_counts: the number of vectors of each document.

    https://arxiv.org/abs/2004.12832
    """
    maxima, _ = _Maxima.apply(queries, documents, doc_counts, 0)  # type: ignore[misc]
    return _sums(maxima.masked_fill(doc_counts.to(maxima.device) == 0, -1), query_counts)


def xtr_scores(
    queries: Float[Tensor, "query_tokens dim"],
    query_counts: Int[Tensor, " queries"],
    documents: Float[Tensor, "doc_tokens dim"],
    doc_counts: Int[Tensor, " docs"],
    *,
    k: int = 256,
) -> Float[Tensor, "queries docs"]:
    """Average the best similarities among those that a search of tokens would have found.

    Found are the `k` tokens of the batch's documents that are most similar to a query's token, and all that equal the
    last of them. The sum over a query's tokens that found one of a document's is divided by their number, as in the
    paper's equation 5 and in sentence-transformers; PyLate and PrimeQA divide by the number of positive similarities,
    at least 0.001, which makes documents with negative ones alone a thousand times worse. A document of which nothing
    is found scores 0, and one without vectors -1.

    Args:
        queries: as for `maxsim_scores`, like the other arguments.
        k: tokens that each of a query's tokens finds.

    https://arxiv.org/abs/2304.01982
    """
    maxima, bar = _Maxima.apply(queries, documents, doc_counts, k)  # type: ignore[misc]
    found = maxima.detach() >= bar[:, None]
    number = _sums(found.to(maxima.dtype), query_counts).clamp(min=1)
    scores = _sums(maxima.where(found, maxima.new_zeros(())), query_counts) / number
    return scores.masked_fill(doc_counts.to(maxima.device) == 0, -1)


def _sums(
    values: Float[Tensor, "query_tokens docs"], query_counts: Int[Tensor, " queries"]
) -> Float[Tensor, "queries docs"]:
    """Add up the rows of each query's tokens."""
    return torch.stack([part.sum(0) for part in values.split(query_counts.tolist())])


class _Maxima(torch.autograd.Function):
    """Find the best similarity of each query's token to one of each document's.

    It is -inf for a document without tokens. Beside these it gives the similarity that the `k` best tokens of all
    documents reach; -inf where there are fewer.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, doc_counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
        maxima = queries.new_full((len(queries), len(doc_counts)), -torch.inf)
        best = torch.zeros(maxima.shape, dtype=torch.int64, device=queries.device)
        top = queries.new_full((len(queries), 0), -torch.inf)
        for docs, tokens, real in _chunks(doc_counts, len(queries), queries.device):
            similarities = (queries @ documents[tokens.flatten()].T).view(len(queries), *tokens.shape)
            similarities.masked_fill_(~real, -torch.inf)
            maxima[:, docs], best[:, docs] = similarities.max(2)
            if k:
                top = torch.cat([top, similarities.flatten(1)], 1)
                top = top.topk(min(k, top.shape[1]), sorted=False).values
        bar = top.min(1).values if top.shape[1] >= max(1, k) else maxima.new_full((len(queries),), -torch.inf)
        ctx.save_for_backward(queries, documents, doc_counts, best)
        ctx.mark_non_differentiable(bar)
        return maxima, bar

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, documents, doc_counts, best = ctx.saved_tensors
        to_queries, to_documents = torch.zeros_like(queries), torch.zeros_like(documents)
        for docs, tokens, real in _chunks(doc_counts, len(queries), queries.device):
            spread = queries.new_zeros((len(queries), *tokens.shape))
            spread.scatter_(2, best[:, docs][..., None], gradients[0][:, docs][..., None])
            spread = spread.flatten(1)
            to_queries += spread @ documents[tokens.flatten()]
            to_documents[tokens[real]] = (spread.T @ queries)[real.flatten()]  # a token is in one document
        return to_queries, to_documents, None, None


def _chunks(
    doc_counts: Int[Tensor, " docs"], query_tokens: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " some"], Int[Tensor, "some longest"], Bool[Tensor, "some longest"]]]:
    """Yield documents with vectors in parts, the longest first.

    Yields:
        The places of the documents, the places of their vectors in rows of the same length, and which of these are
        real and not padding.
    """
    counts = doc_counts.cpu()
    starts = (counts.cumsum(0) - counts).to(device)
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    at = 0
    while at < len(order):
        longest = int(counts[order[at]])
        some = order[at : at + max(1, SIMILARITIES_AT_ONCE // max(1, query_tokens * longest))].to(device)
        places = torch.arange(longest, device=device)
        real = places < counts.to(device)[some, None]
        yield some, torch.where(real, starts[some, None] + places, 0), real
        at += len(some)
