"""How much a word in a document says: BM25 as Lucene computes it, with exact document lengths.

https://cs.uwaterloo.ca/~jimmylin/publications/Kamphuis_etal_ECIR2020_preprint.pdf
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Int


def rarity(frequencies: Int[np.ndarray, " words"], num_docs: int) -> Float32[np.ndarray, " words"]:
    """The inverse document frequency of words, ln(1 + (N - n + 1/2) / (n + 1/2)).

    Args:
        frequencies: n, the documents that hold each word.
        num_docs: N, all documents.
    """
    distinct, places = np.unique(frequencies, return_inverse=True)
    values = [math.log(1 + (num_docs - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, dtype=np.float32)[places]


def length_penalty(lengths: Int[np.ndarray, " docs"], *, k1: float, b: float) -> Float[np.ndarray, " docs"]:
    """What documents' lengths add to the denominator of `bm25`: k1 (1 - b + b length / mean length)."""
    return k1 * ((1 - b) + b * lengths / lengths.mean())


def bm25(
    counts: Int[np.ndarray, " postings"],
    rarities: Float32[np.ndarray, " postings"],
    penalties: Float[np.ndarray, " postings"],
) -> Float32[np.ndarray, " postings"]:
    """What a word that a document holds `count` times adds to its score: rarity * count / (count + penalty).

    Args:
        counts: how often the document holds the word.
        rarities: the word's `rarity`.
        penalties: the document's `length_penalty`.
    """
    return (rarities * (counts / (penalties + counts))).astype(np.float32)
