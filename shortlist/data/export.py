"""Export of groups with their texts, for Tevatron, sentence-transformers and FlagEmbedding."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shortlist.data.collections import Collection
from shortlist.data.files import atomic_write
from shortlist.data.formats import full_text
from shortlist.records import Document, Group, Query
from shortlist.text.batching import windows

GROUPS_AT_ONCE = 1000
"""Number of groups whose documents are in memory together."""

Documents = Mapping[str, Document]
RecordsOf = Callable[[Group, Query, Documents], Iterator[dict[str, Any]]]
"""Turns a group into the records of one layout."""


def tevatron(group: Group, query: Query, documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield one record of ids; Tevatron looks the documents up in a corpus.

    See `write_tevatron_corpus`.
    """
    ids = {"positive_document_ids": group.positives, "negative_document_ids": group.negatives}
    yield {"query_id": query.query_id, "query_text": query.text, **ids}


def tevatron_old(group: Group, query: Query, documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield one record with the titles and texts of the documents."""

    def passages(doc_ids: Iterable[str]) -> list[dict[str, str]]:
        found = (documents[doc_id] for doc_id in doc_ids)
        return [{"docid": document.doc_id, "title": document.title, "text": document.text} for document in found]

    both = {"positive_passages": passages(group.positives), "negative_passages": passages(group.negatives)}
    yield {"query_id": query.query_id, "query": query.text, **both}


def triplets(group: Group, query: Query, documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield one record per positive and negative.

    Groups differ in their numbers of negatives, but all records must have the same columns. A group without negatives
    becomes pairs. https://sbert.net/docs/sentence_transformer/dataset_overview.html
    """
    for positive in group.positives:
        pair = {"anchor": query.text, "positive": full_text(documents[positive])}
        if not group.negatives:
            yield pair
        for negative in group.negatives:
            yield {**pair, "negative": full_text(documents[negative])}


def flag_embedding(group: Group, query: Query, documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield one record with all texts of a group."""
    both = {"pos": group.positives, "neg": group.negatives}
    yield {"query": query.text} | {name: [full_text(documents[id]) for id in ids] for name, ids in both.items()}


def write_training(
    path: Path, groups: Sequence[Group], queries: Mapping[str, Query], collection: Collection, layout: RecordsOf
) -> int:
    """Write groups as JSONL, with texts from the collection.

    Returns:
        The number of records.

    Raises:
        UserError: the collection lacks a document.
    """
    count = 0
    with atomic_write(path) as file:
        for window in windows(groups, GROUPS_AT_ONCE):
            documents = collection.documents(doc_id for group in window for doc_id in group.positives + group.negatives)
            for group in window:
                for record in layout(group, queries[group.query_id], documents):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    count += 1
    return count


def write_tevatron_corpus(path: Path, documents: Iterable[Document]) -> None:
    """Write a corpus for groups by id.

    Each title is joined to the front of its text: from such a corpus Tevatron trains on `text` alone, but encodes
    `title` and `text`.
    """
    with atomic_write(path) as file:
        for document in documents:
            file.write(json.dumps({"docid": document.doc_id, "text": full_text(document)}, ensure_ascii=False) + "\n")


LAYOUTS: dict[str, RecordsOf] = {
    "tevatron": tevatron,
    "tevatron-old": tevatron_old,
    "sentence-transformers": triplets,
    "flagembedding": flag_embedding,
}
