"""Marks on token ids, for models that give a vector for each token or a weight for each term.

A mark is a bit above those of every vocabulary. So what a token does travels with its id through batches, training
steps and processes, and a model need not know whether it reads a query or a document.
"""

OF_QUERY = 1 << 27
"""Mark of every token of a query, for models that encode queries in another way than documents."""

UNREAD = 1 << 28
"""Mark of a token that no other token attends to, though it gives a vector: one that fills up a query."""

NO_VECTOR = 1 << 29
"""Mark of a token that is attended to and gives no vector, and no weight to terms: a document's punctuation."""

TOKEN_ID = OF_QUERY - 1
"""The bits of a token's id, without marks."""


def unmarked(ids: list[int]) -> list[int]:
    """Return token ids without their marks."""
    return [token & TOKEN_ID for token in ids]
