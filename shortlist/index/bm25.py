"""BM25, a first stage without training that weighs words by their rarity."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import bm25s
import numpy as np
from jaxtyping import Int, UInt8

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write, final_place, optional_json, temporary_folder, write_json
from shortlist.data.ids import DocIds
from shortlist.data.keyed import KeyedCorpus
from shortlist.errors import UserError, unknown
from shortlist.index.analysis import ANALYSERS, BEFORE, VERSIONED, Analyser, dependencies
from shortlist.index.inverted import (
    DOC_IDS,
    DOCUMENTS,
    INVERTED_FILES,
    STARTS,
    InvertedIndex,
    TermPostings,
    id_line,
    npy_file,
    open_lines,
    write_postings,
)
from shortlist.index.languages import language_name
from shortlist.index.postings import Postings, PostingsSorter
from shortlist.index.protocols import FetchDocuments, Opening, TermTotals, WeightedTerms
from shortlist.index.updates import (
    Layers,
    TermCounts,
    empty_update,
    extended,
    match,
    read_own_keys,
    read_update,
    repeats,
    to_be_merged,
    write_update,
)
from shortlist.math.weighting import bm25, length_penalty, rarity
from shortlist.progress import say
from shortlist.records import Document, Hit, Query, Run, as_queries, each_document

VOCABULARY, PARAMETERS = "vocab.index.json", "params.index.json"
BM25_FILES = (*INVERTED_FILES, VOCABULARY, PARAMETERS, "index.json")
"""The files of a saved index. The last one is written last and marks the index as complete."""
COUNTS, LENGTHS, KEYS = "counts.npy", "lengths.npy", "keys.bin"
"""What an update needs besides: how often each word is in each document, each document's words, and a key of each."""
UPDATES = "update-*.npz"
"""The file of the documents that have come since; `index.json` names the one that counts."""
IDS_AT_ONCE = 100_000
RULES = 2
"""Version of the analysers' rules; an index of before lacks it and is searched by the rules of then."""


@final
class BM25Index:
    """An index of a corpus's words, searched with BM25.

    Scores are Lucene's BM25 with exact document lengths. The score of each word in each document is computed once and
    stored as a weight of an `InvertedIndex`. The weights stay on disk, in files that bm25s can open too; memory holds
    the vocabulary. With an update (`index.updates`) the weights of a word are computed when it is first asked for.
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
            frequencies = postings.frequencies()
            _write_weighed(folder, postings.merged(), frequencies, postings.lengths, postings.most, k1=k1, b=b)
        return cls.load(folder)

    def save(self, folder: Path) -> None:
        """Write the index into a folder.

        The files are .npy arrays, JSON and text, which cannot run code.
        """
        if folder.resolve() == self._folder.resolve():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BM25_FILES[-1]).unlink(missing_ok=True)
        updates = [path.name for path in self._folder.glob(UPDATES)]
        beside = [name for name in (COUNTS, LENGTHS, KEYS) if (self._folder / name).exists()]
        for name in (*beside, *updates, *BM25_FILES):
            shutil.copyfile(self._folder / name, folder / name)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Open a saved index; its arrays stay on disk until they are read.

        Raises:
            UserError: the folder holds no BM25 index, an incomplete one, or one whose words other libraries made.
        """
        try:
            settings, index, vocabulary = _open_files(folder)
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

    def document_terms(self, doc_ids: Sequence[str], texts: FetchDocuments) -> list[WeightedTerms]:
        """Count the known words of documents, whose texts are split as the corpus was."""
        found = texts(doc_ids)
        words = [self._analyse(f"{found[doc_id].title} {found[doc_id].text}") for doc_id in doc_ids]
        return [
            [(word, float(count)) for word, count in Counter(some).items() if word in self._vocabulary]
            for some in words
        ]

    def term_totals(self, terms: Sequence[str]) -> TermTotals:
        """Count how often words occur in the corpus.

        Raises:
            UserError: the index has no counts, as another tool's.
        """
        numbers = [self._vocabulary.get(term) for term in terms]
        totals = [0.0 if number is None else self._occurrences(number) for number in numbers]
        return TermTotals(np.array(totals), len(self))

    @cached_property
    def _occurrences(self) -> Callable[[int], float]:
        """Counts the occurrences of a word by its number."""
        try:
            counts, update = _open_counts(self._folder), optional_json(self._folder / "index.json").get("update")
            if update is None:
                return lambda number: float(counts.of_terms(number, number + 1)[1].sum())
            lengths, size = np.load(self._folder / LENGTHS), len(self._vocabulary)
            layers = Layers(counts, read_update(self._folder / update), lengths, num_terms=size)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._folder}: has no counts of words ({reason}); build it again.") from None
        return lambda number: float(layers.counted(number, number + 1).values.sum())


