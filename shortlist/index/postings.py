"""Sorting of the postings of a corpus larger than memory.

A posting is a word, a document, and the word's count or weight there. Postings are sorted in blocks and merged word by
word.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Int, Num

BLOCK_TOKENS = 1 << 21
"""The tokens sorted at a time and the postings merged at a time, which take about 200 MiB of memory."""


class Postings(NamedTuple):
    """Postings in order of word, then document."""

    words: Int[np.ndarray, " postings"]
    documents: Int[np.ndarray, " postings"]
    values: Num[np.ndarray, " postings"]
    """The count or weight of the word in the document."""


@final
class PostingsSorter:
    """A sorter that takes documents one by one and returns postings in order of word.

    Memory holds one block, a length per document and a frequency per word.

    Args:
        folder: an empty folder for the blocks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths = array("i")
        self._tokens = array("i")
        self._weights: array[float] | None = None
        self._sorted_docs = self._num_blocks = 0
        self._frequencies = np.zeros(0, dtype=np.int64)
        self.most = 0
        """The highest count of a word in a document, once all are added."""

    def add(self, words: Sequence[int], weights: Sequence[float] | None = None) -> None:
        """Add the next document.

        Args:
            words: the numbers of its words, from 0.
            weights: the weight of each word, given for all documents or for none (None: the word counts). If a word
                occurs twice, its weights are added.
        """
        self._tokens.extend(words)
        if weights is not None:
            self._weights = array("f") if self._weights is None else self._weights
            self._weights.extend(weights)
        self._lengths.append(len(words))
        if len(self._tokens) >= BLOCK_TOKENS:
            self._sort_block()

    @property
    def lengths(self) -> Int[np.ndarray, " docs"]:
        """The number of words in each document."""
        return np.array(self._lengths)

    def frequencies(self) -> Int[np.ndarray, " words"]:
        """Count the documents that hold each word; no document may be added afterwards."""
        self._sort_block()
        return self._frequencies

    def _sort_block(self) -> None:
        if not self._tokens:
            return
        lengths = np.array(self._lengths[self._sorted_docs :])
        documents = np.repeat(np.arange(self._sorted_docs, len(self._lengths)), lengths)
        keys = np.array(self._tokens).astype(np.int64) << 32 | documents
        if self._weights is None:
            keys, values = np.unique(keys, return_counts=True)
            self.most = max(self.most, int(values.max()))
        else:
            keys, places = np.unique(keys, return_inverse=True)
            values, self._weights = np.bincount(places, self._weights), array("f")
        self._keys_of(self._num_blocks).write_bytes(keys.data)
        self._values_of(self._num_blocks).write_bytes(values.astype(self._value_type).data)
        frequencies = np.bincount(keys >> 32, minlength=len(self._frequencies))
        frequencies[: len(self._frequencies)] += self._frequencies
        self._frequencies = frequencies
        self._tokens, self._sorted_docs, self._num_blocks = array("i"), len(self._lengths), self._num_blocks + 1

    def merged(self) -> Iterator[Postings]:
        """Yield all postings, at most about BLOCK_TOKENS at a time."""
        stops = block_stops(np.cumsum(self.frequencies()))
        cuts = [self._cuts(block, stops) for block in range(self._num_blocks)]
        for turn in range(len(stops)):
            spans = [(block, int(c[turn]), int(c[turn + 1] - c[turn])) for block, c in enumerate(cuts)]
            if sum(count for *_, count in spans) <= BLOCK_TOKENS:
                yield self._merge(spans)
            else:  # a single word, whose documents are in the order of the blocks
                yield from (self._merge([span]) for span in spans)

    def _merge(self, spans: Sequence[tuple[int, int, int]]) -> Postings:
        """Merge postings of several blocks in order.

        Args:
            spans: for each block its number, its first posting, and how many postings to take.
        """
        keys = np.concatenate([_read(self._keys_of(block), np.int64, *span) for block, *span in spans])
        values = np.concatenate([_read(self._values_of(block), self._value_type, *span) for block, *span in spans])
        order = np.argsort(keys, kind="stable")  # the parts are sorted already, so this merges them
        keys = keys[order]
        return Postings(keys >> 32, keys & 0xFFFFFFFF, values[order])

    def _cuts(self, block: int, stops: Int[np.ndarray, " turns"]) -> Int[np.ndarray, " cuts"]:
        keys = np.memmap(self._keys_of(block), np.int64, mode="r")
        return np.searchsorted(keys, np.concatenate([[0], stops]) << 32)

    def _keys_of(self, block: int) -> Path:
        """Return the file of a block's keys.

        A key is the word and document of a posting in one number, which sorts by word first.
        """
        return self._folder / f"{block:05d}.keys"

    def _values_of(self, block: int) -> Path:
        return self._folder / f"{block:05d}.values"

    @property
    def _value_type(self) -> type[np.number]:
        return np.int32 if self._weights is None else np.float32


def block_stops(ends: Int[np.ndarray, " words"]) -> Int[np.ndarray, " turns"]:
    """Divide the words into parts of at most BLOCK_TOKENS postings, or of one word."""
    stops = [0]
    while stops[-1] < len(ends):
        done = ends[stops[-1] - 1] if stops[-1] else 0
        stops.append(max(int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right")), stops[-1] + 1))
    return np.array(stops[1:])


def _read(path: Path, dtype: type[np.number], start: int, count: int) -> Num[np.ndarray, " numbers"]:
    return np.fromfile(path, dtype, count, offset=np.dtype(dtype).itemsize * start)
