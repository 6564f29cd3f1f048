"""Words and pairs of words as numbers, without a vocabulary."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt64

SPACE, SIGN, LETTER, ALONE = range(4)
"""Classes of characters: what ends a word, signs and letters, of which neighbours are one word, and characters that are
a word each."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
CYCLE = 64
"""Length of the cycle of factors by which a word's number depends on the order of its letters."""


class Grams(NamedTuple):
    """Numbers of the words and pairs of words of several texts."""

    numbers: UInt64[np.ndarray, " grams"]
    """The words of all texts in order, then their pairs; equal words have equal numbers."""
    texts: Int[np.ndarray, " grams"]
    """The text that each is from."""


@cache
def character_classes() -> UInt8[np.ndarray, " characters"]:
    """Return the class of every character.

    Letters, digits, marks and `_` make words, other signs words of signs. Han characters, kana and Thai, Lao and Khmer
    letters are written without spaces and are a word each; pairs of neighbours make up for that.
    """
    classes = np.full(0x110000, SIGN, dtype=np.uint8)
    for code in range(0x110000):
        character = chr(code)
        if character.isspace() or code < 32:
            classes[code] = SPACE
        elif character.isalnum() or character == "_" or unicodedata.category(character).startswith("M"):
            classes[code] = LETTER
    for first, last in (*((0x0E00, 0x0EFF), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF)), (0xF900, 0xFAFF)):
        classes[first : last + 1][classes[first : last + 1] == LETTER] = ALONE
    classes[0x20000:0x32000] = ALONE
    return classes


def word_grams(texts: Sequence[str]) -> Grams:
    """Number the words of texts, and each pair of neighbours in a text.

    Words are in lower case; a run of signs is a word. Different words have different numbers but for chances of about
    1 in 10^19, the same in every process.
    """
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join([*lowered, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = character_classes()[codes]
    begins = np.empty(len(codes), dtype=bool)
    begins[:1] = True
    np.not_equal(classes[1:], classes[:-1], out=begins[1:])
    begins |= classes == ALONE
    begins &= classes != SPACE
    starts = np.flatnonzero(begins)
    if not len(starts):
        return Grams(np.zeros(0, np.uint64), np.zeros(0, np.int64))
    inside = classes != SPACE
    letters, belongs = codes[inside], np.cumsum(begins)[inside] - 1
    firsts = np.flatnonzero(begins[inside])
    places = (np.arange(len(letters)) - firsts[belongs]) % CYCLE
    words = _mixed(np.add.reduceat(_mixed(letters.astype(np.uint64) + np.uint64(1)) * _factors()[places], firsts))
    ends = np.cumsum([len(text) + 1 for text in lowered])
    of_text = np.searchsorted(ends, starts, side="right")
    neighbours = of_text[1:] == of_text[:-1]
    pairs = _mixed(words[:-1] * MULTIPLIER + words[1:])[neighbours]
    return Grams(np.concatenate([words, pairs]), np.concatenate([of_text, of_text[1:][neighbours]]))


@cache
def _factors() -> UInt64[np.ndarray, " places"]:
    return _mixed(np.arange(1, CYCLE + 1, dtype=np.uint64) * MULTIPLIER) | np.uint64(1)


def _mixed(numbers: UInt64[np.ndarray, " some"]) -> UInt64[np.ndarray, " some"]:
    """Spread numbers over all 64 bits (https://prng.di.unimi.it/splitmix64.c)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
