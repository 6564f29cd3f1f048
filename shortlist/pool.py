"""Stage `pool`: the documents that stand first in several runs, to be judged next."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.exclusions import find_excluded
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.judgements import Judgements, run_names
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError
from shortlist.records import Qrels, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """Runs to pool."""
    out: NotInJob[Path]
    """File to write, tab-separated with a header: query id, document id, in how many runs it stands, its best rank."""
    depth: int = 10
    """First documents of each query to take from each run."""
    qrels: Path | None = None
    """Judgements; what they judge is left out (None: nothing is)."""
    collection: str | None = None
    """Collection whose judgements to use, instead of --qrels; documents that it excludes for a query are left out."""
    split: str = "test"
    """Split of the collection."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    names: tuple[str, ...] | None = None
    """Names of the runs, one per run; their paths by default."""
    json: NotInJob[bool] = False
    """Print JSON instead of sentences."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Pooled(NamedTuple):
    """A document of the pool."""

    num_runs: int
    """Number of runs that have it within the depth."""
    rank: int
    """Its best rank in them, from 1."""
    first: int
    """The first of these runs, by number."""


def pool(runs: Iterable[Run], *, depth: int, judged: Qrels | None = None) -> dict[str, dict[str, Pooled]]:
    """Collect the first documents of each query from all runs.

    Args:
        depth: number of documents of each query from each run.
        judged: judgements of pairs to leave out.

    Returns:
        query_id -> doc_id -> Pooled, what most runs have first, and of the same number the best rank.
    """
    found: dict[str, dict[str, Pooled]] = {}
    for number, run in enumerate(runs):
        for query_id, hits in run.items():
            known, pooled = (judged or {}).get(query_id, {}), found.setdefault(query_id, {})
            for rank, hit in enumerate(hits[:depth], 1):
                if hit.doc_id not in known:
                    before = pooled.get(hit.doc_id, Pooled(0, rank, number))
                    pooled[hit.doc_id] = Pooled(before.num_runs + 1, min(before.rank, rank), before.first)
    return {
        query_id: dict(sorted(pooled.items(), key=lambda item: (-item[1].num_runs, item[1].rank, item[0])))
        for query_id, pooled in found.items()
    }


def count_pool(pooled: dict[str, dict[str, Pooled]], names: Sequence[str]) -> dict[str, Any]:
    """Count the pairs, and those that each run alone has brought."""
    alone = dict.fromkeys(range(len(names)), 0)
    for documents in pooled.values():
        for document in documents.values():
            alone[document.first] += document.num_runs == 1
    pairs = sum(map(len, pooled.values()))
    unique = [{"run": name, "pairs": alone[number]} for number, name in enumerate(names)]
    return {"pairs": pairs, "queries": sum(bool(documents) for documents in pooled.values()), "unique": unique}


def run(config: Config) -> None:
    """Write the pool and print its size."""
    if not config.runs or config.depth < 1:
        raise UserError(f"--runs names {len(config.runs)} files and --depth is {config.depth}; expected 1 or more.")
    if config.collection is None:
        refuse_idle(config, ("split",), "is for --collection, and there is none")
    names = run_names(config.names, config.runs)
    judgements = Judgements(config.qrels, config.collection, config.split)
    judged = config.qrels is not None or config.collection is not None
    if judged:
        judgements.check()
    excluded = find_excluded(None, config.collection, config.split)
    inputs: dict[str, Any] = {"runs": [identity(path) for path in config.runs], **excluded.inputs}
    job = start_job(config, JobSpec("pool", inputs | (judgements.identity() if judged else {})))
    if not job.done:
        columns = (excluded.left_of(path, ties=config.ties) for path in config.runs)
        runs = ({q: run.hits(number)[: config.depth] for number, q in enumerate(run.query_ids)} for run in columns)
        pooled = pool(runs, depth=config.depth, judged=judgements.read() if judged else None)
        with atomic_write(job.out) as file:
            file.write("query-id\tcorpus-id\truns\trank\n")
            for query_id, documents in pooled.items():
                file.writelines(f"{query_id}\t{d}\t{at.num_runs}\t{at.rank}\n" for d, at in documents.items())
        job.finish(**count_pool(pooled, names))
    found = (read_manifest(config.out) or {})["results"]
    found = {name: found[name] for name in ("pairs", "queries", "unique")}
    if config.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    what = "without a judgement" if judged else "in all"
    print(f"{found['pairs']:,} pairs of {found['queries']:,} queries {what}; brought by one run alone:")
    for each in found["unique"]:
        print(f"  {each['pairs']:7,}  {each['run']}")
