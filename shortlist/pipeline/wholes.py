"""Answers by whole documents, each for its best chunk."""

from collections.abc import Sequence
from typing import Literal

from shortlist.records import Hit
from shortlist.text.segments import document_of

AnswerUnit = Literal["chunks", "documents"]
"""What a search answers: the collection's entries as they are, or whole documents where the entries are chunks."""
AT_FIRST, MORE = 3, 4
"""Entries to ask for at first, in multiples of k, and the factor for more if they belong to fewer than k documents."""


def best_chunks(hits: Sequence[Hit], k: int) -> dict[str, Hit]:
    """Find the best chunk of each of the first k documents, by the document's id."""
    best: dict[str, Hit] = {}
    for hit in hits:
        if (name := document_of(hit.doc_id)) in best:
            continue
        if len(best) == k:
            break
        best[name] = hit
    return best
