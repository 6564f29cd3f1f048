"""Losses that follow a teacher's scores."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.ranking import Ranking


def kl(ranking: Ranking, *, temperature: float = 1.0, teacher_temperature: float = 1.0) -> Float[Tensor, ""]:
    """Share each query out among the documents that the teacher scored as the teacher does.

    The Kullback-Leibler divergence of the softmax of the scores from the softmax of the teacher's, in nats, the mean
    over queries: 0 where they agree, whatever was added to all scores of a row.

    Args:
        temperature: divides the scores.
        teacher_temperature: divides the teacher's scores: the lower, the more its first choice counts.

    Raises:
        ValueError: there is no teacher.

    https://arxiv.org/abs/2010.11386
    """
    if ranking.teacher is None:
        raise ValueError("kl follows a teacher's scores, and there are none")
    places, counts = _compact(ranking.keep & ~ranking.teacher.isnan())
    scores, teacher = (values.float().gather(1, places) for values in (ranking.scores, ranking.teacher))

    def logs(values: Tensor) -> Tensor:
        return F.log_softmax(values.masked_fill(~counts, -torch.inf), 1).masked_fill(~counts, 0.0)

    given, wanted = logs(scores / temperature), logs(teacher / teacher_temperature)
    return F.kl_div(given, wanted, log_target=True, reduction="batchmean")


def _compact(
    mask: Bool[Tensor, "queries docs"],
) -> tuple[Int[Tensor, "queries most"], Bool[Tensor, "queries most"]]:
    """Find the columns where each row's mask is True, in order, and which of them there are.

    A teacher scores the few documents of a query's own group, out of a batch of thousands.
    """
    counts = mask.sum(1, keepdim=True)
    places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    return places, torch.arange(places.shape[1], device=mask.device) < counts
