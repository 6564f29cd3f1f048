"""Scoring of many queries' candidates with any reranker."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from shortlist.records import Document, Query, as_documents
from shortlist.rerankers import Candidates, ListsRanker, Ranker, Scored

DOCS_AT_ONCE = 512
"""Documents whose vectors are held together."""


def score_lists(ranker: Ranker, lists: Iterable[Candidates]) -> Iterator[Scored]:
    """Yield the scores of every list.

    Lists are scored together if the reranker can, otherwise one after another.
    """
    if isinstance(ranker, ListsRanker):
        yield from ranker.score_lists(lists)
        return
    yield from score_each(lambda query, documents: (ranker.score(query, documents), 0), lists)


def score_each(
    score: Callable[[Query, Sequence[Document]], tuple[Float[np.ndarray, " docs"], int]], lists: Iterable[Candidates]
) -> Iterator[Scored]:
    """Yield the scores of lists that are scored one after another.

    Args:
        score: scores the documents of a query, at least one, and counts the tokens that it read.
    """
    start = 0
    for query, documents in lists:
        scores, num_tokens = score(query, documents) if documents else (np.empty(0, np.float32), 0)
        yield Scored(start + np.arange(len(documents)), scores, num_tokens)
        start += len(documents)


def score_parts(
    score: Callable[[Sequence[Candidates], int], Iterable[Scored]], lists: Iterable[Candidates], *, most: int
) -> Iterator[Scored]:
    """Yield the scores of lists that are scored together, in parts of bounded size.

    Args:
        score: scores some lists; its second argument is the number of their first document.
        most: most documents of a part, unless a single list has more.
    """
    part: list[Candidates] = []
    start = held = 0
    for candidates in lists:
        if part and held + len(candidates.documents) > most:
            yield from score(part, start)
            start, part, held = start + held, [], 0
        part.append(Candidates(candidates.query, as_documents(candidates.documents)))
        held += len(candidates.documents)
    if part:
        yield from score(part, start)
