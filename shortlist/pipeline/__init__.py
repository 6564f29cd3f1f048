"""A search pipeline over one collection, for programs, servers and the stage `search`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final, get_args

from shortlist.data.collections import Collection, open_collection
from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions, without_excluded
from shortlist.data.memory import MemoryCollection
from shortlist.data.metadata import Metadata
from shortlist.engine import Engine
from shortlist.errors import UserError, in_python, unknown
from shortlist.pipeline.budget import within_budget
from shortlist.pipeline.flags import Sources, from_file_or_flags
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.memory import documents_of_frame, memory_steps
from shortlist.pipeline.opening import open_steps, say_what_is_older
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.spec import Description
from shortlist.pipeline.steps import STEPS, Found, Step
from shortlist.pipeline.wholes import AT_FIRST, MORE, AnswerUnit, best_chunks
from shortlist.records import Document, Hit, Query, as_documents, as_queries, is_one

BY_DOCUMENT = "by document"
"""The name of what groups chunks by document, after the last step."""


class Ranked(NamedTuple):
    """Rank and score that a step gave a document."""

    rank: int
    """Rank, counted from 1."""
    score: float
    moved: int | None
    """Ranks gained compared with the list that the step read, negative if lost (None: the step read no list, or
    several)."""


class Result(NamedTuple):
    """A document that was found."""

    document: Document
    score: float
    """Score of the last step."""
    places: dict[str, Ranked]
    """Rank and score by step (such as `bm25`, `dense`, `hybrid`, `reranker`), for the steps that ranked it."""
    chunk: str | None = None
    """Id of the chunk whose text this is, where whole documents were asked for (None: the document is an entry of the
    collection)."""


class Results(list[Result]):
    """Documents that were found, best first."""

    def to_frame(self) -> "DataFrame":
        """Make a table of pandas with a row for each document.

        It has the rank, the score, the document's fields, and the rank and score at each step.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise UserError("pandas is not installed, which to_frame needs; pip install pandas.") from None
        return pandas.DataFrame([_row(rank, result) for rank, result in enumerate(self, start=1)])


class Answer(NamedTuple):
    """Results for one query."""

    results: Results
    """Documents found, best first."""
    milliseconds: dict[str, float]
    """Time by step, and `documents` for fetching texts."""


class Trace(NamedTuple):
    """Results of all steps for some queries."""

    found: dict[str, Found]
    """Results by step, in the order of the steps; the last step's result is the answer."""
    milliseconds: dict[str, float]
    """Time by step, and `documents` for fetching texts."""
    num_excluded: int = 0
    """Number of hits that were left out because their queries exclude them."""

    @property
    def last(self) -> Found:
        """The result of the last step."""
        return self.found[next(reversed(self.found))]


if TYPE_CHECKING:
    from pandas import DataFrame

    from shortlist.models.late_retriever import LateRetriever
    from shortlist.models.retriever import Retriever
    from shortlist.models.sparse_retriever import SparseRetriever
    from shortlist.rerankers import Ranker


