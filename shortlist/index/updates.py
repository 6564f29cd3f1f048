"""Updates of a BM25 index, at the price of what has changed.

The index itself stays as it was built. Beside it lies one file with the words of all documents that have come since,
and the row of every document of the corpus: a row of the index or, behind those, of the update. As every update changes
the rarity of words and the mean length, weights are computed from counts when a word is first asked for. Once the
update is a tenth of the index, both are merged into an index as it would be built.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Integer, UInt8

from shortlist.data.files import atomic_write
from shortlist.data.keyed import KEY_BYTES, Unread
from shortlist.index.analysis import Analyser
from shortlist.index.inverted import TermPostings, id_line
from shortlist.index.postings import Postings, block_stops
from shortlist.math.weighting import bm25, length_penalty, rarity

MERGED = 0.1
"""Share of an index that may be dead or beside it before both are merged."""


class TermCounts(NamedTuple):
    """Counts of terms in documents: postings in order of term, then of row."""

    rows: Integer[np.ndarray, " postings"]
    counts: Integer[np.ndarray, " postings"]
    starts: Integer[np.ndarray, " _"]
    """The first posting of each term, and the end of the last one's."""

    def of_terms(self, first: int, last: int) -> tuple[Integer[np.ndarray, " part"], Integer[np.ndarray, " part"]]:
        """Return the rows and counts of some terms; one that is not there has none."""
        begin, end = self.starts[min(first, len(self.starts) - 1)], self.starts[min(last, len(self.starts) - 1)]
        return self.rows[begin:end], self.counts[begin:end]

    def frequencies(self, num_terms: int) -> Integer[np.ndarray, " terms"]:
        """Count the rows of each term."""
        found = np.diff(self.starts)
        return np.pad(found, (0, num_terms - len(found)))


class Update(NamedTuple):
    """Documents that came or went after an index was built."""

    order: Integer[np.ndarray, " docs"]
    """The row of each document in corpus order."""
    lengths: Integer[np.ndarray, " rows"]
    """Words of each document of the update."""
    keys: UInt8[np.ndarray, "rows 16"]
    ids: UInt8[np.ndarray, "_"]
    """Their ids, one per line, in UTF-8."""
    words: UInt8[np.ndarray, "_"]
    """Words that the index lacks, one per line, in order of their numbers."""
    terms: Integer[np.ndarray, " postings"]
    rows: Integer[np.ndarray, " postings"]
    """Rows of the update, counted from 0."""
    counts: Integer[np.ndarray, " postings"]

    def new_words(self) -> list[str]:
        """Return the words that the index lacks."""
        return self.words.tobytes().decode().split("\n")[:-1]

    def postings(self, num_terms: int) -> TermCounts:
        """Return the postings of all terms."""
        ends = np.cumsum(np.bincount(self.terms, minlength=num_terms))
        return TermCounts(self.rows, self.counts, np.concatenate([[0], ends]))


def empty_update(num_docs: int) -> Update:
    """Return the update of an index that is as it was built."""
    nothing = np.zeros(0, np.int32)
    text = np.zeros(0, np.uint8)
    return Update(np.arange(num_docs, dtype=np.int32), nothing, _as_keys(b""), text, text, nothing, nothing, nothing)


def read_update(path: Path) -> Update:
    """Read the file of an update.

    Raises:
        OSError, ValueError, KeyError: it is missing or incomplete.
    """
    with np.load(path) as arrays:
        return Update(**{name: arrays[name] for name in Update._fields})


def write_update(path: Path, update: Update) -> None:
    """Write the file of an update, atomically."""
    with atomic_write(path, "wb") as file:
        np.savez(file, **update._asdict())


