"""Documents of a collection that others name by their texts, or by id or text."""

from collections.abc import Iterable

from shortlist.data.collections import Collection
from shortlist.data.formats import SPACE, full_text
from shortlist.data.triplets import text_id
from shortlist.progress import track


def by_text(collection: Collection, texts: set[str]) -> dict[str, str]:
    """Find the ids of documents by the ids that `text_id` gives their texts.

    The text of a document is its text alone, or title and text.
    """
    doc_ids: dict[str, str] = {}
    for document in track(collection.corpus(), "comparing texts", unit="documents"):
        for key in {text_id(document.text), text_id(full_text(document))} & texts:
            doc_ids.setdefault(key, document.doc_id)
    return doc_ids


def by_id_or_text(collection: Collection, names: Iterable[str]) -> dict[str, str]:
    """Find the ids of documents by names, each an id or a text.

    A name is a text where the collection has no such id.
    """
    names = list(names)
    may_be_ids = [name for name in names if not SPACE.search(name)]
    lacking = set(collection.missing(may_be_ids))
    doc_ids = {name: name for name in may_be_ids if name not in lacking}
    if texts := {text_id(name): name for name in names if name not in doc_ids}:
        doc_ids |= {texts[key]: doc_id for key, doc_id in by_text(collection, set(texts)).items()}
    return doc_ids
