"""Checks that each id of a corpus occurs once, in little memory.

An id takes a few bytes, where a set of ids takes a hundred.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import TypeVar
from zlib import crc32

from shortlist.data.lines import MalformedError
from shortlist.errors import UserError
from shortlist.records import Document

Record = TypeVar("Record")

BUCKETS = 1 << 16
_pack = Struct("q").pack


class Seen:
    """The ids seen so far, in 9 bytes each.

    They are kept as 64-bit hashes, in buckets by 16 bits of another hash. Two ids are confused only if all 80 bits
    agree: among 10 million ids with a chance of 3 in 10^10. So nothing is read again to make sure, and a corpus with
    many repeated ids takes no more time than another.
    """

    def __init__(self) -> None:
        self._buckets: defaultdict[int, bytearray] = defaultdict(bytearray)

    def add(self, name: str) -> bool:
        """Remember an id; return whether it was new."""
        bucket, packed = self._buckets[crc32(name.encode()) % BUCKETS], _pack(hash(name))
        if bucket.find(packed) >= 0:  # `in` would first try to read it as a number
            return False
        bucket += packed
        return True


def distinct(documents: Iterable[Document], where: str) -> Iterator[Document]:
    """Yield each document once, where it first occurs.

    Raises:
        UserError: two documents with one id and different texts; the message begins with `where`.
    """
    new_id, new = Seen().add, Seen().add
    for document in documents:
        other = new("\0".join(document[:4]))  # what is read of it; metadata may differ
        if new_id(document.doc_id):
            yield document
        elif other:
            raise UserError(
                f"{where}: document {document.doc_id!r} has two different texts; give one of them another id, or name "
                "the collection that the ids are from with --collection."
            )


def checked(parse: Callable[[Record], Document], *, allow_empty: bool) -> Callable[[Record], Document]:
    """Wrap `parse` for one reading of a corpus, so that it refuses repeated ids.

    It then raises MalformedError for an id that occurred before.

    Args:
        allow_empty: False to also refuse a document with neither title nor text.
    """
    new = Seen().add

    def parse_new(record: Record) -> Document:
        document = parse(record)
        if not (allow_empty or document.text.strip() or document.title.strip()):
            raise MalformedError(
                f"document {document.doc_id!r} has neither title nor text; expected at least one word."
            )
        if not new(document.doc_id):
            raise MalformedError(f"document id {document.doc_id!r} occurs twice; every id must occur once.")
        return document

    return parse_new