@final
class Layers:
    """The counts of an index with its update, over the corpus as it is now.

    Args:
        base: the counts of the index.
        update: the update, whose terms may be more.
        lengths: the words of each document of the index.
    """

    def __init__(
        self, base: TermCounts, update: Update, lengths: Integer[np.ndarray, " rows"], *, num_terms: int
    ) -> None:
        self.num_terms, self.num_docs = num_terms, len(update.order)
        self.lengths: Integer[np.ndarray, " docs"] = np.concatenate([lengths, update.lengths])[update.order]
        positions = np.full(len(lengths) + len(update.lengths), -1, np.int32)
        positions[update.order] = np.arange(self.num_docs, dtype=np.int32)
        self._layers = (
            (base, positions[: len(lengths)]),
            (update.postings(num_terms), positions[len(lengths) :]),
        )

    def weigh(self, *, k1: float, b: float) -> "WeighedLayers":
        """Return the postings with BM25 weights."""
        return WeighedLayers(self, length_penalty(self.lengths, k1=k1, b=b))

    def counted(self, first: int, last: int) -> Postings:
        """Return the postings of some terms, with counts."""
        parts = [_live(counts, positions, first, last) for counts, positions in self._layers]
        keys = np.concatenate([part[0] for part in parts])
        order = np.argsort(keys, kind="stable")  # mostly two sorted parts, which this merges
        keys = keys[order]
        return Postings(
            keys >> 32, keys & 0xFFFFFFFF, np.concatenate([part[1] for part in parts])[order].astype(np.int32)
        )

    def blocks(self) -> Iterator[Postings]:
        """Yield all postings, at most about BLOCK_TOKENS at a time."""
        most = sum(counts.frequencies(self.num_terms) for counts, _ in self._layers)
        for first, last in pairwise([0, *block_stops(np.cumsum(most)).tolist()]):
            yield self.counted(first, last)


@final
class WeighedLayers:
    """Reads postings of terms, and keeps them weighed."""

    def __init__(self, layers: Layers, penalties: np.ndarray) -> None:
        self._layers, self._penalties = layers, penalties
        self._known: dict[int, TermPostings] = {}

    def __call__(self, term: int) -> TermPostings:
        if term not in self._known:
            found = self._layers.counted(term, term + 1)
            rarities = rarity(np.array([len(found.documents)]), self._layers.num_docs)
            weights = bm25(found.values, np.repeat(rarities, len(found.documents)), self._penalties[found.documents])
            self._known[term] = TermPostings(found.documents.astype(np.int32), weights)
        return self._known[term]


def _live(
    counts: TermCounts, positions: Integer[np.ndarray, " rows"], first: int, last: int
) -> tuple[Integer[np.ndarray, " part"], Integer[np.ndarray, " part"]]:
    """Return postings of remaining documents: term and position in one number, and the count."""
    rows, found = counts.of_terms(first, last)
    there = positions[rows].astype(np.int64)
    if last > first + 1:
        starts = counts.starts[min(first, len(counts.starts) - 1) : last + 1]
        there |= np.repeat(np.arange(first, first + len(starts) - 1), np.diff(starts)) << 32
    else:
        there |= np.int64(first) << 32
    live = positions[rows] >= 0
    return there[live], found[live]


class FoundRows(NamedTuple):
    """The documents of a changed corpus."""

    order: Integer[np.ndarray, " docs"]
    """The row of each; those behind the known rows are new, in order."""
    keys: bytes
    """Keys of the new documents."""
    ids: bytes
    """Their ids, one per line."""
    lengths: array
    """Words of each."""
    tokens: array
    """Their words' numbers, document after document."""


