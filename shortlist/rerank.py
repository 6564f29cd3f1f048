"""Stage `rerank`: read each query together with its candidates, and put the best first."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shortlist.data.collections import open_collection
from shortlist.data.formats import read_run, write_run
from shortlist.data.manifest import identity, ms_per_query, start_job
from shortlist.errors import UserError
from shortlist.models.checkpoint import load_reranker, model_identity
from shortlist.models.embed import for_inference, score_pairs
from shortlist.models.reranker import Reranker
from shortlist.progress import progress
from shortlist.records import Document, Hit, Query, Run

PAIRS_AT_ONCE = 20_000


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Reranker: folder or hub name."""
    run: Path
    """Run file with the candidates."""
    collection: str
    """Where the texts are: folder, `irds:` or `hf:` name."""
    out: Path
    """Run file to write."""
    split: str = "test"
    """Which queries of the collection."""
    depth: int = 200
    """Candidates per query to read; those below keep their order behind them."""
    ties: Literal["trec", "rank"] = "trec"
    """How the run is put in order: by score and id as trec_eval does, or by its own rank column."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    max_length: int | None = None
    """Most tokens of a pair (None: the model's)."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 16,384 on a GPU)."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def reorder(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Candidates by their new scores, equal ones in their old order; those without a score follow, in their old order.

    Args:
        hits: best first.
        scores: of the first len(scores) hits.

    Returns:
        All hits. Those that were not scored get scores below the lowest new one, 1 apart.
    """
    ranked = sorted(zip(scores, hits, strict=False), key=lambda pair: -pair[0])
    head = [Hit(hit.doc_id, score) for score, hit in ranked]
    lowest = head[-1].score if head else 0.0
    return head + [Hit(hit.doc_id, lowest - place) for place, hit in enumerate(hits[len(scores) :], start=1)]


def rerank(
    reranker: Reranker,
    run: Run,
    queries: Mapping[str, Query],
    documents: Mapping[str, Document],
    *,
    depth: int,
    **options,
) -> Run:
    """Reorder the first `depth` candidates of every query; options as in `models.embed.run_model`."""
    pairs = [(queries[query_id], documents[hit.doc_id]) for query_id, hits in run.items() for hit in hits[:depth]]
    scores = iter(score_pairs(reranker, pairs, **options).tolist())
    return {query_id: reorder(hits, [next(scores) for _ in hits[:depth]]) for query_id, hits in run.items()}


def run(config: Config) -> None:
    """Write the reranked run."""
    if config.depth < 1:
        raise UserError(f"--depth is {config.depth}; expected at least 1.")
    collection = open_collection(config.collection)
    job = start_job(
        config,
        stage="rerank",
        inputs={
            "model": model_identity(config.model),
            "run": identity(config.run),
            "collection": collection.identity("corpus", "queries"),
        },
        ignore=("token_budget",),
    )
    if job.done:
        return
    candidates = read_run(config.run, ties=config.ties)
    queries = {query.query_id: query for query in collection.queries(config.split)}
    lacking = candidates.keys() - queries.keys()
    if lacking:
        raise UserError(
            f"{config.run}: {len(lacking)} of {len(candidates)} queries are not in {config.collection} {config.split}, "
            f"such as {min(lacking)!r}; check --collection and --split."
        )
    reranker = load_reranker(config.model, contract=config.contract)
    reranker.inputs.contract = reranker.inputs.contract.with_lengths(document=config.max_length)
    for_inference(reranker)
    start = time.perf_counter()
    reranked: Run = {}
    total = sum(len(hits[: config.depth]) for hits in candidates.values())
    with progress("reranking", total, "pairs") as advance:
        for part in windows(candidates, depth=config.depth):
            documents = collection.documents({hit.doc_id for hits in part.values() for hit in hits[: config.depth]})
            options = {"token_budget": config.token_budget, "advance": lambda num_pairs, _: advance(num_pairs)}
            reranked |= rerank(reranker, part, queries, documents, depth=config.depth, **options)
    milliseconds = 1000 * (time.perf_counter() - start) / max(1, len(candidates))
    write_run(job.out, reranked, tag="shortlist")
    job.finish(
        num_queries=len(reranked), num_pairs=total, ms_per_query=round(milliseconds + ms_per_query(config.run), 3)
    )


def windows(run: Run, *, depth: int) -> list[Run]:
    """Split a run by query so that no part has many more than PAIRS_AT_ONCE pairs: what is held as text at a time."""
    parts: list[Run] = [{}]
    pairs = 0
    for query_id, hits in run.items():
        if pairs >= PAIRS_AT_ONCE:
            parts.append({})
            pairs = 0
        parts[-1][query_id] = hits
        pairs += min(depth, len(hits))
    return parts
