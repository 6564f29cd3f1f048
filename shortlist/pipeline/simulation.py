"""Simulation of a pipeline with other numbers, which scores every pair once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float

from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions
from shortlist.errors import UserError
from shortlist.pipeline import Pipeline, Trace
from shortlist.pipeline.contents import prepared_of
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.numbers import Numbers, with_numbers
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.spec import Description, Part
from shortlist.pipeline.steps import STEPS, FetchDocuments, Found, Step, StepKind, num_read
from shortlist.progress import progress
from shortlist.records import Document, Query, Run
from shortlist.rerankers import Candidates, Ranker, Scored
from shortlist.rerankers.lists import score_lists


@final
class KnownHits:
    """A first stage that searches once, and gives the beginnings of what it found.

    Args:
        stage: the first stage.
        exact: whether a shorter search finds the beginning of a longer one. Otherwise each length is searched once.
    """

    def __init__(self, stage: Any, *, exact: bool) -> None:
        self.stage, self.exact = stage, exact
        self.found: dict[int, Run] = {}
        self.searches = 0

    def search(self, queries: Sequence[Query], k: int) -> Run:
        """Find the first k hits of each query; the queries are the same each time."""
        deepest = max(self.found, default=0)
        if k not in self.found and not (self.exact and k <= deepest):
            self.found = ({} if self.exact else self.found) | {k: self.stage.search(queries, k)}
            self.searches += 1
            deepest = max(deepest, k)
        if k in self.found:
            return self.found[k]
        return {query_id: hits[:k] for query_id, hits in self.found[deepest].items()}


@final
class PairScores:
    """A reranker that scores each pair, or each list, once.

    Args:
        ranker: the reranker.
        whole_lists: whether a score depends on the whole list, which is then scored anew if one document differs.
    """

    def __init__(self, ranker: Ranker, *, whole_lists: bool) -> None:
        self.ranker, self.whole_lists = ranker, whole_lists
        self.known: dict[Any, Any] = {}
        self.num_scored = 0

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query."""
        [part] = self.score_lists([Candidates(query, documents)])
        return part.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield all scores at once, reading only what is not known."""
        lists = [Candidates(query, tuple(documents)) for query, documents in lists]
        (self._read_lists if self.whole_lists else self._read_pairs)(lists)
        scores = [self._of(query.query_id, documents) for query, documents in lists]
        found = np.concatenate(scores) if scores else np.empty(0)
        yield Scored(np.arange(len(found)), found, 0)

    def _of(self, query_id: str, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        if self.whole_lists:
            return self.known[query_id, documents]
        return np.array([self.known[query_id, document] for document in documents], dtype=float)

    def _read_pairs(self, lists: Sequence[Candidates]) -> None:
        new = [
            Candidates(query, [one for one in dict.fromkeys(documents) if (query.query_id, one) not in self.known])
            for query, documents in lists
        ]
        for candidates, scores in self._read([candidates for candidates in new if candidates.documents]):
            for document, score in zip(candidates.documents, scores.tolist(), strict=True):
                self.known[candidates.query.query_id, document] = score

    def _read_lists(self, lists: Sequence[Candidates]) -> None:
        new = [one for one in lists if one.documents and (one.query.query_id, one.documents) not in self.known]
        for candidates, scores in self._read(new):
            self.known[candidates.query.query_id, candidates.documents] = scores

    def _read(self, lists: Sequence[Candidates]) -> Iterator[tuple[Candidates, Float[np.ndarray, " docs"]]]:
        """Score lists, and yield each with its scores."""
        ends = np.cumsum([len(one.documents) for one in lists], dtype=int)
        if not len(ends):
            return
        scores = np.full(int(ends[-1]), np.nan)
        with progress("scoring", len(scores), "pairs") as advance:
            for part in score_lists(self.ranker, lists):
                scores[part.numbers] = part.scores
                advance(len(part.numbers))
        self.num_scored += len(scores)
        yield from zip(lists, np.split(scores, ends[:-1]), strict=True)


SIMULATED = ("find", "fuse", "rank", "cut", "diversify")
"""Kinds of steps that only read lists and scores, which can be remembered."""
READ_BY_A_MODEL = (("find", "cur"), ("find", "tree"))
"""First stages that read documents with a model."""


class LastRun(NamedTuple):
    """Last result of a step, and the runs that it read."""

    key: tuple[Any, ...]
    runs: list[Run]
    """The runs it read, kept so that no other run has their identity."""
    found: Found


class Simulated(NamedTuple):
    """Result of a pipeline, and the number of pairs that its rerankers read."""

    run: Run
    pairs: dict[str, int]
    """Pairs of a query and a document that each reranker reads, for all queries together."""


@final
class Simulation:
    """A pipeline over the same queries again and again, with other numbers each time.

    It runs the steps of `Pipeline`, whose first stages and rerankers are replaced by ones that remember. What a step
    found is used again as long as nothing before it changes, so settings that differ in late steps should follow each
    other. The texts that were read stay in memory.

    Raises:
        UserError: as for `Pipeline.open`, or a step is of a kind that is not simulated.
    """

    def __init__(self, description: Description, opener: Opener) -> None:
        for part in description.steps:
            if part.kind not in SIMULATED or (part.kind, part.method) in READ_BY_A_MODEL:
                raise UserError(
                    f"step {part.name!r}: `{part.kind}: {part.method}` cannot be tried with other numbers without "
                    "doing all of its work again; leave it out."
                )
        self.description = description
        resolved = with_own_indexes(description)
        self.pipeline = Pipeline.open(resolved, opener)
        self._stages: dict[Any, Any] = {}
        self._kinds: dict[str, StepKind] = {}
        self.finders: dict[str, KnownHits] = {}
        self.rankers: dict[str, PairScores] = {}
        by_stage: dict[int, PairScores] = {}  # steps with the same model know the same scores
        for part, step in zip(resolved.steps, self.pipeline.steps, strict=True):
            if part.kind == "find":
                self.finders[part.name] = KnownHits(step.stage, exact=_is_exact(part))
            elif part.kind == "rank":
                whole = reads_whole_lists(part, opener)
                known = by_stage.setdefault(id(step.stage), PairScores(step.stage, whole_lists=whole))
                self.rankers[part.name] = known
        self._opener = opener
        self._last: dict[str, LastRun] = {}
        self._texts: dict[str, Document] = {}

    @property
    def num_scored(self) -> int:
        """Number of pairs scored so far."""
        return sum({id(ranker): ranker.num_scored for ranker in self.rankers.values()}.values())

    def run(
        self, queries: Sequence[Query], k: int, numbers: Numbers, *, exclude: Exclusions = NO_EXCLUSIONS
    ) -> Simulated:
        """Find what the pipeline with these numbers finds for the same queries as before.

        Raises:
            UserError: as for `with_numbers`.
        """
        steps = [self._step(part) for part in self._parts(numbers)]
        trace = Pipeline(self.pipeline.collection, steps).trace(queries, k, exclude=exclude)
        return Simulated(trace.last.run, self._pairs(trace, steps))

    def _parts(self, numbers: Numbers) -> Sequence[Part]:
        return with_numbers(self.description, numbers).steps if numbers else self.description.steps

    def _pairs(self, trace: Trace, steps: Sequence[Step]) -> dict[str, int]:
        """Count the pairs that each reranker reads."""
        return {
            step.name: sum(num_read(step, hits) for hits in trace.found[step.of[0]].run.values())
            for step in steps
            if step.name in self.rankers
        }

    def real(self, numbers: Numbers) -> Pipeline:
        """Return the pipeline with these numbers itself, which remembers nothing."""
        steps = []
        for part in self._parts(numbers):
            stage = self._as_opened(part).stage if part.kind in ("find", "rank") else self._opened(part)
            steps.append(self._step_of(part, STEPS[part.kind], stage))
        return Pipeline(self.pipeline.collection, steps)

    def _step(self, part: Part) -> Step:
        stage = self.finders.get(part.name) or self.rankers.get(part.name) or self._opened(part)
        if part.kind not in self._kinds:
            self._kinds[part.kind] = STEPS[part.kind]._replace(run=self._remembering(STEPS[part.kind]))
        return self._step_of(part, self._kinds[part.kind], stage)

    def _step_of(self, part: Part, kind: StepKind, stage: Any) -> Step:
        searched, depth = self._as_opened(part).searched, part.depth or kind.depth
        return Step(part.name, kind, stage, part.of, depth, part.share, part.drop, searched=searched)

    def _as_opened(self, part: Part) -> Step:
        """Return a step of the pipeline as it is described."""
        return next(step for step in self.pipeline.steps if step.name == part.name)

    def _opened(self, part: Part) -> Any:
        """Open a step without a model once for each of its settings."""
        key = (part.name, repr(sorted(part.settings.items())))
        if key not in self._stages:
            kind = STEPS[part.kind]
            self._stages[key] = kind.open(kind.methods()[part.method], self._opener, part.settings)
        return self._stages[key]

    def _remembering(self, kind: StepKind) -> Callable[..., Found]:
        """Return a kind's function, which runs again only where it reads something new."""

        def run(
            step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
        ) -> Found:
            read = list(runs.values())
            key = (step.depth, step.share, step.drop, id(step.stage), most, *map(id, read))
            last = self._last.get(step.name)
            if last is None or last.key != key:
                found = kind.run(step, queries, runs, self._reading(documents), most)
                if found.documents:
                    self._texts.clear()  # they are other texts for later steps
                last = self._last[step.name] = LastRun(key, read, found)
            return last.found

        return run

    def _reading(self, documents: FetchDocuments) -> FetchDocuments:
        """Fetch texts once."""

        def fetch(doc_ids: Sequence[str], query_id: str | None = None) -> Mapping[str, Document]:
            del query_id  # no step here changes a text for one query alone
            if missing := [doc_id for doc_id in doc_ids if doc_id not in self._texts]:
                self._texts.update(documents(missing))
            return {doc_id: self._texts[doc_id] for doc_id in doc_ids}

        return fetch


def _is_exact(part: Part) -> bool:
    """Whether a first stage's shorter search finds the beginning of a longer one."""
    return part.method == "bm25" or "index" not in part.settings


def reads_whole_lists(part: Part, opener: Opener) -> bool:
    """Whether the scores of a reranking step depend on the whole list."""
    return prepared_of(part, opener).whole_lists
