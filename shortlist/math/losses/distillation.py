"""Losses that follow a teacher's scores."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from shortlist.math.losses.lists import log_softmax, picked, positives, sequence_losses, teacher_scores, true_columns
from shortlist.math.ranking import Ranking


def kl(ranking: Ranking, *, temperature: float = 1.0, teacher_temperature: float = 1.0) -> Float[Tensor, ""]:
    """Match the teacher's distribution over the documents that the teacher scored.

    The loss is the Kullback-Leibler divergence between the softmax of the teacher's scores and the softmax of the
    model's, in nats, averaged over queries. It is 0 where the two agree, and adding a constant to all scores of a row
    does not change it.

    Args:
        temperature: divides the scores.
        teacher_temperature: divides the teacher's scores; the lower it is, the more the teacher's first choice counts.

    Raises:
        ValueError: there is no teacher.

    https://arxiv.org/abs/2010.11386
    """
    given, wanted = _distributions(ranking, "kl", temperature, teacher_temperature)
    return F.kl_div(given, wanted, log_target=True, reduction="batchmean")


def js(ranking: Ranking, *, temperature: float = 1.0, teacher_temperature: float = 1.0) -> Float[Tensor, ""]:
    """Match the teacher's distribution by the Jensen-Shannon divergence.

    The mean of both distributions' divergences from their average: symmetric, and at most log 2, so that a teacher who
    is wrong about a query does limited harm.

    Args:
        temperature: divides the scores.
        teacher_temperature: divides the teacher's scores.

    Raises:
        ValueError: there is no teacher.

    https://doi.org/10.1109/18.61115
    """
    given, wanted = _distributions(ranking, "js", temperature, teacher_temperature)
    middle = torch.logaddexp(given, wanted) - math.log(2)
    sides = (F.kl_div(middle, side, log_target=True, reduction="batchmean") for side in (given, wanted))
    return sum(sides, start=torch.zeros((), device=given.device)) / 2


def judge(ranking: Ranking, *, temperature: float = 0.02, teacher_temperature: float = 0.02) -> Float[Tensor, ""]:
    """Match a judge's soft labels, by the mean of both directions' divergences.

    The judge's scores are the teacher's of the groups: for each pair, how probable "yes" is beside "no", between 0 and
    1. The loss is half of KL(model, judge) + KL(judge, model), which some of its descriptions call Jensen-Shannon.

    Args:
        temperature: divides the scores.
        teacher_temperature: divides the judge's scores.

    Raises:
        ValueError: there is no judge.

    https://arxiv.org/abs/2510.13515
    """
    given, wanted = _distributions(ranking, "judge", temperature, teacher_temperature)
    return ((given.exp() - wanted.exp()) * (given - wanted)).sum(1).mean() / 2


def pld(ranking: Ranking, *, temperature: float = 1.0, teacher_temperature: float = 1.0) -> Float[Tensor, ""]:
    """Follow the teacher's order, each choice weighed by the teacher's confidence (Plackett-Luce distillation).

    The order is the positive first, then all other documents by the teacher's scores. The loss is -log of the
    probability of each choice among the documents that are left, weighed by the teacher's softmax of the chosen one. If
    the teacher is sure of the positive, this is `infonce`; if it prefers nothing, it is `listmle` divided by the number
    of documents. Only documents that the teacher scored count; without a positive among them, the order is the
    teacher's alone.

    Args:
        temperature: divides the scores.
        teacher_temperature: divides the teacher's scores in the weights.

    Raises:
        ValueError: there is no teacher.

    https://arxiv.org/abs/2506.12542
    """
    teacher, counts = teacher_scores(ranking, "pld")
    places, real = true_columns(counts)
    scores, relevance, teacher = (picked(part, places, real) for part in (ranking.scores, ranking.relevance, teacher))
    first, found = positives(Ranking(scores, relevance, None, real))
    worth = teacher.masked_fill(~real, -torch.inf)
    worth = worth.scatter(1, first, torch.where(found, torch.inf, worth.gather(1, first)))
    order = worth.argsort(dim=1, descending=True, stable=True)
    weights = _probabilities(teacher / teacher_temperature, real).gather(1, order)
    losses = sequence_losses(scores.gather(1, order) / temperature, real.gather(1, order))
    return (weights * losses).sum(1).mean()


def sinkhorn(
    ranking: Ranking,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    epsilon: float = 0.1,
    iterations: int = 20,
) -> Float[Tensor, ""]:
    """Move the batch's distributions onto the teacher's, at the least cost (Sinkhorn distillation).

    Each query's softmax over documents is one sample of the model, the teacher's is one of the teacher; moving one onto
    another costs the sum of their absolute differences. The loss is the cost of the regularised transport plan between
    all samples of the batch, divided by the number of queries: for one query, the plain difference; for a model that
    agrees with the teacher, small but not 0.

    The columns must mean the same documents in every row, as for a retriever; among lists of their own, as a
    reranker has, costs between queries would mean nothing. In both distributions a document has the probability 0 for
    queries that it does not count for, or that the teacher did not score it for. So with a teacher that scored each
    query's own group, queries without common documents are as far apart as can be, and each is moved onto its own.
    Queries without any scores of the teacher add nothing.

    Args:
        temperature: divides the scores; 2 in the authors' code.
        teacher_temperature: divides the teacher's scores; 2 in the authors' code.
        epsilon: how much the plan is smoothed; costs are between 0 and 2.
        iterations: how often rows, then columns, are scaled to sum to 1.

    Raises:
        ValueError: there is no teacher.

    https://arxiv.org/abs/2402.17110
    """
    teacher, counts = teacher_scores(ranking, "sinkhorn")
    given, wanted = (
        _probabilities(values.float().masked_fill(~counts, 0) / divisor, counts)
        for values, divisor in ((ranking.scores, temperature), (teacher, teacher_temperature))
    )
    rows = counts.any(1)
    if not rows.any():
        return given.sum()
    cost = torch.cdist(given[rows], wanted[rows], p=1)
    plan = -cost / epsilon  # logarithms: exp would underflow for a small epsilon
    for _ in range(iterations):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True)
    return (plan.exp() * cost).sum() / len(rows)


def _distributions(
    ranking: Ranking, name: str, temperature: float, teacher_temperature: float
) -> tuple[Float[Tensor, "queries most"], Float[Tensor, "queries most"]]:
    """Compute the model's and the teacher's log-softmax; 0 in both where nothing counts."""
    teacher, counts = teacher_scores(ranking, name)
    places, real = true_columns(counts)
    scores, teacher = (values.float().gather(1, places) for values in (ranking.scores, teacher))
    return log_softmax(scores / temperature, real), log_softmax(teacher / teacher_temperature, real)


def _probabilities(
    values: Float[Tensor, "queries docs"], counts: Bool[Tensor, "queries docs"]
) -> Float[Tensor, "queries docs"]:
    return log_softmax(values, counts).exp().masked_fill(~counts, 0)
