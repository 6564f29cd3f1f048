"""Stage `rerank`: score each query with its candidates, and put the best first."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.data.collections import Collection, open_collection
from shortlist.data.headers import header_of
from shortlist.data.jobs import start_job
from shortlist.data.lines import ignore
from shortlist.data.manifest import ms_per_query, stages
from shortlist.data.runs import RunColumns, read_run_columns, write_run
from shortlist.data.scores import ScoreLog
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.math.fusion import reorder
from shortlist.models.kernels.linear import packing_pays
from shortlist.progress import paced, peak_bytes, progress, say
from shortlist.records import Hit, Query
from shortlist.rerank.agreement import order_agreement
from shortlist.rerank.candidates import CandidateReader
from shortlist.rerank.forecast import forecast_calls
from shortlist.rerank.known import KnownScores
from shortlist.rerank.scoring import Scorer, score_chunks
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.kinds import prepare, takes
from shortlist.rerankers.limits import CallLimits, MalformedAnswersError
from shortlist.rerankers.prepared import Prepared
from shortlist.settings.rerank import Config, check, job_of, method_settings, scored_from

PAIRS_AT_ONCE = 4096
"""Number of pairs that are sorted by length together, and the most that an interruption of several processes loses."""

BEST_FIRST = 256
"""The same number if time or calls are limited.

It is small, so that a pair is read only after most pairs ranked above it, and that some lists are finished."""


class Pace(NamedTuple):
    """Average seconds and tokens per pair."""

    seconds: float
    tokens: float


def rerank(run: RunColumns, scores: Float[np.ndarray, " hits"]) -> Iterator[tuple[str, list[Hit]]]:
    """Sort each query's candidates by their scores.

    Candidates without a score (NaN) follow in their old order.
    """
    for number, query_id in enumerate(run.query_ids):
        of_query = scores[run.starts[number] : run.starts[number + 1]]
        yield query_id, reorder(run.hits(number), of_query.tolist())


def run(config: Config) -> None:
    """Rerank a run and write the result."""
    check(config)
    collection = open_collection(config.collection)
    settings = method_settings(config)
    prepared = prepare(config.method, settings)
    if config.dry_run:
        forecast_calls(prepared, _candidates(config, collection, whole_lists=True))
        return
    job = start_job(config, job_of(config, prepared, collection))
    if job.done:
        return
    if prepared.model is not None:
        settings["model"] = prepared.model  # its name is looked up once
        if takes(config.method, "packed"):
            settings["packed"] = job.decide("packed", packing_pays)
    prepared = prepare(config.method, settings)
    method = {} if config.method == "pointwise" else {"method": config.method}
    made_from = {**scored_from(prepared, collection), **prepared.settings, **method}
    candidates = _candidates(config, collection, whole_lists=prepared.whole_lists)
    asked = [query for query_id in candidates.run.query_ids if (query := candidates.queries.get(query_id))]
    if config.long_queries == "skip":
        candidates.skipped = refused(prepared, asked)
    else:
        prepared.check(asked)
    with closing(ScoreLog(log_path(config.out), made_from, overwrite=config.overwrite)) as log:
        readable = candidates.readable()
        limited = config.max_pairs is not None or (config.budget_seconds is not None and not prepared.asks)
        wanted = candidates.first(readable, config.max_pairs) if limited else readable
        known = KnownScores(log, candidates, wanted)
        results: dict[str, Any] = {"num_queries": len(candidates.run.query_ids)}
        asking: dict[str, int] = {}
        if config.precision != "fp32" and not prepared.asks and not known.done[wanted].all():
            exact = prepare(config.method, settings | {"precision": "fp32"})
            results["agreement"] = job.decide(
                "agreement", lambda: order_agreement(exact, prepared, candidates, readable)
            )
            say(f"rerank: agreement with fp32 on {results['agreement']}.")
        with closing(Scorer(prepared, limits_of(config) if prepared.asks else None)) as scorer:
            try:
                pace = score_wanted(
                    scorer,
                    candidates,
                    wanted,
                    known,
                    budget_seconds=config.budget_seconds,
                    engine=config.engine,
                    workers=config.workers,
                )
                if scorer.asking:
                    results |= finished(scorer.asking.questions)
                    asking = scorer.asking.questions.costs()
            except MalformedAnswersError:  # the answers are kept, and judged again by the same command
                log.clear()
                raise
    made_by = stages(config.run)
    header = header_of(job.manifest, tag="shortlist", made_by=made_by) if config.header else None
    write_run(job.out, rerank(candidates.run, known.scores), tag="shortlist", header=header)
    results["num_pairs"] = int(np.isfinite(known.scores).sum())
    results["not_reached"] = int((~known.done[readable]).sum())
    if pace is not None:
        pairs_per_query = results["num_pairs"] / max(1, results["num_queries"])
        milliseconds = 1000 * pace.seconds * pairs_per_query
        results["ms_per_query"] = round(milliseconds + ms_per_query(config.run), 3)
        tokens = {"tokens_per_query": round(pace.tokens * pairs_per_query, 1)} if pace.tokens else {}
        read = {"pairs_per_query": round(pairs_per_query, 1)}
        cost_here = cost(prepared, made_from.get("model"), milliseconds, pace) | read | tokens | asking
        results["stages"] = [*made_by, cost_here]
    if not results["not_reached"]:
        job.finish(**results)
        return
    job.pause(**results)
    say(
        f"rerank: {results['not_reached']:,} of {len(readable):,} pairs were not reached and keep their places; the "
        "same command with more time, pairs or calls goes on."
    )


def limits_of(config: Config) -> CallLimits:
    """Say what a language model may be asked, and where its answers are kept."""
    return CallLimits(
        log=answers_path(config.out).absolute(),  # the same file for a process that starts elsewhere
        until=math.inf if config.budget_seconds is None else time.monotonic() + config.budget_seconds,
        max_calls=config.max_calls,
        max_malformed=config.max_malformed,
        details=config.details,
    )


def finished(questions: Questions) -> dict[str, Any]:
    """Report the calls, tokens and malformed answers of a language model.

    Raises:
        MalformedAnswersError: too many answers are malformed, however few there are.
    """
    tally = questions.tally
    say(
        f"rerank: {tally.calls:,} calls, {tally.prompt_tokens:,} tokens read, {tally.answer_tokens:,} generated; "
        f"{tally.known:,} answers were known; {tally.malformed:,} malformed"
        + (f" ({questions.faults()})." if tally.malformed else ".")
    )
    if not questions.is_spent:
        questions.check_faults()
    return tally._asdict()


def refused(prepared: Prepared, queries: Iterable[Query]) -> set[str]:
    """Find the ids of the queries that a reranker refuses to read, and report them."""
    found: dict[str, str] = {}
    for query in queries:
        try:
            prepared.check([query])
        except UserError as error:
            found[query.query_id] = str(error).partition(";")[0]
    if found:
        say(f"rerank: {len(found):,} queries are too long and left as they were; {next(iter(found.values()))}.")
    return set(found)


def log_path(out: Path) -> Path:
    """Return the path of the scores kept for a run."""
    return out.with_name(out.name + ".scores")


def answers_path(out: Path) -> Path:
    """Return the path of a language model's answers kept for a run."""
    return out.with_name(out.name + ".answers")


