"""Stages that remember: what a model said of the same input is not computed again."""

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.data.answers import AnswerLog, answer_keys
from shortlist.index.protocols import FetchDocuments, ReadHits, SearchesByReading
from shortlist.pipeline.compressors import Compressor
from shortlist.pipeline.feedback import Revision
from shortlist.progress import progress
from shortlist.records import Document, Hit, Query, Run
from shortlist.rerankers import Candidates, Ranker, Scored
from shortlist.rerankers.lists import score_lists

EVERYTHING = 1 << 31
"""More hits than there are."""
LOST_SECONDS = 1.0
"""About the most that an interruption loses of scores that come one after another."""
ScoredTogether = tuple[Query, tuple[Document, ...]]
"""A query with the documents whose scores depend on each other."""


@final
class KnownResults:
    """Results by what they depend on, in memory and perhaps in a log.

    Args:
        label: name of what computes them, which the log knows them by.
        log: the log (None: memory only).
    """

    def __init__(self, label: str, log: AnswerLog | None = None) -> None:
        self.label, self.log = label, log
        self.known: dict[Any, Any] = {}

    def missing(self, inputs: Iterable[Hashable]) -> list[Any]:
        """Return the inputs, each once, whose results neither memory nor log has."""
        new = [one for one in dict.fromkeys(inputs) if one not in self.known]
        if self.log is None or not new:
            return new
        keys = self._keys(new)
        found = self.log.find(keys)
        self.known |= {one: found[key] for one, key in zip(new, keys, strict=True) if key in found}
        return [one for one in new if one not in self.known]

    def add(self, results: Mapping[Any, Any]) -> None:
        """Keep results, which JSON can hold if there is a log."""
        self.known |= results
        if self.log is not None and results:
            self.log.add(dict(zip(self._keys(list(results)), results.values(), strict=True)))

    def _keys(self, inputs: Sequence[Any]) -> list[str]:
        return answer_keys(self.label, map(_plain, inputs))


def _plain(value: Any) -> Any:
    """Write what a result depends on as JSON, without metadata, which no model reads."""
    if isinstance(value, Document):
        return list(value[:4])
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _plain_hits(hits: Sequence[Hit]) -> list[list[Any]]:
    return [[hit.doc_id, float(hit.score)] for hit in hits]


@final
class KnownHits:
    """A first stage that searches once and gives the beginnings of what it found.

    Args:
        stage: the first stage.
        exact: whether a shorter search finds the beginning of a longer one. Otherwise each length is searched once.
    """

    def __init__(self, stage: Any, *, exact: bool) -> None:
        self.stage, self.exact = stage, exact
        self.found: dict[tuple[Query, int], tuple[int, list[Hit]]] = {}
        self.searches = 0

    def search(self, queries: Sequence[Query], k: int) -> Run:
        """Find the first k hits of each query."""
        length = 0 if self.exact else k
        new = [query for query in queries if self.found.get((query, length), (0, []))[0] < k]
        if new:
            run = self.stage.search(new, k)
            self.found |= {(query, length): (k, run.get(query.query_id, [])) for query in new}
            self.searches += 1
        return {query.query_id: self.found[query, length][1][:k] for query in queries}


@final
class KnownReadings:
    """A first stage that reads documents while it searches, once for each query."""

    def __init__(self, stage: SearchesByReading, label: str, *, log: AnswerLog | None = None) -> None:
        self.stage, self.memory = stage, KnownResults(label, log)
        self.searches = 0

    def search_by_reading(
        self, queries: Sequence[Query], k: int, documents: FetchDocuments, *, allowed: Allowed | None = None
    ) -> ReadHits:
        """Find the at most k best of the documents that are read; `allowed` is None."""
        assert allowed is None
        new = self.memory.missing(queries)
        if new:  # what is read does not depend on k, and no more can be found than is read
            found = self.stage.search_by_reading(new, EVERYTHING, documents)
            hits = {query: _plain_hits(found.run[query.query_id]) for query in new}
            self.searches += 1
            self.memory.add({query: [found.num_read[query.query_id], hits[query]] for query in new})
        known = {query.query_id: self.memory.known[query] for query in queries}
        run = {query_id: [Hit(*hit) for hit in hits[:k]] for query_id, (_, hits) in known.items()}
        return ReadHits(run, {query_id: num_read for query_id, (num_read, _) in known.items()})