@final
class Pipeline:
    """Steps that search one collection.

    Args:
        steps: a step may read the runs of earlier steps; the last step's run is the answer.

    Raises:
        UserError: there are no steps.
    """

    def __init__(self, collection: Collection, steps: Sequence[Step]) -> None:
        self.collection, self.steps = collection, list(steps)
        if not self.steps:
            raise UserError("nothing to search with: give a BM25 index, or a retriever with its vectors, or both.")

    @classmethod
    def load(
        cls,
        collection: str | None = None,
        *,
        pipeline: str | Path | Mapping[str, Any] | None = None,
        retriever: str | None = None,
        vectors: str | Path | None = None,
        index: str | Path | Sequence[str | Path] = (),
        bm25: str | Path | None = None,
        weights: Sequence[int | float] | None = None,
        reranker: str | None = None,
        reranker_share: float = 1.0,
        depth: int | None = None,
        contract: str | None = None,
        query_length: int | None = None,
        language: str | None = None,
        prompt: str | None = None,
        dims: int | None = None,
        memory_gib: float | None = None,
        effort: int | None = None,
        refine: int | None = None,
        fusion: str = "rrf",
        engine: Engine = "local",
        packed: bool | None = None,
    ) -> "Pipeline":
        """Open everything by name.

        With neither indexes nor vectors the collection's own are searched, which are brought up to date first: its
        words and, with a retriever, its vectors.

        Args:
            collection: folder, `irds:` or `hf:` name.
            pipeline: a YAML file that describes all steps, or its content, in place of the following arguments.
            retriever: model that made the vectors.
            vectors: vectors from `shortlist encode`.
            index: one index over the vectors, or several, of any kind.
            bm25: BM25 index from `shortlist index`.
            weights: weight of each first stage if several are fused: BM25, then the indexes, then the vectors.
            reranker: model folder or hub name.
            reranker_share: weight of the reranker's scores, 0 to 1; the first stage's scores have the rest.
            depth: number of candidates that the reranker reads.
            contract: input contract of the retriever by name, for a folder without one.
            query_length: most tokens of a query (None: the model's limit).
            language: language of the words of the collection's own index (None: as it is, at first english).
            prompt: name of a prompt of the retriever's contract, in place of that of its queries.
            dims: numbers to compare of each vector, the first ones (None: all that are stored).
            memory_gib: most GiB of memory for vectors at a time (None: half of the free memory).
            effort: effort of approximate search per query (None: the index's setting), and so is `refine`.
            fusion: method to fuse several first stages: rrf, weighted or zscore.
            engine: `ray` scans vectors on a Ray cluster.
            packed: whether to pack the linear layers of all models, as for `models.run.for_inference`.

        Raises:
            UserError: something is missing, or another model made the vectors.
        """
        indexes = (index,) if isinstance(index, str | Path) else index
        sources = Sources(
            index=tuple(Path(path) for path in (bm25, *indexes) if path),
            model=retriever,
            vectors=Path(vectors) if vectors else None,
            contract=contract,
            query_length=query_length,
            language=language,
            prompt=prompt,
            dims=dims,
            memory_gib=memory_gib,
            effort=effort,
            refine=refine,
            fusion=fusion,
            weights=None if weights is None else tuple(map(float, weights)),
            engine=engine,
        )
        second = {"reranker": reranker, "depth": depth, "reranker_share": reranker_share}
        with in_python(model="retriever", index="bm25 or index"):
            description = from_file_or_flags(pipeline, sources, collection=collection, **second)
            return cls.open(description, Opener(packed=packed))

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | Document],
        *,
        retriever: "Retriever | LateRetriever | SparseRetriever | str | None" = None,
        reranker: "Ranker | str | None" = None,
        bm25: bool = True,
        language: str = "english",
        depth: int = 100,
    ) -> "Pipeline":
        """Index texts that are in memory, by BM25, vectors, or both, fused.

        The index is in a temporary folder, which is deleted with the pipeline.

        Args:
            texts: texts, which get their positions as ids, or documents.
            retriever: model that embeds them, of late interaction or sparse too, or its name (None: no vectors).
            reranker: model that orders the first `depth` documents, or its name.
            bm25: whether to search by words.
            language: how BM25 splits text into words, as for `shortlist index`.

        Raises:
            UserError: there is no text, something is no text, an id occurs twice, or a model is missing.
        """
        collection = MemoryCollection(as_documents(texts))
        return cls(
            collection,
            memory_steps(collection, retriever=retriever, reranker=reranker, bm25=bm25, language=language, depth=depth),
        )

    @classmethod
    def from_dataframe(
        cls,
        frame: "DataFrame",
        *,
        text: str = "text",
        title: str | None = None,
        doc_id: str | None = None,
        url: str | None = None,
        retriever: "Retriever | LateRetriever | SparseRetriever | str | None" = None,
        reranker: "Ranker | str | None" = None,
        bm25: bool = True,
        language: str = "english",
        depth: int = 100,
    ) -> "Pipeline":
        """Index the rows of a table.

        Args:
            text: name of the column with the texts.
            title: name of the column with titles (None: there are none), and so for `url`.
            doc_id: name of the column with ids (None: the table's index).
            retriever: this and the following arguments are as for `from_texts`.

        Raises:
            UserError: a column is missing, or as for `from_texts`.
        """
        documents = documents_of_frame(frame, text=text, title=title, doc_id=doc_id, url=url)
        return cls.from_texts(
            documents, retriever=retriever, reranker=reranker, bm25=bm25, language=language, depth=depth
        )

    def __repr__(self) -> str:
        steps = " -> ".join(step.name for step in self.steps)
        return f"<Pipeline over {self.collection.name}: {steps}>"

    @classmethod
    def open(cls, description: Description, opener: Opener | None = None) -> "Pipeline":
        """Open the collection and the steps of a description.

        Raises:
            UserError: as for `load`.
        """
        name = description.collection
        if name is None:
            raise UserError("collection is missing: it says where the documents are.")
        opener, description = opener or Opener(), with_own_indexes(within_budget(description))
        collection = opener.index(name, "documents", lambda: open_collection(name))
        steps = open_steps(description, opener)
        say_what_is_older(description, name)
        return cls(collection, steps)

    @cached_property
    def metadata(self) -> Metadata:
        """The documents' metadata, which filters read."""
        return Metadata(self.collection)

    @property
    def first_stages(self) -> list[str]:
        """Names of the steps before any reranking, best last.

        A search can ask for any of them alone.
        """
        names: list[str] = []
        for step in self.steps:
            if step.kind.is_first_stage and all(name in names for name in step.of):
                names.append(step.name)
        return names

    @property
    def rerankers(self) -> list[str]:
        """Names of all other steps."""
        return [step.name for step in self.steps if step.name not in self.first_stages]

    def search(
        self,
        query: str | Query,
        k: int = 10,
        *,
        depth: int | None = None,
        first_stage: str | None = None,
        rerank: bool | None = None,
        where: str | None = None,
        answer: AnswerUnit = "chunks",
    ) -> Results:
        """Find the k best documents for a query.

        Args:
            query: one query; `answer` takes several.
            k: number of documents.
            depth: the options are as for `trace`.

        Raises:
            UserError: as for `trace`, or there are several queries.
        """
        if not is_one(query):
            raise UserError(f"query is a {type(query).__name__}; expected one text: `answer` takes several.")
        options: dict[str, Any] = {"depth": depth, "first_stage": first_stage, "rerank": rerank, "where": where}
        [found] = self.answer(query, k, answer=answer, **options)
        return found.results

    def answer(
        self,
        queries: str | Query | Iterable[str | Query],
        k: int = 10,
        *,
        depth: int | None = None,
        first_stage: str | None = None,
        rerank: bool | None = None,
        where: str | None = None,
        answer: AnswerUnit = "chunks",
    ) -> list[Answer]:
        """Find the k best documents for each query, with their ranks in every step.

        Args:
            k: number of documents.
            depth: the options are as for `trace`.

        Raises:
            UserError: as for `trace`.
        """
        _check_k(k)
        steps = self.chosen(depth, first_stage, rerank, where)
        return [self._answer(query, k, steps, _checked(answer)) for query in as_queries(queries)]

    def trace(
        self,
        queries: str | Query | Iterable[str | Query],
        k: int,
        *,
        depth: int | None = None,
        first_stage: str | None = None,
        rerank: bool | None = None,
        where: str | None = None,
        answer: AnswerUnit = "chunks",
        exclude: Exclusions = NO_EXCLUSIONS,
    ) -> Trace:
        """Search several queries together and return the results of all steps.

        Args:
            k: number of documents wanted from the last step, which may give more.
            depth: candidates that the first reranker reads, and the most that later ones read (None: the depth of each
                step).
            first_stage: step that finds the candidates (None: as the steps are described).
            rerank: whether to run the steps after the first stages (None: if there are any).
            where: filter over the documents' metadata, such as "year >= 2020 and lang = 'de'" (None: all documents).
            answer: `documents` gives whole documents, each for its best chunk; chunk 3 of document d has the id `d#3`.
                The trace then ends with one more result, by document.
            exclude: ids of documents that a query may not find, chunks of them too. No step after the first stages
                sees them.

        Raises:
            UserError: a step is asked for that does not exist, or k or depth is below 1.
            WhereError: the filter cannot be read, or does not fit the documents' metadata.
        """
        _check_k(k)
        steps = self.chosen(depth, first_stage, rerank, where)
        asked, texts = as_queries(queries), _Texts(self.collection)
        if _checked(answer) == "chunks":
            return self._trace(asked, k, texts, steps, exclude)
        trace = self._deep_trace(asked, k, texts, steps, exclude)
        run = {name: [Hit(doc_id, hit.score) for doc_id, hit in best_chunks(hits, k).items()]
               for name, hits in trace.last.run.items()}  # fmt: skip
        return trace._replace(found=trace.found | {BY_DOCUMENT: Found(run)})

    def _deep_trace(
        self,
        queries: Sequence[Query],
        k: int,
        texts: "_Texts",
        steps: Sequence[Step],
        exclude: Exclusions = NO_EXCLUSIONS,
    ) -> Trace:
        """Search so deep that chunks of k documents are found for each query."""
        depth, found, short, num_excluded = AT_FIRST * k, dict[str, Found](), list(queries), 0
        while short:
            trace = self._trace(short, depth, texts, steps, exclude)
            num_excluded += trace.num_excluded
            found = {name: _together(found.get(name), given) for name, given in trace.found.items()}
            runs = {query.query_id: trace.last.run.get(query.query_id, []) for query in short}
            short = [query for query in short if _needs_more(runs[query.query_id], k, depth)]
            depth *= MORE
        return Trace(found, texts.milliseconds, num_excluded)

    def _trace(
        self,
        queries: Sequence[Query],
        k: int,
        texts: "_Texts",
        steps: Sequence[Step],
        exclude: Exclusions = NO_EXCLUSIONS,
    ) -> Trace:
        wanted, found, num_excluded = _wanted(steps, k), dict[str, Found](), 0
        more = max((len(exclude.get(query.query_id, ())) for query in queries), default=0)
        for step in steps:
            runs = {name: found[name].run for name in step.of}
            if step.kind.searches_again and step.of:
                step = step._replace(num_placed=_num_placed(step.of[0], steps, found))
            run = partial(step.kind.run, step, queries, runs, texts)
            with texts.timed(step.name):
                if more and (step.kind.num_read == 0 or step.kind.searches_again):
                    given, gone = _allowed(run, exclude, wanted[step.name], more)
                    num_excluded += gone
                else:
                    given = run(wanted[step.name])
            found[step.name] = given
            texts.add(given)
        return Trace(found, texts.milliseconds, num_excluded)

    def _answer(self, query: Query, k: int, steps: Sequence[Step], answer: AnswerUnit) -> Answer:
        texts, whole = _Texts(self.collection), answer == "documents"
        trace = (self._deep_trace if whole else self._trace)([query], k, texts, steps)
        found = trace.last.run.get(query.query_id, [])
        hits = best_chunks(found, k) if whole else {hit.doc_id: hit for hit in found[:k]}
        documents = texts.originals([hit.doc_id for hit in hits.values()])
        places = _places(query.query_id, steps, trace.found)
        results = Results(
            Result(
                documents[hit.doc_id]._replace(doc_id=name),
                hit.score,
                {step: at[hit.doc_id] for step, at in places.items() if hit.doc_id in at},
                hit.doc_id if name != hit.doc_id else None,
            )
            for name, hit in hits.items()
        )
        return Answer(results, texts.milliseconds)

    def chosen(
        self,
        depth: int | None = None,
        first_stage: str | None = None,
        rerank: bool | None = None,
        where: str | None = None,
    ) -> list[Step]:
        """Choose the steps to run and adjust them to the options of `trace`."""
        first, later = self.first_stages, self.rerankers
        if first_stage is not None and first_stage not in first:
            raise unknown("first stage", first_stage, first)
        if rerank and not later:
            raise UserError("rerank: there is no reranker here; leave it out, or name one when loading.")
        steps = [step for step in self.steps if step.name in first or rerank is not False]
        if first_stage is not None:
            steps = [step if step.name in first else _reading(step, first, first_stage) for step in steps]
        if depth is not None and depth < 1:
            raise UserError(f"depth is {depth}; expected at least 1.")
        if depth is not None and later:
            steps = [step._replace(depth=depth if step.name == later[0] else min(depth, step.depth or depth))
                     if step.name in later and not step.kind.searches_again else step for step in steps]  # fmt: skip
        if where is not None:
            steps = [step._replace(allowed=self.metadata.allowed(where)) for step in steps]
        last = first_stage if first_stage and not (later and rerank is not False) else steps[-1].name
        return _leading_to(last, steps)


