"""Queries revised by documents: pseudo-relevance feedback over words and over vectors.

Terms are columns: those of one query and of its feedback documents, in any order.
"""

import numpy as np
from jaxtyping import Bool, Float

TermVector = Float[np.ndarray, " terms"]
Vector = Float[np.ndarray, " dim"]
DocTerms = Float[np.ndarray, "docs terms"]
"""How often each document holds each term, or the weight that a sparse model gives it."""


def score_shares(scores: Float[np.ndarray, " docs"]) -> Float[np.ndarray, " docs"]:
    """Weigh documents by their shares of the sum of scores, which must be above 0."""
    return scores / scores.sum()


def score_chances(scores: Float[np.ndarray, "*lists docs"]) -> Float[np.ndarray, "*lists docs"]:
    """Weigh documents by the softmax of their scores, as if these were log-likelihoods."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def equal_shares(scores: Float[np.ndarray, " docs"]) -> Float[np.ndarray, " docs"]:
    """Weigh all documents equally."""
    return np.full(len(scores), 1 / len(scores))


def summing_to_one(values: Float[np.ndarray, "*rows terms"]) -> Float[np.ndarray, "*rows terms"]:
    """Scale rows so that each sums to 1; rows of zeros stay."""
    sums = values.sum(-1, keepdims=True)
    return values / np.where(sums > 0, sums, 1)


def highest(values: TermVector, count: int) -> TermVector:
    """Keep the highest values above 0, of equal ones the first; the others become 0."""
    kept = np.argsort(-values, kind="stable")[:count]
    found = np.zeros_like(values)
    found[kept] = np.maximum(values[kept], 0)
    return found


def rm1(documents: DocTerms, weights: Float[np.ndarray, " docs"]) -> TermVector:
    """Estimate a relevance model: how likely each term is in what answers the query.

    It is the mean of the documents' own models, each the term's share of the document, by their weights.

    Args:
        weights: how likely each document is the relevant one.

    https://doi.org/10.1145/383952.383972
    """
    return weights @ summing_to_one(documents)


def rm3(
    query: TermVector, documents: DocTerms, weights: Float[np.ndarray, " docs"], *, terms: int, weight: float
) -> TermVector:
    """Mix a query with the strongest terms of the relevance model, both summing to 1.

    Args:
        query: the weights of its terms.
        weights: how likely each document is the relevant one.
        terms: terms of the relevance model to keep.
        weight: the query's share.

    https://trec.nist.gov/pubs/trec13/papers/umass.novelty.hard.pdf
    """
    return mixed(summing_to_one(query), summing_to_one(highest(rm1(documents, weights), terms)), weight)


def bo1_gains(counts: TermVector, totals: TermVector, num_docs: int) -> TermVector:
    """Compute how much more often terms occur in the feedback documents than by chance.

    It is tf log2((1 + P) / P) + log2(1 + P) with P = F / N: the bits that a Bose-Einstein model of the collection needs
    for tf occurrences. What does not occur gains nothing.

    Args:
        counts: tf, occurrences in all feedback documents together.
        totals: F, occurrences in the collection.
        num_docs: N, the documents of the collection.

    https://doi.org/10.1145/582415.582416
    """
    expected = np.maximum(totals, np.where(counts > 0, counts, 1)) / num_docs
    return np.where(counts > 0, counts * np.log2((1 + expected) / expected) + np.log2(1 + expected), 0.0)


def bo1(
    query: TermVector, documents: DocTerms, totals: TermVector, *, num_docs: int, terms: int, weight: float
) -> TermVector:
    """Mix a query with the terms that gain most by Bo1.

    Both have 1 as their highest weight. With a weight of 1/2 this is the sum of both, as in Terrier, halved.

    Args:
        query: the weights of its terms.
        totals: each term's occurrences in the collection.
        num_docs: the documents of the collection.
        terms: terms of the documents to keep.
        weight: the query's share.
    """
    gains = highest(bo1_gains(documents.sum(0), totals, num_docs), terms)
    return mixed(_up_to_one(query), _up_to_one(gains), weight)


def mixed(query: TermVector, expansion: TermVector, weight: float) -> TermVector:
    """Mix a query with an expansion; if one of them is empty, return the other."""
    if not expansion.any():
        return query
    return weight * query + (1 - weight) * expansion if query.any() else expansion


def _up_to_one(values: TermVector) -> TermVector:
    top = values.max(initial=0)
    return values / top if top > 0 else values


def vector_average(query: Vector, documents: Float[np.ndarray, "docs dim"]) -> Vector:
    """Return the mean of a query's vector and its documents' vectors.

    It is not scaled to length 1.

    https://arxiv.org/abs/2108.11044
    """
    return (query + documents.sum(0)) / (1 + len(documents))


def rocchio(query: Vector, documents: Float[np.ndarray, "docs dim"], *, alpha: float, beta: float) -> Vector:
    """Return alpha times a query's vector plus beta times the mean of documents.

    It is not scaled to length 1.

    https://arxiv.org/abs/2108.11044
    """
    return alpha * query + beta * documents.mean(0)


def distillation_gradient(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "queries docs dim"],
    teacher: Float[np.ndarray, "queries docs"],
    keep: Bool[np.ndarray, "queries docs"],
    *,
    temperature: float,
) -> Float[np.ndarray, "queries dim"]:
    """Differentiate KL(teacher || softmax(q d / temperature)) by each query's vector.

    It is the sum of (softmax - teacher) d / temperature.

    Args:
        teacher: the chances that it gives documents, which sum to 1 over what is kept.
        keep: whether a place holds a document.
    """
    logits = np.matmul(documents, queries[:, :, None])[:, :, 0] / temperature
    errors = np.where(keep, score_chances(np.where(keep, logits, -np.inf)) - teacher, 0)
    return np.matmul(errors[:, None], documents)[:, 0] / temperature


def distilled(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "queries docs dim"],
    scores: Float[np.ndarray, "queries docs"],
    *,
    steps: int,
    rate: float,
    temperature: float,
) -> Float[np.ndarray, "queries dim"]:
    """Move queries' vectors down the gradient, towards the order that a reranker gave their documents.

    Args:
        scores: the reranker's; NaN for a document that it did not read, or where there is none.
        steps: steps down the gradient.
        rate: what the gradient is multiplied by at each step.
        temperature: divides the products of queries and documents.

    https://arxiv.org/abs/2305.11744, https://arxiv.org/abs/2406.15657
    """
    keep = ~np.isnan(scores)
    teacher = np.where(keep, score_chances(np.where(keep, scores, -np.inf)), 0).astype(queries.dtype)
    for _ in range(steps):
        gradient = distillation_gradient(queries, documents, teacher, keep, temperature=temperature)
        queries = queries - np.asarray(rate, queries.dtype) * gradient
    return queries