def build_bm25(
    documents: Iterable[Document],
    folder: Path,
    *,
    language: str,
    k1: float,
    b: float,
    keys: Callable[[], bytes] | None = None,
) -> dict[str, int]:
    """Build the kind `bm25`, and count documents and words between white space.

    Args:
        keys: returns the documents' keys, once they are read; without it the index cannot be updated.
    """
    num_words = 0

    def counted() -> Iterator[Document]:
        nonlocal num_words
        for document in documents:
            num_words += len(document.title.split()) + len(document.text.split())
            yield document

    index = BM25Index.build(counted(), analyser=language, k1=k1, b=b, folder=folder)
    if keys is not None:
        with atomic_write(folder / KEYS, "wb") as file:
            file.write(keys())
    for path in final_place(folder).glob(UPDATES):  # of the index that was there before
        path.unlink()
    return {"num_docs": len(index), "num_words": num_words}


def renew_bm25(corpus: KeyedCorpus, folder: Path, *, language: str, k1: float, b: float) -> dict[str, int] | None:
    """Bring an index up to date with a changed corpus, and count documents.

    The result is None where nothing says what the index was made from; then it must be built again.

    Raises:
        UserError: a line of the corpus that cannot be used, or an id that occurs twice.
    """
    settings, analyse = optional_json(folder / "index.json"), ANALYSERS.get(language)
    if analyse is None or settings.get("rules", 1) < RULES or outdated(folder):
        return None
    try:
        base, lengths = _open_counts(folder), np.load(folder / LENGTHS)
        base_keys, base_ids = read_own_keys(folder / KEYS), open_lines(folder / DOC_IDS, settings["id_bytes"])
        update = read_update(folder / settings["update"]) if "update" in settings else empty_update(len(lengths))
        vocabulary = json.loads((folder / VOCABULARY).read_text("utf-8"))
    except (OSError, ValueError, KeyError):
        return None
    num_base, num_base_words, keys = len(lengths), len(vocabulary), np.concatenate([base_keys, update.keys])
    if len(base_keys) != num_base:
        return None
    vocabulary |= {word: number for number, word in enumerate(update.new_words(), num_base_words)}
    found = match(corpus.unread(), keys, update.order, analyse, vocabulary)
    if not len(found.order) or repeats(found, num_base, base_ids, update):
        corpus.check()
        return None  # it has changed meanwhile
    if np.array_equal(found.order, update.order):
        _drop_replaced(folder)
        return {"num_docs": len(found.order), "read": 0}
    update = extended(update, found, num_base, list(vocabulary)[num_base_words:])
    layers = Layers(base, update, lengths, num_terms=len(vocabulary))
    if not layers.lengths.any():
        return None
    if to_be_merged(update, num_base):
        doc_ids = DocIds([base_ids, update.ids], [num_base, len(update.lengths)], update.order)
        in_order = np.concatenate([base_keys, update.keys])[update.order]
        _merge(folder, layers, doc_ids, in_order, list(vocabulary), analyser=language, k1=k1, b=b)
    else:
        number = max((int(path.stem.removeprefix("update-")) for path in folder.glob(UPDATES)), default=0) + 1
        name = f"update-{number:05d}.npz"
        write_update(folder / name, update)
        write_json(folder / "index.json", settings | {"update": name})
    _drop_replaced(folder)
    return {"num_docs": len(found.order), "read": len(found.lengths)}


