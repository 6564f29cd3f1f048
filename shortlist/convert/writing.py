"""Training data that was read, written as a collection with groups or for another tool."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shortlist.convert.settings import Config
from shortlist.data.collections import Collection, open_collection
from shortlist.data.exclusions import EXCLUDE, NO_EXCLUSIONS, Exclusions, write_exclusions
from shortlist.data.export import LAYOUTS, write_tevatron_corpus, write_training
from shortlist.data.files import temporary_folder
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import write_groups
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.shares import divide, parse_shares
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.records import Document, Group, Qrels, Query


class Training(NamedTuple):
    """Training data that was read from one layout, to be written in another."""

    groups: list[Group]
    queries: dict[str, Query]
    qrels: Mapping[str, Qrels]
    """Judgements by split; the groups are those of the first split."""
    documents: Callable[[], Iterable[Document]]
    """Streams the documents, without repeats."""
    collection: Collection | None
    """Collection of the documents, if the texts come from one."""
    inputs: dict[str, str | list[str]]
    """Identities of everything that was read, by the names of the settings."""
    exclude: Exclusions = NO_EXCLUSIONS
    """Documents that queries may not find, where the source says so."""


def write_training_data(config: Config, read: Callable[[Config], Training], *, kind: str | None = None) -> None:
    """Read the sources and write them in the wanted layout.

    Args:
        kind: what the sources are, where that is part of what the job is known by.

    Raises:
        UserError: the sources cannot be read, or are not whole.
    """
    training = _divided(config, read)
    write = partial(_write_ours if config.to == "shortlist" else _write_theirs, config, training)
    as_if = replace(config, as_=kind)  # the same, whether it was said or seen
    job = start_job(config, JobSpec("convert", training.inputs, as_if=as_if, folder=True))
    if not job.done:
        with job.result() as folder:
            counts = write(folder)
        job.finish(counts)


def _divided(config: Config, read: Callable[[Config], Training]) -> Training:
    """Read everything in the sources but the texts of documents.

    Raises:
        UserError: a collection is missing or of no use, a record is refused, a query has no text, or no document is
            relevant.
    """
    shares = parse_shares(config.split)
    if len(shares) > 1 and config.to != "shortlist":
        raise UserError(f"--split names {len(shares)} splits, but --to {config.to} writes one; name one.")
    training = read(config)
    if not training.groups:
        raise UserError(
            f"{config.sources[0]}: no document is relevant in split {config.split!r}; name another --split."
        )
    asked = dict.fromkeys(group.query_id for group in training.groups)
    if missing := [query_id for query_id in asked if query_id not in training.queries]:
        raise UserError(
            f"{config.sources[0]}: {len(missing):,} of {len(asked):,} queries have no text, the first {missing[0]!r}; "
            "expected it in the source, or in the --split of the --collection."
        )
    if len(shares) == 1:
        return training
    [qrels] = training.qrels.values()
    groups, divided = divide(training.groups, training.queries, qrels, shares)
    return training._replace(groups=groups, qrels=divided)


def judge_first_split(config: Config, groups: Iterable[Group]) -> dict[str, Qrels]:
    """Make the judgements of the first split, before the queries are divided."""
    return {next(iter(parse_shares(config.split))): judgements(groups)}


def judgements(groups: Iterable[Group]) -> Qrels:
    """Make judgements from groups, with grade 1 for each positive."""
    qrels: Qrels = {}
    for group in groups:
        qrels.setdefault(group.query_id, {}).update(dict.fromkeys(group.positives, 1))
    return qrels


def _write_ours(config: Config, training: Training, out: Path) -> dict[str, int]:
    """Write a collection, and groups last, so that their file shows all is there."""
    write_corpus(out / "corpus.jsonl", _complete(config, training))
    write_queries(out / "queries.jsonl", training.queries.values())
    for split, qrels in training.qrels.items():
        write_qrels(out / "qrels" / f"{split.replace('/', '-')}.tsv", qrels)
        if training.exclude:
            write_exclusions(out / EXCLUDE / f"{split.replace('/', '-')}.jsonl", training.exclude)
    write_groups(out / "groups.jsonl", training.groups)
    return {"groups": len(training.groups), "queries": len(training.queries)}


def _write_theirs(config: Config, training: Training, out: Path) -> dict[str, int]:
    groups = training.groups
    if config.to == "sentence-transformers" and any(group.negatives for group in groups):
        groups = [group for group in groups if group.negatives]
        if fewer := len(training.groups) - len(groups):
            say(f"convert: left out {fewer:,} groups without negatives, as every line must have the same columns.")
    with _looked_up(config, training, out) as collection:
        records = write_training(out / "train.jsonl", groups, training.queries, collection, LAYOUTS[config.to])
    if config.to == "tevatron":
        write_tevatron_corpus(out / "corpus.jsonl", _complete(config, training))
    return {"groups": len(groups), "records": records}


@contextmanager
def _looked_up(config: Config, training: Training, out: Path) -> Iterator[Collection]:
    """Yield a collection to look up documents in.

    Documents that come as a stream are written to a temporary collection, which is deleted afterwards.
    """
    if training.collection is not None:
        yield training.collection
        return
    with temporary_folder(out) as folder:
        write_corpus(folder / "corpus.jsonl", _complete(config, training))
        yield open_collection(str(folder))


def _complete(config: Config, training: Training) -> Iterator[Document]:
    """Yield the documents; raises UserError at the end if the groups name others."""
    missing = {doc_id for group in training.groups for doc_id in group.positives + group.negatives}
    for document in track(training.documents(), "writing", unit="documents"):
        missing.discard(document.doc_id)
        yield document
    if missing:
        raise UserError(
            f"{config.collection or config.sources[0]}: lacks {len(missing):,} documents that the groups name, the "
            f"first {min(missing)!r}; expected the collection that the ids are of."
        )
