"""Training data of other tools, and collections, become groups in any layout."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

from shortlist.convert.settings import Config
from shortlist.convert.writing import Training, judge_first_split, write_training_data
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import find_excluded
from shortlist.data.groups import contents, groups_from_qrels, open_groups, read_passages
from shortlist.data.manifest import identity
from shortlist.data.matching import by_text
from shortlist.data.seen import distinct
from shortlist.data.shares import parse_shares
from shortlist.data.triplets import collect, read_documents, read_examples
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.records import Document, Group, Query


def convert_collection(config: Config) -> None:
    """Write the positives of a collection's judgements as training data."""
    write_training_data(config, _read_collection)


def convert_records(config: Config, layout: str) -> None:
    """Write training data of one layout in another."""
    write_training_data(config, partial(_read_records, layout=layout))


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
    excluded = find_excluded(None, source, split)
    inputs: dict[str, str | list[str]] = {"sources": collection.identity("corpus", "queries", f"qrels/{split}")}
    inputs |= excluded.inputs
    groups = groups_from_qrels(qrels)
    return Training(groups, queries, {split: qrels}, collection.corpus, collection, inputs, excluded.by_query)


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
        return Training(groups, queries, judge_first_split(config, groups), stream, None, inputs)
    if layout == "texts":
        return _named_by_collection(config, config.collection, groups, queries, inputs)
    collection, parts = open_collection(config.collection), ["corpus"]
    if any(group.query_id not in queries for group in groups):
        queries = {query.query_id: query for query in collection.queries(_one_split(config))} | queries
        parts.append("queries")
    wanted = {group.query_id: queries[group.query_id] for group in groups if group.query_id in queries}
    inputs["collection"] = collection.identity(*parts)
    return Training(groups, wanted, judge_first_split(config, groups), collection.corpus, collection, inputs)


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
    return Training(groups, queries, judge_first_split(config, groups), stream, whole, inputs)


def _renamed(group: Group, doc_ids: dict[str, str]) -> Group:
    positives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.positives)
    negatives = dict.fromkeys(doc_ids.get(doc_id, doc_id) for doc_id in group.negatives)
    kept = tuple(doc_id for doc_id in negatives if doc_id not in positives)
    return group._replace(positives=tuple(positives), negatives=kept)


def _refuse_collection(config: Config, found: str) -> None:
    if config.collection:
        raise UserError(f"{config.sources[0]}: {found}, so --collection is of no use; leave it out.")


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
