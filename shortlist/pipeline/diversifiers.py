"""Methods of the step `diversify`: choices among each query's first hits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, final, runtime_checkable

from shortlist.data.formats import read_queries
from shortlist.errors import UserError
from shortlist.math.aspects import ALPHA
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.variety import OF_ASPECT, StoredVectors, by_coverage, by_mmr, by_query
from shortlist.progress import say
from shortlist.records import Hit, Query, Run

RELEVANCE_SHARE = 0.7
"""Weight of relevance against variety without a `lambda`."""
ITSELF = OF_ASPECT + "0"
"""End of the id under which `shortlist aspects` writes the query itself."""

SearchBefore = Callable[[Sequence[Query]], Run]
"""Searches by a first stage."""


@runtime_checkable
class Chooser(Protocol):
    """Chooses documents of several queries."""

    def __call__(
        self, queries: Sequence[Query], lists: Sequence[Sequence[Hit]], most: int, search: SearchBefore
    ) -> list[list[int]]:
        """Return the places of the chosen hits in each query's list, best first.

        Args:
            most: documents to choose where the description does not say how many.
        """
        ...


Lambda = TypedDict("Lambda", {"lambda": float}, total=False)
"""The weight of relevance, whose name is a word of Python."""


def varied_by_mmr(opener: Opener, *, vectors: Path, k: int | None = None, **more: Unpack[Lambda]) -> Chooser:
    """Choose documents by maximal marginal relevance, over stored vectors.

    A list of which no document has a vector stays as it is, which is said once.

    Args:
        vectors: vectors of the documents from `shortlist encode`.
        k: documents to choose (None: as many as are wanted).
        more: `lambda`, the weight of relevance, 0 to 1; 0.7 without it.

    Raises:
        UserError: a number is out of range, or there are no such vectors.
    """
    share = _checked("mmr", k, **more)
    stored = opener.once(("vectors by id", vectors), lambda: StoredVectors(vectors))
    told = _Once()

    def choose(
        queries: Sequence[Query], lists: Sequence[Sequence[Hit]], most: int, search: SearchBefore
    ) -> list[list[int]]:
        bare = [query for query, hits in zip(queries, lists, strict=True) if hits and not _any_in(stored, hits)]
        if len(bare) > 1 and len(bare) == sum(map(bool, lists)):
            doc_ids = [hit.doc_id for hits in lists for hit in hits]
            stored.check(doc_ids, where="the step before `diversify: mmr`")
        if bare:
            told(f"diversify: no document found for query {bare[0].query_id!r} has a vector in {vectors}")
        return [by_mmr(hits, stored, k=k or most, share=share) for hits in lists]

    return choose


def varied_by_coverage(
    opener: Opener, *, aspects: Path, k: int | None = None, alpha: float = ALPHA, **more: Unpack[Lambda]
) -> Chooser:
    """Choose documents that cover the sub-queries of each query, which are searched too.

    The list of a query without sub-queries stays as it is, which is said once.

    Args:
        aspects: sub-queries by id, `QUERY#ASPECT`: a file, or a folder of `shortlist aspects`.
        k: documents to choose (None: as many as are wanted).
        alpha: share of a sub-query's worth that a document which answers it fully takes away from later ones.
        more: `lambda`, the weight of relevance, 0 to 1; 0.7 without it.

    Raises:
        UserError: a number is out of range, or there are no sub-queries.
    """
    share = _checked("coverage", k, **more)
    if not 0 <= alpha <= 1:
        raise UserError(f"`diversify: coverage` with alpha {alpha:g}; expected a number from 0 to 1.")
    asked = opener.once(("sub-queries", aspects), lambda: SubQueries(aspects))
    told = _Once()

    def choose(
        queries: Sequence[Query], lists: Sequence[Sequence[Hit]], most: int, search: SearchBefore
    ) -> list[list[int]]:
        parts = [asked.of(query) if hits else [] for query, hits in zip(queries, lists, strict=True)]
        wanted = {part.query_id: part for some in parts for part in some}
        found = search(list(wanted.values())) if wanted else {}
        chosen = []
        for query, hits, some in zip(queries, lists, parts, strict=True):
            answers = [found[part.query_id] for part in some if found.get(part.query_id)]
            if hits and not answers:
                what = "hits for the sub-queries" if some else "sub-queries"
                told(f"diversify: {aspects} has no {what} of query {query.query_id!r} ({query.text:.40})")
            chosen.append(by_coverage(hits, answers, k=k or most, share=share, alpha=alpha) if answers else [])
        return chosen

    return choose


DIVERSIFIERS: dict[str, Callable[..., Chooser]] = {"mmr": varied_by_mmr, "coverage": varied_by_coverage}
"""The ways to choose varied documents."""
COVERING = ("coverage",)
"""Those that search sub-queries by a first stage."""


@final
class SubQueries:
    """Sub-queries of queries, by the queries' texts and ids.

    Args:
        path: queries whose ids are `QUERY#ASPECT`, or a folder with `queries.jsonl`.

    Raises:
        UserError: no id is one of a sub-query.
    """

    def __init__(self, path: Path) -> None:
        queries = {query.query_id: query for query in read_queries(path / "queries.jsonl" if path.is_dir() else path)}
        self._of = {name: [queries[one] for one in parts] for name, parts in by_query(queries).items()}
        if not self._of:
            raise UserError(
                f"{path}: no query id (first {next(iter(queries))!r}) has {OF_ASPECT}ASPECT behind the id of a query; "
                "`shortlist aspects` writes such sub-queries."
            )
        self._texts = {name: queries[name + ITSELF].text for name in self._of if name + ITSELF in queries}
        self._by_text = {text: name for name, text in reversed(self._texts.items())}

    def of(self, query: Query) -> list[Query]:
        """Return the sub-queries of a query, found by its text or otherwise its id.

        An id counts only where the file does not say that it is another query's: those of live queries are numbers.
        """
        name = self._by_text.get(query.text, query.query_id)
        return self._of.get(name, []) if self._texts.get(name, query.text) == query.text else []


@final
class _Once:
    """Says that a list stays as it is, the first time only."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, why: str) -> None:
        if not self._said:
            say(f"{why}; its list stays as it is, and so do others like it.")
        self._said = True


def _any_in(stored: StoredVectors, hits: Sequence[Hit]) -> bool:
    return any(stored.has(hit.doc_id for hit in hits))


def _checked(method: str, k: int | None, **more: Any) -> float:
    share = more.get("lambda", RELEVANCE_SHARE)
    if not 0 <= share <= 1 or (k is not None and k < 1):
        raise UserError(
            f"`diversify: {method}` with lambda {share:g} and k {k}; expected 0 to 1, and 1 or more documents, or no k."
        )
    return share
