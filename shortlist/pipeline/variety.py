"""Varied lists of hits, over stored vectors or runs of sub-queries."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float

from shortlist.errors import UserError
from shortlist.index.opening import check_held
from shortlist.math.diversity import cover, ideal_cover, mmr, scaled, unit_rows
from shortlist.records import Hit

if TYPE_CHECKING:
    from shortlist.data.stores.vectors import VectorReader

OF_ASPECT = "#"
"""Sign between a query's id and the name of its aspect, in the id of a sub-query."""


@final
class StoredVectors:
    """Vectors of documents by their ids, of length 1.

    Args:
        folder: vectors from `shortlist encode`, one for each document.

    Raises:
        UserError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; expected vectors from `shortlist encode`.")
        check_held(folder, "vectors")
        self.folder = folder

    @cached_property
    def _reader(self) -> "VectorReader":
        from shortlist.data.stores.vectors import VectorReader

        return VectorReader(self.folder)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {doc_id: position for position, doc_id in enumerate(self._reader.doc_ids)}

    def has(self, doc_ids: Iterable[str]) -> list[bool]:
        """Say of each document whether it has a vector."""
        return [doc_id in self._positions for doc_id in doc_ids]

    def take(self, doc_ids: Sequence[str]) -> Float[np.ndarray, "docs dim"]:
        """Return the vectors of documents that have one."""
        return unit_rows(self._reader.take(np.array([self._positions[doc_id] for doc_id in doc_ids], dtype=np.int64)))

    def check(self, doc_ids: Sequence[str], *, where: str) -> None:
        """Refuse documents if none has a vector.

        Raises:
            UserError: the vectors seem to be of another collection.
        """
        if doc_ids and not any(self.has(doc_ids)):
            raise UserError(
                f"{self.folder}: has no vector of any document of {where} (first {doc_ids[0]!r}); name the vectors of "
                "the same collection."
            )


def by_mmr(hits: Sequence[Hit], vectors: StoredVectors, *, k: int, share: float) -> list[int]:
    """Choose hits by maximal marginal relevance; those without a vector are not chosen.

    Their scores are scaled to [0, 1], as a cosine is.
    """
    places = [place for place, there in enumerate(vectors.has(hit.doc_id for hit in hits)) if there]
    relevance = scaled(np.array([hits[place].score for place in places]))
    found = vectors.take([hits[place].doc_id for place in places])
    return [places[number] for number in mmr(relevance, found, k=k, share=share).tolist()]


def by_coverage(
    hits: Sequence[Hit], aspects: Sequence[Sequence[Hit]], *, k: int, share: float, alpha: float
) -> list[int]:
    """Choose hits that cover the aspects of a query.

    Args:
        aspects: the hits of each sub-query. Their scores are scaled to [0, 1], and what is not among them has 0.
    """
    relevance = scaled(np.array([hit.score for hit in hits], dtype=np.float64))
    return cover(relevance, _answers(hits, aspects), k=k, share=share, alpha=alpha).tolist()


def by_ideal(hits: Sequence[Hit], aspects: Sequence[Sequence[Hit]], *, k: int) -> list[int]:
    """Choose hits in the order that a listwise ranker is to learn.

    Args:
        aspects: as for `by_coverage`.
    """
    return ideal_cover(_answers(hits, aspects), k=k).tolist()


def _answers(hits: Sequence[Hit], aspects: Sequence[Sequence[Hit]]) -> Float[np.ndarray, "aspects docs"]:
    rows = []
    for found in aspects:
        values = scaled(np.array([hit.score for hit in found], dtype=np.float64)).tolist()
        worth = {hit.doc_id: value for hit, value in zip(found, values, strict=True)}
        rows.append([worth.get(hit.doc_id, 0.0) for hit in hits])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(hits))


def chosen_first(hits: Sequence[Hit], places: Sequence[int]) -> list[Hit]:
    """Put chosen hits first, and the others behind them in their order.

    The values by which they were chosen are no scores: they neither fall nor stay above 0. The scores count down to 1.
    """
    taken = set(places)
    order = [*places, *(place for place in range(len(hits)) if place not in taken)]
    return [Hit(hits[place].doc_id, float(len(hits) - rank)) for rank, place in enumerate(order)]


def by_query(aspects: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group the ids of sub-queries, QUERY#ASPECT, by their queries."""
    found: dict[str, list[str]] = {}
    for name in aspects:
        query_id, sign, _ = name.rpartition(OF_ASPECT)
        if sign:
            found.setdefault(query_id, []).append(name)
    return found


Choose = Callable[[str, Sequence[Hit]], list[int]]
"""Chooses places among the hits of a query, given its id."""