@final
class KnownRevisions:
    """A step that revises each query once by the same documents, and searches.

    Args:
        stage: a `Feedback` or a `Rewriting`.
        exact: as for `KnownHits`, of the first stage that is searched.
    """

    def __init__(self, stage: Any, label: str, *, exact: bool, log: AnswerLog | None = None) -> None:
        self.stage, self.exact, self.memory = stage, exact, KnownResults(label, log)
        self.docs: int = stage.docs
        self.searches = 0

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query; `allowed` is None."""
        assert allowed is None
        inputs = [self._input(revision, place, k) for place in range(len(revision.queries))]
        missing = set(self.memory.missing(inputs))
        missing |= {one for one in inputs if one not in missing and self.memory.known[one][0] < k}
        places = [place for place, one in enumerate(inputs) if one in missing]
        if places:
            queries = [revision.queries[place] for place in places]
            heads = [revision.heads[place] for place in places] if revision.heads else revision.heads
            found = self.stage(revision._replace(queries=queries, heads=heads), k, None)
            kept = ([k, _plain_hits(hits)] for hits in found)
            self.memory.add(dict(zip([inputs[place] for place in places], kept, strict=True)))
            self.searches += 1
        return [[Hit(*hit) for hit in self.memory.known[one][1][:k]] for one in inputs]

    def _input(self, revision: Revision, place: int, k: int) -> tuple[Any, ...]:
        head = revision.heads[place] if revision.heads else ()
        read = tuple(tuple(hit) if self.stage.reads_scores else hit.doc_id for hit in head)
        return (revision.queries[place], read, revision.searched.own_scores, 0 if self.exact else k)


@final
class KnownTexts:
    """A compressor that shortens each list of documents once for each query."""

    def __init__(self, stage: Compressor, label: str, *, log: AnswerLog | None = None) -> None:
        self.stage, self.memory = stage, KnownResults(label, log)

    def shorten(self, lists: Sequence[Candidates]) -> list[list[Document]]:
        """Return the documents of each list in their order, with shorter texts."""
        inputs = [(query, tuple(documents)) for query, documents in lists]
        new = self.memory.missing(inputs)
        if new:
            found = self.stage.shorten([Candidates(query, documents) for query, documents in new])
            self.memory.add({one: [text.text for text in texts] for one, texts in zip(new, found, strict=True)})
        return [
            [document._replace(text=text) for document, text in zip(one[1], self.memory.known[one], strict=True)]
            for one in inputs
        ]

    def costs(self) -> dict[str, int]:
        """Return the calls and tokens so far."""
        return self.stage.costs()


@final
class PairScores:
    """A reranker that scores each pair, or each list, once.

    Args:
        ranker: the reranker.
        label: as for `KnownResults`, and so is `log`.
        whole_lists: whether a score depends on the whole list, which is then scored anew if one document differs.
    """

    def __init__(self, ranker: Ranker, label: str = "", *, whole_lists: bool, log: AnswerLog | None = None) -> None:
        self.ranker, self.whole_lists, self.memory = ranker, whole_lists, KnownResults(label, log)
        self.num_scored = 0

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query."""
        [part] = self.score_lists([Candidates(query, documents)])
        return part.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield all scores at once, reading only what is not known."""
        inputs = [one for query, documents in lists for one in self._inputs(query, tuple(documents))]
        before = len(self.memory.known)
        self._read(self.memory.missing(inputs))
        self.num_scored += sum(len(documents) for _, documents in islice(self.memory.known, before, None))
        found = np.array([score for one in inputs for score in self.memory.known[one]], dtype=float)
        yield Scored(np.arange(len(found)), found, 0)

    def _inputs(self, query: Query, documents: tuple[Document, ...]) -> list[ScoredTogether]:
        """Return what each score depends on: a document, or the whole list."""
        if self.whole_lists:
            return [(query, documents)] if documents else []
        return [(query, (document,)) for document in documents]

    def _read(self, inputs: Sequence[ScoredTogether]) -> None:
        """Score inputs, and keep the scores as they come."""
        if not inputs:
            return
        inputs = sorted(inputs, key=lambda one: one[0].query_id)  # pairs of a query are read as one list
        lists = (
            [Candidates(query, documents) for query, documents in inputs]
            if self.whole_lists
            else [
                Candidates(query, [document for _, [document] in some])
                for query, some in groupby(inputs, key=lambda one: one[0])
            ]
        )
        lengths = np.array([len(documents) for _, documents in inputs])
        owners, left, ends = np.repeat(np.arange(len(inputs)), lengths), lengths.copy(), np.cumsum(lengths)
        scores, kept = np.full(len(owners), np.nan), time.monotonic()
        new: dict[ScoredTogether, list[float]] = {}
        try:
            with progress("scoring", len(scores), "pairs") as advance:
                for part in score_lists(self.ranker, lists):
                    scores[part.numbers] = part.scores
                    np.subtract.at(left, owners[part.numbers], 1)
                    whole = [one for one in np.unique(owners[part.numbers]).tolist() if left[one] == 0]
                    new |= {inputs[one]: scores[ends[one] - lengths[one] : ends[one]].tolist() for one in whole}
                    if time.monotonic() - kept > LOST_SECONDS:
                        self.memory.add(new)
                        new, kept = {}, time.monotonic()
                    advance(len(part.numbers))
        finally:
            self.memory.add(new)
