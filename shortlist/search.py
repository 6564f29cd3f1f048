"""Stage `search`: find each query's long list with a pipeline.

The pipeline may use BM25, vectors, both fused, or steps described in a file.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shortlist.config import NotInJob
from shortlist.data.beir import shares_ids
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions, find_excluded
from shortlist.data.files import folder_bytes
from shortlist.data.headers import header_of
from shortlist.data.jobs import JobSpec, is_done, start_job
from shortlist.data.manifest import identity
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.index.protocols import SearchesByReading, StatesCosts
from shortlist.math.exclusion import count_own, without_own
from shortlist.pipeline import Pipeline, Trace
from shortlist.pipeline.budget import Budget, with_budget, within_budget
from shortlist.pipeline.contents import known_by_contents, prepared_of
from shortlist.pipeline.flags import Sources, from_file_or_flags
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.opening import MODEL_SETTINGS, identity_of_model, model_folder, say_what_is_older
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.spec import Description, Part
from shortlist.pipeline.steps import STEPS
from shortlist.pipeline.terms import without_terms
from shortlist.pipeline.wholes import AnswerUnit
from shortlist.progress import peak_bytes, progress, say
from shortlist.records import Hit, Query, Run

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder

HITS_AT_ONCE = 8_000_000
"""Most hits in memory. A hit takes 170 bytes, and the queries of a training split find a hundred million hits."""
RERANKED_AT_ONCE = 16
"""Queries to search at a time if there is a reranker. It is slow, so progress should be shown often."""


@dataclass(frozen=True, kw_only=True)
class Config(Sources):
    out: NotInJob[Path]
    """Run file to write."""
    collection: str | None = None
    """Collection with the queries: folder, `irds:` or `hf:` name."""
    pipeline: str | Path | None = None
    """YAML file that describes all steps, rerankers included, in place of flags (docs/pipelines.md); in a recipe also
    what would be in it."""
    budget_ms: NotInJob[float | None] = None
    """With --costs: most milliseconds that a query is expected to take; the pipeline gets the best numbers within."""
    target_quality: NotInJob[float | None] = None
    """With --costs, in place of --budget-ms: least quality, in the measure of `shortlist tune`; the pipeline gets the
    cheapest numbers that reached it."""
    costs: NotInJob[Path | None] = None
    """With --budget-ms or --target-quality: costs.json of `shortlist tune` for this pipeline."""
    split: str = "test"
    """Split of the collection that has the queries."""
    k: int = 1000
    """Documents per query."""
    where: str | None = None
    """Filter over the documents' metadata, such as "year >= 2020 and lang = 'de'" (docs/guide.md)."""
    answer: AnswerUnit = "chunks"
    """`documents`: find whole documents, each for its best chunk, where the collection's entries are chunks (d#0)."""
    exclude_self: bool | None = None
    """Leave out the document with the query's id (None: only where queries are also documents, as in ArguAna and
    Quora)."""
    exclude: Path | None = None
    """Documents that a query may not find: lines `query document`, or JSON lines with `id` and `excluded_ids` as in
    BRIGHT (None: what the collection says, in exclude/SPLIT.tsv or .jsonl)."""
    skip_missing: NotInJob[bool] = False
    """Leave out judged queries whose text is missing or blank, and count them, instead of stopping."""
    header: bool = False
    """Write what the run was made from before its first line, as comments in the form of ir_metadata."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class FoundPart(NamedTuple):
    """Results of some of the queries."""

    run: Run
    milliseconds: dict[str, float]
    """Time by step, as in `pipeline.Trace`."""
    num_tokens: dict[str, int]
    """Tokens that rerankers have read, by step."""
    seconds: float
    """Time of all steps together."""
    without_terms: dict[str, list[str]]
    """By step: the ids of queries without a term that it could search by, for which it found nothing."""
    num_excluded: int
    """Number of hits that were left out because their queries exclude them."""
    num_read: Mapping[str, int] = {}
    """By step: number of documents that its model has read, all queries together."""


def search(
    pipeline: Pipeline,
    queries: list[Query],
    k: int,
    *,
    exclude_self: bool = False,
    where: str | None = None,
    answer: AnswerUnit = "chunks",
    exclude: Exclusions = NO_EXCLUSIONS,
) -> Iterator[FoundPart]:
    """Search the queries in parts, and yield their hits.

    A part has at most HITS_AT_ONCE hits, and RERANKED_AT_ONCE queries if a reranker reads documents.

    Args:
        exclude_self: leave out the document with the query's id.
        where: filter over the documents' metadata (None: all documents).
        answer: `documents` finds whole documents, each for its best chunk.
        exclude: ids of documents that a query may not find.
    """
    at_once = max(1, HITS_AT_ONCE // k)
    if pipeline.rerankers or any(isinstance(step.stage, SearchesByReading) for step in pipeline.steps):
        at_once = min(at_once, RERANKED_AT_ONCE)
    with progress("searching", len(queries), "queries") as advance:
        for first in range(0, len(queries), at_once):
            start, batch = time.perf_counter(), queries[first : first + at_once]
            trace = pipeline.trace(batch, k + 1 if exclude_self else k, where=where, answer=answer, exclude=exclude)
            found = without_own(trace.last.run, k) if exclude_self else _first(trace.last.run, k)
            seconds, silent = time.perf_counter() - start, _silent(pipeline, batch, trace)
            tokens = {name: given.num_tokens for name, given in trace.found.items() if given.num_tokens}
            num_read = {name: sum(step.num_read.values()) for name, step in trace.found.items() if step.num_read}
            yield FoundPart(found, trace.milliseconds, tokens, seconds, silent, trace.num_excluded, num_read)
            advance(len(batch))


def _silent(pipeline: Pipeline, queries: list[Query], trace: Trace) -> dict[str, list[str]]:
    """List the queries that steps found nothing for because they have no terms."""
    ids = {}
    for step in pipeline.steps:
        run = trace.found[step.name].run if step.name in trace.found else None
        nothing = [query for query in queries if run is not None and not run.get(query.query_id)]
        if silent := without_terms(step, nothing):
            ids[step.name] = [query.query_id for query in silent]
    return ids


def _first(run: Run, k: int) -> Run:
    """Keep the first k hits of each query, as a step may give more."""
    return run if all(len(hits) <= k for hits in run.values()) else {name: hits[:k] for name, hits in run.items()}


def run(config: Config) -> None:
    """Search with a split's queries and write the run."""
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    description = from_file_or_flags(config.pipeline, config, collection=config.collection)
    if (name := description.collection) is None:
        raise UserError("--collection is missing: it says where the queries and documents are.")
    said = Budget(config.budget_ms, config.target_quality, config.costs)
    description = with_own_indexes(within_budget(with_budget(description, said)))
    opener = Opener()
    bad: list[str] = []
    queries = open_collection(name).queries(config.split, bad.append if config.skip_missing else None)
    if bad:
        say(f"search: left out {len(bad):,} of {len(bad) + len(queries):,} queries; {bad[0]}")
    if not queries:
        raise UserError(f"{name}: no query of split {config.split!r} is left to search with.")
    if config.exclude_self is None:
        config = replace(config, exclude_self=shares_ids(name))
    as_if = replace(config, exclude_self=config.exclude_self or None)
    excluded = find_excluded(config.exclude, name, config.split)
    inputs = _inputs(config, description, queries, opener) | excluded.inputs
    spec = JobSpec("search", inputs, as_if=as_if)
    if is_done(config, spec):
        say_what_is_older(description, name)
        return
    pipeline = Pipeline.open(description, opener)  # may refuse, before anything is written
    if config.where is not None:
        allowed = pipeline.metadata.allowed(config.where)
        say(f"search: {len(allowed):,} of {pipeline.collection.num_docs():,} documents fit --where.")
    job = start_job(config, spec)
    if job.done:
        return
    pipeline.trace(
        queries[:1], 1, where=config.where
    )  # compiling and loading on first use is not part of a query's time
    num_own, num_excluded, seconds, milliseconds = 0, 0, 0.0, dict[str, float]()
    silent, num_tokens, num_read = dict[str, list[str]](), dict[str, int](), dict[str, int]()

    def found() -> Iterator[tuple[str, list[Hit]]]:
        nonlocal num_own, num_excluded, seconds
        only: Any = {"where": config.where, "answer": config.answer, "exclude": excluded.by_query}
        for part in search(pipeline, queries, config.k, exclude_self=bool(config.exclude_self), **only):
            num_own, seconds = num_own + count_own(part.run), seconds + part.seconds
            num_excluded += part.num_excluded
            for name, ms in part.milliseconds.items():
                milliseconds[name] = milliseconds.get(name, 0.0) + ms
            for name, count in part.num_tokens.items():
                num_tokens[name] = num_tokens.get(name, 0) + count
            for name, count in part.num_read.items():
                num_read[name] = num_read.get(name, 0) + count
            for name, ids in part.without_terms.items():
                silent[name] = silent.get(name, []) + ids
            yield from part.run.items()

    header = header_of(job.manifest, tag="shortlist") if config.header else None
    write_run(job.out, found(), tag="shortlist", header=header)
    if excluded.source:
        say(f"search: left out {num_excluded:,} hits that {excluded.source} excludes for their queries.")
    if num_own:
        say(
            f"search: {num_own} of {len(queries)} queries found the document of their own id "
            "(--exclude-self True: not)."
        )
    for name, ids in silent.items():
        say(
            f"search: {len(ids):,} of {len(queries):,} queries have no term that {name} could search by, such as "
            f"{ids[0]}; it found nothing for them."
        )
    per_query = {name: ms / max(1, len(queries)) for name, ms in milliseconds.items()}
    total = 1000 * seconds / max(1, len(queries))
    reranking = {name: per_query.get(name, 0.0) for name in pipeline.rerankers}
    pairs = {name: count / max(1, len(queries)) for name, count in num_read.items()}
    costs = _costs(description, total, reranking, opener, pairs)
    for cost, name in zip(costs[-len(reranking) :] if reranking else [], reranking, strict=True):
        asked = _asked(next(step.stage for step in pipeline.steps if step.name == name))
        if read := num_tokens.get(name):  # answers to the first query are known from when everything was tried out
            read = asked.get("prompt_tokens", 0) + asked.get("answer_tokens", 0) or read
            cost["tokens_per_query"] = round(read / max(1, len(queries)), 1)
        cost |= asked
    costs[0] |= _asked_by_first(pipeline)
    told = {"excluded": num_excluded} if excluded.source else {}
    job.finish(told, num_queries=len(queries), ms_per_query=round(total, 3), stages=costs)


