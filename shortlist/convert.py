"""Stage `convert`: convert training data and vectors between formats.

Training data and vectors of other tools become files of shortlist, and training data can be written for other tools.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from shortlist.config import NotInJob
from shortlist.data.collections import Collection, open_collection
from shortlist.data.export import LAYOUTS, write_tevatron_corpus, write_training
from shortlist.data.files import temporary_folder
from shortlist.data.formats import full_text, write_corpus, write_qrels, write_queries
from shortlist.data.groups import contents, groups_from_qrels, open_groups, read_passages, write_groups
from shortlist.data.manifest import identity, start_job
from shortlist.data.pickles import is_pickle, read_embeddings
from shortlist.data.seen import Seen, distinct
from shortlist.data.triplets import collect, layout_of, read_documents, read_examples, text_id
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.records import Document, Group, Qrels, Query

COLLECTION = "a collection"
PICKLED_VECTORS = "pickled vectors"
"""Contents that a source may have, besides training data in one of its layouts."""
SHARD_SIZE = 20_000
"""Vectors per shard."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sources: tyro.conf.Positional[tuple[str, ...]]
    """Sources to read: one collection, or files (JSONL, TSV, CSV, Parquet) or `hf:` names of training data, or
    Tevatron's pickled vectors. Kind and layout are recognized by the contents; several sources are read as one."""
    out: NotInJob[Path]
    """Folder to write: a collection with groups.jsonl, train.jsonl for another tool, or vectors."""
    to: Literal["shortlist", "tevatron", "tevatron-old", "sentence-transformers", "flagembedding"] = "shortlist"
    """Layout to write; `tevatron` has ids, with a corpus beside them, and `tevatron-old` has passages."""
    collection: str | None = None
    """Collection with the documents (and queries) of the ids in the sources: folder, `irds:` or `hf:` name. Of sources
    with texts, those that are a document's text there become that document."""
    split: str = "train"
    """Split whose queries and judgements are read from a collection; training data becomes a split of this name."""
    allow_pickle: NotInJob[bool] = False
    """Read pickled vectors. A pickle can run any code; here it may only rebuild arrays, and is refused if it asks for
    more."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Training(NamedTuple):
    """Training data that was read from one layout, to be written in another."""

    groups: list[Group]
    queries: dict[str, Query]
    qrels: Qrels
    documents: Callable[[], Iterable[Document]]
    """Streams the documents, without repeats."""
    collection: Collection | None
    """Collection of the documents, if the texts come from one."""
    inputs: dict[str, str | list[str]]
    """Identities of everything that was read, by the names of the settings."""


def read_sources(config: Config, layout: str) -> Training:
    """Read everything in the sources but the texts of documents.

    Raises:
        UserError: a collection is missing or of no use, a record is refused, a query has no text, or no document is
            relevant.
    """
    training = _read_collection(config) if layout == COLLECTION else _read_records(config, layout)
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
    return training


def _read_collection(config: Config) -> Training:
    source, *others = config.sources
    if others:
        raise UserError(f"{others[0]}: one collection can be converted at a time; convert it by itself.")
    _refuse_collection(config, "is a collection itself")
    collection = open_collection(source)
    qrels = collection.qrels(config.split)
    queries = {query.query_id: query for query in collection.queries(config.split)}
    inputs: dict[str, str | list[str]] = {"sources": collection.identity("corpus", "queries", f"qrels/{config.split}")}
    return Training(groups_from_qrels(qrels), queries, qrels, collection.corpus, collection, inputs)


def _read_records(config: Config, layout: str) -> Training:
    if layout in ("groups", "id triples") and not config.collection:
        raise UserError(
            f"{config.sources[0]}: holds ids of documents, not their texts; name the collection that has them with "
            "--collection."
        )
    groups, queries, identities = _read_groups(config.sources, layout)
    inputs: dict[str, str | list[str]] = {"sources": identities}
    if not config.collection:
        stream = partial(_stream, read_passages if layout == "passages" else read_documents, config.sources)
        return Training(groups, queries, judgements(groups), stream, None, inputs)
    if layout == "texts":
        return _named_by_collection(config, config.collection, groups, queries, inputs)
    collection, parts = open_collection(config.collection), ["corpus"]
    if any(group.query_id not in queries for group in groups):
        queries = {query.query_id: query for query in collection.queries(config.split)} | queries
        parts.append("queries")
    wanted = {group.query_id: queries[group.query_id] for group in groups if group.query_id in queries}
    inputs["collection"] = collection.identity(*parts)
    return Training(groups, wanted, judgements(groups), collection.corpus, collection, inputs)


def _named_by_collection(
    config: Config, name: str, groups: list[Group], queries: dict[str, Query], inputs: dict[str, str | list[str]]
) -> Training:
    """Give texts that a collection has the ids of its documents.

    The others become documents beside them.
    """
    collection = open_collection(name)
    texts = {doc_id for group in groups for doc_id in group.positives + group.negatives}
    doc_ids: dict[str, str] = {}
    for document in track(collection.corpus(), "comparing texts", unit="documents"):
        for key in {text_id(document.text), text_id(full_text(document))} & texts:
            doc_ids.setdefault(key, document.doc_id)
    say(f"convert: {len(doc_ids):,} of {len(texts):,} texts are documents of {name}.")

    def documents() -> Iterator[Document]:
        yield from collection.corpus()
        yield from (document for document in _stream(read_documents, config.sources) if document.doc_id not in doc_ids)

    groups = [_renamed(group, doc_ids) for group in groups]
    inputs["collection"] = collection.identity("corpus")
    whole = collection if len(doc_ids) == len(texts) else None
    return Training(
        groups, queries, judgements(groups), documents if whole is None else collection.corpus, whole, inputs
    )


def _renamed(group: Group, doc_ids: dict[str, str]) -> Group:
    positives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.positives)
    negatives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.negatives)
    kept = tuple(doc_id for doc_id in negatives if doc_id not in positives)
    return group._replace(positives=tuple(positives), negatives=kept)


def _refuse_collection(config: Config, found: str) -> None:
    if config.collection:
        raise UserError(f"{config.sources[0]}: {found}, so --collection is of no use; leave it out.")


def _layout(sources: Sequence[str]) -> str:
    """Find the common layout of all sources: one of triplets.Layout, COLLECTION or PICKLED."""
    if not sources:
        raise UserError("no source is named; expected a collection, or one or more files.")
    first, *others = [(source, _layout_of(source)) for source in sources]
    for source, layout in others:
        if layout != first[1]:
            raise UserError(f"{source}: holds {layout}, but {first[0]} {first[1]}; convert them one at a time.")
    return first[1]


def _layout_of(source: str) -> str:
    if source.startswith("irds:") or Path(source).is_dir():
        return COLLECTION
    if source.startswith("hf:"):
        return COLLECTION if open_collection(source).splits() else layout_of(source)
    return PICKLED_VECTORS if is_pickle(Path(source)) else layout_of(source)


def _read_groups(sources: Sequence[str], layout: str) -> tuple[list[Group], dict[str, Query], list[str]]:
    """Read the groups of all sources, the queries with texts, and the sources' identities."""
    if layout in ("texts", "id triples"):
        examples = track(chain.from_iterable(map(read_examples, sources)), "reading", unit="records")
        groups, queries = collect(examples, by_id=layout == "id triples")
        on_hub = any(source.startswith("hf:") for source in sources)
        return groups, queries, [contents(groups, queries)] if on_hub else list(map(identity, sources))
    opened = [open_groups(source) for source in sources]
    queries = {}
    for name, source in zip(sources, opened, strict=True):
        for query in source.queries.values():
            if queries.setdefault(query.query_id, query) != query:
                raise UserError(f"{name}: query {query.query_id!r} has another text in the sources before it.")
    groups = [group for source in opened for group in source.groups]
    return groups, queries, [source.identity for source in opened]


