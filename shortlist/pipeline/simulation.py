"""Simulation of a pipeline with other numbers, which scores every pair once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast, final

from shortlist.data.answers import AnswerLog
from shortlist.data.collections import Collection
from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions
from shortlist.pipeline import Pipeline, Trace
from shortlist.pipeline.contents import prepared_of
from shortlist.pipeline.feedback import SearchedAgain
from shortlist.pipeline.known import KnownHits, KnownReadings, KnownRevisions, KnownTexts, PairScores
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.numbers import Numbers, with_numbers
from shortlist.pipeline.opening import open_steps, searched_by
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.spec import Description, Part
from shortlist.pipeline.steps import STEPS, FetchDocuments, Found, Step, StepKind, num_read
from shortlist.records import Document, Query, Run

READS_DEEP = ("rank", "compress")
"""Kinds of steps that read as many documents of each query as their depth says."""


class LastRun(NamedTuple):
    """Last result of a step, and what it read."""

    key: tuple[Any, ...]
    read: list[Any]
    """The runs and changed texts that it read, kept so that no others have their identity."""
    found: Found


class Simulated(NamedTuple):
    """Result of a pipeline, and the number of documents that its steps read."""

    run: Run
    pairs: dict[str, int]
    """Pairs of a query and a document that each reranker reads, for all queries together."""
    read: dict[str, int]
    """The same of all steps that read documents as deep as they are told, compressors too."""


@final
class Simulation:
    """A pipeline over the same queries again and again, with other numbers each time.

    It runs the steps of `Pipeline`, whose first stages, rerankers and other models are replaced by ones that remember.
    What a step found is used again as long as nothing before it changes, so settings that differ in late steps should
    follow each other. The texts that were read stay in memory.

    Args:
        log: keeps scores and texts of models beyond this process (None: they are kept in memory).

    Raises:
        UserError: as for `Pipeline.open`.
    """

    def __init__(self, description: Description, opener: Opener, *, log: AnswerLog | None = None) -> None:
        self.description, self._opener, self._log = description, opener, log
        self.resolved = with_own_indexes(description)
        self.pipeline = Pipeline.open(self.resolved, opener)
        self.collection = cast("Collection", TextsInMemory(self.pipeline.collection))
        self._opened: dict[Any, Any] = {}
        self._kinds: dict[str, StepKind] = {}
        self.rankers: dict[str, PairScores] = {}
        self.real_steps = {step.name: step for step in self.pipeline.steps}
        by_stage: dict[int, PairScores] = {}  # steps with the same model know the same scores
        for part in self.resolved.steps:
            if part.kind == "rank":
                stage, whole = self.real_steps[part.name].stage, reads_whole_lists(part, opener)
                known = PairScores(stage, part.name, whole_lists=whole, log=log)
                self.rankers[part.name] = by_stage.setdefault(id(stage), known)
        self._last: dict[str, LastRun] = {}

    @property
    def num_scored(self) -> int:
        """Number of pairs scored so far, by this process or one before it."""
        return sum({id(ranker): ranker.num_scored for ranker in self.rankers.values()}.values())

    @property
    def searches(self) -> dict[str, int]:
        """Number of times that each step that searches has searched so far."""
        counts: dict[str, int] = {}
        for (name, _), stage in self._opened.items():
            if hasattr(stage, "searches"):
                counts[name] = counts.get(name, 0) + stage.searches
        return counts

    @property
    def readers(self) -> list[str]:
        """Names of the steps that read documents as deep as they are told."""
        return [part.name for part in self.resolved.steps if part.kind in READS_DEEP]

    @property
    def asks(self) -> bool:
        """Whether a step asks a language model, which does not answer the same question twice."""
        return any(asks_a_language_model(part, self._opener) for part in self.resolved.steps)

    def run(
        self, queries: Sequence[Query], k: int, numbers: Numbers, *, exclude: Exclusions = NO_EXCLUSIONS
    ) -> Simulated:
        """Find what the pipeline with these numbers finds for the same queries as before.

        Raises:
            UserError: as for `with_numbers`.
        """
        steps = self._steps(self._described(numbers))
        trace = Pipeline(self.collection, steps).trace(queries, k, exclude=exclude)
        read = {name: sum(counts.values()) for name, counts in self.num_read(trace, steps).items()}
        return Simulated(trace.last.run, {name: read[name] for name in read if name in self.rankers}, read)

    def num_read(self, trace: Trace, steps: Sequence[Step]) -> dict[str, dict[str, int]]:
        """Count the documents of each query that each step in `readers` reads."""
        readers = self.readers
        return {
            step.name: {query_id: num_read(step, hits) for query_id, hits in trace.found[step.of[0]].run.items()}
            for step in steps
            if step.name in readers
        }

    def real(self, numbers: Numbers) -> Pipeline:
        """Return the pipeline with these numbers itself, which remembers nothing."""
        return Pipeline(self.pipeline.collection, open_steps(self._described(numbers), self._opener))

    def _described(self, numbers: Numbers) -> Description:
        return with_own_indexes(with_numbers(self.description, numbers)) if numbers else self.resolved

    def _steps(self, description: Description) -> list[Step]:
        """Put steps with stages that remember together."""
        steps: list[Step] = []
        for part in description.steps:
            if part.kind not in self._kinds:
                self._kinds[part.kind] = STEPS[part.kind]._replace(run=self._remembering(STEPS[part.kind]))
            kind, stage = self._kinds[part.kind], self._stage(part)
            depth = part.depth or kind.depth
            searched = None if part.search is None else self._searched(part, description)
            steps.append(Step(part.name, kind, stage, part.of, depth, part.share, part.drop, searched=searched))
        return steps

    def _searched(self, part: Part, description: Description) -> SearchedAgain:
        """Return the first stage that a step searches, once for each sub-query."""
        found = searched_by(part, description, list(self.real_steps.values()))
        if STEPS[part.kind].searches_again:
            return found
        finder = next(one for one in self.resolved.steps if one.name == found.name)
        key = (f"{found.name} of {part.name}", "")
        return found._replace(stage=self._once(key, lambda: _known_finder(finder, found.stage, self._log)))

    def _stage(self, part: Part) -> Any:
        """Open a step's stage once for each of its settings, as one that remembers."""
        if part.kind == "rank":
            return self.rankers[part.name]
        key = (part.name, repr(sorted(part.settings.items())))
        return self._once(key, lambda: self._known(part, ": ".join(key)))

    def _known(self, part: Part, label: str) -> Any:
        kind, real = STEPS[part.kind], next(one for one in self.resolved.steps if one.name == part.name)
        if part.settings == real.settings:
            stage = self.real_steps[part.name].stage
        else:
            stage = kind.open(kind.methods()[part.method], self._opener, part.settings)
        if part.kind == "find":
            return _known_finder(part, stage, self._log)
        if part.kind == "compress":
            return KnownTexts(stage, label, log=self._log)
        if kind.searches_again:
            searched = next(one for one in self.resolved.steps if one.name == part.search)
            log = None if part.of else self._log  # revising by documents is searching, which is quick
            return KnownRevisions(stage, label, exact=_is_exact(searched), log=log)
        return stage

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]

    def _remembering(self, kind: StepKind) -> Callable[..., Found]:
        """Return a kind's function, which runs again only where it reads something new."""

        def run(
            step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
        ) -> Found:
            read = [*runs.values(), *self._changed_before(step.name), step.num_placed]
            key = (step.depth, step.share, step.drop, id(step.stage), most, *map(id, read))
            last = self._last.get(step.name)
            if last is None or last.key != key:
                last = self._last[step.name] = LastRun(key, read, kind.run(step, queries, runs, documents, most))
            return last.found

        return run

    def _changed_before(self, name: str) -> list[Found]:
        """List the results of the steps before this one that change texts."""
        names = [part.name for part in self.resolved.steps]
        before = self.resolved.steps[: names.index(name)]
        return [self._last[part.name].found for part in before if part.kind == "compress" and part.name in self._last]


