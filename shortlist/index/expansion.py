"""Expansion of documents: words appended that a searcher may use and the document lacks."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from shortlist.data.collections import Collection, open_collection
from shortlist.data.formats import full_text
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.index.analysis import ANALYSERS, UNSPACED
from shortlist.index.bm25 import BM25Index
from shortlist.index.informing import WordWeights, check_term_weights
from shortlist.math.phrases import Phrases, phrase_scores, phrases_of
from shortlist.progress import track
from shortlist.records import Document

SIMILAR = "neighbours"
NUM_NEIGHBOURS = 20
STRONGEST = 15
"""Words of a document that its neighbours are searched by, those of the highest weight."""
LEAST_NEIGHBOURS = 2
"""Neighbours that must hold a phrase."""

Append = Callable[[int, Document], Sequence[str]]
"""What is appended to a document, which has this place in the corpus."""

_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


@final
class NeighbourPhrases:
    """Phrases that similar documents hold.

    It holds 4 bytes for each word of the collection, and a BM25 index in a temporary folder.

    Args:
        collection: the documents.
        language: how texts are split into words, as for `BM25Index`.
        weights: term weights of the documents, which say how much words say (None: how rare they are says it).
    """

    def __init__(self, collection: Collection, *, language: str = "english", weights: Path | None = None) -> None:
        if language in UNSPACED:
            raise UserError(f"--expand {SIMILAR}: {language} has no spaces between words; expected another language.")
        self._analyse = ANALYSERS[language]
        self._stem_numbers: dict[str, int] = {}
        self._word_numbers: dict[str, int] = {}
        self._stems: list[int] = []
        self._spellings: list[str] = []
        self._folder = TemporaryDirectory(prefix="shortlist-expansion-")
        texts: list[Int[np.ndarray, " _"]] = []

        def read() -> Iterator[Document]:
            for document in track(collection.corpus(), "reading words", collection.num_docs(), "documents"):
                texts.append(self.words_of(full_text(document)))
                yield document

        self._index = BM25Index.build(read(), analyser=language, folder=Path(self._folder.name))
        self._places = {doc_id: place for place, doc_id in enumerate(self._index.doc_ids)}
        self._texts = texts
        stems = np.array(self._stems, dtype=np.int64)
        documents = np.zeros(len(self._stem_numbers), dtype=np.int64)
        for text in texts:
            documents[np.unique(stems[text[text >= 0]])] += 1
        self._rarity = np.log(len(texts) / np.maximum(documents, 1))
        self._stem_of = stems
        self._weights = None if weights is None else WordWeights(weights, [*self._index.doc_ids])

    def words_of(self, text: str) -> Int[np.ndarray, " _"]:
        """Number the words of a text; -1 stands for signs and stop words."""
        numbers = [self._number(word) for word in _WORD_OR_SIGN.findall(text.lower())]
        return np.array(numbers, dtype=np.int32)

    def _number(self, word: str) -> int:
        known = self._word_numbers.get(word)
        if known is not None:
            return known
        stems = self._analyse(word)
        number = -1
        if stems and not word.isdecimal():
            number = len(self._spellings)
            self._spellings.append(word)
            self._stems.append(self._stem_numbers.setdefault(stems[-1], len(self._stem_numbers)))
        self._word_numbers[word] = number
        return number

    def of_text(self, text: str, count: int) -> list[str]:
        """Return phrases for a text outside the collection, such as a query."""
        return self._best(self._known(self.words_of(text)), None, count)

    def of_document(self, place: int, document: Document, count: int) -> list[str]:
        """Return phrases for a document of the collection, best first."""
        return self._best(self._texts[place], document.doc_id, count)

    def _known(self, words: Int[np.ndarray, " _"]) -> Int[np.ndarray, " _"]:
        return words[words < len(self._stem_of)]

    def _best(self, words: Int[np.ndarray, " _"], own_id: str | None, count: int) -> list[str]:
        found = self._neighbours(words[words >= 0], own_id)
        if not found:
            return []
        phrases = phrases_of([self._texts[place] for place, _ in found], np.array([score for _, score in found]))
        phrases = self._absent(phrases, words[words >= 0])
        scores = phrase_scores(phrases, self._informativeness(phrases, found, own_id))
        best: dict[tuple[int, ...], str] = {}  # phrases of the same stems are the same
        for number in np.argsort(-scores, kind="stable").tolist():
            some = [word for word in phrases.words[number].tolist() if word >= 0]
            best.setdefault(tuple(self._stems[word] for word in some), " ".join(self._spellings[word] for word in some))
            if len(best) == count:
                break
        return list(best.values())

    def _informativeness(
        self, phrases: Phrases, found: Sequence[tuple[int, float]], own_id: str | None
    ) -> Float[np.ndarray, " words"]:
        """Compute how much the words of some phrases say, by their numbers."""
        if self._weights is None:
            return self._rarity[self._stem_of]
        places, similarities = np.array([place for place, _ in found]), np.array([score for _, score in found])
        own = None if own_id is None else self._places[own_id]
        terms, values = self._weights.of_terms(own, places, similarities), np.zeros(len(self._spellings))
        for word in np.unique(phrases.words[phrases.words >= 0]).tolist():
            values[word] = self._weights.of_word(self._spellings[word], terms)
        return values

    def _neighbours(self, words: Int[np.ndarray, " _"], own_id: str | None) -> list[tuple[int, float]]:
        """Find the documents that are found by the strongest words."""
        stems, counts = np.unique(self._stem_of[words], return_counts=True)
        weights = counts / (counts + 1) * self._rarity[stems]
        strongest = np.argsort(-weights, kind="stable")[:STRONGEST]
        by_stem = {self._stems[word]: word for word in np.unique(words).tolist()}
        query = " ".join(self._spellings[by_stem[stem]] for stem in stems[strongest].tolist())
        if not query:
            return []
        hits = self._index.search([query], NUM_NEIGHBOURS + 1)["0"]
        return [(self._places[hit.doc_id], hit.score) for hit in hits if hit.doc_id != own_id][:NUM_NEIGHBOURS]

    def _absent(self, phrases: Phrases, words: Int[np.ndarray, " _"]) -> Phrases:
        """Leave out phrases that the text holds, or too few neighbours."""
        there = np.zeros(len(self._stem_numbers) + 1, dtype=bool)
        there[self._stem_of[words]] = True
        there[-1] = True  # of -1, after the last word
        stems = np.where(phrases.words >= 0, self._stem_of[phrases.words], -1)
        kept = ~there[stems].all(1) & (phrases.counts >= LEAST_NEIGHBOURS)
        return Phrases(*(part[kept] for part in phrases))


def written_queries(name: str) -> dict[str, list[str]]:
    """Return the queries that `shortlist queries` had written, by document.

    Raises:
        UserError: the folder is none of that command; judged queries of people would be the answers of a test.
    """
    if not ((read_manifest(Path(name)) or {}).get("results") or {}).get("machine_made"):
        raise UserError(
            f"--expand {name}: expected {SIMILAR!r}, or a folder in which `shortlist queries` had queries written."
        )
    collection, found = open_collection(name), dict[str, list[str]]()
    for split in collection.splits():
        texts = {query.query_id: query.text for query in collection.queries(split)}
        for query_id, judged in collection.qrels(split).items():
            for doc_id in judged:
                found.setdefault(doc_id, []).append(texts[query_id])
    return found


def open_expansion(
    collection: Collection, how: str, *, language: str, count: int, weights: Path | None = None
) -> Append:
    """Make the function that says what is appended to each document.

    Args:
        how: `neighbours`, or a folder of `shortlist queries`.
        count: most phrases or queries of a document.
        weights: term weights, as for `NeighbourPhrases`.

    Raises:
        UserError: the folder is none of `shortlist queries`, or the language has no words.
    """
    if how != SIMILAR:
        queries = written_queries(how)
        return lambda place, document: queries.get(document.doc_id, [])[:count]
    phrases = NeighbourPhrases(collection, language=language, weights=weights)
    return lambda place, document: phrases.of_document(place, document, count)


@final
class Expanded:
    """Documents with what is appended to their texts, and what that costs.

    Attributes:
        costs: `appended_words` and `expansion_seconds`, once the documents have been read.
    """

    def __init__(self, documents: Iterable[Document], append: Append, *, seconds: float = 0.0) -> None:
        self._documents, self._append = documents, append
        self.costs: dict[str, Any] = {"appended_words": 0, "expansion_seconds": seconds}
        self.examples: dict[str, Sequence[str]] = {}

    def __iter__(self) -> Iterator[Document]:
        for place, document in enumerate(self._documents):
            start = time.perf_counter()
            appended = self._append(place, document)
            self.costs["expansion_seconds"] += time.perf_counter() - start
            self.costs["appended_words"] += sum(len(some.split()) for some in appended)
            if len(self.examples) < 3 and appended:
                self.examples[document.doc_id] = appended
            yield document._replace(text=" ".join([document.text, *appended]))


def check_expansion(
    how: str | None, count: int, *, weights: Path | None = None, over_words: bool, dry_run: bool
) -> None:
    """Refuse an expansion that cannot be."""
    if weights is not None and how != SIMILAR:
        raise UserError(f"--expand-weights is for --expand {SIMILAR}; leave it out.")
    if how is None:
        raise UserError("--phrases is for --expand; leave it out.")
    if not over_words:
        raise UserError("--expand appends words to documents; it is for --kind bm25.")
    if count < 1:
        raise UserError(f"--phrases is {count}; expected 1 or more of a document.")
    if dry_run:
        raise UserError("--dry-run does not foresee --expand, which takes some 10 ms a document; leave one out.")
    if how != SIMILAR:
        written_queries(how)
    if weights is not None:
        check_term_weights(weights)