def _row(rank: int, result: Result) -> dict[str, Any]:
    places = {f"{step}_{name}": getattr(at, name) for step, at in result.places.items() for name in ("rank", "score")}
    chunk = {} if result.chunk is None else {"chunk": result.chunk}
    return {"rank": rank, "score": result.score, **result.document._asdict(), **chunk, **places}


def _checked(answer: str) -> AnswerUnit:
    if answer not in get_args(AnswerUnit):
        raise unknown("answer", str(answer), get_args(AnswerUnit))
    return cast(AnswerUnit, answer)


def _needs_more(hits: Sequence[Hit], k: int, depth: int) -> bool:
    """Whether hits are of fewer than k documents, and more may come."""
    return len(hits) >= depth and len(best_chunks(hits, k)) < k


def _together(before: Found | None, now: Found) -> Found:
    """Replace the results of a step for some queries by newer ones."""
    if before is None:
        return now
    num_placed = None if now.num_placed is None else {**(before.num_placed or {}), **now.num_placed}
    num_read = {name: before.num_read.get(name, 0) + count for name, count in now.num_read.items()}
    return Found(
        {**before.run, **now.run},
        num_placed,
        {**before.documents, **now.documents},
        {**before.by_query, **now.by_query},
        before.num_tokens + now.num_tokens,
        {**before.num_read, **num_read},
    )


