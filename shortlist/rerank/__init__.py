"""Stage `rerank`: read each query together with its candidates, and put the best first."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from shortlist.config import NotInJob, SpeedOnly, at_defaults
from shortlist.data.collections import Collection, open_collection
from shortlist.data.manifest import Job, identity, ms_per_query, stages, start_job
from shortlist.data.runs import RunColumns, read_run_columns, write_run
from shortlist.data.scores import ScoreLog
from shortlist.engine import Engine, spread
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.math.agreement import kendall_tau
from shortlist.math.fusion import reorder
from shortlist.models.checkpoint import load_reranker, model_identity, num_parameters, reranker_contract, tokenizer_of
from shortlist.models.kernels.linear import packing_pays
from shortlist.models.reranker import AnyReranker
from shortlist.models.run import Precision, for_inference, stream_scores
from shortlist.models.shipped import shipped_name
from shortlist.progress import paced, peak_bytes, progress, say
from shortlist.records import Document, Hit, Qrels, Query, Run
from shortlist.rerank.candidates import Candidates, Chunk
from shortlist.text.contract import InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import Segments, segment_contract, unused_settings

PAIRS_AT_ONCE = 4096
"""Pairs that are sorted by length together, and at most what an interruption of several processes loses."""

BEST_FIRST = 256
"""The same where time is limited: whatever the lengths, no pair is read before most of those ranked above it."""

SAMPLE_QUERIES, SAMPLE_DEPTH = 16, 32
"""What a narrow precision is compared with fp32 on."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Reranker: folder or hub name."""
    run: Path
    """Run file with the candidates."""
    collection: str
    """Where the texts are: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Run file to write; the scores are kept beside it, in a file ending in .scores, from which the same command goes
    on."""
    split: str = "test"
    """Which queries of the collection."""
    depth: int = 200
    """Candidates per query to read; those below keep their order behind them."""
    ties: Literal["trec", "rank"] = "trec"
    """How the run is put in order: by score and id as trec_eval does, or by its own rank column."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    instruction: str | None = None
    """What the model is told to look for, where its contract has a place for that (None: the contract's words)."""
    max_length: int | None = None
    """Most tokens of a pair (None: the model's)."""
    segments: Segments = "whole"
    """whole: a document is read from its beginning to --max-length. Or in segments of --window tokens, of which the
    first (firstp), the best (maxp) or the mean of all (avgp) counts."""
    window: int = 512
    """Tokens of a segment, query and prompt included."""
    stride: int = 256
    """Tokens from the beginning of a segment's text to that of the next one's."""
    precision: Precision = "fp32"
    """Number type that the model computes in; for bf16 and int8, their agreement with fp32 on a sample is printed."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 16,384 on a GPU)."""
    workers: SpeedOnly[int | None] = None
    """Processes that score at a time (None: one per GPU, else one; on Ray, one per node or GPU)."""
    engine: SpeedOnly[Engine] = "local"
    """`local`: this machine; `ray`: a Ray cluster, the running one if there is one."""
    max_pairs: NotInJob[int | None] = None
    """Read at most this many pairs, the best-ranked candidates of all queries first; the others keep their places."""
    budget_seconds: NotInJob[float | None] = None
    """Stop reading after this many seconds, best-ranked candidates first; the same command goes on from there."""
    skip_missing: NotInJob[bool] = False
    """Leave candidates whose query or document the collection lacks, or whose document is empty, behind the others in
    their old order instead of stopping."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def rerank(
    reranker: AnyReranker,
    run: Run,
    queries: Mapping[str, Query],
    documents: Mapping[str, Document],
    *,
    depth: int,
    **options,
) -> Run:
    """Reorder the first `depth` candidates of every query; options as of `models.run.stream_scores`."""
    pairs = [(queries[query_id], documents[hit.doc_id]) for query_id, hits in run.items() for hit in hits[:depth]]
    scores = np.empty(len(pairs), dtype=np.float32)
    for places, some, _ in stream_scores(reranker, pairs, **options):
        scores[places] = some
    found = iter(scores.tolist())
    return {
        query_id: reorder(hits, [next(found) if place < depth else np.nan for place in range(len(hits))])
        for query_id, hits in run.items()
    }


class Scored(NamedTuple):
    """Pairs by their numbers, their scores, and how many tokens were read for them."""

    numbers: Int[np.ndarray, " pairs"]
    scores: Float[np.ndarray, " pairs"]
    num_tokens: int


class Pace(NamedTuple):
    """What a pair took on average."""

    seconds: float
    tokens: float


@dataclass(frozen=True)
class Scorer:
    """Scores chunks in whichever process it is sent to; the model is loaded there, when the first one comes."""

    config: Config
    packed: bool
    precision: Precision

    @cached_property
    def reranker(self) -> AnyReranker:
        """The model, ready to score."""
        config = self.config
        reranker = load_reranker(config.model, contract=config.contract, adjust=partial(adjusted, config=config))
        for_inference(reranker, precision=self.precision, packed=self.packed)
        return reranker

    def parts(self, chunk: Chunk) -> Iterator[Scored]:
        """The chunk's pairs, as they are scored."""
        config = self.config
        options = {"token_budget": config.token_budget, "segments": config.segments, "stride": config.stride}
        for places, scores, num_tokens in stream_scores(self.reranker, chunk.pairs, **options):
            yield Scored(chunk.numbers[places], scores, num_tokens)

    def __call__(self, chunk: Chunk) -> Scored:
        """The whole chunk."""
        numbers, scores, tokens = zip(*self.parts(chunk), strict=True)
        return Scored(np.concatenate(numbers), np.concatenate(scores), sum(tokens))


def contract_of(config: Config) -> InputContract:
    """The contract by which pairs are read."""
    return adjusted(reranker_contract(config.model, config.contract), config)


def adjusted(contract: InputContract, config: Config) -> InputContract:
    """The contract with the instruction and the lengths of a Config."""
    lengths = {"window": config.window, "stride": config.stride, "max_length": config.max_length}
    return segment_contract(contract.with_instruction(config.instruction), config.segments, **lengths)


def run(config: Config) -> None:
    """Write the reranked run."""
    config = replace(config, model=shipped_name(config.model, "reranker"))
    for flag, value in (("depth", config.depth), ("max-pairs", config.max_pairs or 1)):
        if value < 1:
            raise UserError(f"--{flag} is {value}; expected at least 1.")
    collection = open_collection(config.collection)
    made_from = {
        "model": model_identity(config.model),
        "contract": contract_of(config).of_pairs(),
        "collection": collection.identity("corpus", "queries"),
    }
    inputs = made_from | {"run": identity(config.run)}
    unused = unused_settings(config.segments)
    job = start_job(config, stage="rerank", inputs=inputs, as_if=at_defaults(config, unused))
    if job.done:
        return
    reading = {name: getattr(config, name) for name in ("precision", "segments", "window", "stride")}
    made_from |= {name: value for name, value in reading.items() if name not in unused}
    with closing(ScoreLog(log_path(config.out), made_from, overwrite=config.overwrite)) as log:
        fill(job, config, collection, log)


def log_path(out: Path) -> Path:
    """Where the scores of a run that is being made are."""
    return out.with_name(out.name + ".scores")


def fill(job: Job, config: Config, collection: Collection, log: ScoreLog) -> None:
    """Score what the log lacks, and write the run."""
    run = read_run_columns(config.run, ties=config.ties)
    queries = {query.query_id: query for query in collection.queries(config.split)}
    candidates = Candidates(
        run,
        queries,
        collection,
        name=str(config.run),
        split=config.split,
        depth=config.depth,
        skip_missing=config.skip_missing,
        at_once=PAIRS_AT_ONCE if config.budget_seconds is None else BEST_FIRST,
    )
    inputs = Inputs(contract_of(config).form, tokenizer_of(config.model))
    inputs.check_queries(queries[query_id] for query_id in run.query_ids if query_id in queries)
    readable = candidates.readable()
    wanted = readable
    if config.max_pairs is not None or config.budget_seconds is not None:
        wanted = readable[np.argsort(candidates.ranks[readable], kind="stable")][: config.max_pairs]
    known = log.read(run)
    scores = np.full(len(known), np.nan, dtype=np.float32)  # the log may know more than this job asks for
    scores[wanted] = known[wanted]
    scorer = Scorer(config, job.decide("packed", packing_pays), config.precision)
    results: dict[str, Any] = {"num_queries": len(run.query_ids)}
    if config.precision != "fp32" and np.isnan(scores[wanted]).any():
        results["agreement"] = job.decide("agreement", lambda: compare(scorer, candidates, readable))
        say(f"rerank: agreement with fp32 on {results['agreement']}.")
    pace = read(scorer, candidates, wanted, scores, log)
    write_run(job.out, reranked(run, scores), tag="shortlist")
    results["num_pairs"] = int(np.isfinite(scores).sum())
    results["not_reached"] = len(readable) - results["num_pairs"] - candidates.num_empty
    if pace is not None:
        milliseconds = 1000 * pace.seconds * results["num_pairs"] / max(1, len(run.query_ids))
        results["ms_per_query"] = round(milliseconds + ms_per_query(config.run), 3)
        results["stages"] = [*stages(config.run), _cost(config, job, milliseconds, pace)]
    if not results["not_reached"]:
        job.finish(**results)
        return
    job.pause(**results)
    say(
        f"rerank: {results['not_reached']:,} of {len(readable):,} pairs were not reached and keep their places; the "
        "same command with more time or pairs goes on."
    )


def _cost(config: Config, job: Job, milliseconds: float, pace: Pace) -> dict[str, Any]:
    """What reranking took, as `stages` gives it."""
    return {
        "stage": "rerank",
        "ms": round(milliseconds, 3),
        "tokens_per_second": round(pace.tokens / pace.seconds, 1),
        "model": job.manifest["made_from"]["model"],
        "num_parameters": num_parameters(config.model),
        "peak_bytes": peak_bytes(),
    }


def read(
    scorer: Scorer,
    candidates: Candidates,
    wanted: Int[np.ndarray, " wanted"],
    scores: Float[np.ndarray, " hits"],
    log: ScoreLog,
) -> Pace | None:
    """Put in the scores of the wanted hits that have none yet, into the log too, as long as time allows.

    Returns:
        None where there was nothing to read.

    Raises:
        UserError: a score that is not finite.
    """
    run, budget = candidates.run, scorer.config.budget_seconds
    left = int(np.isnan(scores[wanted]).sum())
    if 0 < left < len(wanted):
        say(f"rerank: continuing after {len(wanted) - left:,} pairs.")
    start, num_read, num_tokens = time.perf_counter(), 0, 0
    with progress("reranking", len(wanted), "pairs", done=len(wanted) - left) as advance:
        told = paced(advance, "pairs")
        with closing(score(scorer, candidates.chunks(wanted, ~np.isnan(scores)))) as parts:
            for part in parts:
                check_finite(run.pairs(part.numbers), part.scores)
                log.append(run.pairs(part.numbers), part.scores)
                scores[part.numbers] = part.scores
                told(len(part.numbers), part.num_tokens)
                num_read, num_tokens = num_read + len(part.numbers), num_tokens + part.num_tokens
                if budget is not None and time.perf_counter() - start >= budget:
                    break
    return Pace((time.perf_counter() - start) / num_read, num_tokens / num_read) if num_read else None


def check_finite(pairs: Sequence[tuple[str, str]], scores: Float[np.ndarray, " pairs"]) -> None:
    """Refuse a score that says nothing."""
    if not np.isfinite(scores).all():
        query_id, doc_id = pairs[int(np.argmin(np.isfinite(scores)))]
        raise UserError(
            f"query {query_id!r}, document {doc_id!r}: the model gives no finite score; it overflows, so try a wider "
            "--precision."
        )


def reranked(run: RunColumns, scores: Float[np.ndarray, " hits"]) -> Iterator[tuple[str, list[Hit]]]:
    """The new order of each query's candidates."""
    for number, query_id in enumerate(run.query_ids):
        own = scores[run.starts[number] : run.starts[number + 1]]
        yield query_id, reorder(run.hits(number), own.tolist())


def score(scorer: Scorer, chunks: Iterator[Chunk]) -> Generator[Scored, None, None]:
    """Score chunks wherever the Config says: here, batch by batch, or elsewhere, chunk by chunk."""
    config = scorer.config
    workers = config.workers or (None if config.engine == "ray" else max(1, torch.cuda.device_count()))
    if config.engine == "local" and workers == 1:
        for chunk in chunks:
            yield from scorer.parts(chunk)
        return
    with closing(spread(scorer, chunks, engine=config.engine, workers=workers)) as parts:
        yield from parts


def compare(scorer: Scorer, candidates: Candidates, readable: Int[np.ndarray, " readable"]) -> str:
    """How far scores as they will be computed order the first candidates of some queries as exact ones do."""
    config, collection = scorer.config, candidates.collection
    queries = candidates.run.queries_of(readable)
    some = readable[(queries < SAMPLE_QUERIES) & (candidates.ranks[readable] < SAMPLE_DEPTH)]
    sample = replace(candidates, at_once=PAIRS_AT_ONCE)  # its own count of empty documents
    chunk = next(sample.chunks(some, np.zeros(len(candidates.ranks), dtype=bool)), Chunk(some[:0], []))
    if not chunk.pairs:
        return "no pairs"
    runs: list[Run] = []
    # copies of the scorer, as their models are to go before the work begins
    for precision in ("fp32", config.precision):
        part = replace(scorer, precision=precision)(chunk)
        run: dict[str, list[Hit]] = {}
        for (query_id, doc_id), value in zip(candidates.run.pairs(part.numbers), part.scores.tolist(), strict=True):
            run.setdefault(query_id, []).append(Hit(doc_id, value))
        runs.append({query_id: sorted(hits, key=lambda hit: hit.doc_id) for query_id, hits in run.items()})
    exact, narrow = runs
    taus = [kendall_tau(*(np.array([hit.score for hit in each[query_id]]) for each in runs)) for query_id in exact]
    told = f"{len(chunk.pairs)} pairs of {len(exact)} queries: Kendall's tau {np.mean(taus):.4f}"
    try:
        qrels = collection.qrels(config.split)
    except UserError:  # there are no judgements
        return told
    before, after = (mean_ndcg(each, qrels) for each in (exact, narrow))
    return f"{told}, nDCG@10 {after:.4f} instead of {before:.4f}"


def mean_ndcg(run: Run, qrels: Qrels) -> float:
    """The mean nDCG@10 of a run's judged queries, 0 where none is, its hits taken in the order of their scores."""
    ordered = {query_id: sorted(hits, key=lambda hit: -hit.score) for query_id, hits in run.items()}
    values = per_query(ordered, qrels, ["nDCG@10"])["nDCG@10"].values()
    return sum(values) / max(1, len(values))
