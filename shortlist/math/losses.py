"""What training minimises, over scores; and which scores may count."""

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def infonce(
    scores: Float[Tensor, "queries docs"],
    positives: Int[Tensor, " queries"],
    *,
    temperature: float = 1.0,
    keep: Bool[Tensor, "queries docs"] | None = None,
) -> Float[Tensor, ""]:
    """Each query must pick its positive out of the documents in its row.

    With a row of every document of the batch this trains a retriever on in-batch negatives; with a row of the
    query's own group, positive first, it is the softmax loss of a reranker.

    Args:
        scores: similarity of every query to every document of its row.
        positives: column of each query's positive.
        temperature: divides the scores; about 0.01 for unit vectors, 1 for raw dot products.
        keep: False where a document must not be pushed away. Always True at the positive itself.

    https://arxiv.org/abs/1807.03748
    """
    logits = scores.float() / temperature  # bf16 would round away the differences we train on
    if keep is not None:
        logits = logits.masked_fill(~keep, -torch.inf)
    return F.cross_entropy(logits, positives)


def distillation(
    scores: Float[Tensor, "queries docs"],
    teacher: Float[Tensor, "queries docs"],
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    keep: Bool[Tensor, "queries docs"] | None = None,
) -> Float[Tensor, ""]:
    """Each query must share itself out among the documents of its row as a teacher does.

    The Kullback-Leibler divergence of the softmax of the scores from that of the teacher's, in nats, the mean over
    queries: 0 where they agree, whatever was added to all scores of a row.

    Args:
        scores: similarity of every query to every document of its row.
        teacher: the teacher's scores of the same.
        temperature: divides the scores.
        teacher_temperature: divides the teacher's: the lower, the more its first choice counts.
        keep: False where there is no document. True somewhere in every row.

    https://arxiv.org/abs/2010.11386
    """

    def logs(values: Tensor) -> Tensor:
        if keep is None:
            return F.log_softmax(values, 1)
        return F.log_softmax(values.masked_fill(~keep, -torch.inf), 1).masked_fill(~keep, 0.0)

    own, theirs = logs(scores.float() / temperature), logs(teacher.float() / teacher_temperature)
    return F.kl_div(own, theirs, log_target=True, reduction="batchmean")


def countable(
    doc_ids: Sequence[str], own: Sequence[int], positives: Sequence[Collection[str]]
) -> Bool[Tensor, "queries docs"]:
    """Which documents of a batch may count for which query.

    Not another positive of the query (pushing it away would unlearn it), and each document id once, however often the
    batch holds it.

    Args:
        doc_ids: id of every document of the batch.
        own: column of each query's own positive.
        positives: ids of all that is relevant to each query.
    """
    columns: dict[str, list[int]] = {}
    for column, doc_id in enumerate(doc_ids):
        columns.setdefault(doc_id, []).append(column)
    keep = torch.ones(len(own), len(doc_ids), dtype=torch.bool)
    for again in columns.values():
        keep[:, again[1:]] = False
    for row, (column, relevant) in enumerate(zip(own, positives, strict=True)):
        for doc_id in {*relevant, doc_ids[column]}:
            keep[row, columns.get(doc_id, [])] = False
        keep[row, column] = True
    return keep


Loss = Callable[..., Float[Tensor, ""]]

LOSSES: dict[str, Loss] = {"infonce": infonce}
