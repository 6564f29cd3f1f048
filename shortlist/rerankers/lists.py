"""Scoring of many queries' candidates with any reranker."""

from collections.abc import Iterable, Iterator

import numpy as np

from shortlist.rerankers import Candidates, ListsRanker, Ranker, Scored


def score_lists(ranker: Ranker, lists: Iterable[Candidates]) -> Iterator[Scored]:
    """Yield the scores of every list.

    Lists are scored together if the reranker can, otherwise one after another.
    """
    if isinstance(ranker, ListsRanker):
        yield from ranker.score_lists(lists)
        return
    start = 0
    for query, documents in lists:
        yield Scored(start + np.arange(len(documents)), ranker.score(query, documents), 0)
        start += len(documents)