@final
class TextsInMemory:
    """A collection whose texts are fetched once."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._known: dict[str, Document] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    def documents(self, doc_ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents with these ids."""
        if missing := [doc_id for doc_id in doc_ids if doc_id not in self._known]:
            self._known |= self._collection.documents(missing)
        return {doc_id: self._known[doc_id] for doc_id in doc_ids}


def _known_finder(part: Part, stage: Any, log: AnswerLog | None) -> Any:
    """Return a first stage that remembers."""
    if hasattr(stage, "search_by_reading"):
        return KnownReadings(stage, f"{part.name}: {sorted(part.settings.items())!r}", log=log)
    return KnownHits(stage, exact=_is_exact(part))


def _is_exact(part: Part) -> bool:
    """Whether a first stage's shorter search finds the beginning of a longer one."""
    return part.method == "bm25" or "index" not in part.settings


def reads_whole_lists(part: Part, opener: Opener) -> bool:
    """Whether the scores of a reranking step depend on the whole list."""
    return prepared_of(part, opener).whole_lists


def asks_a_language_model(part: Part, opener: Opener) -> bool:
    """Whether a step asks a language model, whose answers it remembers."""
    if STEPS[part.kind].is_prepared:
        return prepared_of(part, opener).asks
    return part.kind == "rewrite" or part.settings.get("walker") == "listwise"
