"""Losses that follow a teacher's scores."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    """Gather the columns where the mask is True to the front of each row.

    All rows are cut to the longest one; the returned mask says which entries are real. This keeps the loss small: a
    teacher scores only the few documents of a query's own group, in a batch of thousands.
    """
    counts = mask.sum(1, keepdim=True)
    places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    return places, torch.arange(places.shape[1], device=mask.device) < counts
