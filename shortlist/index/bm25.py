"""BM25, a first stage without training that weighs words by their rarity."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import bm25s

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write, optional_json, temporary_folder
from shortlist.errors import UserError, unknown
from shortlist.index.analysis import ANALYSERS, BEFORE, VERSIONED, Analyser, dependencies
from shortlist.index.inverted import (
    DOC_IDS,
    INVERTED_FILES,
    InvertedIndex,
    TermPostings,
    id_line,
    write_postings,
)
from shortlist.index.languages import language_name
from shortlist.index.postings import PostingsSorter
from shortlist.index.protocols import Opening, WeightedTerms
from shortlist.math.weighting import bm25, length_penalty, rarity
from shortlist.progress import say
from shortlist.records import Document, Hit, Query, Run, as_queries, each_document

VOCABULARY, PARAMETERS = "vocab.index.json", "params.index.json"
BM25_FILES = (*INVERTED_FILES, VOCABULARY, PARAMETERS, "index.json")
"""The files of a saved index. The last one is written last and marks the index as complete."""
RULES = 2
"""Version of the analysers' rules; an index of before lacks it and is searched by the rules of then."""


@final
class BM25Index:
    """An index of a corpus's words, searched with BM25.

    Scores are Lucene's BM25 with exact document lengths. The score of each word in each document is computed once and
    stored as a weight of an `InvertedIndex`. The weights stay on disk, in files that bm25s can open too; memory holds
    the vocabulary.
    """

    def __init__(self, index: InvertedIndex, vocabulary: Mapping[str, int], analyse: Analyser, folder: Path) -> None:
        self._index = index
        self._vocabulary = vocabulary
        self._analyse = analyse
        self._folder = folder
        self._temporary: TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"<BM25Index of {len(self):,} documents and {len(self._vocabulary):,} words>"

    def __len__(self) -> int:
        return self._index.num_docs

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self._index.doc_ids

    @classmethod
    def build(
        cls,
        documents: str | Document | Iterable[str | Document],
        *,
        analyser: str = "english",
        k1: float = 0.9,
        b: float = 0.4,
        folder: Path | None = None,
    ) -> "BM25Index":
        """Index the title and text of every document.

        Memory holds the vocabulary and some 20 bytes per document.

        Args:
            documents: the corpus; its order decides ties. Texts get their positions as ids.
            analyser: a name in ANALYSERS, or a language's code, used for queries too.
            k1: how much a word's second occurrence still counts (0: nothing).
            b: how much longer documents are penalised (0: not at all, 1: fully).
            folder: where to write the index (None: a temporary folder, deleted together with the index).

        Raises:
            UserError: there is no such analyser, k1 or b is out of range, a document id contains a line end, or no
                document contains a word.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 with k1 {k1} and b {b}: expected k1 of 0 or more and b from 0 to 1.")
        analyser = language_name(analyser)
        analyse = _find(analyser, ANALYSERS)
        if folder is None:
            temporary = TemporaryDirectory(prefix="shortlist-bm25-")
            index = cls.build(documents, analyser=analyser, k1=k1, b=b, folder=Path(temporary.name))
            index._temporary = temporary
            return index
        with _new_index(folder, analyser) as work:
            postings = PostingsSorter(work)
            _read(each_document(documents), analyse, postings, folder)
            write_postings(folder, postings.frequencies(), _weighed(postings, k1=k1, b=b))
            _write_parameters(folder, len(postings.lengths), k1=k1, b=b)
        return cls.load(folder)

    def save(self, folder: Path) -> None:
        """Write the index into a folder.

        The files are .npy arrays, JSON and text, which cannot run code.
        """
        if folder.resolve() == self._folder.resolve():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BM25_FILES[-1]).unlink(missing_ok=True)
        for name in BM25_FILES:
            shutil.copyfile(self._folder / name, folder / name)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Open a saved index; its arrays stay on disk until they are read.

        Raises:
            UserError: the folder holds no BM25 index, an incomplete one, or one whose words other libraries made.
        """
        try:
            settings = json.loads((folder / "index.json").read_text("utf-8"))
            num_docs = json.loads((folder / PARAMETERS).read_text("utf-8"))["num_docs"]
            index = InvertedIndex.open(folder, num_docs=num_docs, id_bytes=settings["id_bytes"])
            vocabulary = json.loads((folder / VOCABULARY).read_text("utf-8"))
            analyser, rules = settings["analyser"], settings.get("rules", 1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: not a whole BM25 index ({reason}); make one with `shortlist index`.") from None
        analyse = _find(analyser, ANALYSERS if rules >= RULES else BEFORE)
        if why := outdated(folder):
            raise UserError(f"{folder}: {why}; the same `shortlist index` builds it again.")
        if analyse is not ANALYSERS[analyser]:
            say(
                f"{folder}: is searched by the {analyser} stems that it was built with; build it again for those of "
                "Lucene (possibly: possibl, technology: technolog)."
            )
        return cls(index, vocabulary, analyse, folder)

    def search(self, queries: str | Query | Iterable[str | Query], k: int, *, allowed: Allowed | None = None) -> Run:
        """Find the at most k best documents for each query.

        Texts get their positions as ids. Equal scores are in corpus order; documents without a word of the query are
        left out.

        Args:
            allowed: the only documents to find (None: all).
        """
        queries = as_queries(queries)
        found = self.find_by_terms(self.query_terms(queries), k, allowed=allowed)
        return dict(zip([query.query_id for query in queries], found, strict=True))

    def query_terms(self, queries: str | Query | Iterable[str | Query]) -> list[WeightedTerms]:
        """Split queries into words as the documents were split.

        Each occurrence of a word has weight 1.
        """
        return [[(word, 1.0) for word in self._analyse(query.text)] for query in as_queries(queries)]

    def find_by_terms(
        self, queries: Sequence[WeightedTerms], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k best documents for each query of weighted words.

        Words that no document contains are ignored.
        """
        numbers = self._vocabulary
        known = [[(numbers[word], weight) for word, weight in terms if word in numbers] for terms in queries]
        return self._index.find(known, k, allowed=allowed)


def build_bm25(documents: Iterable[Document], folder: Path, *, language: str, k1: float, b: float) -> dict[str, int]:
    """Build the kind `bm25`, and count documents and words between white space."""
    num_words = 0

    def counted() -> Iterator[Document]:
        nonlocal num_words
        for document in documents:
            num_words += len(document.title.split()) + len(document.text.split())
            yield document

    index = BM25Index.build(counted(), analyser=language, k1=k1, b=b, folder=folder)
    return {"num_docs": len(index), "num_words": num_words}


def open_bm25(folder: Path, built: Mapping[str, Any], how: Opening) -> BM25Index:
    """Open the kind `bm25`."""
    del built, how
    return BM25Index.load(folder)


def outdated(folder: Path) -> str | None:
    """Say which libraries now split texts otherwise than for a saved index.

    The result is None where they split alike, or where nothing says what made the index.
    """
    settings = optional_json(folder / "index.json")
    then, now = settings.get("depends_on"), dependencies(_known(settings.get("analyser")))
    if not then or then == now:
        return None
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    versions = [f"{name} {then.get(name)} then, {now.get(name)} now" for name in names if name in VERSIONED]
    return f"its words were made with other {'stems' if not versions else 'libraries'} ({'; '.join(versions or names)})"


@contextmanager
def _new_index(folder: Path, analyser: str) -> Iterator[Path]:
    """Yield a folder for temporary files, and mark the index as complete afterwards.

    The temporary folder is inside the index's folder. Until the block ends, that folder does not count as an index.
    """
    (folder / "index.json").unlink(missing_ok=True)
    with temporary_folder(folder) as work:
        yield work
        with atomic_write(folder / "index.json") as file:
            id_bytes = (folder / DOC_IDS).stat().st_size
            settings = {"kind": "bm25", "analyser": analyser, "rules": RULES, "id_bytes": id_bytes}
            json.dump(settings | {"depends_on": dependencies(analyser)}, file)


def _read(documents: Iterable[Document], analyse: Analyser, postings: PostingsSorter, folder: Path) -> None:
    """Read the corpus into `postings`, and write its document ids and its vocabulary."""
    vocabulary: dict[str, int] = {}
    with atomic_write(folder / DOC_IDS) as file:
        for document in documents:
            file.write(id_line(document.doc_id))
            words = analyse(f"{document.title} {document.text}")
            postings.add([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    if not vocabulary:
        raise UserError(
            f"the {len(postings.lengths)} documents of the corpus hold no word to index; expected some text."
        )
    with atomic_write(folder / VOCABULARY) as file:
        json.dump(vocabulary, file, ensure_ascii=False)  # written word by word; json.dumps would hold it all twice


def _weighed(postings: PostingsSorter, *, k1: float, b: float) -> Iterator[TermPostings]:
    """Yield postings in which BM25 weights replace the counts of words."""
    rarities = rarity(postings.frequencies(), len(postings.lengths))
    penalties = length_penalty(postings.lengths, k1=k1, b=b)
    for part in postings.merged():
        yield TermPostings(part.documents, bm25(part.values, rarities[part.words], penalties[part.documents]))


def _write_parameters(folder: Path, num_docs: int, *, k1: float, b: float) -> None:
    """Write the parameters that bm25s needs to open the folder."""
    parameters = {
        "k1": k1,
        "b": b,
        "delta": 0.5,
        "method": "lucene",
        "idf_method": "lucene",
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": num_docs,
        "version": bm25s.__version__,
        "backend": "numpy",
    }
    with atomic_write(folder / PARAMETERS) as file:
        json.dump(parameters, file, indent=4)


def _known(analyser: Any) -> str:
    return analyser if analyser in ANALYSERS else "whitespace"


def _find(name: str, analysers: Mapping[str, Analyser]) -> Analyser:
    if name not in analysers:
        raise unknown("analyser", name, analysers)
    return analysers[name]
