"""Rankings to try losses on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shortlist.math.ranking import Ranking


def random_scores(queries: int = 4, docs: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(queries, docs, generator=torch.Generator().manual_seed(seed))


POSITIVES = torch.tensor([0, 3, 6, 9])
TEACHER = random_scores(seed=2)


def ranking(scores: Tensor, positives: Tensor = POSITIVES, teacher: Tensor | None = TEACHER) -> Ranking:
    """One positive in each row, every document counted."""
    relevance = torch.zeros(scores.shape)
    relevance[torch.arange(len(scores)), positives] = 1
    return Ranking(scores, relevance, teacher, torch.ones(scores.shape, dtype=torch.bool))


def graded(scores: Sequence[float], grades: Sequence[float], teacher: Sequence[float] | None = None) -> Ranking:
    """One query, every document counted; the scores take gradients."""
    values = torch.tensor([list(scores)], requires_grad=True)
    known = None if teacher is None else torch.tensor([list(teacher)])
    return Ranking(values, torch.tensor([list(grades)]).float(), known, torch.ones(1, len(scores), dtype=torch.bool))


def slope(loss: Tensor, given: Ranking) -> list[float]:
    """The gradient for the scores of one query."""
    (found,) = torch.autograd.grad(loss, given.scores)
    return found[0].tolist()


def columns(whole: Ranking, chosen: Tensor) -> Ranking:
    """The ranking of some columns, in this order."""
    return Ranking(*(None if part is None else part[:, chosen] for part in whole))  # type: ignore[arg-type]
