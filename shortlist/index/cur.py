"""The kind of index `cur`: a reranker's scores of anchor queries for all documents.

From these scores and a new query's scores for a few documents, `math.ridge` or `math.cur` approximate its scores for
all. The scores are written in parts as they become known, and joined at the end.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Float32, Int

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write, optional_json, sha256, write_json
from shortlist.data.formats import read_queries
from shortlist.data.ids import DocIds
from shortlist.data.manifest import identity, read_manifest, same_identity
from shortlist.errors import UserError, not_given
from shortlist.index.inverted import DOC_IDS, id_line, open_lines
from shortlist.index.protocols import FetchDocuments, Opening, ReadHits
from shortlist.math.cur import Prior, promise_by_inverse, spread_items
from shortlist.math.reading import Promise, read_in_rounds
from shortlist.math.ridge import Expectation
from shortlist.progress import duration, say
from shortlist.progress import size as num_bytes
from shortlist.records import Document, Hit, Query
from shortlist.rerankers import Candidates, Ranker
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.pointwise import pointwise
from shortlist.rerankers.prepared import Prepared

SCORES, DESCRIPTION, PARTS = "scores.npy", "index.json", "scores-*.npy"
PAIRS_IN_PART = 4096
"""The most pairs that are sorted by length together."""
PART_SECONDS = 10.0
"""About the most that an interruption loses."""
MOST_PARTS = 4096
PAIRS_TIMED = 256
"""Pairs that are read to see how long one takes."""


@dataclass(frozen=True)
class Scoring:
    """The reranker and the anchor queries whose scores an index holds."""

    prepared: Prepared
    queries: Sequence[Query]
    identities: Mapping[str, str]
    """Identities of the model, of how it reads pairs, and of the file of queries."""

    @cached_property
    def ranker(self) -> Ranker:
        """The reranker, ready to score."""
        return self.prepared.open()


def open_scoring(*, model: str | None, queries: Path | None) -> Scoring:
    """Look up the reranker and read the anchor queries.

    Raises:
        UserError: one is not given or not there, or the reranker cannot read a query.
    """
    if model is None:
        raise not_given("--model", "cur holds the scores of a reranker")
    if queries is None:
        raise not_given("--queries", "cur holds scores of such queries, the anchors, for all documents")
    if not queries.is_file():
        raise UserError(f"--queries {queries}: no such file; expected queries, such as those of a training split.")
    prepared, anchors = pointwise(model=model), read_queries(queries)
    prepared.check(anchors)
    return Scoring(prepared, anchors, {**prepared.identities(), "queries": identity(queries)})


def build_cur(documents: Iterable[Document], folder: Path, *, scoring: Scoring, num_docs: int) -> dict[str, Any]:
    """Score all documents for the anchor queries, or those that an interrupted command has left.

    Args:
        num_docs: about how many documents there are, to foretell the time.

    Raises:
        UserError: a score is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (results := _joined(folder)) is not None:
        return results
    doc_ids, parts = list[str](), list[Path]()
    for path, part in _scored_parts(iter(documents), folder, scoring, num_docs):
        doc_ids += [document.doc_id for document in part]
        parts.append(path)
    count, num_queries = len(doc_ids), len(scoring.queries)
    results = {"num_docs": count, "num_queries": num_queries, "num_pairs": num_queries * count}
    return _join(folder, parts, doc_ids, results)


def _scored_parts(
    stream: Iterator[Document], folder: Path, scoring: Scoring, num_docs: int
) -> Iterator[tuple[Path, list[Document]]]:
    """Yield the written parts with their documents; a part is named by where it begins."""
    start, size, num_queries = 0, 0, len(scoring.queries)
    while True:
        path = folder / PARTS.replace("*", f"{start:08}")
        held = _held(path)
        if not held and not size and (first := list(islice(stream, _docs_timed(scoring)))):
            pace, stream = time_scoring(first, scoring), chain(first, stream)
            say(f"index: {pace.foretell(num_queries, num_docs - start)}.")
            size = _part_size(pace, num_queries, num_docs)
        part = list(islice(stream, held or size or 1))
        if not part:
            return
        if len(part) != held:
            with atomic_write(path, "wb") as file:
                np.save(file, _score(scoring, part), allow_pickle=False)
        yield path, part
        start += len(part)


