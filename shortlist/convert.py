"""Stage `convert`: convert training data, click logs and vectors between formats.

Training data and vectors of other tools become files of shortlist, and training data can be written for other tools.
Click logs become training data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from shortlist.config import NotInJob, defaults, flag_of
from shortlist.data.clicks import (
    ClickLog,
    RowParser,
    add_up,
    check_bias,
    check_thresholds,
    choose,
    parse_columns,
    read_clicks,
    with_ids,
)
from shortlist.data.collections import Collection, open_collection
from shortlist.data.export import LAYOUTS, write_tevatron_corpus, write_training
from shortlist.data.files import temporary_folder
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import contents, groups_from_qrels, open_groups, read_passages, write_groups
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.matching import by_id_or_text, by_text
from shortlist.data.pickles import write_embeddings
from shortlist.data.seen import distinct
from shortlist.data.shares import divide, parse_shares
from shortlist.data.sources import CLICKS, COLLECTION, PICKLED_VECTORS, common_layout
from shortlist.data.triplets import collect, read_documents, read_examples
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.records import Document, Group, Qrels, Query

OF_CLICKS = ("columns", "position_bias", "min_clicks", "min_rate", "skip_missing")
"""Settings that only click logs take."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sources: tyro.conf.Positional[tuple[str, ...]]
    """Sources to read: one collection, or files (JSONL, TSV, CSV, Parquet) or `hf:` names of training data or of click
    logs, or Tevatron's pickled vectors. Kind and layout are recognized by the contents; several sources are read as
    one."""
    out: NotInJob[Path]
    """Folder to write: a collection with groups.jsonl, train.jsonl for another tool, or vectors."""
    as_: Annotated[Literal["training", "clicks"] | None, tyro.conf.arg(name="as")] = None
    """What the sources are: `training` is training data, a collection or vectors, `clicks` a click log (None: seen from
    the contents)."""
    to: Literal["shortlist", "tevatron", "tevatron-old", "sentence-transformers", "flagembedding"] = "shortlist"
    """Layout to write; `tevatron` has ids, with a corpus beside them, and `tevatron-old` has passages."""
    collection: str | None = None
    """Collection with the documents (and queries) of the ids in the sources: folder, `irds:` or `hf:` name. Of sources
    with texts, those that are a document's text there become that document."""
    split: str | tuple[str, ...] = "train"
    """Split whose queries and judgements are read from a collection; training data becomes a split of this name. Or
    shares of the queries, such as `train=.7 dev=.15 test=.15`: the query's text decides, and groups are those of the
    first split."""
    columns: tuple[str, ...] = ()
    """Columns of a click log that have unusual names, such as `query=term document=item`; the others are position,
    clicks and impressions."""
    position_bias: tuple[float, ...] = ()
    """Probability that position 1, 2, 3 and so on is looked at, by which each click is divided; the last one counts for
    all positions below. Needs a column of positions."""
    min_clicks: float = 1.0
    """Fewest clicks, after --position-bias, that make a document relevant to a query."""
    min_rate: float = 0.0
    """Fewest clicks per impression that make a document relevant to a query. Needs a column of impressions."""
    skip_missing: NotInJob[bool] = False
    """Leave out and count clicked documents that the collection lacks, instead of refusing."""
    allow_pickle: NotInJob[bool] = False
    """Read pickled vectors. A pickle can run any code; here it may only rebuild arrays, and is refused if it asks for
    more."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


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


def read_sources(config: Config, layout: str) -> Training:
    """Read everything in the sources but the texts of documents.

    Raises:
        UserError: a collection is missing or of no use, a record is refused, a query has no text, or no document is
            relevant.
    """
    shares = parse_shares(config.split)
    if len(shares) > 1 and config.to != "shortlist":
        raise UserError(f"--split names {len(shares)} splits, but --to {config.to} writes one; name one.")
    readers = {COLLECTION: _read_collection, CLICKS: _read_clicks}
    training = readers[layout](config) if layout in readers else _read_records(config, layout)
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
    groups, judged = divide(training.groups, training.queries, qrels, shares)
    return training._replace(groups=groups, qrels=judged)


def _one_split(config: Config) -> str:
    """Return the split to read from a collection; raises UserError where several are named."""
    split, *others = parse_shares(config.split)
    if others:
        raise UserError(
            f"--split: the queries are those of one split of a collection; name one, not {len(others) + 1}."
        )
    return split


def _read_collection(config: Config) -> Training:
    source, *others = config.sources
    if others:
        raise UserError(f"{others[0]}: one collection can be converted at a time; convert it by itself.")
    _refuse_collection(config, "is a collection itself")
    collection, split = open_collection(source), _one_split(config)
    qrels = collection.qrels(split)
    queries = {query.query_id: query for query in collection.queries(split)}
    inputs: dict[str, str | list[str]] = {"sources": collection.identity("corpus", "queries", f"qrels/{split}")}
    return Training(groups_from_qrels(qrels), queries, {split: qrels}, collection.corpus, collection, inputs)


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
        return Training(groups, queries, _judged(config, groups), stream, None, inputs)
    if layout == "texts":
        return _named_by_collection(config, config.collection, groups, queries, inputs)
    collection, parts = open_collection(config.collection), ["corpus"]
    if any(group.query_id not in queries for group in groups):
        queries = {query.query_id: query for query in collection.queries(_one_split(config))} | queries
        parts.append("queries")
    wanted = {group.query_id: queries[group.query_id] for group in groups if group.query_id in queries}
    inputs["collection"] = collection.identity(*parts)
    return Training(groups, wanted, _judged(config, groups), collection.corpus, collection, inputs)


def _named_by_collection(
    config: Config, name: str, groups: list[Group], queries: dict[str, Query], inputs: dict[str, str | list[str]]
) -> Training:
    """Give texts that a collection has the ids of its documents.

    The others become documents beside them.
    """
    collection = open_collection(name)
    texts = {doc_id for group in groups for doc_id in group.positives + group.negatives}
    doc_ids = by_text(collection, texts)
    say(f"convert: {len(doc_ids):,} of {len(texts):,} texts are documents of {name}.")

    def documents() -> Iterator[Document]:
        yield from collection.corpus()
        yield from (document for document in _stream(read_documents, config.sources) if document.doc_id not in doc_ids)

    groups = [_renamed(group, doc_ids) for group in groups]
    inputs["collection"] = collection.identity("corpus")
    whole = collection if len(doc_ids) == len(texts) else None
    stream = documents if whole is None else collection.corpus
    return Training(groups, queries, _judged(config, groups), stream, whole, inputs)


def _read_clicks(config: Config) -> Training:
    """Read click logs; say how many pairs there are, and how many are left out."""
    if not config.collection:
        raise UserError(f"{config.sources[0]}: is a click log; name the collection that was clicked with --collection.")
    check_bias(config.position_bias)
    check_thresholds(config.min_clicks, config.min_rate)
    users = {"position": ("position_bias", config.position_bias), "impressions": ("min_rate", config.min_rate)}
    used_by = {kind: flag_of(name) for kind, (name, value) in users.items() if value}
    parser = RowParser(parse_columns(config.columns), used_by)
    collection = open_collection(config.collection)
    rows = chain.from_iterable(read_clicks(source, parser) for source in config.sources)
    log = add_up(track(rows, "reading", unit="rows"), config.position_bias)
    if not log:
        raise UserError(f"{', '.join(config.sources)}: no rows; expected at least one, after the header of a table.")
    num_queries = len(log)
    log = with_ids(log, _documents_of(config, collection, log))
    chosen = choose(log, min_clicks=config.min_clicks, min_rate=config.min_rate)
    say(
        f"convert: {chosen.pairs:,} pairs of a query and a document, {chosen.clicked:,} of them clicked; left out "
        f"{chosen.few_clicks:,} by --min-clicks {config.min_clicks:g} and {chosen.low_rate:,} by --min-rate "
        f"{config.min_rate:g}; {len(chosen.groups):,} of {num_queries:,} queries have a pair left."
    )
    if "impressions" in parser.kinds:
        say(f"convert: {chosen.doubtful:,} of the clicked pairs have fewer than 1 click per 100 impressions.")
    if not chosen.groups:
        raise UserError(
            f"{', '.join(config.sources)}: no pair is left; expected clicks enough for the flags said above."
        )
    on_hub = any(source.startswith("hf:") for source in config.sources)
    inputs: dict[str, str | list[str]] = {
        "sources": [contents(chosen.groups, chosen.queries)] if on_hub else list(map(identity, config.sources)),
        "collection": collection.identity("corpus"),
    }
    judged = _judged(config, chosen.groups)
    return Training(chosen.groups, chosen.queries, judged, collection.corpus, collection, inputs)


def _documents_of(config: Config, collection: Collection, log: ClickLog) -> dict[str, str]:
    """Find the ids of the documents in a log.

    Raises:
        UserError: the collection lacks a clicked document, and `skip_missing` is off.
    """
    named = {document: False for documents in log.values() for document in documents}
    for documents in log.values():
        named |= {document: True for document, counts in documents.items() if counts.clicks}
    doc_ids = by_id_or_text(collection, named)
    missing = [document for document in named if document not in doc_ids]
    gone, clicked = [document for document in missing if named[document]], sum(named.values())
    if gone and not config.skip_missing:
        raise UserError(
            f"{config.collection}: lacks {len(gone):,} of {clicked:,} clicked documents, the first {gone[0]!r:.80}; "
            "expected ids or texts of its documents. Name the collection that was clicked, or leave them out with "
            "--skip-missing."
        )
    if missing:
        say(
            f"convert: {config.collection} lacks {len(gone):,} of {clicked:,} clicked documents and "
            f"{len(missing) - len(gone):,} others; left them out."
        )
    return doc_ids


def _renamed(group: Group, doc_ids: dict[str, str]) -> Group:
    positives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.positives)
    negatives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.negatives)
    kept = tuple(doc_id for doc_id in negatives if doc_id not in positives)
    return group._replace(positives=tuple(positives), negatives=kept)


def _refuse_collection(config: Config, found: str) -> None:
    if config.collection:
        raise UserError(f"{config.sources[0]}: {found}, so --collection is of no use; leave it out.")


def _layout(config: Config) -> str:
    """Find the layout of the sources; say so where click logs are guessed."""
    layout, first = common_layout(config.sources, config.as_, parse_columns(config.columns)), config.sources[0]
    known = defaults(Config)
    if layout != CLICKS and (given := [name for name in OF_CLICKS if getattr(config, name) != known[name]]):
        flags = ", ".join(map(flag_of, given))
        raise UserError(
            f"{first}: holds {layout}, and click logs alone take {flags}; leave it out, or add --as clicks."
        )
    if layout == CLICKS and config.as_ is None:
        say(f"convert: {first}: read as a click log, by the names of its columns; --as says what it is.")
    return layout


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


def _judged(config: Config, groups: Iterable[Group]) -> dict[str, Qrels]:
    """Make the judgements of the first split, before the queries are divided."""
    return {next(iter(parse_shares(config.split))): judgements(groups)}


def judgements(groups: Iterable[Group]) -> Qrels:
    """Make judgements from groups, with grade 1 for each positive."""
    qrels: Qrels = {}
    for group in groups:
        qrels.setdefault(group.query_id, {}).update(dict.fromkeys(group.positives, 1))
    return qrels


def run(config: Config) -> None:
    """Write the sources in the wanted layout."""
    layout = _layout(config)
    if layout == PICKLED_VECTORS:
        _check_pickles(config)
        inputs: dict[str, str | list[str]] = {"sources": list(map(identity, config.sources))}
        write: Callable[[Path], dict[str, int]] = partial(_write_vectors, config.sources)
    else:
        training = read_sources(config, layout)
        inputs = training.inputs
        write = partial(_write_ours if config.to == "shortlist" else _write_theirs, config, training)
    as_if = replace(config, as_="clicks" if layout == CLICKS else None)  # the same, whether it was said or seen
    job = start_job(config, JobSpec("convert", inputs, as_if=as_if, folder=True))
    if not job.done:
        with job.result() as folder:
            counts = write(folder)
        job.finish(counts)


def _write_ours(config: Config, training: Training, out: Path) -> dict[str, int]:
    """Write a collection, and groups last, so that their file shows all is there."""
    write_corpus(out / "corpus.jsonl", _complete(config, training))
    write_queries(out / "queries.jsonl", training.queries.values())
    for split, qrels in training.qrels.items():
        write_qrels(out / "qrels" / f"{split.replace('/', '-')}.tsv", qrels)
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
    results = write_embeddings(sources, out)
    say("convert: nothing says which model made these vectors; search them with --model and --contract of that one.")
    return results
