"""Stage `mine`: runs -> training groups of a query, its positives and hard negatives."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shortlist.config import NotInJob
from shortlist.data.beir import shares_ids
from shortlist.data.collections import Collection, open_collection
from shortlist.data.exclusions import Excluded, find_excluded, judged_without, with_chunks
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
    co_teachers: tuple[Path, ...] = ()
    """Run files of further teachers beside --teacher. Each teacher's scores of a group's documents are then scaled to
    [0, 1], and averaged, so that dense, sparse and cross-encoder teachers count alike."""
    positives_from: int = 1
    """Lowest grade of a positive. Documents of lower grades may be drawn as negatives, and keep their grades."""
    max_score_ratio: float | None = None
    """Leave out candidates that score above this share of the positive's score, such as 0.95, by the teacher or,
    without one, by the run. A document without a score counts as the lowest of its query."""
    max_score_margin: float | None = None
    """Leave out candidates that score less than this below the positive, by the teacher or the run."""
    every: int = 1
    """Draw from every n-th of the candidates that are left, by rank, so that they differ from each other."""
    seed: int = 0
    """Seed for the draw."""
    exclude_self: bool | None = None
    """Never draw the document with the query's id (None: only where queries are also documents, as in ArguAna and
    Quora)."""
    exclude: Path | None = None
    """Documents that are neither positives nor negatives of a query: lines `query document`, or JSON lines with `id`
    and `excluded_ids` as in BRIGHT (None: what the collection says, in exclude/SPLIT.tsv or .jsonl)."""
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


def averaged(teachings: Sequence[Iterable[Group]]) -> list[Group]:
    """Average several teachers' scores of the same groups, each scaled to [0, 1].

    Groups that a teacher lacks are dropped. Equal scores of a group all become 0, as they teach no order.

    Args:
        teachings: the groups with the scores of each teacher.

    https://arxiv.org/abs/2411.04403
    """
    by_query = [{group.query_id: group for group in groups} for groups in teachings]
    kept = []
    for query_id, group in by_query[0].items():
        if not all(query_id in groups for groups in by_query):
            continue
        scaled = [_scaled(groups[query_id].scores) for groups in by_query]
        kept.append(group._replace(scores=tuple(sum(scores) / len(scaled) for scores in zip(*scaled, strict=True))))
    return kept


def _scaled(scores: Sequence[float]) -> list[float]:
    lowest, width = min(scores), max(scores) - min(scores)
    return [(score - lowest) / width if width else 0.0 for score in scores]


def run(config: Config) -> None:
    """Write the groups, and print how much was left out."""
    _check(config)
    if config.exclude_self is None:
        config = replace(config, exclude_self=shares_ids(config.collection))
    collection = open_collection(config.collection)
    excluded = find_excluded(config.exclude, config.collection, config.split)
    job = start_job(config, _spec(config, collection, excluded))
    if job.done:
        return
    start = time.perf_counter()
    groups, counts = _mined(config, collection, excluded)
    write_groups(job.out, groups)
    say(f"mine: {len(groups)} groups; " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items()))
    job.finish({"groups": len(groups)} | counts, seconds=round(time.perf_counter() - start, 3))


def _spec(config: Config, collection: Collection, excluded: Excluded) -> JobSpec:
    inputs = {
        "runs": [identity(path) for path in config.runs],
        "collection": collection.identity("corpus", f"qrels/{config.split}"),
    }
    if config.teacher:
        inputs["teacher"] = identity(config.teacher)
    if config.co_teachers:
        inputs["co_teachers"] = [identity(path) for path in config.co_teachers]
    as_if = replace(config, exclude_self=config.exclude_self or None)
    return JobSpec("mine", inputs | excluded.inputs, as_if=as_if)


def _mined(config: Config, collection: Collection, excluded: Excluded) -> tuple[list[Group], dict[str, int]]:
    """Mine groups with their teachers' scores, and count what was left out.

    Raises:
        UserError: there is no group.
    """
    qrels = judged_without(collection.qrels(config.split), excluded.by_query)
    least = config.positives_from
    relevant = {doc_id for judged in qrels.values() for doc_id, relevance in judged.items() if relevance >= least}
    texts = track(collection.corpus(), "reading texts", unit="documents")
    corpus, same_text = find_same_text(texts, relevant, skip_missing=config.skip_missing)
    absent = relevant - same_text.keys()
    qrels = {q: {d: grade for d, grade in judged.items() if d not in absent} for q, judged in qrels.items()}
    runs = [open_run(path) for path in config.runs]
    teacher = open_run(config.teacher) if config.teacher else None
    groups, counts = mine(
        runs,
        qrels,
        corpus,
        same_text,
        depth=config.depth,
        negatives=config.negatives,
        random_share=config.random_share,
        seed=config.seed,
        exclude_self=bool(config.exclude_self),
        positives_from=config.positives_from,
        scores=runs[0] if teacher is None else teacher,
        max_score_ratio=config.max_score_ratio,
        max_score_margin=config.max_score_margin,
        every=config.every,
        exclude=with_chunks(excluded.by_query, corpus),
    )
    if teacher is not None:
        num_groups, others = len(groups), [taught(groups, open_run(path)) for path in config.co_teachers]
        groups = taught(groups, teacher)
        groups = averaged([groups, *others]) if others else groups
        counts["without_teacher"] = num_groups - len(groups)
    if not groups:
        who = ", and a hit of --teacher" if config.teacher else ""
        raise UserError(
            f"none of the {len(qrels)} queries of {config.split!r} has both a positive and a negative{who}."
        )
    return groups, counts


def _check(config: Config) -> None:
    if not config.runs:
        raise UserError("--runs names no file; expected one or more runs of the split's queries.")
    if config.co_teachers and config.teacher is None:
        raise UserError("--co-teachers: are beside --teacher, which is missing; name one of them there.")
    if config.depth < 1 or config.negatives < 1:
        raise UserError(f"--depth is {config.depth}, --negatives {config.negatives}; expected 1 or more.")
    if config.positives_from < 1 or config.every < 1:
        raise UserError(f"--positives-from is {config.positives_from}, --every {config.every}; expected 1 or more.")
    if config.max_score_ratio is not None and not 0 < config.max_score_ratio <= 1:
        raise UserError(f"--max-score-ratio is {config.max_score_ratio}; expected more than 0 and at most 1.")
    if config.max_score_margin is not None and not 0 <= config.max_score_margin < math.inf:
        raise UserError(f"--max-score-margin is {config.max_score_margin}; expected 0 or more.")
    compared = {"ratio": config.max_score_ratio, "margin": config.max_score_margin}
    flags = [f"--max-score-{name}" for name, value in compared.items() if value is not None]
    if flags and config.teacher is None and len(config.runs) > 1:
        raise UserError(f"{flags[0]}: compares scores of one run, and --runs names {len(config.runs)}; add --teacher.")
    if not 0 <= config.random_share <= 1:
        raise UserError(f"--random-share is {config.random_share}; expected a number from 0 to 1.")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}; expected 0 or more.")
