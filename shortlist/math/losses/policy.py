"""Losses that train a ranking policy on rewards of sampled rankings."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortlist.math.losses.lists import discounts, ideal_dcg
from shortlist.math.ranking import Ranking

Reward = Callable[[Float[Tensor, "queries samples k"], Float[Tensor, "queries docs"]], Float[Tensor, "queries samples"]]
"""A function of the grades of sampled documents, best first, and of the grades of the whole list."""


def policy(
    ranking: Ranking,
    *,
    samples: int = 8,
    reward: Literal["ndcg", "mrr", "recall"] = "ndcg",
    k: int = 10,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Raise the expected reward of rankings drawn from the scores (Neural PG-RANK).

    A ranking is drawn document by document, each by softmax of the scores from those that are left (Plackett-Luce).
    The value of the loss is minus the mean reward. Its gradient is the policy gradient: the gradient of each ranking's
    log-probability, weighed by how much more reward it got than the query's other samples did on average. Only the
    first k places are drawn, as the rewards see no others. A query whose samples have equal rewards, such as one
    without a positive, teaches nothing.

    Args:
        samples: rankings drawn for each query, at least 2.
        reward: `ndcg`, `mrr` (the reciprocal rank of the first relevant document) or `recall` (the share of relevant
            documents found), each at k.
        k: places that are drawn and rewarded.
        temperature: divides the scores; the higher it is, the more the samples differ.

    https://arxiv.org/abs/2310.04407
    """
    scores = ranking.scores.float() / temperature
    scores = scores.masked_fill(~ranking.keep, torch.finfo(torch.float32).min / 4)  # not -inf, which has no gradient
    chosen = _sample(scores.detach(), samples, k)
    grades = ranking.relevance.float().masked_fill(~ranking.keep, 0).clamp(min=0)
    real = _spread(ranking.keep, samples).gather(2, chosen)
    rewards = REWARDS[reward](_spread(grades, samples).gather(2, chosen).masked_fill(~real, 0), grades)
    above_others = (samples * rewards - rewards.sum(1, keepdim=True)) / (samples - 1)  # minus the mean of the others
    surrogate = -(above_others * _log_probs(scores, chosen, real)).mean()
    return surrogate - surrogate.detach() - rewards.mean()


def _ndcg(found: Float[Tensor, "queries samples k"], grades: Float[Tensor, "queries docs"]) -> Float[Tensor, "..."]:
    """Compute nDCG@k; grades count as they are."""
    places = found.shape[2]
    return (found * discounts(places, device=found.device)).sum(2) / ideal_dcg(grades, places)


def _mrr(found: Float[Tensor, "queries samples k"], grades: Float[Tensor, "queries docs"]) -> Float[Tensor, "..."]:
    """Compute the reciprocal rank of the first relevant document; 0 if it is not found."""
    return ((found > 0) / torch.arange(1, found.shape[2] + 1, device=found.device)).amax(2)


def _recall(found: Float[Tensor, "queries samples k"], grades: Float[Tensor, "queries docs"]) -> Float[Tensor, "..."]:
    """Compute the share of the relevant documents that is found."""
    return (found > 0).sum(2) / (grades > 0).sum(1, keepdim=True).clamp(min=1)


REWARDS: dict[str, Reward] = {"ndcg": _ndcg, "mrr": _mrr, "recall": _recall}


def _sample(scores: Float[Tensor, "queries docs"], samples: int, k: int) -> Tensor:
    """Draw the first k places of rankings, from the Plackett-Luce model.

    The highest scores after adding Gumbel noise are such a sample.
    """
    noise = -torch.empty(len(scores), samples, scores.shape[1], device=scores.device).exponential_().log()
    return (scores[:, None, :] + noise).topk(min(k, scores.shape[1])).indices


def _log_probs(
    scores: Float[Tensor, "queries docs"], chosen: Tensor, real: Bool[Tensor, "queries samples k"]
) -> Float[Tensor, "queries samples"]:
    """Compute the log-probability of drawing these documents in this order."""
    everything = _spread(scores, chosen.shape[1])
    picked = everything.gather(2, chosen)
    never = torch.finfo(torch.float32).min / 4
    rest = everything.scatter(2, chosen, never).logsumexp(2, keepdim=True)
    left = torch.cat([rest, picked.flip(2)], 2).logcumsumexp(2)[:, :, 1:].flip(2)  # those at and behind each place
    return (picked - left).masked_fill(~real, 0).sum(2)


def _spread(values: Tensor, samples: int) -> Tensor:
    return values[:, None, :].expand(-1, samples, -1)
