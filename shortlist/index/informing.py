"""Weights that a sparse model gives words, for the expansion of documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float, Int

from shortlist.data.stores.terms import TermReader
from shortlist.errors import UserError
from shortlist.index.opening import HELD, held
from shortlist.math.phrases import informativeness
from shortlist.math.terms import TermWeights

WORD_MARKS = ("", "Ġ", "▁")
"""Marks that vocabularies put before a term that begins a word."""
REST_MARKS = ("##", "")
"""Marks before a term that continues a word."""


@final
class WordWeights:
    """Weights of words in a document and its neighbours, from a store of term weights.

    Args:
        folder: term weights from `shortlist encode` with a sparse model.
        doc_ids: ids of the collection's documents.

    Raises:
        UserError: the folder holds no term weights, or lacks a document.
    """

    def __init__(self, folder: Path, doc_ids: Sequence[str]) -> None:
        check_term_weights(folder)
        self._store = TermReader(folder)
        places = {doc_id: position for position, doc_id in enumerate(self._store.doc_ids)}
        if missing := [doc_id for doc_id in doc_ids if doc_id not in places]:
            raise UserError(
                f"--expand-weights {folder}: lacks {len(missing):,} of {len(doc_ids):,} documents (first "
                f"{missing[0]!r}); encode the collection that is indexed."
            )
        self._positions = np.array([places[doc_id] for doc_id in doc_ids], dtype=np.int64)
        self._numbers = {term: number for number, term in enumerate(self._store.vocabulary)}
        self._known: dict[str, list[int]] = {}

    def of_terms(
        self, place: int | None, neighbours: Int[np.ndarray, " n"], similarities: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " terms"]:
        """Return what each term says of a document.

        Args:
            place: the document's, in the collection (None: a text that is not in it).
            neighbours: places of documents near it.
            similarities: how near each is.
        """
        found = self._store.take(self._positions[neighbours if place is None else np.append(place, neighbours)])
        if place is None:
            found = TermWeights(found.terms, found.weights, np.append(0, found.counts))
        return informativeness(found, similarities, num_terms=self._store.num_terms)

    def of_word(self, word: str, terms: Float[np.ndarray, " terms"]) -> float:
        """Return the mean of what the terms of a word say.

        A word that the vocabulary cannot write says 0.
        """
        if word not in self._known:
            self._known[word] = pieces(word, self._numbers)
        return float(terms[self._known[word]].mean()) if self._known[word] else 0.0


def check_term_weights(folder: Path) -> None:
    """Refuse a folder without term weights.

    Raises:
        UserError: it is missing, or holds something other.
    """
    found = held(folder) if folder.exists() else ""
    if found != "terms":
        what = HELD[found].words if found in HELD else "no term weights"
        raise UserError(
            f"--expand-weights {folder}: holds {what}; expected those of `shortlist encode` with a sparse model."
        )


def pieces(word: str, numbers: dict[str, int]) -> list[int]:
    """Split a word into terms of a vocabulary, the longest first, as WordPiece does.

    The result is empty where no term fits.
    """
    found, start = list[int](), 0
    while start < len(word):
        marks = REST_MARKS if start else WORD_MARKS
        fitting = ((end, mark + word[start:end]) for end in range(len(word), start, -1) for mark in marks)
        end, term = next(((end, term) for end, term in fitting if term in numbers), (0, ""))
        if not term:
            return []
        found.append(numbers[term])
        start = end
    return found
