"""BM25: words weighed by how rare they are, the first stage that needs no training."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, final

import bm25s
import numpy as np

from shortlist.data.files import atomic_write
from shortlist.data.ids import DocIds
from shortlist.errors import UserError, unknown
from shortlist.index.analysis import ANALYSERS, Analyser
from shortlist.index.postings import PostingsSorter
from shortlist.index.protocols import Opening
from shortlist.math.weighting import bm25, length_penalty, rarity
from shortlist.records import Document, Hit, Query, Run

WEIGHTS, DOCUMENTS, STARTS = (f"{name}.csc.index.npy" for name in ("data", "indices", "indptr"))
VOCABULARY = "vocab.index.json"
FILES = (WEIGHTS, DOCUMENTS, STARTS, VOCABULARY, "params.index.json", "doc_ids.txt", "index.json")
"""Of a saved index: bm25s's own, a document id per line, and, written last, what marks the folder as a whole index."""


@final
class BM25Index:
    """A corpus that can be asked for the documents whose words answer a query best.

    Scores are those of Lucene's BM25 with exact document lengths, computed once per (word, document). They stay on
    disk, in the files of bm25s, which can open the folder too; memory holds the vocabulary.
    """

    def __init__(self, scores: bm25s.BM25, doc_ids: DocIds, analyser: str, folder: Path) -> None:
        self._scores = scores
        self._doc_ids = doc_ids
        self._analyser = analyser
        self._folder = folder
        self._temporary: TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._doc_ids)

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        *,
        analyser: str = "english",
        k1: float = 0.9,
        b: float = 0.4,
        folder: Path | None = None,
    ) -> "BM25Index":
        """Index title and text of every document; memory holds the vocabulary and some 20 bytes per document.

        Args:
            documents: the corpus; its order decides ties.
            analyser: a name in ANALYSERS, used for queries too.
            k1: how much a word's second occurrence still counts (0: nothing).
            b: how much longer documents are held back (0: not at all, 1: fully).
            folder: where the index is to lie (None: in a temporary folder that goes when the index goes).

        Raises:
            UserError: no such analyser, k1 or b out of range, a document id that holds a line end, or no document
                with a word in it.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 with k1 {k1} and b {b}: expected k1 of 0 or more and b from 0 to 1.")
        analyse = _find(analyser)
        if folder is None:
            temporary = TemporaryDirectory(prefix="shortlist-bm25-")
            index = cls.build(documents, analyser=analyser, k1=k1, b=b, folder=Path(temporary.name))
            index._temporary = temporary
            return index
        with _new_index(folder, analyser) as work:
            postings = PostingsSorter(work)
            _read(documents, analyse, postings, folder)
            _write_scores(folder, bm25s.BM25(k1=k1, b=b, method="lucene"), postings)
        return cls.load(folder)

    def save(self, folder: Path) -> None:
        """Write the index into a folder: .npy arrays, JSON and text, none of it able to run code."""
        if folder.resolve() == self._folder.resolve():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILES[-1]).unlink(missing_ok=True)
        for name in FILES:
            shutil.copyfile(self._folder / name, folder / name)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Open a saved index; its arrays stay on disk until they are read.

        Raises:
            UserError: the folder holds no BM25 index, or not a whole one.
        """
        try:
            settings = json.loads((folder / "index.json").read_text("utf-8"))
            # With its vocabulary bm25s would keep a set of all numbers in it, which nothing here reads.
            scores = bm25s.BM25.load(folder, mmap=True, load_vocab=False, allow_pickle=False, show_progress=False)
            scores.vocab_dict = json.loads((folder / VOCABULARY).read_text("utf-8"))
            lines = np.memmap(folder / "doc_ids.txt", np.uint8, mode="r", shape=(settings["id_bytes"],))
            doc_ids = DocIds([np.asarray(lines)], [scores.scores["num_docs"]])
            analyser = settings["analyser"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: not a whole BM25 index ({reason}); make one with `shortlist index`.") from None
        _find(analyser)
        for name in ("data", "indices", "indptr"):
            scores.scores[name] = np.asarray(scores.scores[name])  # the same map; np.memmap is slow to slice
        return cls(scores, doc_ids, analyser, folder)

    def search(self, queries: list[Query], k: int) -> Run:
        """The at most k best documents of each query; equal scores in corpus order, unrelated documents left out."""
        return {query.query_id: self._search(query.text, k) for query in queries}

    def _search(self, text: str, k: int) -> list[Hit]:
        tokens = self._scores.get_tokens_ids(ANALYSERS[self._analyser](text))
        scores = self._scores.get_scores_from_ids(tokens)
        rows = _best(scores, k)
        return list(map(Hit, self._doc_ids.take(rows), scores[rows].tolist()))


def build_bm25(documents: Iterable[Document], folder: Path, *, language: str, k1: float, b: float) -> dict[str, int]:
    """Build the kind `bm25`."""
    return {"num_docs": len(BM25Index.build(documents, analyser=language, k1=k1, b=b, folder=folder))}


def open_bm25(folder: Path, built: Mapping[str, Any], how: Opening) -> BM25Index:
    """Open the kind `bm25`."""
    del built, how
    return BM25Index.load(folder)


@contextmanager
def _new_index(folder: Path, analyser: str) -> Iterator[Path]:
    """Give a folder for temporary files inside an index's folder; the folder counts as an index once the block ends."""
    (folder / "index.json").unlink(missing_ok=True)
    work = folder / ".postings"
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
    work.mkdir(parents=True)
    try:
        yield work
        with atomic_write(folder / "index.json") as file:
            id_bytes = (folder / "doc_ids.txt").stat().st_size
            json.dump({"kind": "bm25", "analyser": analyser, "id_bytes": id_bytes}, file)
    finally:
        shutil.rmtree(work)


def _read(documents: Iterable[Document], analyse: Analyser, postings: PostingsSorter, folder: Path) -> None:
    """Take in the corpus, and write its document ids and its vocabulary."""
    vocabulary: dict[str, int] = {}
    with atomic_write(folder / "doc_ids.txt") as file:
        for document in documents:
            if "\n" in document.doc_id:
                raise UserError(
                    f"document id {document.doc_id!r} holds a line end; ids are stored one per line, rename it."
                )
            file.write(f"{document.doc_id}\n")
            words = analyse(f"{document.title} {document.text}")
            postings.add([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    if not vocabulary:
        raise UserError(
            f"the {len(postings.lengths)} documents of the corpus hold no word to index; expected some text."
        )
    with atomic_write(folder / VOCABULARY) as file:
        json.dump(vocabulary, file, ensure_ascii=False)  # word by word, where json.dumps would hold it all twice


def _write_scores(folder: Path, scores: bm25s.BM25, postings: PostingsSorter) -> None:
    """Write what bm25s would have written besides the vocabulary, its two long arrays a part at a time."""
    frequencies, lengths = postings.frequencies(), postings.lengths
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    empty = np.zeros(0, dtype=np.float32)
    scores.vocab_dict, scores.nonoccurrence_array = {}, None
    scores.scores = {"data": empty, "indices": empty, "indptr": starts, "num_docs": len(lengths)}
    scores.save(folder, vocab_name=".postings/no-vocabulary.json", show_progress=False)
    rarities = rarity(frequencies, len(lengths))
    penalties = length_penalty(lengths, k1=scores.k1, b=scores.b)
    with (
        _npy(folder / WEIGHTS, "<f4", int(starts[-1])) as weights,
        _npy(folder / DOCUMENTS, "<i4", int(starts[-1])) as documents,
    ):
        for part in postings.merged():
            weights.write(bm25(part.counts, rarities[part.words], penalties[part.documents]).data)
            documents.write(part.documents.astype(np.int32).data)


@contextmanager
def _npy(path: Path, dtype: str, count: int) -> Iterator[IO[bytes]]:
    """Open a .npy file of one dimension whose numbers are written piece by piece."""
    with atomic_write(path, "wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest positive scores, highest first, equal ones in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        found = scores[rows]
        rows = rows[found >= np.partition(found, -k)[-k]]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def _find(analyser: str) -> Analyser:
    if analyser not in ANALYSERS:
        raise unknown("analyser", analyser, ANALYSERS)
    return ANALYSERS[analyser]