def _allowed(find: Callable[[int], Found], exclude: Exclusions, most: int, more: int) -> tuple[Found, int]:
    """Find what queries do not exclude, and count the rest.

    Args:
        find: finds as many hits for each query as it is told.
        most: hits wanted for each query.
        more: hits to find beyond these at first; a document may have many chunks.
    """
    while True:
        found = find(most + more)
        left, gone = _without(found, exclude, most)
        short = (query_id for query_id, hits in left.run.items() if len(hits) < most)
        if not any(len(found.run[query_id]) >= most + more for query_id in short):
            return left, gone
        more *= MORE


def _without(found: Found, exclude: Exclusions, most: int) -> tuple[Found, int]:
    """Leave out what queries exclude, and count it; keep the first `most` of the others."""
    run, gone = {}, 0
    for query_id, hits in found.run.items():
        left = without_excluded(hits, exclude.get(query_id, frozenset()))
        gone += len(hits) - len(left)
        run[query_id] = left[:most]
    return found._replace(run=run), gone


def _check_k(k: int) -> None:
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1.")


def _reading(step: Step, first: Sequence[str], first_stage: str) -> Step:
    """Return the same step, reading this first stage in place of others."""
    return step._replace(of=tuple(dict.fromkeys(first_stage if name in first else name for name in step.of)))


