"""BM25 weights of words in documents, computed as in Lucene but with exact document lengths.

https://cs.uwaterloo.ca/~jimmylin/publications/Kamphuis_etal_ECIR2020_preprint.pdf
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Int


def rarity(frequencies: Int[np.ndarray, " words"], num_docs: int) -> Float32[np.ndarray, " words"]:
    """Compute the inverse document frequency of words.

    It is ln(1 + (N - n + 1/2) / (n + 1/2)).

    Args:
        frequencies: n, the number of documents that hold each word.
        num_docs: N, the number of all documents.
    """
    distinct, places = np.unique(frequencies, return_inverse=True)
    values = [math.log(1 + (num_docs - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, dtype=np.float32)[places]


def length_penalty(lengths: Int[np.ndarray, " docs"], *, k1: float, b: float) -> Float[np.ndarray, " docs"]:
    """Compute the part of the denominator of `bm25` that depends on the documents' lengths.

    It is k1 (1 - b + b length / mean length).
    """
    return k1 * ((1 - b) + b * lengths / lengths.mean())


def bm25(
    counts: Int[np.ndarray, " postings"],
    rarities: Float32[np.ndarray, " postings"],
    penalties: Float[np.ndarray, " postings"],
) -> Float32[np.ndarray, " postings"]:
    """Compute how much each word adds to a document's score.

    It is rarity * count / (count + penalty).

    Args:
        counts: how often the document holds the word.
        rarities: the `rarity` of the word.
        penalties: the `length_penalty` of the document.
    """
    return (rarities * (counts / (penalties + counts))).astype(np.float32)
