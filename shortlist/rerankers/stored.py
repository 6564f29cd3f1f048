"""Vectors of candidates: read from a store, or computed where none are stored."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, final

import numpy as np

from shortlist.data.stores.tokens import TokenReader
from shortlist.data.stores.vectors import VectorReader
from shortlist.records import Document


@final
class CandidateVectors:
    """Gives the vectors of documents.

    Two documents may have one id: a text, and what a pipeline has left of it for a query.

    Args:
        stored: the store to read (None: all documents are encoded).
        encode: computes those of documents that are not stored, in their order.
    """

    def __init__(self, stored: VectorReader | TokenReader | None, encode: Callable[[list[Document]], Any]) -> None:
        self._stored, self._encode = stored, encode

    def __call__(self, documents: Iterable[Document]) -> dict[Document, Any]:
        """Read the vectors of documents, by their ids, or compute them, each once."""
        documents, known = dict.fromkeys(documents), dict[Document, Any]()
        if self._stored is not None:
            places = {one: self._positions[one.doc_id] for one in documents if one.doc_id in self._positions}
            order = sorted(places, key=places.__getitem__)  # their order on disk
            known = dict(zip(order, self._stored.take(np.array([places[i] for i in order], np.int64)), strict=True))
        new = [document for document in documents if document not in known]
        if new:
            known |= zip(new, self._encode(new), strict=True)
        return known

    @cached_property
    def _positions(self) -> dict[str, int]:
        assert self._stored is not None
        return {doc_id: position for position, doc_id in enumerate(self._stored.doc_ids)}
