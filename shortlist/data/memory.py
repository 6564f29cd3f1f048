"""Collections in memory."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import final

from shortlist.data.lines import OnBad
from shortlist.errors import UserError
from shortlist.records import Document, Qrels, Query


@final
class MemoryCollection:
    """Documents in memory, without queries.

    Raises:
        UserError: there is no document, or an id occurs twice.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.name = f"{len(documents):,} documents in memory"
        self._documents = {document.doc_id: document for document in documents}
        if not documents:
            raise UserError("there are no documents; expected at least one text.")
        if len(self._documents) < len(documents):
            seen: set[str] = set()
            twice = next(d.doc_id for d in documents if d.doc_id in seen or seen.add(d.doc_id))
            raise UserError(f"document {twice!r} occurs twice; every id must occur once.")

    def corpus(self, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
        yield from self._documents.values()

    def num_docs(self) -> int:
        return len(self._documents)

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        wanted = list(doc_ids)
        if lacking := self.missing(wanted):
            raise UserError(f"{self.name}: lack {len(lacking)} that are asked for, the first {lacking[0]!r}.")
        return {doc_id: self._documents[doc_id] for doc_id in wanted}

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        return [doc_id for doc_id in doc_ids if doc_id not in self._documents]

    def splits(self) -> list[str]:
        return []

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        raise UserError(f"{self.name}: have no queries, so no split {split!r}.")

    def qrels(self, split: str) -> Qrels:
        raise UserError(f"{self.name}: have no judgements, so no split {split!r}.")

    def identity(self, *parts: str) -> str:
        return f"sha256:{sha256(repr(list(self._documents.values())).encode()).hexdigest()}"