def match(
    corpus: Iterable[Unread],
    keys: UInt8[np.ndarray, "rows 16"],
    order: Integer[np.ndarray, " docs"],
    read_words: Analyser,
    vocabulary: dict[str, int],
) -> FoundRows:
    """Find the rows of documents with known keys, and read the others.

    Args:
        keys: the keys of all rows.
        order: the rows of the documents of the corpus before, in its order.
        vocabulary: the numbers of words; new words are added.
    """  # fmt: skip
    before, row_of = keys[order].tobytes(), order.tolist()
    places: dict[bytes, int] | None = None
    rows, new_keys, ids, lengths, tokens = array("i"), bytearray(), bytearray(), array("i"), array("i")
    place = 0
    for key, read in corpus:
        if before[place * KEY_BYTES : (place + 1) * KEY_BYTES] != key:  # not where it was
            places = places or {before[i * KEY_BYTES : (i + 1) * KEY_BYTES]: i for i in range(len(row_of))}
            if (found := places.get(key)) is None:
                rows.append(len(keys) + len(lengths))
                document = read()
                words = read_words(f"{document.title} {document.text}")
                tokens.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
                lengths.append(len(words))
                new_keys += key
                ids += id_line(document.doc_id).encode()
                continue
            place = found
        rows.append(row_of[place])
        place += 1
    return FoundRows(np.array(rows, np.int32), bytes(new_keys), bytes(ids), lengths, tokens)


def repeats(found: FoundRows, num_base: int, base_ids: np.ndarray, update: Update) -> bool:
    """Whether a document, or the id of a new one, is there twice."""
    num_rows = num_base + len(update.lengths) + len(found.lengths)
    live = np.bincount(found.order, minlength=num_rows)
    ids = found.ids.split(b"\n")[:-1]
    new = set(ids)
    if live.max(initial=0) > 1 or len(new) < len(ids):
        return True
    known = base_ids.tobytes().split(b"\n")[:-1] + update.ids.tobytes().split(b"\n")[:-1]
    return any(doc_id in new and live[row] for row, doc_id in enumerate(known)) if new else False


def extended(update: Update, found: FoundRows, num_base: int, new_words: Sequence[str]) -> Update:
    """Make the update that holds the documents of a changed corpus, from the update before.

    Args:
        num_base: the rows of the index.
        new_words: all words that the index lacks.
    """
    kept = np.zeros(len(update.lengths) + len(found.lengths), bool)
    kept[found.order[found.order >= num_base] - num_base] = True
    numbers = (np.cumsum(kept) - 1).astype(np.int32)
    old = kept[: len(update.lengths)]
    order = found.order.copy()
    order[order >= num_base] = numbers[order[order >= num_base] - num_base] + num_base
    lengths = np.array(found.lengths, np.int32)
    there = old[update.rows]
    rows = np.repeat(numbers[len(old) :], lengths)
    new, times = np.unique(np.array(found.tokens, np.int64) << 32 | rows, return_counts=True)
    keys = np.concatenate([update.terms[there].astype(np.int64) << 32 | numbers[update.rows[there]], new])
    counts = np.concatenate([update.counts[there], times])
    by_term = np.argsort(keys, kind="stable")
    keys = keys[by_term]
    ids = np.frombuffer(b"".join(_picked(update.ids, old)) + found.ids, np.uint8)
    return Update(
        order=order,
        lengths=np.concatenate([update.lengths[old], lengths]).astype(np.int32),
        keys=np.concatenate([update.keys[old], _as_keys(found.keys)]),
        ids=ids,
        words=np.frombuffer("".join(f"{word}\n" for word in new_words).encode(), np.uint8),
        terms=(keys >> 32).astype(np.int32),
        rows=(keys & 0xFFFFFFFF).astype(np.int32),
        counts=counts[by_term].astype(np.int32),
    )


def to_be_merged(update: Update, num_base: int) -> bool:
    """Whether an index and its update should become one index."""
    dead = num_base - int((update.order < num_base).sum())
    return len(update.lengths) + dead > MERGED * num_base


def _picked(lines: UInt8[np.ndarray, "_"], wanted: np.ndarray) -> list[bytes]:
    texts = lines.tobytes().split(b"\n")[:-1]
    return [text + b"\n" for text, keep in zip(texts, wanted.tolist(), strict=True) if keep]


def _as_keys(keys: bytes) -> UInt8[np.ndarray, "rows 16"]:
    return np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)


def read_own_keys(path: Path) -> UInt8[np.ndarray, "rows 16"]:
    """Read the keys of an index's documents.

    Raises:
        OSError, ValueError: the file is missing or incomplete.
    """
    return _as_keys(path.read_bytes())
