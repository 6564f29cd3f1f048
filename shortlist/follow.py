"""Stage `follow`: add the documents that found ones name, such as citations."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shortlist.config import NotInJob
from shortlist.data.collections import Collection, open_collection
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, ms_per_query, stages
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.records import Document, Hit

VOTE = 60
"""What is added to a rank, as in reciprocal rank fusion."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path
    """Run whose documents are followed."""
    collection: str
    """Collection with the documents: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Run file to write."""
    field: str = "citations"
    """Field of a document's metadata that holds the ids of the documents that it names, a list or one id."""
    depth: int = 50
    """First documents of each query to follow; they stay first, in their order."""
    k: int = 200
    """Documents to keep per query."""
    order: Literal["votes", "listed"] = "votes"
    """Order of what is added: by the ranks of the documents that name it, each of which counts 1 / (60 + rank), or as
    it is listed, the documents named by the first hit before those of the second."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits: by score and id as in trec_eval, or by the run's rank column."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def follow(hits: Sequence[Hit], named: Mapping[str, Sequence[str]], *, k: int, by_votes: bool = True) -> list[Hit]:
    """Add to found documents those that they name.

    Args:
        hits: documents to follow, best first.
        named: ids that each of them names.
        k: most documents to return.
        by_votes: order what is added by the sum of 1 / (60 + rank) over the documents that name it (False: as listed).

    Returns:
        The hits, with their scores, then the others with lower scores that are 1 apart.
    """
    found = {hit.doc_id for hit in hits}
    votes: dict[str, float] = {}
    for rank, hit in enumerate(hits, 1):
        for doc_id in dict.fromkeys(named.get(hit.doc_id, ())):
            if doc_id not in found:
                votes[doc_id] = votes.get(doc_id, 0.0) + 1 / (VOTE + rank)
    added = sorted(votes, key=lambda doc_id: -votes[doc_id]) if by_votes else list(votes)
    last = hits[-1].score if hits else 0.0
    return [*hits, *(Hit(doc_id, last - place) for place, doc_id in enumerate(added, 1))][:k]


def names_of(document: Document, field: str) -> list[str]:
    """Return the ids that a document's metadata names under `field`, if any.

    Raises:
        UserError: the field holds neither ids nor a list of them.
    """
    value = document.metadata.get(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) or type(item) is int for item in values):
        raise UserError(f"document {document.doc_id!r}: its {field!r} is {value!r:.80}; expected ids of documents.")
    return list(map(str, values))


def run(config: Config) -> None:
    """Write a run with the documents that the found ones name."""
    if config.depth < 1 or config.k < config.depth:
        raise UserError(f"--depth {config.depth} and --k {config.k}: expected 1 or more, and --k no less than --depth.")
    collection = open_collection(config.collection)
    inputs = {"run": identity(config.run), "collection": collection.identity("corpus")}
    job = start_job(config, JobSpec("follow", inputs))
    if job.done:
        return
    firsts = {query_id: hits[: config.depth] for query_id, hits in read_run(config.run, ties=config.ties).items()}
    start = time.perf_counter()
    named = _named(collection, firsts, config)
    by_votes = config.order == "votes"
    followed = {query_id: follow(hits, named, k=config.k, by_votes=by_votes) for query_id, hits in firsts.items()}
    ms = round(1000 * (time.perf_counter() - start) / max(1, len(followed)), 3)
    write_run(job.out, followed)
    added = sum(map(len, followed.values())) - sum(map(len, firsts.values()))
    say(f"follow: {added / max(1, len(followed)):.1f} documents added to each of {len(followed):,} queries.")
    costs = [*stages(config.run), {"stage": "follow", "ms": ms}]
    spent = round(ms + ms_per_query(config.run), 3)
    job.finish(added=added, queries=len(followed), stages=costs, ms_per_query=spent)


def _named(collection: Collection, firsts: Mapping[str, Sequence[Hit]], config: Config) -> dict[str, list[str]]:
    """Look up what the documents of a run name and the collection has.

    Raises:
        UserError: none of the documents has the field.
    """
    doc_ids = dict.fromkeys(hit.doc_id for hits in firsts.values() for hit in hits)
    documents = collection.documents(doc_ids)
    if documents and not any(config.field in document.metadata for document in documents.values()):
        there = sorted({name for document in documents.values() for name in document.metadata})
        raise UserError(
            f"{config.collection}: no document of {config.run} has the metadata field {config.field!r} (found: "
            f"{', '.join(there) or 'none'}); name another with --field."
        )
    named = {doc_id: names_of(document, config.field) for doc_id, document in documents.items()}
    missing = set(collection.missing(dict.fromkeys(name for names in named.values() for name in names)))
    return {doc_id: [name for name in names if name not in missing] for doc_id, names in named.items()}
