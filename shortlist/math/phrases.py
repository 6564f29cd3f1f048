"""Phrases of neighbouring texts, scored by how much they say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.terms import TermWeights

PHRASE_WORDS = 3
LENGTH_PRIOR = 0.25
"""Added to a phrase's length; it keeps single words from winning always."""
COMMON = 1.5
"""Power of the share of neighbours that hold a phrase."""
OWN_SHARE = 0.8
"""Share of a document's own term weights beside those of its neighbours."""


class Phrases(NamedTuple):
    """Distinct phrases of some texts."""

    words: Int[np.ndarray, "phrases longest"]
    """Numbers of the words; -1 after the last one."""
    shares: Float[np.ndarray, " phrases"]
    """Share of the texts that hold each, weighted by their similarity."""
    counts: Int[np.ndarray, " phrases"]
    """Number of the texts that hold each."""


def phrases_of(texts: Sequence[Int[np.ndarray, " _"]], similarities: Float[np.ndarray, " texts"]) -> Phrases:
    """Collect the runs of one to three words in texts.

    Args:
        texts: numbers of the words of each; -1 ends a phrase, as for stop words and signs.
        similarities: how near each text is, 0 or more, not all 0.
    """
    words = np.concatenate([np.append(text, -1) for text in texts]).astype(np.int64)
    owners = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    known, local = np.unique(np.append(words, -1), return_inverse=True)  # 0 is now the end of a phrase
    local, base = local[:-1], len(known)
    keys = []
    for length in range(1, PHRASE_WORDS + 1):  # a key has a digit for each word, and ends with the text's number
        parts = [local[start : len(local) - length + 1 + start] for start in range(length)]
        whole = np.all([part > 0 for part in parts], axis=0)
        key = np.zeros(int(whole.sum()), dtype=np.int64)
        for place in range(PHRASE_WORDS):
            key = key * base + (parts[place][whole] if place < length else 0)
        keys.append(key * len(texts) + owners[: len(whole)][whole])
    both = np.unique(np.concatenate(keys))
    distinct, numbers, counts = np.unique(both // len(texts), return_inverse=True, return_counts=True)
    shares = np.bincount(numbers, weights=similarities[both % len(texts)], minlength=len(distinct))
    digits = np.stack([distinct // base**power % base for power in range(PHRASE_WORDS - 1, -1, -1)], axis=1)
    return Phrases(known[digits], shares / similarities.sum(), counts)


def phrase_scores(phrases: Phrases, informativeness: Float[np.ndarray, " words"]) -> Float[np.ndarray, " phrases"]:
    """Score phrases by how much their words say and how many texts hold them.

    The score is the sum of informativeness over length + 0.25, times the share of texts to the power of 1.5.

    Args:
        informativeness: by the number of a word, such as its inverse document frequency.

    https://arxiv.org/abs/2505.24219
    """
    there = phrases.words >= 0
    sums = np.where(there, informativeness[phrases.words], 0).sum(1)
    return sums / (there.sum(1) + LENGTH_PRIOR) * phrases.shares**COMMON


def informativeness(
    documents: TermWeights, similarities: Float[np.ndarray, " neighbours"], *, num_terms: int, own: float = OWN_SHARE
) -> Float[np.ndarray, " terms"]:
    """Compute how much each term says of a document and its neighbours.

    Args:
        documents: the document, then its neighbours. A text without weights of its own has no term.
        similarities: how near each neighbour is, 0 or more, not all 0.
        num_terms: the size of the vocabulary.
        own: share of the document's own weights.

    https://arxiv.org/abs/2505.24219
    """
    shares = np.append(own, (1 - own) * similarities / similarities.sum())
    weighed = documents.weights * np.repeat(shares, documents.counts)
    return np.bincount(documents.terms, weights=weighed, minlength=num_terms)