def _leading_to(last: str, steps: Sequence[Step]) -> list[Step]:
    """Return the last step and all steps that it needs."""
    needed = {last}
    for step in reversed(steps):
        if step.name in needed:
            needed |= set(step.of)
    return [step for step in steps if step.name in needed]


def _wanted(steps: Sequence[Step], k: int) -> dict[str, int]:
    """Compute how many hits each step must give for the last to give k."""
    wanted = {step.name: 0 for step in steps} | {steps[-1].name: k}
    for step in reversed(steps):
        if step.kind.is_first_stage and step.depth is not None:
            wanted[step.name] = step.depth
        for name in step.of:
            docs = step.stage.docs if step.kind.searches_again else 0
            wanted[name] = max(wanted[name], wanted[step.name], step.depth or 0, step.kind.fewest, docs)
    return wanted


def _num_placed(name: str, steps: Sequence[Step], found: Mapping[str, Found]) -> Mapping[str, int] | None:
    """Return how many of each query's first hits a step ranked itself.

    A cut has as many as the step that it reads.
    """
    named = {step.name: step for step in steps}
    while named[name].kind is STEPS["cut"]:
        [name] = named[name].of
    return found[name].num_placed


def _places(query_id: str, steps: Sequence[Step], found: Mapping[str, Found]) -> dict[str, dict[str, Ranked]]:
    """Collect the rank and score that each step gave each document."""
    ranks = {
        name: {hit.doc_id: rank for rank, hit in enumerate(given.run.get(query_id, []), start=1)}
        for name, given in found.items()
    }
    places = {}
    for step in steps:
        given = found[step.name]
        num_placed = None if given.num_placed is None else given.num_placed.get(query_id, 0)
        before = ranks[step.of[0]] if len(step.of) == 1 else {}
        places[step.name] = {
            hit.doc_id: Ranked(rank, hit.score, before[hit.doc_id] - rank if hit.doc_id in before else None)
            for rank, hit in enumerate(given.run.get(query_id, [])[:num_placed], start=1)
        }
    return places


