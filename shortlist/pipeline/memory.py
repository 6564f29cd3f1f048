"""Steps over documents in memory."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from shortlist.data.memory import MemoryCollection
from shortlist.errors import UserError, unknown
from shortlist.index.bm25 import BM25Index
from shortlist.index.dense import DenseSearch
from shortlist.math.fusion import FUSIONS
from shortlist.pipeline.loading import finder_of
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Document

if TYPE_CHECKING:
    from pandas import DataFrame

    from shortlist.index.late import LateSearch
    from shortlist.index.sparse import SparseSearch
    from shortlist.models.late_retriever import LateRetriever
    from shortlist.models.retriever import Retriever
    from shortlist.models.sparse_retriever import SparseRetriever
    from shortlist.rerankers import Ranker

VECTORS_AT_ONCE = 20_000
"""Vectors per shard."""


def documents_of_frame(
    frame: "DataFrame", *, text: str, title: str | None, doc_id: str | None, url: str | None
) -> list[Document]:
    """Turn the rows of a table into documents.

    Args:
        text: name of the column with the texts, and so for `title`, `doc_id` and `url` (None: the table has none).

    Raises:
        UserError: a column is missing, or a text is no text.
    """
    for column in (text, title, doc_id, url):
        if column is not None and column not in frame.columns:
            raise unknown("column", column, map(str, frame.columns))
    ids = frame.index if doc_id is None else frame[doc_id]
    columns = [frame[column] if column else [""] * len(frame) for column in (text, title, url)]
    for row, value in enumerate(columns[0]):
        if not isinstance(value, str):
            raise UserError(f"row {row}: {text} is {value!r}; expected a text (leave the row out, or fill it in).")
    texts, titles, urls = ([value if isinstance(value, str) else "" for value in column] for column in columns)
    rows = zip(ids, texts, titles, urls, strict=True)
    return [Document(str(name), text, title, url) for name, text, title, url in rows]


def memory_steps(
    collection: MemoryCollection,
    *,
    retriever: "Retriever | LateRetriever | SparseRetriever | str | None",
    reranker: "Ranker | str | None",
    bm25: bool,
    language: str,
    depth: int,
) -> list[Step]:
    """Index a collection in temporary folders, and make the steps that search it.

    Args:
        collection: the documents; the other arguments are as for `Pipeline.from_texts`.

    Raises:
        UserError: a model is missing, or there is nothing to search with.
    """
    steps: list[Step] = []
    if bm25:
        steps.append(Step("bm25", STEPS["find"], BM25Index.build(collection.corpus(), analyser=language)))
    if retriever is not None:
        opened = _opened(retriever)
        sort = finder_of(opened.contract)
        steps.append(Step(sort, STEPS["find"], IN_MEMORY[sort](collection, opened)))
    if len(steps) > 1:
        steps.append(Step("hybrid", STEPS["fuse"], FUSIONS["rrf"], tuple(step.name for step in steps)))
    if reranker is not None and steps:
        if isinstance(reranker, str):
            from shortlist.rerankers.reranker import Reranker

            reranker = Reranker.load(reranker)
        steps.append(Step("reranker", STEPS["rank"], reranker, (steps[-1].name,), depth))
    return steps


def _opened(
    retriever: "Retriever | LateRetriever | SparseRetriever | str",
) -> "Retriever | LateRetriever | SparseRetriever":
    """Load a retriever that is given by name."""
    if not isinstance(retriever, str):
        return retriever
    from shortlist.models.folder import open_folder
    from shortlist.models.late_retriever import LateRetriever
    from shortlist.models.retriever import Retriever
    from shortlist.models.sparse_retriever import SparseRetriever

    folder = open_folder(retriever, wanted="retriever")
    classes = {"dense": Retriever, "late": LateRetriever, "sparse": SparseRetriever}
    return classes[finder_of(folder.contract("document"))].load(folder)


def _dense(collection: MemoryCollection, retriever: "Retriever") -> DenseSearch:
    from shortlist.data.stores.vectors import VectorReader, VectorWriter
    from shortlist.index.flat import FlatIndex

    folder = _encoded(collection, retriever, VectorWriter, retriever.dim)
    search = DenseSearch(retriever, FlatIndex(VectorReader(Path(folder.name))))
    search.temporary = folder  # deleted together with the search
    return search


def _late(collection: MemoryCollection, retriever: "LateRetriever") -> "LateSearch":
    from shortlist.data.stores.tokens import TokenReader, TokenWriter
    from shortlist.index.late import LateIndex, LateSearch

    folder = _encoded(collection, retriever, TokenWriter, retriever.dim)
    search = LateSearch(retriever, LateIndex(TokenReader(Path(folder.name))))
    search.temporary = folder
    return search


def _sparse(collection: MemoryCollection, retriever: "SparseRetriever") -> "SparseSearch":
    from shortlist.data.stores.terms import TermReader, TermWriter
    from shortlist.index.sparse import SparseIndex, SparseSearch

    folder = _encoded(collection, retriever, TermWriter, retriever.terms)
    search = SparseSearch(retriever, SparseIndex(TermReader(Path(folder.name))))
    search.temporary = folder
    return search


def _encoded(collection: MemoryCollection, retriever: Any, writer_of: Any, size: Any) -> Any:
    """Write what a model gives for all documents into a temporary folder.

    Args:
        size: the dimension of vectors, or the terms.
    """
    folder: Any = TemporaryDirectory(prefix="shortlist-vectors-")
    writer, documents = writer_of(Path(folder.name), size), list(collection.corpus())
    for number, start in enumerate(range(0, len(documents), VECTORS_AT_ONCE)):
        part = documents[start : start + VECTORS_AT_ONCE]
        writer.write_shard(number, [document.doc_id for document in part], retriever.encode_documents(part))
    return folder


IN_MEMORY: dict[str, Callable[[MemoryCollection, Any], Any]] = {
    "dense": _dense,
    "late": _late,
    "sparse": _sparse,
}
"""By the name of a step: encodes a collection, and makes the first stage that searches it."""
