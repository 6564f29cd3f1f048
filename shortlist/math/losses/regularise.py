"""Losses that keep scores near the start model's, or losses from growing with feedback."""

from jaxtyping import Float, Int
from torch import Tensor

from shortlist.math.losses.lists import log_softmax, ordered_pairs, row_means
from shortlist.math.ranking import Ranking


def anchor(ranking: Ranking, *, temperature: float = 1.0) -> Float[Tensor, ""]:
    """Stay near the model that training started from.

    The loss is the Kullback-Leibler divergence KL(model, start) between the softmax of the scores and that of the start
    model's, over all documents that count and that the start model scored, averaged over queries. A ranking's policy is
    a softmax over its list, so this is exact, without samples. It needs no judgements: lists of unjudged queries do as
    well. With a large weight beside other losses, the model keeps its order.

    Args:
        temperature: divides the scores of both.

    Raises:
        ValueError: the start model's scores are missing.

    https://arxiv.org/abs/2406.01462
    """
    if ranking.start is None:
        raise ValueError("anchor compares with the start model's scores, and there are none")
    counts = ranking.keep & ~ranking.start.isnan()
    given, start = (log_softmax(part.float() / temperature, counts) for part in (ranking.scores, ranking.start))
    return (given.exp() * (given - start)).sum(1).mean()


def bands(
    ranking: Ranking, *, margin: float = 0.1, pull: float = 1.0, epsilon: float = 0.01, levels: int = 5
) -> Float[Tensor, ""]:
    """Give each grade a band of scores that means the same for every query.

    The scores are logits: a document's value f is the sigmoid of its score. With `levels` grades, the band of grade y
    is centred at (y + 0.5) / levels; with 5 that is y / 5 + 0.1. The loss is a hinge over pairs of a query whose grades
    differ, max(0, margin - (f - f')), averaged over pairs, plus `pull` times max(0, (f - centre)^2 - epsilon), averaged
    over documents; both are averaged over queries. It is meant for rerankers: for a retriever, all documents of other
    queries would be drawn into the lowest band.

    Args:
        margin: the least distance of f for two grades.
        pull: weight of the bands beside the hinge.
        epsilon: the square of half a band's width: 0.01 lets f be 0.1 above or below the centre.
        levels: number of grades, from 0 to levels - 1; higher ones count as the highest.

    https://arxiv.org/abs/2105.11108
    """
    values = ranking.scores.float().masked_fill(~ranking.keep, 0).sigmoid()
    pairs = ordered_pairs(values, ranking.relevance, ranking.keep)
    grades = ranking.relevance.float().masked_fill(~ranking.keep, 0).clamp(0, levels - 1)
    outside = ((values - (grades + 0.5) / levels).square() - epsilon).clamp(min=0)
    return row_means((margin - pairs.margins).clamp(min=0), pairs.counts) + pull * row_means(outside, ranking.keep)


def lol(
    losses: Float[Tensor, "versions queries"], depths: Int[Tensor, "versions queries"], *, margin: float = 0.0
) -> Float[Tensor, ""]:
    """Charge queries for losing more with more feedback documents than with fewer (LoL).

    It is max(0, L(deeper) - L(shallower) + margin), averaged over all pairs of a query's versions, one of which has
    more documents than the other. Both losses have a gradient, so the shallower one is pushed up.

    Args:
        losses: each query's loss, once for each version of the query.
        depths: the number of documents that each version was read with.
        margin: how much less a deeper version must lose.

    https://arxiv.org/abs/2204.11545
    """
    deeper = depths[:, None] > depths[None]
    excess = (losses[:, None] - losses[None] + margin).clamp(min=0)
    return excess.masked_fill(~deeper, 0).sum() / deeper.sum().clamp(min=1)