def _open_files(folder: Path) -> tuple[dict[str, Any], InvertedIndex, dict[str, int]]:
    """Open the files of an index, its update included, and read its settings and vocabulary.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or incomplete.
    """
    settings = json.loads((folder / "index.json").read_text("utf-8"))
    vocabulary = json.loads((folder / VOCABULARY).read_text("utf-8"))
    parameters = json.loads((folder / PARAMETERS).read_text("utf-8"))
    index = InvertedIndex.open(folder, num_docs=parameters["num_docs"], id_bytes=settings["id_bytes"])
    if "update" not in settings:
        return settings, index, vocabulary
    update, lengths = read_update(folder / settings["update"]), np.load(folder / LENGTHS)
    vocabulary |= {word: number for number, word in enumerate(update.new_words(), len(vocabulary))}
    layers = Layers(_open_counts(folder), update, lengths, num_terms=len(vocabulary))
    base_ids = open_lines(folder / DOC_IDS, settings["id_bytes"])
    doc_ids = DocIds([base_ids, update.ids], [len(lengths), len(update.lengths)], update.order)
    weighed = layers.weigh(k1=parameters["k1"], b=parameters["b"])
    return settings, InvertedIndex(weighed, doc_ids, num_terms=len(vocabulary)), vocabulary


def _open_counts(folder: Path) -> TermCounts:
    """Open the counts of an index as it was built."""
    documents, counts = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in (DOCUMENTS, COUNTS))
    return TermCounts(documents, counts, np.load(folder / STARTS))


def _merge(
    folder: Path,
    layers: Layers,
    doc_ids: DocIds,
    keys: UInt8[np.ndarray, "docs 16"],
    words: Sequence[str],
    *,
    analyser: str,
    k1: float,
    b: float,
) -> None:
    """Replace an index by itself and its update, as if built anew."""
    frequencies, most = np.zeros(layers.num_terms, np.int64), 0
    for part in layers.blocks():
        frequencies += np.bincount(part.words, minlength=layers.num_terms)
        most = max(most, int(part.values.max(initial=0)))
    there = frequencies > 0
    numbers = np.cumsum(there) - 1
    parts = (part._replace(words=numbers[part.words]) for part in layers.blocks())
    with temporary_folder(folder) as work:
        with _new_index(work, analyser):
            with atomic_write(work / DOC_IDS) as file:
                for start in range(0, len(doc_ids), IDS_AT_ONCE):
                    file.writelines(
                        map(id_line, doc_ids.take(np.arange(start, min(start + IDS_AT_ONCE, len(doc_ids)))))
                    )
            with atomic_write(work / VOCABULARY) as file:
                kept = (word for word, keep in zip(words, there.tolist(), strict=True) if keep)
                json.dump({word: number for number, word in enumerate(kept)}, file, ensure_ascii=False)
            _write_weighed(work, parts, frequencies[there], layers.lengths, most, k1=k1, b=b)
            with atomic_write(work / KEYS, "wb") as file:
                file.write(keys.tobytes())
        (folder / "index.json").unlink()  # whoever finds it gone has nothing half new
        for name in (*BM25_FILES[:-1], COUNTS, LENGTHS, KEYS, BM25_FILES[-1]):
            (work / name).replace(folder / name)


def _drop_replaced(folder: Path) -> None:
    """Delete the updates that an index no longer has."""
    named = optional_json(folder / "index.json").get("update")
    for path in folder.glob(UPDATES):
        if path.name != named:
            path.unlink()


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
    for name in ("index.json", KEYS):  # keys of another corpus must not stay
        (folder / name).unlink(missing_ok=True)
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


def _write_weighed(
    folder: Path,
    parts: Iterable[Postings],
    frequencies: Int[np.ndarray, " words"],
    lengths: Int[np.ndarray, " docs"],
    most: int,
    *,
    k1: float,
    b: float,
) -> None:
    """Write postings with BM25 weights, the counts that these were made from, and the parameters.

    Args:
        parts: all postings, with the counts of words.
        most: the highest count.
    """
    rarities, penalties = rarity(frequencies, len(lengths)), length_penalty(lengths, k1=k1, b=b)
    dtype = np.min_scalar_type(most)
    with npy_file(folder / COUNTS, dtype.str, int(frequencies.sum())) as file:

        def weighed() -> Iterator[TermPostings]:
            for part in parts:
                file.write(part.values.astype(dtype).data)
                yield TermPostings(part.documents, bm25(part.values, rarities[part.words], penalties[part.documents]))

        write_postings(folder, frequencies, weighed())
    with atomic_write(folder / LENGTHS, "wb") as file:
        np.save(file, lengths.astype(np.int32))
    _write_parameters(folder, len(lengths), k1=k1, b=b)


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
