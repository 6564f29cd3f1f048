"""Stage `diversify`: first documents that differ, or cover a query's aspects."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shortlist.config import NotInJob, flag_of
from shortlist.data.headers import header_of
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, ms_per_query, read_manifest, stages
from shortlist.data.runs import RunColumns, open_run, read_run_columns, write_run
from shortlist.errors import UserError, not_given
from shortlist.math.aspects import ALPHA
from shortlist.pipeline.variety import (
    OF_ASPECT,
    Choose,
    StoredVectors,
    by_coverage,
    by_ideal,
    by_mmr,
    by_query,
    chosen_first,
)
from shortlist.progress import track
from shortlist.records import Hit


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path
    """Run whose lists are to be more varied."""
    out: NotInJob[Path]
    """Run file to write. Its scores count down, as the values by which documents are chosen are no scores."""
    method: Literal["mmr", "coverage", "ideal"] = "mmr"
    """mmr: a document counts less the more its vector is like that of one chosen before. coverage: it counts more the
    better it answers sub-queries that those chosen before do not answer. ideal: nothing but such answers counts, and
    aspects are weighed as RichRAG weighs them, for lists that teach a listwise ranker."""
    vectors: Path | None = None
    """mmr: vectors of the documents from `shortlist encode`."""
    aspects: Path | None = None
    """coverage, ideal: run of sub-queries, whose ids are QUERY#ASPECT: the id of a query, and any name. Any search or
    reranker may have made it."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.7
    """Weight of relevance against variety, 0 to 1, for mmr and coverage. With 1 nothing changes."""
    alpha: float = ALPHA
    """coverage: share of a sub-query's worth that a document which answers it fully takes away from later ones; 1 is
    xQuAD."""
    depth: int = 100
    """First documents of each query to choose from."""
    k: int = 20
    """Documents to choose for each query; the others follow in their old order."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    json: NotInJob[bool] = False
    """Print JSON instead of sentences."""
    header: bool = False
    """Write what the run was made from before its first line, as comments in the form of ir_metadata."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def diversify(run: RunColumns, choose: Choose, *, depth: int, seconds: list[float]) -> Iterator[tuple[str, list[Hit]]]:
    """Yield the hits of each query, those that are chosen among the first `depth` first.

    Args:
        seconds: list to which the time of each query is added.
    """
    for number, query_id in enumerate(track(run.query_ids, "choosing", len(run.query_ids), "queries")):
        hits, start = run.hits(number), time.perf_counter()
        varied = chosen_first(hits, choose(query_id, hits[:depth]))
        seconds.append(time.perf_counter() - start)
        yield query_id, varied


def run(config: Config) -> None:
    """Choose documents and write the run."""
    _check(config)
    inputs = {
        name: identity(path)
        for name in ("run", READ_BY_CHOOSERS[config.method])
        if (path := getattr(config, name)) is not None
    }
    job = start_job(config, JobSpec("diversify", inputs))
    if not job.done:
        columns, seconds = read_run_columns(config.run, ties=config.ties), list[float]()
        choose, counts = CHOOSERS[config.method](config, columns)
        made_by, varied = stages(config.run), diversify(columns, choose, depth=config.depth, seconds=seconds)
        header = header_of(job.manifest, tag="shortlist", made_by=made_by) if config.header else None
        write_run(job.out, varied, tag="shortlist", header=header)
        ms = 1000 * sum(seconds) / max(1, len(seconds))
        cost = [*made_by, {"stage": "diversify", "ms": round(ms, 3)}]
        job.finish(
            {"num_queries": len(seconds), **counts}, ms_per_query=round(ms + ms_per_query(config.run), 3), stages=cost
        )
    results = (read_manifest(config.out) or {})["results"]
    if config.json:
        print(json.dumps({name: value for name, value in results.items() if name in ("num_queries", *NOT_CHOSEN)}))
        return
    told = "".join(f"; {results[name]:,} {words}" for name, words in NOT_CHOSEN.items() if results.get(name))
    most = min(config.k, config.depth)
    print(f"chose {most} of the first {config.depth} documents of {results['num_queries']:,} queries{told}")