@final
class _Texts:
    """Texts and times of one search.

    Each document is fetched once. The times are those of fetching and of the steps.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.known: dict[str, Document] = {}
        self.changed: dict[str, Document] = {}
        self.by_query: dict[str, dict[str, Document]] = {}
        self.milliseconds: dict[str, float] = {}

    def __call__(self, doc_ids: Sequence[str], query_id: str | None = None) -> dict[str, Document]:
        own = {} if query_id is None else self.by_query.get(query_id, {})
        originals = self.originals(doc_ids)
        return {doc_id: own.get(doc_id) or self.changed.get(doc_id, originals[doc_id]) for doc_id in originals}

    def add(self, found: Found) -> None:
        """Take over the texts that a step has changed."""
        self.changed |= found.documents
        for query_id, documents in found.by_query.items():
            self.by_query[query_id] = {**self.by_query.get(query_id, {}), **documents}

    def originals(self, doc_ids: Sequence[str]) -> dict[str, Document]:
        """Fetch documents as they are in the collection."""
        start = time.perf_counter()
        missing = [doc_id for doc_id in doc_ids if doc_id not in self.known]
        if missing or not doc_ids:
            self.known |= self.collection.documents(missing)
        self._took("documents", start)
        return {doc_id: self.known[doc_id] for doc_id in doc_ids}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the time of a step, without the time to fetch its texts."""
        start, fetching = time.perf_counter(), self.milliseconds.get("documents", 0.0)
        yield
        self._took(name, start)
        self.milliseconds[name] -= self.milliseconds.get("documents", 0.0) - fetching

    def _took(self, name: str, start: float) -> None:
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1000 * (time.perf_counter() - start)
