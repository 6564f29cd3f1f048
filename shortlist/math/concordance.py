"""Concordance of two orders, of systems by value or of documents by rank."""

import numpy as np
from jaxtyping import Float, Int


def kendall_tau(one: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]) -> float:
    """Compute Kendall's tau-b, the agreement of two lists of scores on the order.

    The value is 1 for the same order and -1 for the opposite one; ties count half. It is 1 if all scores of a list are
    equal. Every pair of items is compared, so this is meant for a few hundred items.

    https://doi.org/10.1093/biomet/33.3.239
    """
    first, second = (np.sign(scores[:, None] - scores[None]) for scores in (one, other))
    ordered = np.sqrt((first * first).sum() * (second * second).sum())
    return float((first * second).sum() / ordered) if ordered else 1.0


def tau_ap(reference: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]) -> float:
    """Compute the rank correlation of average precision, in which errors at the top weigh most.

    For every item below the first of `other`, the share of the items above it that the reference has above it too is
    computed; the mean of these shares is scaled to 1 for the same order and -1 for the opposite one. A tie in the
    reference counts half, and items that tie in `other` are not above each other. It is 1 if `other` has no order.

    Args:
        reference: the true scores, higher is better.
        other: the scores whose order is judged; swapping the two gives another value.

    https://doi.org/10.1145/1390334.1390435
    """
    above = other[None] > other[:, None]
    right = (np.sign(reference[None] - reference[:, None]) + 1) / 2
    num_above = above.sum(1)
    shares = (above * right).sum(1)[num_above > 0] / num_above[num_above > 0]
    return float(2 * shares.mean() - 1) if len(shares) else 1.0


def top_tau(reference: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"], k: int) -> float:
    """Compute Kendall's tau over the k best items of the reference.

    Equal ones are taken in their order.
    """
    best = np.argsort(-reference, kind="stable")[:k]
    return kendall_tau(reference[best], other[best])


def rank_moves(
    reference: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " items"]]:
    """Return the rank of every item in both orders, counted from 1.

    Equal scores share the better rank.
    """
    ranks = [(scores[None] > scores[:, None]).sum(1) + 1 for scores in (reference, other)]
    return ranks[0], ranks[1]


def rank_biased_overlap(
    one: Int[np.ndarray, " first"], other: Int[np.ndarray, " second"], *, persistence: float = 0.9
) -> float:
    """Compute the rank-biased overlap of two lists of numbered items, extrapolated beyond their ends.

    A reader goes on to the next rank with probability `persistence`, and the overlap of the two lists is averaged over
    where the reader stops: with 0.9 the first ten ranks have 86% of the weight. The value is 1 for equal lists and 0
    for lists without a common item. Beyond the shorter list its overlap is taken to go on at the same rate.

    Args:
        one: items of a list, best first, each once.
        other: items of the other list, which may be shorter or longer.

    https://doi.org/10.1145/1852102.1852106 (equation 32)
    """
    short, long = sorted((one, other), key=len)
    if not len(short):
        return 1.0 if not len(long) else 0.0
    places = {item: place for place, item in enumerate(short.tolist(), 1)}
    meeting = np.array([max(place, places.get(item, len(long) + 1)) for place, item in enumerate(long.tolist(), 1)])
    depths = np.arange(1, len(long) + 1)
    overlap = np.cumsum(np.bincount(meeting, minlength=len(long) + 2)[1 : len(long) + 1])
    at_short, at_long = overlap[len(short) - 1], overlap[-1]
    weights = persistence**depths
    beyond = depths[len(short) :]
    known = (overlap / depths * weights).sum()
    assumed = (at_short * (beyond - len(short)) / (len(short) * beyond) * weights[len(short) :]).sum()
    rest = ((at_long - at_short) / len(long) + at_short / len(short)) * weights[-1]
    return float((1 - persistence) / persistence * (known + assumed) + rest)