Cover = Callable[[Sequence[Hit], Sequence[Sequence[Hit]]], list[int]]
"""Chooses places among hits, given those of each sub-query."""
READ_BY_CHOOSERS = {"mmr": "vectors", "coverage": "aspects", "ideal": "aspects"}
"""The setting that names what a method reads."""
NOT_CHOSEN = {
    "without_vector": "documents have no vector and were not chosen",
    "without_aspects": "queries have no sub-query and stay as they were",
    "without_hits": "queries have sub-queries and no hits in the run",
}


def _check(config: Config) -> None:
    for name in ("depth", "k"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} is {getattr(config, name)}; expected at least 1.")
    for name in ("lambda_", "alpha"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{flag_of(name)} is {getattr(config, name):g}; expected a number from 0 to 1.")
    if config.alpha != ALPHA and config.method != "coverage":
        raise UserError("--alpha is for --method coverage; leave it out.")
    if config.method == "ideal" and config.lambda_ != Config.lambda_:
        raise UserError("--lambda is for --method mmr and coverage; leave it out.")
    read = READ_BY_CHOOSERS[config.method]
    for name in dict.fromkeys(READ_BY_CHOOSERS.values()):
        if name != read and getattr(config, name) is not None:
            methods = " and ".join(method for method, reads in READ_BY_CHOOSERS.items() if reads == name)
            raise UserError(f"--{name} is for --method {methods}, not for {config.method}; leave it out.")
    if getattr(config, read) is None:
        raise not_given(f"--{read}", f"--method {config.method} reads it")


def _mmr(config: Config, run: RunColumns) -> tuple[Choose, dict[str, int]]:
    assert config.vectors is not None
    vectors = StoredVectors(config.vectors)
    spans = pairwise(run.starts.tolist())
    first = [run.doc_ids[start : min(end, start + config.depth)] for start, end in spans]
    there = [vectors.has(doc_ids.to_pylist()) for doc_ids in first]
    vectors.check(run.doc_ids.to_pylist(), where=str(config.run))
    share = config.lambda_

    def choose(query_id: str, hits: Sequence[Hit]) -> list[int]:
        return by_mmr(hits, vectors, k=config.k, share=share)

    return choose, {"without_vector": sum(row.count(False) for row in there)}


def _coverage(config: Config, run: RunColumns) -> tuple[Choose, dict[str, int]]:
    return _answering(config, run, partial(by_coverage, k=config.k, share=config.lambda_, alpha=config.alpha))


def _ideal(config: Config, run: RunColumns) -> tuple[Choose, dict[str, int]]:
    return _answering(config, run, partial(by_ideal, k=config.k))


def _answering(config: Config, run: RunColumns, cover: Cover) -> tuple[Choose, dict[str, int]]:
    assert config.aspects is not None
    aspects = open_run(config.aspects, ties=config.ties)
    names = by_query(aspects)
    missing = [query_id for query_id in run.query_ids if query_id not in names]
    if len(missing) == len(run.query_ids):
        raise UserError(
            f"{config.aspects}: no query id (first {next(iter(aspects))!r}) is a query of {config.run} with "
            f"{OF_ASPECT}ASPECT behind it (such as {run.query_ids[0] + OF_ASPECT + '1'!r}); search "
            "sub-queries with such ids."
        )
    without_hits = len(names.keys() - set(run.query_ids))

    def choose(query_id: str, hits: Sequence[Hit]) -> list[int]:
        return cover(hits, [aspects[name] for name in names[query_id]]) if query_id in names else []

    return choose, {"without_aspects": len(missing), "without_hits": without_hits}


CHOOSERS = {"mmr": _mmr, "coverage": _coverage, "ideal": _ideal}
"""Functions that make what chooses a query's documents, with counts of what it cannot choose."""