def _candidates(config: Config, collection: Collection, *, whole_lists: bool) -> CandidateReader:
    return CandidateReader(
        read_run_columns(config.run, ties=config.ties),
        {query.query_id: query for query in collection.queries(config.split, ignore if config.skip_missing else None)},
        collection,
        name=str(config.run),
        split=config.split,
        depth=config.depth,
        skip_missing=config.skip_missing,
        whole_lists=whole_lists,
        at_once=PAIRS_AT_ONCE if config.budget_seconds is None and config.max_calls is None else BEST_FIRST,
    )


def cost(prepared: Prepared, model: str | None, milliseconds: float, pace: Pace) -> dict[str, Any]:
    """Describe the cost of reranking, in the format of `data.manifest.stages`."""
    known: dict[str, Any] = {"stage": "rerank", "ms": round(milliseconds, 3)}
    if pace.tokens:
        known["tokens_per_second"] = round(pace.tokens / pace.seconds, 1)
    if model is not None:
        known |= {"model": model} | prepared.costs()
    return known | {"peak_bytes": peak_bytes()}


def score_wanted(
    scorer: Scorer,
    candidates: CandidateReader,
    wanted: Int[np.ndarray, " wanted"],
    known: KnownScores,
    *,
    budget_seconds: float | None,
    engine: Engine,
    workers: int | None,
) -> Pace | None:
    """Score the wanted hits that are not done, as long as time allows.

    Returns:
        The average cost of a pair; None if there was nothing to read.

    Raises:
        UserError: a score is not finite.
    """
    left = int((~known.done[wanted]).sum())
    if 0 < left < len(wanted):
        say(f"rerank: continuing after {len(wanted) - left:,} pairs.")
    start, num_read, num_tokens = time.perf_counter(), 0, 0
    with progress("reranking", len(wanted), "pairs", done=len(wanted) - left) as advance:
        advance_by = paced(advance, "pairs")
        chunks = candidates.chunks(wanted, known.done)
        with closing(score_chunks(scorer, chunks, engine=engine, workers=workers)) as parts:
            for part in parts:
                known.add(part)
                advance_by(len(part.numbers), part.num_tokens)
                num_read, num_tokens = num_read + len(part.numbers), num_tokens + part.num_tokens
                if budget_seconds is not None and time.perf_counter() - start >= budget_seconds:
                    break
    return Pace((time.perf_counter() - start) / num_read, num_tokens / num_read) if num_read else None
