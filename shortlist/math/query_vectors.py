"""Vectors of queries that have read documents, and the scores that they give."""

import numpy as np
from jaxtyping import Float


def cosines(query: Float[np.ndarray, " dim"], documents: Float[np.ndarray, "docs dim"]) -> Float[np.ndarray, " docs"]:
    """Compute the cosine of the query's vector with each document's.

    It is 0 where one of the two has no direction.
    """
    sizes = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)
    products = documents @ query
    return np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)


def merged_query(
    queries: Float[np.ndarray, "blocks dim"], bests: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, " dim"]:
    """Average the vectors that a query got beside each block of documents.

    A block counts by (1 + its best cosine) / 2, as jina-reranker-v3 does.

    Args:
        bests: the best cosine of the block's own query vector with one of its documents.

    https://arxiv.org/abs/2509.25085
    """
    weights = (1 + bests) / 2
    if not weights.sum():
        return queries.mean(0)
    return (weights[:, None] * queries).sum(0) / weights.sum()
