"""An inverted index: for each term, the documents that hold it and how much it weighs in each, on disk."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, final

import numpy as np
from jaxtyping import Float32, Int, Int32

from shortlist.data.files import atomic_write
from shortlist.data.ids import DocIds
from shortlist.errors import UserError
from shortlist.index.postings import PostingsSorter
from shortlist.records import Hit

WEIGHTS, DOCUMENTS, STARTS = (f"{name}.csc.index.npy" for name in ("data", "indices", "indptr"))
DOC_IDS = "doc_ids.txt"
INVERTED_FILES = (WEIGHTS, DOCUMENTS, STARTS, DOC_IDS)
"""The three arrays, named and laid out as by bm25s, and a document id per line."""
WORK = ".postings"
"""Where a build keeps its blocks, inside the index's folder."""

TermQuery = Sequence[tuple[int, float]]
"""Terms by number, each with its weight in the query; one that comes twice counts twice."""


class TermPostings(NamedTuple):
    """Documents in corpus order and how much a term weighs in each; or those of several terms, one after another."""

    documents: Int32[np.ndarray, " postings"]
    weights: Float32[np.ndarray, " postings"]


@final
class InvertedIndex:
    """A matrix of weights, terms by documents, which stays on disk until it is read.

    A document's score is the sum, over the terms of a query, of the weight there times the weight here, added up in
    float32 in the query's order.
    """

    def __init__(
        self,
        weights: Float32[np.ndarray, " postings"],
        documents: Int32[np.ndarray, " postings"],
        starts: Int[np.ndarray, " _"],
        doc_ids: DocIds,
    ) -> None:
        self._weights, self._documents, self._starts, self.doc_ids = weights, documents, starts, doc_ids
        self.num_docs, self.num_terms = len(doc_ids), len(starts) - 1

    @classmethod
    def open(cls, folder: Path, *, num_docs: int, id_bytes: int) -> "InvertedIndex":
        """Open the files in a folder.

        Args:
            num_docs: documents.
            id_bytes: size of the file of their ids.

        Raises:
            OSError, ValueError: a file is not there, or not whole.
        """
        # np.memmap is slow to slice; an array over the same map is not.
        weights, documents, starts = (
            np.asarray(np.load(folder / name, mmap_mode="r")) for name in (WEIGHTS, DOCUMENTS, STARTS)
        )
        lines = np.memmap(folder / DOC_IDS, np.uint8, mode="r", shape=(id_bytes,))
        return cls(weights, documents, starts, DocIds([np.asarray(lines)], [num_docs]))

    @classmethod
    def build(
        cls, documents: Iterable[tuple[str, Sequence[int], Sequence[float]]], folder: Path, *, num_terms: int
    ) -> "InvertedIndex":
        """Build an index from documents whose terms are weighed already; memory holds a block of them.

        Args:
            documents: id, numbers of the terms, weight of each; their order decides ties.
            folder: where the files go.
            num_terms: terms there are, in the documents or not.

        Raises:
            UserError: a document id holds a line end.
        """
        with work_folder(folder) as work:
            sorter = PostingsSorter(work)
            with atomic_write(folder / DOC_IDS) as file:
                for doc_id, terms, weights in documents:
                    file.write(id_line(doc_id))
                    sorter.add(terms, weights)
            frequencies = sorter.frequencies()
            frequencies = np.pad(frequencies, (0, num_terms - len(frequencies)))
            parts = (TermPostings(part.documents, part.values) for part in sorter.merged())
            write_postings(folder, frequencies, parts)
        return cls.open(folder, num_docs=len(sorter.lengths), id_bytes=(folder / DOC_IDS).stat().st_size)

    def postings(self, term: int) -> TermPostings:
        """The documents that hold a term."""
        if not 0 <= term < self.num_terms:
            raise IndexError(f"term {term} of {self.num_terms}")
        start, stop = self._starts[term], self._starts[term + 1]
        return TermPostings(self._documents[start:stop], self._weights[start:stop])

    def scores(self, query: TermQuery) -> Float32[np.ndarray, " docs"]:
        """The score of every document."""
        scores = np.zeros(self.num_docs, dtype=np.float32)
        for term, weight in query:
            documents, weights = self.postings(term)
            np.add.at(scores, documents, weights if weight == 1 else weights * np.float32(weight))
        return scores

    def find(self, queries: Sequence[TermQuery], k: int) -> list[list[Hit]]:
        """The at most k best documents of each query; equal scores in corpus order, those of 0 or less left out."""
        return [self._find(query, k) for query in queries]

    def _find(self, query: TermQuery, k: int) -> list[Hit]:
        scores = self.scores(query)
        rows = _best(scores, k)
        return list(map(Hit, self.doc_ids.take(rows), scores[rows].tolist()))


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder for temporary files inside an index's folder."""
    work = folder / WORK
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work)


def id_line(doc_id: str) -> str:
    """A document id as a line of its file.

    Raises:
        UserError: it holds a line end itself.
    """
    if "\n" in doc_id:
        raise UserError(f"document id {doc_id!r} holds a line end; ids are stored one per line, rename it.")
    return f"{doc_id}\n"


def write_postings(folder: Path, frequencies: Int[np.ndarray, " terms"], parts: Iterable[TermPostings]) -> None:
    """Write the three arrays, the two long ones a part at a time.

    Args:
        frequencies: documents that hold each term.
        parts: all postings, in order of term, then of document.
    """
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    with atomic_write(folder / STARTS, "wb") as file:
        np.save(file, starts)
    with (
        _npy(folder / WEIGHTS, "<f4", int(starts[-1])) as weights,
        _npy(folder / DOCUMENTS, "<i4", int(starts[-1])) as documents,
    ):
        for part in parts:
            weights.write(part.weights.astype(np.float32).data)
            documents.write(part.documents.astype(np.int32).data)


@contextmanager
def _npy(path: Path, dtype: str, count: int) -> Iterator[IO[bytes]]:
    """Open a .npy file of one dimension whose numbers are written piece by piece."""
    with atomic_write(path, "wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _best(scores: Float32[np.ndarray, " docs"], k: int) -> Int[np.ndarray, " found"]:
    """Rows of the k highest positive scores, highest first, equal ones in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        found = scores[rows]
        rows = rows[found >= np.partition(found, -k)[-k]]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
