"""Losses over pairs of documents of a query."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.lists import (
    ORDERS,
    Gain,
    Order,
    discounts,
    gains,
    ideal_dcg,
    ordered_pairs,
    picked,
    positives,
    row_means,
    teacher_scores,
    true_columns,
)
from shortlist.math.ranking import Ranking


def hinge(ranking: Ranking, *, margin: float = 0.1) -> Float[Tensor, ""]:
    """Place each document a margin above all documents of lower grades.

    The loss is the mean over all pairs of a query whose grades differ, then over queries.

    Args:
        margin: the least distance of two scores; below it, the loss grows linearly.

    https://doi.org/10.1145/775047.775067
    """
    pairs = ordered_pairs(ranking.scores, ranking.relevance, ranking.keep)
    return row_means((margin - pairs.margins).clamp(min=0), pairs.counts)


def ranknet(
    ranking: Ranking, *, temperature: float = 1.0, order: Order = "relevance", weigh_by_ranks: bool = False
) -> Float[Tensor, ""]:
    """Compute the logistic loss of all pairs that should stand in this order.

    A pair's loss is softplus(-(s - s')) for the scores s of the document that belongs higher and s' of the other. It is
    averaged over the pairs of a query, then over queries. Documents that are equal in the order are no pair. Memory
    grows with the square of how many documents a teacher scored for a query.

    Args:
        temperature: divides the scores (E2Rank: 0.1 for cosines).
        order: `relevance` follows the grades; `teacher` follows the order of the teacher's scores, among the documents
            that the teacher scored.
        weigh_by_ranks: divide each pair's loss by the sum of the two documents' ranks in that order, so that the top
            counts most (FIRST). Documents that are equal share the best rank of theirs.

    Raises:
        ValueError: the order is the teacher's, and there is no teacher.

    https://doi.org/10.1145/1102351.1102363, https://arxiv.org/abs/2406.15657 (weights)
    """
    values, counts = ORDERS[order](ranking, "ranknet")
    places, real = true_columns(counts)
    scores, values = (picked(part, places, real) for part in (ranking.scores, values))
    pairs = ordered_pairs(scores / temperature, values, real)
    losses = F.softplus(-pairs.margins)
    if weigh_by_ranks:
        first, other = pairs.both(_shared_ranks(values, real).float())
        losses = losses / (first + other)
    return row_means(losses, pairs.counts)


def lambdarank(ranking: Ranking, *, temperature: float = 1.0, k: int = 10, gain: Gain = "linear") -> Float[Tensor, ""]:
    """Compute the logistic loss of pairs, weighed by how far a swap changes nDCG@k.

    The sum over all pairs of a query whose grades differ, averaged over queries. The weight |delta nDCG@k| belongs to
    the order of the current scores and has no gradient; a pair with both documents below rank k counts nothing.

    Args:
        temperature: divides the scores.
        k: ranks that nDCG counts.
        gain: what a grade counts: `linear`, as nDCG is measured here, or `exponential`.

    https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/
    """
    pairs = ordered_pairs(ranking.scores.float() / temperature, ranking.relevance, ranking.keep)
    gain_of = gains(ranking, gain)
    low = ranking.scores.detach().float().masked_fill(~ranking.keep, -torch.inf)
    order = low.argsort(dim=1, descending=True, stable=True)
    cut = discounts(order.shape[1], device=low.device)
    cut[k:] = 0
    discount_of = torch.zeros_like(gain_of).scatter(1, order, cut.expand(order.shape).contiguous())
    (own_gain, other_gain), (own, other) = pairs.both(gain_of), pairs.both(discount_of)
    weights = ((own_gain - other_gain) * (own - other)).abs() / ideal_dcg(gain_of, k)[:, :, None]
    losses = (weights * F.softplus(-pairs.margins)).masked_fill(~pairs.counts, 0)
    return losses.sum((1, 2)).mean()


def margin_mse(
    ranking: Ranking, *, pairs: Literal["positive", "all"] = "positive", scale: float = 1.0
) -> Float[Tensor, ""]:
    """Match the differences between the teacher's scores, by their squared error.

    Averaged over pairs of a query's documents that the teacher scored, then over queries. A teacher's scores should be
    raw (not after a sigmoid), at a scale that the model can reach: that of dot products, or of scaled cosines.

    Args:
        pairs: `positive` compares the positive with each other document, and skips queries whose positive the teacher
            did not score; `all` compares any two documents, and needs no positive.
        scale: multiplies the model's scores.

    Raises:
        ValueError: there is no teacher.

    https://arxiv.org/abs/2010.02666
    """
    teacher, counts = teacher_scores(ranking, "margin_mse")
    places, real = true_columns(counts)
    scores, teacher = (picked(values, places, real) for values in (ranking.scores, teacher))
    relevance = picked(ranking.relevance, places, real)
    excess = (scores * scale - teacher).masked_fill(~real, 0)  # what is the same everywhere is no error
    return _EXCESS[pairs](excess, relevance, real).mean()


def yes_no(
    ranking: Ranking,
    *,
    negatives: Literal["hardest", "all", "each"] = "hardest",
    weight: Literal["sft", "contrastive", "one"] = "sft",
    direction: Literal["sft", "contrastive"] = "sft",
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Say yes to relevant documents and no to others.

    A score is read as the logit of "yes" over "no", as a language model's two answers give it. The loss of a query is
    the mean cross-entropy of "yes" over its relevant documents (grade above 0) plus that of "no" over the others. A
    query without a positive teaches nothing. `--loss yes_no infonce` is how UniME-V2 trains its reranker.

    Its gradient is a sum over documents of a weight, which says how far a document is from where it belongs, times a
    direction, in which the model changes. Both can be those of another loss, so that their effects can be told apart.
    With the same for both, the loss is that of the name.

    Args:
        negatives: `hardest` says no to the highest score among the others; `all` to each of them, and takes the mean;
            `each` takes one mean over relevant documents and others, as supervised fine-tuning of pairs does.
        weight: `sft`, that of the cross-entropy of "yes" and "no"; `contrastive`, that of `infonce` over the logits of
            "yes" of the positive and the negatives; or `one`, the same for all documents however well they are placed.
        direction: `sft`, the logit of "yes" less that of "no"; `contrastive`, the logit of "yes" alone. For a model
            that gives one number they are the same.
        temperature: divides the scores and logits.

    https://arxiv.org/abs/2510.13515, https://arxiv.org/abs/2510.14824 (weights and directions)
    """
    keep = ranking.keep
    directions = {
        name: values.float().masked_fill(~keep, 0) / temperature
        for name, values in (
            ("sft", ranking.scores),
            ("contrastive", ranking.scores if ranking.yes is None else ranking.yes),
        )
    }
    relevant = keep & (ranking.relevance > 0)
    others = keep & ~relevant & relevant.any(1, keepdim=True)
    others = _NEGATIVES[negatives](directions["sft"], others)
    with torch.enable_grad():
        own = directions["contrastive" if weight == "contrastive" else "sft"].detach().requires_grad_()
        value = _WEIGHTS[weight](own, ranking, relevant, others, negatives == "each")
        (weights,) = torch.autograd.grad(value, own)
    moved = (weights * directions[direction]).sum()
    return value.detach() + moved - moved.detach()


