"""The metadata of a collection as columns, a row per document in corpus order."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np

from shortlist.data.allowed import Allowed
from shortlist.data.where import LIST_KINDS, FieldColumns, matches
from shortlist.records import Document

DOCUMENTS_READ_AT_ONCE = 20_000
"""Documents that become columns at a time."""
FILTERS_KEPT = 16
"""Filters whose documents are kept, those that were asked for last."""
TEXT_KINDS = ("doc_id", "title", "url")
"""What is known of every document; a filter can name it where no metadata has the name."""


@runtime_checkable
class HasCorpus(Protocol):
    """A collection whose documents are read."""

    def corpus(self) -> Iterator[Document]:
        """Stream the documents in corpus order."""
        ...


class _Table(NamedTuple):
    doc_ids: Any
    chunks: dict[str, dict[str, dict[int, Any]]]
    """Arrays by field, kind and number of the part of the corpus."""
    sizes: list[int]


@final
class Metadata:
    """The metadata of a collection, read when a filter first asks for it.

    It is read once, in one pass. Memory holds ids and metadata as columns, but no texts. Values of one field may be of
    several kinds: numbers, text, true and false, lists of text or numbers; a filter compares each with its own kind.
    Dates are text, in the form 2024-12-31.

    Args:
        collection: streams its documents in the same order whenever it is asked.
    """

    def __init__(self, collection: HasCorpus) -> None:
        self._collection, self._lock = collection, Lock()
        self._allowed: OrderedDict[str, Allowed] = OrderedDict()
        self._texts: dict[str, Any] = {}

    def allowed(self, where: str) -> Allowed:
        """Find the documents that fit a filter.

        Raises:
            WhereError: as for `data.where.matches`.
        """
        with self._lock:
            if where not in self._allowed:
                fits = matches(where, self)
                self._allowed[where] = Allowed(self._table.doc_ids.filter(fits))
            self._allowed.move_to_end(where)
            while len(self._allowed) > FILTERS_KEPT:
                self._allowed.popitem(last=False)
            return self._allowed[where]

    def names(self) -> list[str]:
        """List the fields that a filter can name."""
        return list(dict.fromkeys([*self._table.chunks, *TEXT_KINDS]))

    def columns(self, name: str) -> FieldColumns:
        """Return a field's values by kind, null where a document has none of that kind."""
        if name in self._table.chunks:
            return {kind: self._whole(chunks) for kind, chunks in self._table.chunks[name].items()}
        return {"text": self._table.doc_ids if name == "doc_id" else self._text(name)}

    def _whole(self, chunks: Mapping[int, Any]) -> Any:
        import pyarrow as pa

        kind = next(iter(chunks.values())).type
        if any(chunk.type != kind for chunk in chunks.values()):  # whole numbers and others
            kind = pa.float64()
        parts = [
            chunks[n].cast(kind) if n in chunks else pa.nulls(size, kind) for n, size in enumerate(self._table.sizes)
        ]
        return pa.chunked_array(parts, kind)

    def _text(self, name: str) -> Any:
        """Return the titles or addresses, which take another pass."""
        if name not in self._texts:
            parts = _parts(self._collection.corpus())
            self._texts[name] = _joined([_texts(getattr(document, name) for document in part) for part in parts])
        return self._texts[name]

    @cached_property
    def _table(self) -> _Table:
        doc_ids, chunks, sizes = [], {}, []
        for number, part in enumerate(_parts(self._collection.corpus())):
            doc_ids.append(_texts(document.doc_id for document in part))
            sizes.append(len(part))
            for name, values in _fields([document.metadata for document in part]).items():
                for kind, column in _columns(values).items():
                    chunks.setdefault(name, {}).setdefault(kind, {})[number] = column
        return _Table(_joined(doc_ids), chunks, sizes)


def _parts(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while part := list(islice(rest, DOCUMENTS_READ_AT_ONCE)):
        yield part


def _fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns; None where a row lacks the field."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _columns(values: Sequence[Any]) -> dict[str, Any]:
    """Sort the values of a field into an array for each kind."""
    split = [_KINDS.get(type(value), _other)(value) for value in values]
    kinds = dict.fromkeys(kind for row in split for kind in row)
    return {kind: _array(kind, [row.get(kind) for row in split]) for kind in kinds}


def _array(kind: str, values: Sequence[Any]) -> Any:
    import pyarrow as pa

    types = {"text": pa.string(), "flag": pa.bool_(), "object": pa.bool_()}
    types |= {"texts": pa.list_(pa.string()), "numbers": pa.list_(pa.float64())}
    try:
        return pa.array(values, types.get(kind))  # None: whole numbers stay exact if there are no others
    except (OverflowError, pa.ArrowInvalid):  # of more than 64 bits
        return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _texts(values: Iterable[str]) -> Any:
    return _array("text", list(values))


def _joined(parts: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.chunked_array(parts, pa.string())


def _listed(value: Iterable[Any]) -> dict[str, Any]:
    """Split a list by kinds of elements; an empty one holds text."""
    found: dict[str, list[Any]] = {}
    for element in value:
        for kind, one in _KINDS.get(type(element), _other)(element).items():
            found.setdefault(LIST_KINDS.get(kind, "object"), []).append(one)
    return {kind: True if kind == "object" else values for kind, values in found.items()} or {"texts": []}


def _other(value: Any) -> dict[str, Any]:
    """Sort what JSON does not have, from Python."""
    if isinstance(value, np.generic):
        return _KINDS.get(type(value.item()), _other_still)(value.item())
    return _other_still(value)


def _other_still(value: Any) -> dict[str, Any]:
    return {"object": True}


_KINDS: dict[type, Any] = {
    type(None): lambda value: {},
    bool: lambda value: {"flag": value},
    int: lambda value: {"number": value},
    float: lambda value: {"number": value},
    str: lambda value: {"text": value},
    list: _listed,
    tuple: _listed,
    date: lambda value: {"text": value.isoformat()},
    datetime: lambda value: {"text": value.isoformat()},
}
"""How a value is sorted, by its type."""
