"""Orders of one query's candidates that trade relevance for variety.

Both methods choose documents one after another, each the best beside those chosen before.
"""

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.aspects import ALPHA

Relevance = Float[np.ndarray, " docs"]
"""Relevance of each candidate to the query, on the scale of what it is weighed against."""
HOT = 128
"""Candidates that are compared with each choice at once; the others wait until they may be chosen."""
SELDOM = 8
"""Choices between two comparisons of all candidates, below which twice as many are compared at once from then on."""


def scaled(scores: Float[np.ndarray, " docs"]) -> Relevance:
    """Scale scores to [0, 1]; equal scores all become 1."""
    if not len(scores):
        return scores
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))


def unit_rows(vectors: Float[np.ndarray, "docs dim"]) -> Float[np.ndarray, "docs dim"]:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def mmr(
    relevance: Relevance, vectors: Float[np.ndarray, "docs dim"], *, k: int, share: float = 0.7
) -> Int[np.ndarray, " chosen"]:
    """Choose documents by maximal marginal relevance.

    The next one has the highest share * relevance - (1 - share) * (highest dot product with a chosen one). This value
    can only fall, so that one from before bounds it: after each choice only the HOT best are compared with what was
    chosen, and all others once the best of these falls below their bound. Values are computed in 32 bits.

    Args:
        relevance: of each candidate.
        vectors: of each candidate, of length 1.
        k: most documents to choose.
        share: weight of relevance, 0 to 1.

    Returns:
        Places of the chosen candidates, in order. Of equally good ones the first is chosen.

    https://doi.org/10.1145/290941.291025
    """
    num_docs, dim = vectors.shape
    k, num_hot = min(k, num_docs), HOT
    if not k:
        return np.zeros(0, dtype=np.int64)
    vectors, weighed = vectors.astype(np.float32, copy=False), (share * relevance).astype(np.float32)
    values, compared = np.full(num_docs, np.inf, dtype=np.float32), np.zeros(num_docs, dtype=np.int64)
    against = np.empty((k, dim), dtype=np.float32)  # its products with candidates are what they lose by a choice
    chosen = [int(relevance.argmax())]
    against[0], values[chosen[0]] = (share - 1) * vectors[chosen[0]], -np.inf
    hot, bound, last = np.zeros(0, dtype=np.int64), np.inf, 0
    rows, hot_values, hot_weighed = vectors[:0], values[:0], weighed[:0]
    while len(chosen) < k:
        at = int(hot_values.argmax()) if len(hot) else -1
        if at >= 0 and hot_values[at] > bound:
            place = int(hot[at])
            hot_values[at] = -np.inf
        else:
            if len(hot) and len(chosen) - last < SELDOM:
                num_hot *= 2
            values[hot], compared[hot], last = hot_values, len(chosen), len(chosen)
            above = int((values >= (hot_values[at] if len(hot) else -np.inf)).sum())  # no other can be the best one
            some = _best(values, max(above, num_hot))
            new = against[compared[some].min() : last]
            read = vectors if len(some) == num_docs else vectors[some]
            values[some] = np.minimum(values[some], weighed[some] + (new @ read.T).min(0, initial=np.inf))
            compared[some] = last
            place = int(values.argmax())
            values[place] = -np.inf
            hot = some[_best(values[some], num_hot)]
            hot_values, rows, hot_weighed = values[hot], vectors[hot], weighed[hot]
            values[hot] = -np.inf
            bound = values.max()
        np.multiply(vectors[place], share - 1, out=against[len(chosen)])
        np.minimum(hot_values, rows @ against[len(chosen)] + hot_weighed, out=hot_values)
        chosen.append(place)
    return np.array(chosen, dtype=np.int64)


def _best(values: Float[np.ndarray, " docs"], count: int) -> Int[np.ndarray, " best"]:
    """Return the places of the highest values, ascending."""
    if count >= len(values):
        return np.arange(len(values))
    return np.sort(np.argpartition(values, -count)[-count:])


def cover(
    relevance: Relevance,
    aspects: Float[np.ndarray, "aspects docs"],
    *,
    k: int,
    share: float = 0.5,
    alpha: float = ALPHA,
) -> Int[np.ndarray, " chosen"]:
    """Choose documents that cover the aspects of a query.

    The next one has the highest share * relevance + (1 - share) * (what it adds to the aspects). A document that
    answers an aspect fully is worth 1 / number of aspects, and takes away the share `alpha` of what later ones are
    worth to this aspect.

    Args:
        relevance: of each candidate, between 0 and 1.
        aspects: how well each candidate answers each aspect, between 0 and 1.
        k: most documents to choose.
        share: weight of relevance, 0 to 1.
        alpha: 1 is xQuAD, where an aspect that is answered fully counts no more; 1/2 is the novelty of alpha-nDCG.

    Returns:
        Places of the chosen candidates, in order. Of equally good ones the first is chosen.

    https://doi.org/10.1145/1772690.1772780
    """
    left = np.full(len(aspects), 1 / max(1, len(aspects)))
    weighed, chosen = share * relevance, list[int]()
    while len(chosen) < min(k, len(relevance)):
        place = int((weighed + (1 - share) * (left @ aspects)).argmax())
        chosen.append(place)
        weighed = weighed.copy()
        weighed[place] = -np.inf
        left = left * (1 - alpha * aspects[:, place])
    return np.array(chosen, dtype=np.int64)


def ideal_cover(aspects: Float[np.ndarray, "aspects docs"], *, k: int) -> Int[np.ndarray, " chosen"]:
    """Choose documents as a ranker is taught to that answers all aspects early.

    The next one has the highest gain: how well it answers each aspect, times how far the chosen ones are from answering
    it fully, as shares of what all aspects lack. Once every aspect has the best answer that a candidate gives, nothing
    counts as answered.

    Args:
        aspects: how well each candidate answers each aspect, between 0 and 1.
        k: most documents to choose.

    Returns:
        Places of the chosen candidates, in order. Of equally good ones the first is chosen.

    https://arxiv.org/abs/2406.12566
    """
    best, answered = aspects.max(1, initial=0), np.zeros(len(aspects))
    is_left, chosen = np.ones(aspects.shape[1], dtype=bool), list[int]()
    while len(chosen) < min(k, aspects.shape[1]):
        lacking = 1 - answered
        gains = lacking / lacking.sum() @ aspects
        place = int(np.where(is_left, gains, -np.inf).argmax())
        chosen.append(place)
        is_left[place] = False
        answered = np.maximum(answered, aspects[:, place])
        if (answered == best).all():
            answered = np.zeros(len(aspects))
    return np.array(chosen, dtype=np.int64)
