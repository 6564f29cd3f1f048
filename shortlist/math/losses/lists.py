"""Parts of a ranking that several losses read: counts, positives, orders, pairs."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.ranking import Ranking

Order = Literal["relevance", "teacher"]
"""Whose order a loss follows: that of the grades, or that of the teacher's scores."""

Gain = Literal["linear", "exponential"]
"""What a grade counts in nDCG: itself, or 2^grade - 1."""


def positives(ranking: Ranking) -> tuple[Int[Tensor, "queries 1"], Bool[Tensor, "queries 1"]]:
    """Find each row's positive, the kept document with the highest grade.

    The mask is False for rows that have none, as no kept document has a grade above 0.
    """
    grades, columns = ranking.relevance.masked_fill(~ranking.keep, -torch.inf).max(1, keepdim=True)
    return columns, grades > 0


def teacher_scores(ranking: Ranking, name: str) -> tuple[Float[Tensor, "queries docs"], Bool[Tensor, "queries docs"]]:
    """Return the teacher's scores, and where they count.

    Raises:
        ValueError: there is no teacher; the message names the loss.
    """
    if ranking.teacher is None:
        raise ValueError(f"{name} follows a teacher's scores, and there are none")
    return ranking.teacher.float(), ranking.keep & ~ranking.teacher.isnan()


def _graded(ranking: Ranking, name: str) -> tuple[Float[Tensor, "queries docs"], Bool[Tensor, "queries docs"]]:
    return ranking.relevance.float(), ranking.keep


ORDERS: dict[str, Callable[[Ranking, str], tuple[Float[Tensor, "queries docs"], Bool[Tensor, "queries docs"]]]] = {
    "relevance": _graded,
    "teacher": teacher_scores,
}
"""The values that each `Order` sorts by, and where they count."""

GAINS: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda grades: grades, "exponential": lambda g: 2**g - 1}


def gains(ranking: Ranking, gain: Gain) -> Float[Tensor, "queries docs"]:
    """Compute each document's gain in the DCG; 0 where it does not count."""
    return GAINS[gain](ranking.relevance.float().masked_fill(~ranking.keep, 0).clamp(min=0))


def ideal_dcg(gains: Float[Tensor, "queries docs"], k: int) -> Float[Tensor, "queries 1"]:
    """Compute the DCG of the best order's first k; 1 where it is 0."""
    best = gains.topk(min(k, gains.shape[1])).values
    total = (best * discounts(best.shape[1], device=gains.device)).sum(1, keepdim=True)
    return torch.where(total > 0, total, 1.0)


def discounts(count: int, *, device: torch.device) -> Float[Tensor, " ranks"]:
    """Compute 1 / log2(rank + 1) for the first ranks."""
    return 1 / torch.log2(torch.arange(2, count + 2, device=device))


def true_columns(
    mask: Bool[Tensor, "queries docs"],
) -> tuple[Int[Tensor, "queries most"], Bool[Tensor, "queries most"]]:
    """Find the columns where the mask is True, at the front of each row.

    All rows are cut to the longest one, but have at least one column; the returned mask says which entries are real.
    This keeps a loss small where a few documents of a batch of thousands count, such as those of the query's own group.
    """
    counts = mask.sum(1, keepdim=True)
    real = torch.arange(max(1, int(counts.max())), device=mask.device) < counts
    places = torch.zeros(real.shape, dtype=torch.long, device=mask.device)
    places[real] = mask.nonzero()[:, 1]  # both run row by row
    return places, real


def picked(
    values: Float[Tensor, "queries docs"], places: Int[Tensor, "queries most"], real: Bool[Tensor, "queries most"]
) -> Float[Tensor, "queries most"]:
    """Gather these columns in float32, with 0 where they are not real."""
    return values.float().gather(1, places).masked_fill(~real, 0)


def log_softmax(
    values: Float[Tensor, "queries docs"], counts: Bool[Tensor, "queries docs"]
) -> Float[Tensor, "queries docs"]:
    """Compute the logarithm of each row's softmax over the entries that count, with 0 elsewhere."""
    return F.log_softmax(values.masked_fill(~counts, -torch.inf), 1).masked_fill(~counts, 0.0)


def row_means(values: Float[Tensor, "queries *rest"], counts: Bool[Tensor, "queries *rest"]) -> Float[Tensor, ""]:
    """Average over the entries that count of each row, then over rows.

    A row without any gives 0.
    """
    sums = values.masked_fill(~counts, 0).flatten(1).sum(1)
    return (sums / counts.flatten(1).sum(1).clamp(min=1)).mean()


class Pairs(NamedTuple):
    """Pairs of a query's documents; the first should score higher."""

    margins: Float[Tensor, "queries firsts docs"]
    """The first one's score minus the other's."""
    counts: Bool[Tensor, "queries firsts docs"]
    firsts: Int[Tensor, "queries firsts"]
    """Columns of the first ones: the documents that belong above some other."""

    def both(self, values: Float[Tensor, "queries docs"]) -> tuple[Tensor, Tensor]:
        """Return the values of the first ones and of the others, ready to be combined."""
        return values.gather(1, self.firsts)[:, :, None], values[:, None, :]


def ordered_pairs(
    scores: Float[Tensor, "queries docs"], order: Float[Tensor, "queries docs"], counts: Bool[Tensor, "queries docs"]
) -> Pairs:
    """List all pairs whose first document has the higher value in `order`.

    Only documents above a row's lowest value come first in a pair, so with one positive there are as many pairs as
    other documents.
    """
    scores, order = (values.float().masked_fill(~counts, 0) for values in (scores, order))
    lowest = order.masked_fill(~counts, torch.inf).amin(1, keepdim=True)
    firsts, real = true_columns(counts & (order > lowest))
    pairs = Pairs(scores, counts, firsts)
    (own, other), (high, low) = pairs.both(scores), pairs.both(order)
    return pairs._replace(margins=own - other, counts=real[:, :, None] & counts[:, None, :] & (high > low))


def sequence_losses(
    scores: Float[Tensor, "queries docs"], counts: Bool[Tensor, "queries docs"]
) -> Float[Tensor, "queries docs"]:
    """Compute -log of the Plackett-Luce probability of each document in turn; 0 where none counts.

    Documents are given in the order that they are chosen in: each is drawn by softmax from those that are left.
    """
    low = scores.masked_fill(~counts, torch.finfo(torch.float32).min / 4)  # not -inf, which has no gradient
    left = low.flip(1).logcumsumexp(1).flip(1)
    return (left - low).masked_fill(~counts, 0)