def _costs(
    description: Description, total: float, reranking: Mapping[str, float], opener: Opener, pairs: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Describe the cost of the first stages together, then of each later step.

    The format is that of `data.manifest.stages`.

    Args:
        total: milliseconds per query.
        reranking: the part of `total` in each step after the first stages.
        pairs: documents read per query, by step.
    """
    first = [part for part in description.steps if part.name not in reranking]
    folders = {path for part in first for name in ("index", "vectors") if (path := part.settings.get(name))}
    cost = {"ms": round(total - sum(reranking.values()), 3), "index_bytes": sum(map(folder_bytes, folders))}
    sizes = list({size["model"]: size for part in first for size in _sizes(part, opener)}.values())
    by_first = [number for name, number in pairs.items() if name not in reranking]
    cost |= {"pairs_per_query": round(sum(by_first), 1)} if by_first else {}
    costs = [{"stage": "search"} | cost | (sizes[0] if sizes else {})]
    costs += [{"stage": "search", "ms": 0.0} | size for size in sizes[1:]]
    later = {part.name: part for part in description.steps}
    for name, ms in reranking.items():
        read = {"pairs_per_query": round(pairs[name], 1)} if name in pairs else {}
        costs.append({"stage": name, "ms": round(ms, 3)} | read | _reranker_size(later[name], opener))
    return [stage_cost | {"peak_bytes": peak_bytes()} for stage_cost in costs]


def _sizes(part: Part, opener: Opener) -> list[dict[str, Any]]:
    """Return the identity and size of each model of a step.

    Of a model on a server it is the identity alone.
    """
    return [
        _size_of(folder)
        if (folder := model_folder(part, name, opener))
        else {"model": identity_of_model(part, name, opener)}
        for name in MODEL_SETTINGS
        if name in part.settings
    ]


def _asked(stage: Any) -> dict[str, int]:
    """Return what a step has asked of a language model, by the names of `data.manifest.stages`."""
    found = stage.costs() if isinstance(stage, StatesCosts) else {}
    return {name: found[name] for name in ("calls", "prompt_tokens", "answer_tokens", "malformed") if name in found}


def _asked_by_first(pipeline: Pipeline) -> dict[str, int]:
    """Add up what first stages have asked language models, by the same names."""
    total = Counter[str]()
    for step in pipeline.steps:
        if step.name not in pipeline.rerankers:
            total.update(_asked(step.stage))
    return dict(total)


def _size_of(model: "ModelFolder") -> dict[str, Any]:
    """Return a model's identity and size, for a manifest."""
    return {"model": model.identity} | model.costs


def _reranker_size(part: Part, opener: Opener) -> dict[str, Any]:
    """Return the identity and size of a reranking step's model, if it has one."""
    if not STEPS[part.kind].is_prepared:
        return {}
    prepared = prepared_of(part, opener)
    return {name: value for name, value in prepared.identities().items() if name == "model"} | prepared.costs()


def _inputs(
    config: Config, description: Description, queries: list[Query], opener: Opener
) -> dict[str, str | list[str]]:
    inputs: dict[str, str | list[str]] = {}
    if config.pipeline is None:
        found = {name: value for part in description.steps for name, value in part.settings.items()}
        vectors = config.vectors or (None if config.index else found.get("vectors"))  # the collection's own
        indexes = config.index or ([] if config.vectors else [found["index"]])
        inputs["index"] = [identity(path) for path in indexes]
        inputs |= {"vectors": identity(vectors)} if vectors else {}
        inputs |= {"model": opener.folder(config.model).identity} if config.model else {}
    else:
        inputs["pipeline"] = _digest(known_by_contents(description, opener))
    if config.where is not None:
        inputs["metadata"] = open_collection(str(description.collection)).identity("corpus")
    return inputs | {"collection": _digest(queries)}  # not the qrels: there may be none


def _digest(value: Any) -> str:
    return f"sha256:{sha256(repr(value).encode()).hexdigest()}"
