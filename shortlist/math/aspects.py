"""Measures of variety: which aspects of a query the first documents cover.

A list of one query is an array that says which document is about which aspect.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

About = Bool[np.ndarray, "_ aspects"]
"""Whether a document, best first, is relevant to each aspect of the query."""

ALPHA = 0.5
"""Share of an aspect's worth that each earlier document about it takes away, as in ndeval."""
GOES_ON = 0.5
"""Probability that NRBP's reader looks at the next document, as in ndeval."""
NEED_NO_CUTOFF = ("AP_IA", "NRBP")
"""Measures that need no cutoff."""
WITHOUT_ALPHA = ("StRecall", "AP_IA")


def novelty(about: About, *, alpha: float = ALPHA) -> Float[np.ndarray, " docs"]:
    """Compute what each document adds to the ones above it.

    A new aspect is worth 1, and every document about it above takes the share `alpha` away.
    """
    above = np.cumsum(about, axis=0) - about
    return (about * (1 - alpha) ** above).sum(1)


def alpha_ndcg(about: About, judged: About, *, cutoff: int, alpha: float = ALPHA) -> float:
    """Compute alpha-nDCG: the discounted gains as a share of the best list's.

    The best list is found greedily.

    Args:
        about: the documents that were found, best first.
        judged: all documents with a judgement, in any order.

    https://doi.org/10.1145/1390334.1390446
    """
    best = _dcg(novelty(_greedy(judged, cutoff, alpha), alpha=alpha))
    return float(_dcg(novelty(about[:cutoff], alpha=alpha)) / best) if best else 0.0


def _dcg(worth: Float[np.ndarray, " docs"]) -> float:
    return (worth / np.log2(np.arange(len(worth)) + 2)).sum()


def _greedy(judged: About, cutoff: int, alpha: float) -> About:
    """Order documents so that each next one adds most."""
    left, seen, order = list(range(len(judged))), np.zeros(judged.shape[1]), list[int]()
    while left and len(order) < cutoff:
        worth = (judged[left] * (1 - alpha) ** seen).sum(1)
        order.append(left.pop(int(worth.argmax())))
        seen += judged[order[-1]]
    return judged[order]


def err_ia(about: About, judged: About, *, cutoff: int, alpha: float = ALPHA) -> float:
    """Compute the intent-aware expected reciprocal rank, averaged over the aspects.

    As in ndeval, it is divided by the value of a list in which every document is about every aspect.

    https://doi.org/10.1145/1645953.1646033
    """
    places = np.arange(1, cutoff + 1)
    most = ((1 - alpha) ** (places - 1) / places).sum() * judged.any(0).sum()
    worth = novelty(about[:cutoff], alpha=alpha)
    return float((worth / places[: len(worth)]).sum() / most) if most else 0.0


def subtopic_recall(about: About, judged: About, *, cutoff: int) -> float:
    """Compute the share of the aspects that some document up to the cutoff is about.

    https://doi.org/10.1145/860435.860440
    """
    known = judged.any(0)
    return float(np.any(about[:cutoff], axis=0)[known].mean()) if known.any() else 0.0


def map_ia(about: About, judged: About, *, cutoff: int | None = None) -> float:
    """Compute the intent-aware average precision: the mean over the aspects.

    Args:
        about: the documents that were found, best first.
        judged: all documents with a judgement, in any order.
        cutoff: number of documents to look at (None: all).

    https://doi.org/10.1145/1498759.1498766
    """
    relevant = judged.sum(0)
    known, seen = relevant > 0, about[:cutoff]
    precision = np.cumsum(seen, axis=0) / np.arange(1, len(seen) + 1)[:, None]
    return float(((precision * seen).sum(0)[known] / relevant[known]).mean()) if known.any() else 0.0


def nrbp(about: About, judged: About, *, cutoff: int | None = None, alpha: float = ALPHA) -> float:
    """Compute the novelty- and rank-biased precision of a reader who goes on with probability 1/2.

    As in ndeval, it is divided by the value of an endless list in which every document is about every aspect.

    https://doi.org/10.1007/978-3-642-04417-5_17
    """
    worth = novelty(about[:cutoff], alpha=alpha)
    most = judged.any(0).sum() / (1 - (1 - alpha) * GOES_ON)
    return float((worth * GOES_ON ** np.arange(len(worth))).sum() / most) if most else 0.0


ASPECT_MEASURES: dict[str, Callable[..., float]] = {
    "alpha_nDCG": alpha_ndcg,
    "ERR_IA": err_ia,
    "StRecall": subtopic_recall,
    "AP_IA": map_ia,
    "NRBP": nrbp,
}
"""The measures, by their names in ir_measures."""
