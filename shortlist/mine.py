"""Stage `mine`: runs -> training groups of a query, its positives and hard negatives."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from shortlist.config import NotInJob
from shortlist.data.beir import shares_ids
from shortlist.data.collections import open_collection
from shortlist.data.groups import write_groups
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.mining import find_same_text, mine
from shortlist.data.runs import open_run
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.records import Group, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """TREC run files of the split's queries; several are blended rank by rank."""
    collection: str
    """Collection of the queries: BEIR or MS MARCO folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """JSONL file of groups to write."""
    split: str = "train"
    """Split of the collection whose judgements are the positives."""
    depth: int = 200
    """Number of top ranks of the blended run to draw from."""
    negatives: int = 15
    """Negatives per query."""
    random_share: float = 0.0
    """Share of the negatives, 0 to 1, to draw from the whole corpus instead; they are easier, to start training on."""
    teacher: Path | None = None
    """TREC run file with a teacher's scores to store in the groups, for `train --loss kl`. A document missing from the
    run gets the run's lowest score for that query; a query missing from the run gets no group."""
    seed: int = 0
    """Seed for the draw."""
    exclude_self: bool | None = None
    """Never draw the document with the query's id (None: only where queries are also documents, as in ArguAna and
    Quora)."""
    skip_missing: NotInJob[bool] = False
    """Leave out judged documents that the collection lacks, and count them, instead of stopping."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def taught(groups: Iterable[Group], teacher: Run) -> list[Group]:
    """Add a teacher's scores to the groups; drop groups whose query the teacher lacks.

    Documents that the teacher did not find rank below those it found, so they get its lowest score for the query.
    """
    kept = []
    for group in groups:
        if scores := dict(teacher.get(group.query_id, ())):
            lowest = min(scores.values())
            found = (scores.get(doc_id, lowest) for doc_id in group.positives + group.negatives)
            kept.append(group._replace(scores=tuple(found)))
    return kept


def run(config: Config) -> None:
    """Write the groups, and print how much was left out."""
    _check(config)
    collection = open_collection(config.collection)
    inputs = {
        "runs": [identity(path) for path in config.runs],
        "collection": collection.identity("corpus", f"qrels/{config.split}"),
    }
    if config.exclude_self is None:
        config = replace(config, exclude_self=shares_ids(config.collection))
    if config.teacher:
        inputs["teacher"] = identity(config.teacher)
    as_if = replace(config, exclude_self=config.exclude_self or None)
    job = start_job(config, JobSpec("mine", inputs, as_if=as_if))
    if job.done:
        return
    start = time.perf_counter()
    qrels = collection.qrels(config.split)
    relevant = {doc_id for judgements in qrels.values() for doc_id, relevance in judgements.items() if relevance > 0}
    texts = track(collection.corpus(), "reading texts", unit="documents")
    corpus, same_text = find_same_text(texts, relevant, skip_missing=config.skip_missing)
    absent = relevant - same_text.keys()
    qrels = {q: {d: grade for d, grade in judged.items() if d not in absent} for q, judged in qrels.items()}
    groups, counts = mine(
        [open_run(path) for path in config.runs],
        qrels,
        corpus,
        same_text,
        depth=config.depth,
        negatives=config.negatives,
        random_share=config.random_share,
        seed=config.seed,
        exclude_self=bool(config.exclude_self),
    )
    if config.teacher:
        num_groups = len(groups)
        groups = taught(groups, open_run(config.teacher))
        counts["without_teacher"] = num_groups - len(groups)
    if not groups:
        who = ", and a hit of --teacher" if config.teacher else ""
        raise UserError(
            f"none of the {len(qrels)} queries of {config.split!r} has both a positive and a negative{who}."
        )
    write_groups(job.out, groups)
    say(f"mine: {len(groups)} groups; " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items()))
    job.finish({"groups": len(groups)} | counts, seconds=round(time.perf_counter() - start, 3))


def _check(config: Config) -> None:
    if not config.runs:
        raise UserError("--runs names no file; expected one or more runs of the split's queries.")
    if config.depth < 1 or config.negatives < 1:
        raise UserError(f"--depth is {config.depth}, --negatives {config.negatives}; expected 1 or more.")
    if not 0 <= config.random_share <= 1:
        raise UserError(f"--random-share is {config.random_share}; expected a number from 0 to 1.")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}; expected 0 or more.")