def _both_means(
    losses: tuple[Tensor, Tensor],
    relevant: Bool[Tensor, "queries docs"],
    others: Bool[Tensor, "queries docs"],
    *,
    each: bool,
) -> Float[Tensor, ""]:
    """Average losses of relevant documents, and of others, by themselves or all alike."""
    if each:
        return row_means(torch.where(relevant, *losses), relevant | others)
    return row_means(losses[0], relevant) + row_means(losses[1], others)


def _cross_entropy(
    scores: Float[Tensor, "queries docs"],
    ranking: Ranking,
    relevant: Bool[Tensor, "queries docs"],
    others: Bool[Tensor, "queries docs"],
    each: bool,
) -> Float[Tensor, ""]:
    return _both_means((F.softplus(-scores), F.softplus(scores)), relevant, others, each=each)


def _contrast(
    yes: Float[Tensor, "queries docs"],
    ranking: Ranking,
    relevant: Bool[Tensor, "queries docs"],
    others: Bool[Tensor, "queries docs"],
    each: bool,
) -> Float[Tensor, ""]:
    """Compute `infonce` over the positive and the negatives that were chosen."""
    columns, found = positives(ranking)
    keep = others.scatter(1, columns, True) & found
    return infonce(ranking._replace(scores=yes, keep=keep), temperature=1.0)


def _alike(
    scores: Float[Tensor, "queries docs"],
    ranking: Ranking,
    relevant: Bool[Tensor, "queries docs"],
    others: Bool[Tensor, "queries docs"],
    each: bool,
) -> Float[Tensor, ""]:
    return _both_means((-scores, scores), relevant, others, each=each)


_WEIGHTS: dict[str, Callable[..., Tensor]] = {"sft": _cross_entropy, "contrastive": _contrast, "one": _alike}
"""For each weight the loss whose gradient by its own direction it is."""


def _shared_ranks(values: Float[Tensor, "queries docs"], counts: Bool[Tensor, "queries docs"]) -> Int[Tensor, "..."]:
    """Rank each document by its value, from 1; equal ones share the best rank."""
    below = (-values).masked_fill(~counts, torch.inf)
    return torch.searchsorted(below.sort(1).values, below) + 1


def _beside_positive(
    excess: Float[Tensor, "queries docs"], relevance: Float[Tensor, "queries docs"], real: Bool[Tensor, "queries docs"]
) -> Float[Tensor, " queries"]:
    columns, found = positives(Ranking(excess, relevance, None, real))
    others = real.scatter(1, columns, False) & found
    squares = (excess - excess.gather(1, columns)).square().masked_fill(~others, 0)
    return squares.sum(1) / others.sum(1).clamp(min=1)


def _among_all(
    excess: Float[Tensor, "queries docs"], relevance: Float[Tensor, "queries docs"], real: Bool[Tensor, "queries docs"]
) -> Float[Tensor, " queries"]:
    """Average the squared differences of all pairs, which is twice the variance."""
    counts = real.sum(1, keepdim=True)
    middle = excess.sum(1, keepdim=True) / counts.clamp(min=1)
    squares = (excess - middle).square().masked_fill(~real, 0)
    return 2 * squares.sum(1) / (counts[:, 0] - 1).clamp(min=1)


def _hardest(
    scores: Float[Tensor, "queries docs"], others: Bool[Tensor, "queries docs"]
) -> Bool[Tensor, "queries docs"]:
    place = scores.detach().masked_fill(~others, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(others).scatter(1, place, True) & others


_EXCESS: dict[str, Callable[..., Tensor]] = {"positive": _beside_positive, "all": _among_all}
_NEGATIVES: dict[str, Callable[..., Tensor]] = {"hardest": _hardest, "all": lambda scores, others: others}
_NEGATIVES["each"] = _NEGATIVES["all"]