def _stream(texts: Callable[[str], Iterator[Document]], sources: Sequence[str]) -> Iterator[Document]:
    return distinct(chain.from_iterable(map(texts, sources)), ", ".join(sources))


def judgements(groups: Iterable[Group]) -> Qrels:
    """Make judgements from groups, with grade 1 for each positive."""
    qrels: Qrels = {}
    for group in groups:
        qrels.setdefault(group.query_id, {}).update(dict.fromkeys(group.positives, 1))
    return qrels


def run(config: Config) -> None:
    """Write the sources in the wanted layout."""
    layout = _layout(config.sources)
    if layout == PICKLED_VECTORS:
        _check_pickles(config)
        inputs: dict[str, str | list[str]] = {"sources": list(map(identity, config.sources))}
        write: Callable[[Path], dict[str, int]] = partial(_write_vectors, config.sources)
    else:
        training = read_sources(config, layout)
        inputs = training.inputs
        write = partial(_write_ours if config.to == "shortlist" else _write_theirs, config, training)
    job = start_job(config, stage="convert", inputs=inputs, folder=True)
    if not job.done:
        job.finish(write(job.out))


def _write_ours(config: Config, training: Training, out: Path) -> dict[str, int]:
    """Write a collection, and groups last, so that their file shows all is there."""
    write_corpus(out / "corpus.jsonl", _complete(config, training))
    write_queries(out / "queries.jsonl", training.queries.values())
    write_qrels(out / "qrels" / f"{config.split.replace('/', '-')}.tsv", training.qrels)
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


def _check_pickles(config: Config) -> None:
    if not config.allow_pickle:
        raise UserError(
            f"{config.sources[0]}: is a pickle, and reading one can run any code that is in it; if you trust where it "
            "comes from, add --allow-pickle."
        )
    if config.to != "shortlist" or config.collection:
        raise UserError(f"{config.sources[0]}: holds vectors; --to and --collection are of no use, leave them out.")
    say(
        "convert: --allow-pickle: a pickle can run any code when it is read. Here it may only rebuild arrays, and is "
        "refused if it asks for more; still, read none from a source that you do not trust."
    )


def _write_vectors(sources: Sequence[str], out: Path) -> dict[str, int]:
    """Write pickled vectors as a vector store.

    The store cannot say which model made them.
    """
    from shortlist.data.vectors import VectorWriter

    new, number, num_docs, writer = Seen().add, 0, 0, None
    for source in track(sources, "converting", len(sources), "files"):
        vectors, doc_ids = read_embeddings(Path(source))
        kind = (vectors.shape[1], "float16" if vectors.dtype == "float16" else "float32")
        writer = writer or VectorWriter(out, *kind)
        if kind != (writer.dim, writer.dtype):
            raise UserError(
                f"{source}: holds {kind[1]} vectors of dim {kind[0]}, but {sources[0]} {writer.dtype} of dim "
                f"{writer.dim}; expected the vectors of one model."
            )
        if twice := next((doc_id for doc_id in doc_ids if not new(doc_id)), None):
            raise UserError(f"{source}: document {twice!r} occurs twice in the sources; every id must occur once.")
        for start in range(0, len(doc_ids), SHARD_SIZE):
            here = slice(start, start + SHARD_SIZE)
            writer.write_shard(number, doc_ids[here], vectors[here])
            number += 1
        num_docs += len(doc_ids)
    say("convert: nothing says which model made these vectors; search them with --model and --contract of that one.")
    return {"num_docs": num_docs, "dim": writer.dim if writer else 0}
