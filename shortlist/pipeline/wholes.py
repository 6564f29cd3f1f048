"""Answers by whole documents, each for its best chunk."""

import re
from collections.abc import Sequence
from typing import Literal

from shortlist.records import Hit

AnswerUnit = Literal["chunks", "documents"]
"""What a search answers: the collection's entries as they are, or whole documents where the entries are chunks."""
AT_FIRST, MORE = 3, 4
"""Entries to ask for at first, in multiples of k, and the factor for more if they belong to fewer than k documents."""
_CHUNK = re.compile(r"(.+)#[0-9]+", re.DOTALL)


def document_of(doc_id: str) -> str:
    """Return the id of the document that a chunk such as `d#3` belongs to."""
    found = _CHUNK.fullmatch(doc_id)
    return doc_id if found is None else found[1]


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
