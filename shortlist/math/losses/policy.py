"""Losses that train a policy on the rewards of what it sampled: rankings or answers."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.losses.lists import discounts, ideal_dcg
from shortlist.math.ranking import Ranking, Rollout

LengthTerm = Literal["none", "multiplied", "added"]
"""How ORPO counts that one sample is shorter."""
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
    chosen = draw_rankings(ranking, samples=samples, k=k, temperature=temperature)
    return pg(ranked(ranking, chosen, reward=reward, temperature=temperature))


def pg(rollout: Rollout) -> Float[Tensor, ""]:
    """Weigh each sample's log-probability by its reward above the others' mean (REINFORCE).

    The others are those of the same question. The value of the loss is minus the mean reward.

    https://arxiv.org/abs/2310.04407
    """
    samples, rewards = rollout.rewards.shape[1], rollout.rewards
    above_others = (samples * rewards - rewards.sum(1, keepdim=True)) / (samples - 1)
    surrogate = -(above_others * _totals(rollout.log_probs, rollout.keep)).mean()
    return surrogate - surrogate.detach() - rewards.mean()


def grpo(rollout: Rollout, *, clip: float = 0.2, kl: float = 0.001) -> Float[Tensor, ""]:
    """Follow rewards normalised within each question, and stay near the start model.

    A sample's advantage is its reward less the mean of its question's, over their standard deviation. Each step counts
    by how much likelier it is than when it was drawn, within the clip. Steps are averaged within a sample, then over
    samples.

    Args:
        clip: how far from 1 the ratio of probabilities still counts.
        kl: weight of the estimated divergence from the start model, at each step.

    https://arxiv.org/abs/2402.03300
    """
    steps = _clipped(rollout, group_advantages(rollout.rewards), 1 - clip, 1 + clip) + _divergence(rollout, kl)
    return (_totals(steps, rollout.keep) / rollout.keep.sum(2).clamp(min=1)).mean()


def dr_grpo(rollout: Rollout, *, clip: float = 0.2, kl: float = 0.0) -> Float[Tensor, ""]:
    """Follow rewards as GRPO, without its two divisions.

    These favour easy questions and long wrong answers. An advantage is not divided by the standard deviation, and a
    sample's steps are divided by the most that a sample may have instead of by their number.

    Args:
        clip: as for `grpo`, like `kl`.

    https://arxiv.org/abs/2503.20783
    """
    advantages = rollout.rewards - rollout.rewards.mean(1, keepdim=True)
    steps = _clipped(rollout, advantages, 1 - clip, 1 + clip) + _divergence(rollout, kl)
    return (_totals(steps, rollout.keep) / rollout.most).mean()


def dapo(rollout: Rollout, *, clip: float = 0.2, clip_above: float = 0.28) -> Float[Tensor, ""]:
    """Follow rewards as GRPO, with all steps alike and more room above.

    Nothing pulls to the start model. Questions whose samples have equal rewards do not count.

    Args:
        clip: how far below 1 the ratio of probabilities still counts.
        clip_above: how far above 1 it does.

    https://arxiv.org/abs/2503.14476
    """
    differ = (rollout.rewards != rollout.rewards[:, :1]).any(1)
    keep = rollout.keep & differ[:, None, None]
    steps = _clipped(rollout, group_advantages(rollout.rewards), 1 - clip, 1 + clip_above)
    return _totals(steps, keep).sum() / keep.sum().clamp(min=1)


def dpo(rollout: Rollout, *, beta: float = 0.1) -> Float[Tensor, ""]:
    """Prefer each question's best sample to its worst, compared with what the start model prefers.

    Of samples with equal rewards the first one counts. A question whose samples all have equal rewards does not count.

    Args:
        beta: how sure a preference has to be; the lower, the further the model moves from its start.

    Raises:
        ValueError: the start model's log-probabilities are missing.

    https://arxiv.org/abs/2305.18290
    """
    moved = _totals(rollout.log_probs - _start_of(rollout, "dpo"), rollout.keep)
    best, worst = rollout.rewards.argmax(1, keepdim=True), rollout.rewards.argmin(1, keepdim=True)
    losses = F.softplus(-beta * (moved.gather(1, best) - moved.gather(1, worst)))
    return (losses * (best != worst)).sum() / (best != worst).sum().clamp(min=1)


def orpo(
    rollout: Rollout, *, beta: float = 0.1, length: LengthTerm = "none", per_token: float = 0.1
) -> Float[Tensor, ""]:
    """Learn each question's best sample, and prefer its odds to the worst one's.

    No start model is needed. A sample's probability is that of its mean step, and its odds are p / (1 - p). The value
    is minus the mean log-probability of the best sample's steps, plus beta times -log sigmoid of the logarithm of the
    ratio of odds. CoLoR, which trains a writer of short texts, lets that logarithm depend on how much shorter the best
    sample is. Of samples with equal rewards the first one counts, and a question whose samples all have equal rewards
    does not count.

    Args:
        beta: weight of the preference; CoLoR has 2.5.
        length: `multiplied` multiplies the logarithm by `per_token` for each step that the best sample is shorter by,
            and at least by 1, as CoLoR's code does; `added` adds as much to it, and at least 0; `none` leaves it.
        per_token: what a step counts.

    https://arxiv.org/abs/2403.07691
    """
    lengths = rollout.keep.sum(2)
    means = _totals(rollout.log_probs, rollout.keep) / lengths.clamp(min=1)
    best, worst = rollout.rewards.argmax(1, keepdim=True), rollout.rewards.argmin(1, keepdim=True)
    log_odds = _log_odds(means.gather(1, best)) - _log_odds(means.gather(1, worst))
    shorter = per_token * (lengths.gather(1, worst) - lengths.gather(1, best))
    losses = beta * F.softplus(-LENGTH_TERMS[length](log_odds, shorter)) - means.gather(1, best)
    return (losses * (best != worst)).sum() / (best != worst).sum().clamp(min=1)


LENGTH_TERMS: dict[str, Callable[[Float[Tensor, "questions 1"], Float[Tensor, "questions 1"]], Tensor]] = {
    "none": lambda log_odds, shorter: log_odds,
    "multiplied": lambda log_odds, shorter: log_odds * shorter.clamp(min=1),
    "added": lambda log_odds, shorter: log_odds + shorter.clamp(min=0),
}
"""What ORPO makes of the logarithm of the ratio of odds, where one sample is shorter."""


def _log_odds(log_probs: Float[Tensor, "questions 1"]) -> Float[Tensor, "questions 1"]:
    below_0 = log_probs.clamp(max=-1e-6)  # a certain sample has infinite odds
    return below_0 - torch.log(-torch.expm1(below_0))


def k3(
    log_probs: Float[Tensor, "questions samples steps"], start: Float[Tensor, "questions samples steps"]
) -> Float[Tensor, "questions samples steps"]:
    """Estimate the divergence KL(model, start) from sampled steps.

    It is r - log r - 1, with r = p(start) / p(model), which is never below 0, and varies less than -log r, whose mean
    is the same.

    http://joschu.net/blog/kl-approx.html
    """
    log_ratio = start - log_probs
    return log_ratio.exp() - log_ratio - 1


def group_advantages(rewards: Float[Tensor, "questions samples"]) -> Float[Tensor, "questions samples"]:
    """Normalise rewards within each question: less their mean, over their standard deviation."""
    deviations = rewards.std(1, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)) / (deviations + 1e-6)


def _clipped(
    rollout: Rollout, advantages: Float[Tensor, "questions samples"], low: float, high: float
) -> Float[Tensor, "questions samples steps"]:
    """Compute minus the advantage of each step, times the ratio of probabilities within the clip."""
    ratios = (rollout.log_probs - rollout.before).exp()
    each = advantages[:, :, None]
    return -torch.minimum(ratios * each, ratios.clamp(low, high) * each)


def _divergence(rollout: Rollout, weight: float) -> Float[Tensor, "questions samples steps"] | float:
    return weight * k3(rollout.log_probs, _start_of(rollout, "kl")) if weight else 0.0


def _start_of(rollout: Rollout, name: str) -> Float[Tensor, "questions samples steps"]:
    if rollout.start is None:
        raise ValueError(f"{name} compares with the start model's log-probabilities, and there are none")
    return rollout.start


def _totals(
    values: Float[Tensor, "questions samples steps"], keep: Bool[Tensor, "questions samples steps"]
) -> Float[Tensor, "questions samples"]:
    return values.masked_fill(~keep, 0).sum(2)


POLICIES: dict[str, Callable[..., Float[Tensor, ""]]] = {
    "pg": pg,
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "dapo": dapo,
    "dpo": dpo,
    "orpo": orpo,
}
"""Losses of a Rollout, by the names that `train --policy` takes."""


def draw_rankings(
    ranking: Ranking, *, samples: int, k: int, temperature: float = 1.0
) -> Int[Tensor, "queries samples k"]:
    """Draw the first k places of rankings from the scores (Plackett-Luce).

    They are columns of documents, best first. The highest scores after adding Gumbel noise are such a sample.
    """
    return _sample(_masked(ranking.scores, ranking.keep, temperature).detach(), samples, k)


def ranked(
    ranking: Ranking,
    chosen: Int[Tensor, "queries samples k"],
    *,
    reward: str = "ndcg",
    temperature: float = 1.0,
    before: Float[Tensor, "queries samples k"] | None = None,
) -> Rollout:
    """Reward sampled rankings, and compute the log-probability of each place.

    Args:
        chosen: what `draw_rankings` returned.
        reward: a key of `REWARDS`.
        temperature: as when they were drawn.
        before: the log-probabilities when they were drawn (None: these).
    """
    grades = ranking.relevance.float().masked_fill(~ranking.keep, 0).clamp(min=0)
    keep = _spread(ranking.keep, chosen.shape[1]).gather(2, chosen)
    rewards = REWARDS[reward](_spread(grades, chosen.shape[1]).gather(2, chosen).masked_fill(~keep, 0), grades)

    def of(scores: Float[Tensor, "queries docs"]) -> Float[Tensor, "queries samples k"]:
        return place_log_probs(_masked(scores, ranking.keep, temperature), chosen).masked_fill(~keep, 0)

    log_probs, start = of(ranking.scores), None if ranking.start is None else of(ranking.start)
    before = log_probs.detach() if before is None else before
    return Rollout(log_probs, before, rewards, keep, most=chosen.shape[2], start=start)


def _masked(
    scores: Float[Tensor, "queries docs"], keep: Bool[Tensor, "queries docs"], temperature: float
) -> Float[Tensor, "queries docs"]:
    """Divide scores by the temperature; documents that do not count are never drawn."""
    return (scores.float() / temperature).masked_fill(~keep, torch.finfo(torch.float32).min / 4)  # -inf: no gradient


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


def _sample(scores: Float[Tensor, "queries docs"], samples: int, k: int) -> Int[Tensor, "queries samples k"]:
    noise = -torch.empty(len(scores), samples, scores.shape[1], device=scores.device).exponential_().log()
    return (scores[:, None, :] + noise).topk(min(k, scores.shape[1])).indices


def place_log_probs(
    scores: Float[Tensor, "queries docs"], chosen: Int[Tensor, "queries samples k"]
) -> Float[Tensor, "queries samples k"]:
    """Compute the log-probability of drawing each of these documents from those that were left."""
    everything = _spread(scores, chosen.shape[1])
    picked = everything.gather(2, chosen)
    never = torch.finfo(torch.float32).min / 4
    rest = everything.scatter(2, chosen, never).logsumexp(2, keepdim=True)
    left = torch.cat([rest, picked.flip(2)], 2).logcumsumexp(2)[:, :, 1:].flip(2)  # those at and behind each place
    return picked - left


def _spread(values: Tensor, samples: int) -> Tensor:
    return values[:, None, :].expand(-1, samples, -1)
