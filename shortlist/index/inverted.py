"""An inverted index on disk: for each term, its documents and its weights in them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write, temporary_folder
from shortlist.data.ids import DocIds
from shortlist.errors import UserError
from shortlist.index.postings import PostingsSorter
from shortlist.records import Hit

WEIGHTS, DOCUMENTS, STARTS = (f"{name}.csc.index.npy" for name in ("data", "indices", "indptr"))
DOC_IDS = "doc_ids.txt"
INVERTED_FILES = (WEIGHTS, DOCUMENTS, STARTS, DOC_IDS)
"""The three arrays, named and laid out as in bm25s, and a text file with one document id per line."""

TermQuery = Sequence[tuple[int, float]]
"""Numbers of terms with their weights in the query; a term that occurs twice counts twice."""


class TermPostings(NamedTuple):
    """The documents of a term, in corpus order, and its weight in each document.

    Postings of several terms follow one another, in order of term.
    """

    documents: Int32[np.ndarray, " postings"]
    weights: Float32[np.ndarray, " postings"]


@final
class InvertedIndex:
    """A matrix of weights, terms by documents, which stays on disk until it is read.

    A document's score is the sum, over the terms of a query, of the term's weight in the query times its weight in the
    document. It is added up in float32, in the query's order.

    Args:
        read: returns the postings of a term.
        doc_ids: the ids of the documents, in corpus order.
    """

    def __init__(self, read: Callable[[int], TermPostings], doc_ids: DocIds, *, num_terms: int) -> None:
        self._read, self.doc_ids = read, doc_ids
        self.num_docs, self.num_terms = len(doc_ids), num_terms

    @classmethod
    def open(cls, folder: Path, *, num_docs: int, id_bytes: int) -> "InvertedIndex":
        """Open the files in a folder.

        Args:
            num_docs: the number of documents.
            id_bytes: the size of the file of their ids.

        Raises:
            OSError, ValueError: a file is missing or incomplete.
        """
        # np.memmap is slow to slice; an array over the same map is fast.
        weights, documents, starts = (
            np.asarray(np.load(folder / name, mmap_mode="r")) for name in (WEIGHTS, DOCUMENTS, STARTS)
        )

        def read(term: int) -> TermPostings:
            start, stop = starts[term], starts[term + 1]
            return TermPostings(documents[start:stop], weights[start:stop])

        doc_ids = DocIds([open_lines(folder / DOC_IDS, id_bytes)], [num_docs])
        return cls(read, doc_ids, num_terms=len(starts) - 1)

    @classmethod
    def build(
        cls, documents: Iterable[tuple[str, Sequence[int], Sequence[float]]], folder: Path, *, num_terms: int
    ) -> "InvertedIndex":
        """Build an index from documents with weighted terms.

        Memory holds one block of documents.

        Args:
            documents: for each document its id, the numbers of its terms and their weights; the order decides ties.
            folder: where to write the files.
            num_terms: the number of all terms, including terms that no document holds.

        Raises:
            UserError: a document id contains a line end.
        """
        with temporary_folder(folder) as work:
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
        """Return the documents that hold a term, and its weights in them."""
        if not 0 <= term < self.num_terms:
            raise IndexError(f"term {term} of {self.num_terms}")
        return self._read(term)

    def scores(self, query: TermQuery) -> Float32[np.ndarray, " docs"]:
        """Compute the score of every document."""
        scores = np.zeros(self.num_docs, dtype=np.float32)
        for term, weight in query:
            documents, weights = self.postings(term)
            np.add.at(scores, documents, weights if weight == 1 else weights * np.float32(weight))
        return scores

    def find(self, queries: Sequence[TermQuery], k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k best documents for each query.

        Equal scores are in corpus order; documents with a score of 0 or less are left out.

        Args:
            allowed: the only documents to find (None: all).
        """
        keep = None if allowed is None else allowed.mask(self.doc_ids)
        return [self._find(query, k, keep) for query in queries]

    def _find(self, query: TermQuery, k: int, keep: Bool[np.ndarray, " docs"] | None) -> list[Hit]:
        scores = self.scores(query)
        if keep is not None:
            scores[~keep] = 0
        rows = _best(scores, k)
        return list(map(Hit, self.doc_ids.take(rows), scores[rows].tolist()))


def open_lines(path: Path, num_bytes: int) -> UInt8[np.ndarray, "_"]:
    """Map a file of lines of this size into memory."""
    return np.asarray(np.memmap(path, np.uint8, mode="r", shape=(num_bytes,)))


def id_line(doc_id: str) -> str:
    """Format a document id as a line of the file of ids.

    Raises:
        UserError: the id contains a line end.
    """
    if "\n" in doc_id:
        raise UserError(f"document id {doc_id!r} holds a line end; ids are stored one per line, rename it.")
    return f"{doc_id}\n"


def write_postings(folder: Path, frequencies: Int[np.ndarray, " terms"], parts: Iterable[TermPostings]) -> None:
    """Write the three arrays of an index, the long ones part by part.

    Args:
        frequencies: the number of documents that hold each term.
        parts: all postings, in order of term, then of document.
    """
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    with atomic_write(folder / STARTS, "wb") as file:
        np.save(file, starts)
    with (
        npy_file(folder / WEIGHTS, "<f4", int(starts[-1])) as weights,
        npy_file(folder / DOCUMENTS, "<i4", int(starts[-1])) as documents,
    ):
        for part in parts:
            weights.write(part.weights.astype(np.float32).data)
            documents.write(part.documents.astype(np.int32).data)


@contextmanager
def npy_file(path: Path, dtype: str, count: int) -> Iterator[IO[bytes]]:
    """Open a one-dimensional .npy file, to write its numbers piece by piece."""
    with atomic_write(path, "wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _best(scores: Float32[np.ndarray, " docs"], k: int) -> Int[np.ndarray, " found"]:
    """Find the rows of the k highest positive scores, best first, ties in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        found = scores[rows]
        rows = rows[found >= np.partition(found, -k)[-k]]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
