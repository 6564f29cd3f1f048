"""Stage `fuse`: one run out of several."""

import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from shortlist.data.manifest import identity, ms_per_query, stages, start_job
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.math.fusion import FUSIONS
from shortlist.progress import say


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """TREC run files, two or more."""
    out: Path
    """Run file to write."""
    method: Literal["rrf", "weighted", "zscore"] = "rrf"
    """`rrf` adds up ranks; `weighted` scores brought to [0, 1], `zscore` scores brought to mean 0 and deviation 1."""
    weights: tuple[float, ...] | None = None
    """How much each run counts, one number per run; all count 1 by default."""
    k: int = 1000
    """Documents to keep per query."""
    ties: Literal["trec", "rank"] = "trec"
    """How a run is put in order: by score and id as trec_eval does, or by its own rank column."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Write the fused run."""
    if len(config.runs) < 2:
        raise UserError(f"--runs names {len(config.runs)} file; expected two or more to fuse.")
    if config.weights is not None and len(config.weights) != len(config.runs):
        raise UserError(
            f"--weights has {len(config.weights)} numbers for {len(config.runs)} runs; expected one per run."
        )
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected 1 or more documents per query.")
    job = start_job(config, stage="fuse", inputs={"runs": [identity(path) for path in config.runs]})
    if job.done:
        return
    runs = [read_run(path, ties=config.ties) for path in config.runs]
    start = time.perf_counter()
    fused = FUSIONS[config.method](runs, weights=config.weights)
    own = 1000 * (time.perf_counter() - start) / max(1, len(fused))
    cost: dict[str, Any] = {"ms_per_query": round(own + sum(map(ms_per_query, config.runs)), 3)}
    cost["stages"] = [*chain.from_iterable(map(stages, config.runs)), {"stage": "fuse", "ms": round(own, 3)}]
    write_run(job.out, {query_id: hits[: config.k] for query_id, hits in fused.items()}, tag=config.method)
    in_all = sum(all(query_id in run for run in runs) for query_id in fused)
    if in_all < len(fused):
        say(f"fuse: {len(fused) - in_all} of {len(fused)} queries are missing from at least one run.")
    job.finish(num_queries=len(fused), in_all_runs=in_all, **cost)
