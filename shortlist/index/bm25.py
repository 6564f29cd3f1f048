"""BM25: words weighed by how rare they are, the first stage that needs no training."""

import json
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

import bm25s
import numpy as np
import regex
import Stemmer

from shortlist.data.files import atomic_write
from shortlist.errors import UserError, unknown
from shortlist.records import Document, Hit, Query, Run

# The word boundaries of UAX #29, as far as they matter to text in words: letters and digits stick together, ' . : join
# letters, ' . , ; join digits, and each ideograph or hiragana sign stands alone.
_WORD = regex.compile(
    r"""[\p{Han}\p{Hiragana}]
    | [\w--[\p{Han}\p{Hiragana}]]+
      (?: (?: (?<=[^\W\d_]) [.'’:·] (?=[^\W\d_]) | (?<=\d) [.,;'’] (?=\d) ) [\w--[\p{Han}\p{Hiragana}]]+ )*""",
    regex.VERSION1 | regex.VERBOSE,
)
_POSSESSIVE = regex.compile(r"(?<=\w)['’＇]s\b")
_IDENTIFIER = regex.compile(r"\w+")
_PART = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?\p{Ll}+|\p{N}+|[^\W_\p{Lu}\p{Ll}\p{N}]+")
# The 33 of Lucene's EnglishAnalyzer.
STOP_WORDS = frozenset(
    _IDENTIFIER.findall(
        "a an and are as at be but by for if in into is it no not of on or such "
        "that the their then there these they this to was will with"
    )
)
_PORTER = Stemmer.Stemmer("porter")


def english(text: str) -> list[str]:
    """Words as Lucene's EnglishAnalyzer sees them: no possessive 's, lower case, no stop words, Porter stems.

    https://lucene.apache.org/core/9_11_0/analysis/common/org/apache/lucene/analysis/en/EnglishAnalyzer.html
    """
    words = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
    return _stems([word for word in words if word not in STOP_WORDS and word.strip("_")])


def code(text: str) -> list[str]:
    """Words of source code and of questions about it: `parseISODate` is pars, iso, date and parseisodate.

    Identifiers are split at underscores and capitals; the parts are treated as English, the whole is kept beside them.
    """
    identifiers = [(name.lower(), _PART.findall(name)) for name in _IDENTIFIER.findall(text)]
    parts = [part.lower() for _, parts in identifiers for part in parts]
    wholes = [name for name, parts in identifiers if len(parts) > 1]
    return _stems([part for part in parts if part not in STOP_WORDS]) + wholes


def _stems(words: list[str]) -> list[str]:
    """Porter stems; words of one or two letters stay, as in Lucene (Snowball would make "s" empty and "us" a "u")."""
    return [stem if len(word) > 2 else word for word, stem in zip(words, _PORTER.stemWords(words), strict=True)]


Analyser = Callable[[str], list[str]]

ANALYSERS: dict[str, Analyser] = {"english": english, "code": code}


@final
class BM25Index:
    """A corpus that can be asked for the documents whose words answer a query best.

    Scores are those of Lucene's BM25 with exact document lengths, computed once per (word, document) by bm25s.
    https://cs.uwaterloo.ca/~jimmylin/publications/Kamphuis_etal_ECIR2020_preprint.pdf
    """

    def __init__(self, scores: bm25s.BM25, doc_ids: list[str], analyser: str) -> None:
        self._scores = scores
        self._doc_ids = doc_ids
        self._analyser = analyser

    def __len__(self) -> int:
        return len(self._doc_ids)

    @classmethod
    def build(
        cls, documents: Iterable[Document], *, analyser: str = "english", k1: float = 0.9, b: float = 0.4
    ) -> "BM25Index":
        """Index title and text of every document.

        Args:
            documents: the corpus; its order decides ties.
            analyser: a name in ANALYSERS, used for queries too.
            k1: how much a word's second occurrence still counts (0: nothing).
            b: how much longer documents are held back (0: not at all, 1: fully).

        Raises:
            UserError: no such analyser, k1 or b out of range, or no document with a word in it.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 with k1 {k1} and b {b}: expected k1 of 0 or more and b from 0 to 1.")
        analyse = _find(analyser)
        doc_ids: list[str] = []
        tokens: list[array[int]] = []
        vocabulary: dict[str, int] = {}
        for document in documents:
            words = analyse(f"{document.title} {document.text}")
            doc_ids.append(document.doc_id)
            tokens.append(array("i", [vocabulary.setdefault(word, len(vocabulary)) for word in words]))
        if not vocabulary:
            raise UserError(f"the {len(doc_ids)} documents of the corpus hold no word to index; expected some text.")
        scores = bm25s.BM25(k1=k1, b=b, method="lucene")
        scores.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
        return cls(scores, doc_ids, analyser)

    def save(self, folder: Path) -> None:
        """Write the index into a folder: .npy arrays and JSON, none of it able to run code."""
        folder.mkdir(parents=True, exist_ok=True)
        self._scores.save(folder, show_progress=False)
        with atomic_write(folder / "doc_ids.json") as file:
            json.dump(self._doc_ids, file, ensure_ascii=False)
        with atomic_write(folder / "index.json") as file:
            json.dump({"kind": "bm25", "analyser": self._analyser}, file)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Open a saved index; its arrays stay on disk until they are read.

        Raises:
            UserError: the folder holds no BM25 index, or not a whole one.
        """
        try:
            settings = json.loads((folder / "index.json").read_text("utf-8"))
            doc_ids = json.loads((folder / "doc_ids.json").read_text("utf-8"))
            scores = bm25s.BM25.load(folder, mmap=True, allow_pickle=False, show_progress=False)
            analyser = settings["analyser"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: not a whole BM25 index ({reason}); make one with `shortlist index`.") from None
        _find(analyser)
        return cls(scores, doc_ids, analyser)

    def search(self, queries: list[Query], k: int) -> Run:
        """The at most k best documents of each query; equal scores in corpus order, unrelated documents left out."""
        return {query.query_id: self._search(query.text, k) for query in queries}

    def _search(self, text: str, k: int) -> list[Hit]:
        tokens = self._scores.get_tokens_ids(ANALYSERS[self._analyser](text))
        scores = self._scores.get_scores_from_ids(tokens)
        return [Hit(self._doc_ids[row], float(scores[row])) for row in _best(scores, k)]


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
