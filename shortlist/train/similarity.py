"""Scores of all documents for all queries, from the outputs of each kind of retriever."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shortlist.math.interaction import maxsim_scores, xtr_scores
from shortlist.models.outputs import Rows
from shortlist.models.sparse import vocabulary_wide

DOCUMENTS_AT_ONCE = 256
"""Documents whose term weights are as wide as the vocabulary together."""

Similarity = Callable[[Rows, Rows], Float[Tensor, "queries docs"]]
"""Scores every document's rows for every query's."""


def dot_products(queries: Rows, documents: Rows) -> Float[Tensor, "queries docs"]:
    """Multiply every query's vector with every document's."""
    return queries.values @ documents.values.T


def by_maxsim(queries: Rows, documents: Rows) -> Float[Tensor, "queries docs"]:
    """Score by the best similarities of tokens (`math.interaction.maxsim_scores`)."""
    return maxsim_scores(*_with_counts(queries), *_with_counts(documents))


def by_xtr(queries: Rows, documents: Rows, *, k: int) -> Float[Tensor, "queries docs"]:
    """Score by the best similarities that would have been found (`math.interaction.xtr_scores`)."""
    return xtr_scores(*_with_counts(queries), *_with_counts(documents), k=k)


def by_terms(queries: Rows, documents: Rows) -> Float[Tensor, "queries docs"]:
    """Multiply the weights of terms that a query and a document share, a part of the documents at a time."""
    if documents.counts is None:
        return dot_products(queries, documents)
    numbers = [rows.values[:, 0] for rows in (queries, documents) if rows.counts is not None and len(rows.values)]
    size = int(max((part.max() for part in numbers), default=0)) + 1
    wide = vocabulary_wide(queries, size)
    counts, values = documents.counts.split(DOCUMENTS_AT_ONCE), []
    for part, own in zip(counts, documents.values.split([int(part.sum()) for part in counts]), strict=True):
        values.append(wide @ vocabulary_wide(Rows(own, part), size).T)
    return torch.cat(values, 1)


SIMILARITIES: dict[str, Similarity] = {"retriever": dot_products, "late": by_maxsim, "sparse": by_terms}
"""The scores by which a model searches, by kind or role."""

SCORINGS: dict[str, Callable[..., Any]] = {"maxsim": by_maxsim, "xtr": by_xtr}
"""What `--scoring` may name, with the options of `settings.train.SCORING_OPTIONS`."""


def apart(rows: Rows, num_queries: int) -> tuple[Rows, Rows]:
    """Split the rows of queries, which come first, from the documents' rows."""
    if rows.counts is None:
        return Rows(rows.values[:num_queries]), Rows(rows.values[num_queries:])
    first, rest = rows.counts[:num_queries], rows.counts[num_queries:]
    end = int(first.sum())
    return Rows(rows.values[:end], first), Rows(rows.values[end:], rest)


def _with_counts(rows: Rows) -> tuple[Tensor, Tensor]:
    assert rows.counts is not None  # a late-interaction model's rows have them; for the type checker
    return rows.values, rows.counts