def _held(path: Path) -> int:
    """Count the documents of a part that is there; 0 if it is not."""
    return np.load(path, mmap_mode="r", allow_pickle=False).shape[1] if path.exists() else 0


class ScoringPace(NamedTuple):
    """The measured speed of scoring."""

    seconds: float
    """Seconds per pair."""
    num_pairs: int
    """Pairs that were timed."""

    def foretell(self, num_queries: int, num_docs: int) -> str:
        """Foretell in words what is left."""
        pairs = num_queries * num_docs
        return (
            f"{num_queries:,} anchor queries x {num_docs:,} documents are {pairs:,} pairs to read, about "
            f"{duration(self.seconds * pairs)} at {1000 * self.seconds:,.2f} ms a pair (from {self.num_pairs:,} pairs)"
        )


def _part_size(pace: ScoringPace, num_queries: int, num_docs: int) -> int:
    """Choose the documents of a part: for some seconds, and not too many files."""
    pairs = min(PAIRS_IN_PART, PART_SECONDS / max(pace.seconds, 1e-9))
    return max(1, int(pairs / num_queries), -(-num_docs // MOST_PARTS))


def _docs_timed(scoring: Scoring) -> int:
    return max(1, PAIRS_TIMED // len(scoring.queries))


def _score(scoring: Scoring, documents: Sequence[Document]) -> Float32[np.ndarray, "queries docs"]:
    """Score some documents for all anchor queries."""
    scores = np.full(len(scoring.queries) * len(documents), np.nan, dtype=np.float32)
    for scored in score_lists(scoring.ranker, (Candidates(query, documents) for query in scoring.queries)):
        scores[scored.numbers] = scored.scores
    scores = scores.reshape(len(scoring.queries), len(documents))
    for query, document in np.argwhere(~np.isfinite(scores))[:1].tolist():
        raise UserError(
            f"query {scoring.queries[query].query_id!r}, document {documents[document].doc_id!r}: the model gives no "
            "finite score; take another --model."
        )
    return scores


def time_scoring(documents: Sequence[Document], scoring: Scoring) -> ScoringPace:
    """Measure the speed by scoring some documents for some of the anchor queries."""
    asked = Scoring(scoring.prepared, scoring.queries[: max(1, PAIRS_TIMED // len(documents))], {})
    asked.__dict__["ranker"] = scoring.ranker  # loaded once
    _score(asked, documents[:1])  # compiles what the first use needs
    start = time.perf_counter()
    pairs = _score(asked, documents).size
    return ScoringPace((time.perf_counter() - start) / pairs, pairs)


def forecast_cur(documents: Iterator[Document], *, scoring: Scoring, num_docs: int) -> dict[str, str]:
    """Foretell the cost of an index of all documents, without building one."""
    pace, num_queries = time_scoring(list(islice(documents, _docs_timed(scoring))), scoring), len(scoring.queries)
    return {
        "documents": f"{num_docs:,}",
        "disk": f"{num_bytes(num_queries * num_docs * 4)}, and as much memory while searching",
        "time": pace.foretell(num_queries, num_docs),
    }


def _join(folder: Path, parts: Sequence[Path], doc_ids: Sequence[str], results: dict[str, Any]) -> dict[str, Any]:
    """Write all scores into one file, delete the parts, and return the results."""
    with atomic_write(folder / SCORES, "wb") as file:
        np.save(file, np.concatenate([np.load(path, allow_pickle=False) for path in parts], axis=1), allow_pickle=False)
    with atomic_write(folder / DOC_IDS) as file:
        file.writelines(map(id_line, doc_ids))
    write_json(folder / DESCRIPTION, {"results": results, "sha256": sha256(folder / SCORES, folder / DOC_IDS)})
    for path in folder.glob(PARTS):
        path.unlink()
    return results


def _joined(folder: Path) -> dict[str, Any] | None:
    """Return the results of an interrupted command that had joined all parts."""
    description, files = optional_json(folder / DESCRIPTION), (folder / SCORES, folder / DOC_IDS)
    if not description or not all(path.exists() for path in files) or sha256(*files) != description["sha256"]:
        return None
    for path in folder.glob(PARTS):
        path.unlink()
    return description["results"]


@final
class CurIndex:
    """Scores of the anchor queries for all documents.

    Args:
        scores: one row for each anchor query.
        doc_ids: the ids of the documents, in corpus order.
    """

    def __init__(self, scores: Float[np.ndarray, "queries docs"], doc_ids: Sequence[str]) -> None:
        self.scores, self.doc_ids = scores, doc_ids
        self._anchors: dict[int, Int[np.ndarray, " anchors"]] = {}

    def __repr__(self) -> str:
        queries, docs = self.scores.shape
        return f"<CurIndex of {queries:,} anchor queries and {docs:,} documents>"

    def anchors(self, count: int) -> Int[np.ndarray, " anchors"]:
        """Choose anchor documents, once for each count.

        Raises:
            UserError: there are fewer anchor queries or documents.
        """
        if not 1 <= count <= min(self.scores.shape):
            queries, docs = self.scores.shape
            raise UserError(
                f"anchors is {count:,}; the index holds {queries:,} anchor queries and {docs:,} documents, expected 1 "
                f"to {min(queries, docs):,} anchor documents (more take more --queries in `shortlist index`)."
            )
        if count not in self._anchors:
            self._anchors[count] = spread_items(self.scores, count)
        return self._anchors[count]


def open_cur_index(folder: Path, built: Mapping[str, Any], how: Opening) -> CurIndex:
    """Open an index of the kind `cur`.

    Raises:
        UserError: it is not whole.
    """
    del built, how
    try:
        num_docs = optional_json(folder / DESCRIPTION)["results"]["num_docs"]
        scores = np.load(folder / SCORES, allow_pickle=False)
        ids = DocIds([open_lines(folder / DOC_IDS, (folder / DOC_IDS).stat().st_size)], [num_docs])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not a whole cur index ({reason}); make one with `shortlist index`.") from None
    return CurIndex(scores, ids)


def check_scored_by(folder: Path, prepared: Prepared, name: str) -> None:
    """Refuse an index of another reranker's scores.

    Raises:
        UserError: another model made them, or read pairs in another form.
    """
    made_from = (read_manifest(folder) or {}).get("made_from", {})
    if any(not same_identity(made_from.get(key), now) for key, now in prepared.identities().items()):
        raise UserError(
            f"{folder}: its scores were not made by what model {name} holds now; name the reranker that made them, or "
            "build it again."
        )


class SearchSpace(NamedTuple):
    """The documents, and what tells which of them to read."""

    doc_ids: Sequence[str]
    promises: Callable[[Sequence[Query]], list[Promise]]
    """Returns for each query what its scores so far promise for all documents."""
    first: Int[np.ndarray, " first"] = np.empty(0, dtype=np.int64)
    """Positions of the documents that are read first for every query."""


class NearDocuments(NamedTuple):
    """Vectors of the documents, and what embeds queries in the same space."""

    doc_ids: Sequence[str]
    items: Float[np.ndarray, "dim docs"]
    encode: Callable[[Sequence[Query]], Float[np.ndarray, "queries dim"]]


def space_by_ridge(scores: CurIndex | None, near: NearDocuments | None) -> SearchSpace:
    """Expect scores by anchor queries' scores, by vectors, or by both (`math.ridge`)."""
    expectation = Expectation(None if scores is None else scores.scores, None if near is None else near.items)

    def promises(queries: Sequence[Query]) -> list[Promise]:
        if near is None:
            return [expectation.promise()] * len(queries)
        return [expectation.promise(own @ near.items) for own in near.encode(queries)]

    found = scores or near
    assert found is not None
    return SearchSpace(found.doc_ids, promises)


def space_by_inverse(scores: CurIndex, anchors: int) -> SearchSpace:
    """Approximate scores by anchor queries, after some documents that are read for all."""
    promise = promise_by_inverse(scores.scores)
    return SearchSpace(scores.doc_ids, lambda queries: [promise] * len(queries), scores.anchors(anchors))


def space_by_nearest(near: NearDocuments, share: float) -> SearchSpace:
    """Approximate scores by vectors, where the query's own has a share."""

    def promises(queries: Sequence[Query]) -> list[Promise]:
        return [promise_by_inverse(near.items, Prior(own, share)) for own in near.encode(queries)]

    return SearchSpace(near.doc_ids, promises)


@final
class CurSearch:
    """A first stage that searches with a reranker alone.

    It reads some documents to choose which to read next. The hits are the documents that were read, by the reranker's
    own scores.

    Args:
        ranker: scores pairs.
        budget: the most documents to read for a query.
        rounds: rounds after the documents that are read first.
    """

    def __init__(self, ranker: Ranker, space: SearchSpace, *, budget: int, rounds: int) -> None:
        self.ranker, self.space, self.budget, self.rounds = ranker, space, budget, rounds

    def __repr__(self) -> str:
        return f"<CurSearch with {self.ranker!r}, {self.budget:,} documents a query>"

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.space.doc_ids

    def search_by_reading(
        self, queries: Sequence[Query], k: int, documents: FetchDocuments, *, allowed: Allowed | None = None
    ) -> ReadHits:
        """Find the at most k best of the documents that are read.

        All queries advance together.

        Args:
            documents: fetches texts by id.
            allowed: the only documents to find; what is read first for every query is read even if it is none of these.
        """
        keep = None if allowed is None else allowed.mask(self.doc_ids)
        plans = [
            read_in_rounds(
                promise,
                len(self.doc_ids),
                first=self.space.first,
                budget=self.budget,
                rounds=self.rounds,
                keep=keep,
            )
            for promise in self.space.promises(queries)
        ]
        run, num_read = {query.query_id: list[Hit]() for query in queries}, {query.query_id: 0 for query in queries}
        scores: list[Any] = [None] * len(queries)
        going = list(range(len(queries)))
        while going:
            asked: dict[int, Int[np.ndarray, " asked"]] = {}
            for number in going:
                try:
                    asked[number] = plans[number].send(scores[number])
                except StopIteration as done:
                    query_id, (positions, values) = queries[number].query_id, done.value
                    kept = np.ones(len(positions), dtype=bool) if keep is None else keep[positions]
                    num_read[query_id] = len(positions)
                    run[query_id] = self._hits(positions[kept][:k], values[kept][:k])
            going = list(asked)
            found = self._read([queries[number] for number in going], list(asked.values()), documents)
            for number, values in zip(going, found, strict=bool(going)):
                scores[number] = values
        return ReadHits(run, num_read)

    def _hits(self, positions: Int[np.ndarray, " hits"], scores: Float[np.ndarray, " hits"]) -> list[Hit]:
        doc_ids = [self.doc_ids[int(place)] for place in positions]
        return list(map(Hit, doc_ids, scores.tolist()))

    def _read(
        self, queries: Sequence[Query], asked: Sequence[Int[np.ndarray, " asked"]], documents: FetchDocuments
    ) -> list[Float[np.ndarray, " asked"]]:
        """Score the documents that each query asks for."""
        names = [[self.doc_ids[int(place)] for place in positions] for positions in asked]
        texts = documents(list(dict.fromkeys(chain.from_iterable(names))))
        lists = [
            Candidates(query, [texts[doc_id] for doc_id in own]) for query, own in zip(queries, names, strict=True)
        ]
        scores = np.full(sum(map(len, names)), np.nan, dtype=np.float32)
        for part in score_lists(self.ranker, lists):
            scores[part.numbers] = part.scores
        return np.split(scores, np.cumsum([len(own) for own in names])[:-1])
