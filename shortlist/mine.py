"""Stage `mine`: runs -> training groups of a query, its positives and hard negatives."""

import time
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from shortlist.config import NotInJob
from shortlist.data.beir import shares_ids
from shortlist.data.collections import open_collection
from shortlist.data.groups import graded, write_groups
from shortlist.data.manifest import identity, start_job
from shortlist.data.runs import open_run
from shortlist.errors import UserError
from shortlist.math.sampling import draw_negatives, interleave
from shortlist.progress import say, track
from shortlist.records import Document, Group, Qrels, Run


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
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def mine(
    runs: Sequence[Run],
    qrels: Qrels,
    corpus: Sequence[str],
    same_text: Mapping[str, Collection[str]],
    *,
    depth: int,
    negatives: int,
    random_share: float = 0.0,
    seed: int = 0,
    exclude_self: bool = False,
) -> tuple[list[Group], Counter[str]]:
    """Draw negatives for every query that has a relevant document.

    Neither a relevant document nor one with the text of a relevant document becomes a negative. A query's negatives
    depend only on the seed and on the query's id, lists and judgements.

    Args:
        runs: runs to blend rank by rank.
        qrels: judgements; documents above grade 0 are the positives.
        corpus: ids of the whole collection.
        same_text: relevant document -> the documents with the same text, itself included.
        depth: number of top ranks of the blended run to draw from.
        negatives: number of negatives to draw per query.
        random_share: share of the negatives to draw from the whole corpus.
        seed: seed for the draw.
        exclude_self: never draw the document with the query's id, as it is the query itself.

    Returns:
        The groups, in the order of the qrels, and counts of queries and documents left out.

    Raises:
        UserError: a run names a document that the corpus lacks.
    """
    known, groups, counts = set(corpus), [], Counter(queries=len(qrels))
    for query_id, judgements in qrels.items():
        positives = [doc_id for doc_id, relevance in judgements.items() if relevance > 0]
        lists = [[hit.doc_id for hit in run.get(query_id, [])] for run in runs]
        candidates = interleave(lists, depth)
        for doc_id in candidates:
            if doc_id not in known:
                raise UserError(f"query {query_id!r}: document {doc_id!r} of the runs is not in the collection.")
        excluded = {doc_id for positive in positives for doc_id in same_text[positive]}
        blocked = {*excluded, query_id} if exclude_self else excluded
        rng = np.random.default_rng([seed, zlib.crc32(query_id.encode())])
        drawn = draw_negatives(candidates, corpus, blocked, rng, number=negatives, random_share=random_share)
        counts["without_positives"] += not positives
        counts["without_candidates"] += bool(positives) and not drawn
        counts["with_fewer_negatives"] += bool(positives) and 0 < len(drawn) < negatives
        counts["excluded_equal_texts"] += len(excluded.difference(positives).intersection(candidates))
        if positives and drawn:
            groups.append(graded(Group(query_id, tuple(positives), tuple(drawn)), judgements))
    return groups, counts


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


def find_same_text(corpus: Iterable[Document], doc_ids: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Read a corpus once, and find documents with equal texts.

    Returns all ids of the corpus and, for each of `doc_ids`, the documents with the same text, itself included.

    Raises:
        UserError: the corpus lacks one of the ids.
    """
    ids, prints = [], array("Q")  # 8 bytes per document, as all texts would not fit into memory
    for document in corpus:
        ids.append(document.doc_id)
        prints.append(text_fingerprint(document))
    wanted = set(doc_ids)
    print_of = {doc_id: number for doc_id, number in zip(ids, prints, strict=True) if doc_id in wanted}
    if missing := sorted(wanted - print_of.keys()):
        raise UserError(
            f"{len(missing)} of {len(wanted)} relevant documents are not in the corpus, the first {missing[0]!r}; "
            "expected judgements of this collection."
        )
    numbers, same = set(print_of.values()), defaultdict(list)
    for doc_id, number in zip(ids, prints, strict=True):
        if number in numbers:
            same[number].append(doc_id)
    return ids, {doc_id: same[number] for doc_id, number in print_of.items()}


def text_fingerprint(document: Document) -> int:
    """Hash a document's text to 64 bits, ignoring case and white space.

    If there is no text, the title is hashed.
    """
    words = (document.text.strip() or document.title).casefold().split()
    return int.from_bytes(blake2b(" ".join(words).encode(), digest_size=8).digest())


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
    job = start_job(
        config, stage="mine", inputs=inputs, as_if=replace(config, exclude_self=config.exclude_self or None)
    )
    if job.done:
        return
    start = time.perf_counter()
    qrels = collection.qrels(config.split)
    relevant = {doc_id for judgements in qrels.values() for doc_id, relevance in judgements.items() if relevance > 0}
    corpus, same_text = find_same_text(track(collection.corpus(), "reading texts", unit="documents"), relevant)
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
    job.finish(groups=len(groups), **counts, seconds=round(time.perf_counter() - start, 3))


def _check(config: Config) -> None:
    if not config.runs:
        raise UserError("--runs names no file; expected one or more runs of the split's queries.")
    if config.depth < 1 or config.negatives < 1:
        raise UserError(f"--depth is {config.depth}, --negatives {config.negatives}; expected 1 or more.")
    if not 0 <= config.random_share <= 1:
        raise UserError(f"--random-share is {config.random_share}; expected a number from 0 to 1.")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}; expected 0 or more.")
