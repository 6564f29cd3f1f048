"""Losses over the order of a query's whole list."""

import torch
from jaxtyping import Float
from torch import Tensor

from shortlist.math.losses.lists import (
    ORDERS,
    Gain,
    Order,
    gains,
    ideal_dcg,
    log_softmax,
    picked,
    positives,
    sequence_losses,
    true_columns,
)
from shortlist.math.ranking import Ranking


def listnet(ranking: Ranking, *, temperature: float = 1.0, grade_temperature: float = 1.0) -> Float[Tensor, ""]:
    """Match the softmax of the scores with the grades' softmax (ListNet's top-one cross-entropy).

    A query without a positive teaches nothing.

    Args:
        temperature: divides the scores.
        grade_temperature: divides the grades; the more documents a list has, the lower it should be, since even a grade
            of 0 keeps some probability (with 2,000 documents, 0.1 leaves a lone positive 92%).

    https://doi.org/10.1145/1273496.1273513
    """
    _, found = positives(ranking)
    counts = ranking.keep & found
    wanted = log_softmax(ranking.relevance.float() / grade_temperature, counts).exp()
    logs = log_softmax(ranking.scores.float() / temperature, counts)
    return -(wanted.masked_fill(~counts, 0) * logs).sum(1).mean()


def listmle(
    ranking: Ranking, *, temperature: float = 1.0, order: Order = "relevance", weigh_positions: bool = False
) -> Float[Tensor, ""]:
    """Compute -log of the Plackett-Luce probability of the right order.

    Documents are drawn one after another, each by softmax from those that are left. Documents of the lowest grade in
    the list have no order among themselves, so they are only what is left: with one positive this is `infonce`. Other
    documents of equal grades stand in the likeliest order, that of their scores.

    Args:
        temperature: divides the scores.
        order: `relevance` follows the grades; `teacher` follows the teacher's scores, among the documents it scored.
        weigh_positions: weigh rank r of n by 2^(n - r) - 1, scaled to sum to 1: the top counts most (p-ListMLE).

    Raises:
        ValueError: the order is the teacher's, and there is no teacher.

    https://doi.org/10.1145/1390156.1390306, https://auai.org/uai2014/proceedings/individuals/164.pdf (weights)
    """
    values, counts = ORDERS[order](ranking, "listmle")
    places, real = true_columns(counts)
    scores, values = (picked(part, places, real) for part in (ranking.scores, values))
    by_score = scores.detach().masked_fill(~real, -torch.inf).argsort(dim=1, descending=True)
    in_order = values.masked_fill(~real, -torch.inf).gather(1, by_score).argsort(dim=1, descending=True, stable=True)
    chosen = by_score.gather(1, in_order)
    scores, values, real = (part.gather(1, chosen) for part in (scores, values, real))
    lowest = values.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    losses = sequence_losses(scores / temperature, real).masked_fill(values <= lowest, 0)
    return (losses * _position_weights(real) if weigh_positions else losses).sum(1).mean()


def approxndcg(ranking: Ranking, *, temperature: float = 0.1, gain: Gain = "linear") -> Float[Tensor, ""]:
    """Compute 1 - nDCG, with ranks made smooth.

    A document's rank is 1 plus the sum over all others of sigmoid((s' - s) / temperature), which counts those that
    score higher. A query without a positive teaches nothing.

    Args:
        temperature: divides the scores: the lower it is, the nearer are the ranks to whole numbers, and the fewer
            documents have a gradient.
        gain: what a grade counts: `linear`, as nDCG is measured here, or `exponential`.

    https://doi.org/10.1007/s10791-009-9124-x
    """
    gain_of = gains(ranking, gain)
    scores = ranking.scores.float().masked_fill(~ranking.keep, 0) / temperature
    places, real = true_columns(gain_of > 0)
    above = torch.sigmoid(scores[:, None, :] - picked(scores, places, real)[:, :, None])
    ranks = 0.5 + above.masked_fill(~ranking.keep[:, None, :], 0).sum(2)  # it stands half above itself
    dcg = (picked(gain_of, places, real) / torch.log2(1 + ranks)).sum(1)
    found = (gain_of > 0).any(1)
    return (found.float() - dcg / ideal_dcg(gain_of, gain_of.shape[1])[:, 0]).mean()


def _position_weights(real: Tensor) -> Float[Tensor, "queries docs"]:
    counts = real.sum(1, keepdim=True)
    ranks = torch.arange(1, real.shape[1] + 1, device=real.device)
    weights = (0.5**ranks - 0.5**counts).masked_fill(~real, 0)  # times 2^n, which would overflow
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
